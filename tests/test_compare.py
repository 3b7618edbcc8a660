"""Runs side by side: the table, the sheet, and folders that are no runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from npbgpp.compare import compare, read_runs, table_rows
from npbgpp.errors import InputError


def write_run(folder: Path, psnr: float, colour: tuple[int, int, int], views: tuple[str, ...] = ("a", "b")) -> Path:
    per_view = {view: {"psnr": psnr, "ssim": 0.5, "lpips": None, "seconds": 0.1} for view in views}
    row = {"psnr": psnr, "ssim": 0.5, "lpips": None, "views": len(views), "seconds_per_view": 0.1, "per_view": per_view}
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"stage": "test", "epoch": 0, "protocol": {}, "datasets": {"ball_holdout": row}}))
    for epoch, shown in ((2, (0, 0, 0)), (10, colour)):
        pictures = folder / "rendered" / "ball_holdout" / f"test_epoch{epoch}"
        pictures.mkdir(parents=True)
        for view in views:
            Image.new("RGB", (32, 32), (255, 255, 255)).save(pictures / f"{view}_gt.png")
            Image.new("RGB", (32, 32), shown).save(pictures / f"{view}_rendered.png")
    return folder


def test_table_and_pictures(tmp_path):
    runs = [write_run(tmp_path / "first" / "run", 20.0, (255, 0, 0)), write_run(tmp_path / "second" / "run", 25.0, (0, 255, 0), ("b", "c"))]
    assert [row[:3] for row in table_rows(read_runs(runs))] == [
        ("ball_holdout", "first/run", "20.00"),
        ("ball_holdout", "second/run", "25.00"),
    ]
    compare(runs, tmp_path / "out")
    assert "| ball_holdout | second/run | 25.00 | 0.5000 | not available | 2 | 0.100 |" in (tmp_path / "out" / "comparison.md").read_text()
    with Image.open(tmp_path / "out" / "comparison.png") as sheet:
        # one view is shared: photo, then the last rendering of each run
        assert sheet.size == (3 * 264 + 8, 64 + 286)
        assert [sheet.getpixel((8 + 264 * k + 128, 64 + 128)) for k in range(3)] == [(255, 255, 255), (255, 0, 0), (0, 255, 0)]


def test_runs_without_a_common_view_have_a_table_only(tmp_path):
    compare([write_run(tmp_path / "a", 20.0, (0, 0, 0), ("a",)), write_run(tmp_path / "b", 21.0, (0, 0, 0), ("b",))], tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["comparison.md"]


def test_what_is_no_run_is_named(tmp_path):
    run = write_run(tmp_path / "a", 20.0, (0, 0, 0))
    with pytest.raises(InputError, match="named twice"):
        compare([run, run], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="evaluate the run first"):
        compare([run, tmp_path / "empty"], tmp_path)
    (run / "metrics.json").write_text('{"datasets": []}')
    done = subprocess.run([sys.executable, "-m", "npbgpp.compare", str(run)], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1 and "expected the metrics of a run" in done.stderr and "Traceback" not in done.stderr
