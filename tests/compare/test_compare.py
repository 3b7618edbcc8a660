"""Comparison of runs: table, HTML page, contact sheet, settings in which runs differ, and folders without runs."""

import io
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from PIL import Image
from rich.console import Console

from npbgpp.compare.__main__ import compare
from npbgpp.compare.page import columns, markdown, page, rows, shared_views, terminal
from npbgpp.compare.runs import FAILURE, read_runs, runs_below
from npbgpp.errors import InputError

from ..helpers.programs import run_program

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
COSTS = {
    **{"device": "cpu, 1 threads", "processes": 1, "epochs": 2, "steps": 100, "batches": 100, "train_seconds": 60.0, "data_seconds": 4.5},
    **{"step_seconds": 50.0, "validation_seconds": 5.0, "test_seconds": 2.0, "unit": "points", "units_per_s": 1.25e6, "images_per_s": 2.0},
    **{"peak_host_mib": 900.0, "peak_device_mib": None},
}


def write_run(
    folder: Path, psnr: float, colour: tuple[int, int, int], views: tuple[str, ...] = ("a", "b"), costs: dict | None = None
) -> Path:
    per_view = {view: {"psnr": psnr, "ssim": 0.5, "lpips": None, "seconds": 0.1} for view in views}
    row = {"psnr": psnr, "ssim": 0.5, "lpips": None, "views": len(views), "seconds_per_view": 0.1, "per_view": per_view}
    folder.mkdir(parents=True)
    content = {"stage": "test", "epoch": 0, "protocol": {}, "datasets": {"ball_holdout": row}} | ({"costs": costs} if costs else {})
    (folder / "metrics.json").write_text(json.dumps(content))
    for epoch, shown in ((2, (0, 0, 0)), (10, colour)):
        pictures = folder / "rendered" / "ball_holdout" / f"test_epoch{epoch}"
        pictures.mkdir(parents=True)
        for view in views:
            Image.new("RGB", (32, 32), (255, 255, 255)).save(pictures / f"{view}_gt.png")
            Image.new("RGB", (32, 32), shown).save(pictures / f"{view}_rendered.png")
    return folder


def write_hydra_files(folder: Path, overrides: list[str], config: dict, choices: dict[str, str]) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": {"runtime": {"choices": choices}}}))


def texts(runs) -> list[list[str]]:
    return [[cell.text for cell in row.cells] for row in rows(runs)]


def test_table_and_pictures(tmp_path):
    runs = [write_run(tmp_path / "first" / "run", 20.0, (255, 0, 0)), write_run(tmp_path / "second" / "run", 25.0, (0, 255, 0), ("b", "c"))]
    assert [row[:3] for row in texts(read_runs(runs))] == [
        ["ball_holdout", "first/run", "20.00"],
        ["ball_holdout", "second/run", "25.00"],
    ]
    compare(runs, tmp_path / "out")
    found = (tmp_path / "out" / "compare.md").read_text()
    assert "| ball_holdout | second/run | **25.00** | 0.5000 | not available | 2 | 0.100 |" in found
    with Image.open(tmp_path / "out" / "compare.png") as sheet:
        # one view is shared: photo, then the last rendering of each run
        assert sheet.size == (3 * 264 + 8, 64 + 286)
        assert [sheet.getpixel((8 + 264 * k + 128, 64 + 128)) for k in range(3)] == [(255, 255, 255), (255, 0, 0), (0, 255, 0)]


def test_columns_of_costs(tmp_path):
    runs = read_runs([write_run(tmp_path / "a", 20.0, (0, 0, 0), costs=COSTS), write_run(tmp_path / "b", 21.0, (0, 0, 0))])
    titles = [column.title for column in columns(runs)]
    ours, others = (dict(zip(titles, row, strict=True)) for row in texts(runs))
    assert ours["training [s]"] == "60.0" and ours["waiting for data [s]"] == "4.5" and ours["per second"] == "1.25 M points"
    assert (ours["epochs"], ours["steps"], ours["host [MiB]"], ours["device [MiB]"]) == ("2", "100", "900", "-")
    assert others["training [s]"] == others["per second"] == "-" and others["PSNR [dB]"] == "21.00"


def test_columns_of_settings_that_differ(tmp_path):
    """A run without an override of a key shows its default. Values that are equal in all runs, however they are written, are left out."""
    config = {"seed": 1, "system": {"lr": 0.1, "deep": {"x": [1, 2]}}, "same": 3}
    first, second = write_run(tmp_path / "0", 20.0, (0, 0, 0)), write_run(tmp_path / "1", 21.0, (0, 0, 0))
    write_hydra_files(first, ["system=npbg", "system.lr=0.10", "same=3"], config, {"system": "npbg"})
    other = {"seed": 1, "system": {"lr": 0.2, "deep": {"x": [1, 2]}, "extra": "a b"}, "same": 3}
    write_hydra_files(second, ["system=nerf", "+system.extra=a b", "same=3.0", "~system.deep.x"], other, {"system": "nerf"})
    runs = read_runs([first, second])
    assert [run.settings for run in runs] == [
        {"system": "npbg", "system.lr": "0.1", "system.extra": "-"},
        {"system": "nerf", "system.lr": "0.2", "system.extra": "a b"},
    ]
    assert "| dataset | run | system | system.lr | system.extra | PSNR [dB] |" in markdown(runs)


class ParsedPage(HTMLParser):
    """Tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_embeds_its_pictures(tmp_path):
    runs = [write_run(tmp_path / "a & <b>", 20.0, (255, 0, 0)), write_run(tmp_path / "second", 25.0, (0, 255, 0))]
    compare(runs, tmp_path / "out")
    text = (tmp_path / "out" / "compare.html").read_text()
    parsed = ParsedPage(text)
    images = parsed.all("img")
    assert len(images) == 2 * 3 and all(image["src"].startswith("data:image/jpeg;base64,") and image["alt"] for image in images)
    assert "http" not in text and not parsed.all("script") and not parsed.all("link")
    assert "a & <b>" in parsed.text and "25.00 dB" in parsed.text
    for link in parsed.all("a"):
        assert (tmp_path / "out" / unquote(link["href"])).is_file()


def test_large_pictures_are_embedded_smaller(tmp_path):
    run = write_run(tmp_path / "a", 20.0, (255, 0, 0), ("a",))
    for path in run.rglob("a_*.png"):
        Image.new("RGB", (1600, 800), (10, 200, 30)).save(path)
    runs = read_runs([run])
    images = ParsedPage(page(runs, shared_views(runs), "title", tmp_path)).all("img")
    assert {(image["width"], image["height"]) for image in images} == {("640", "320")}


@pytest.mark.skipif(BROWSER is None, reason="needs a browser")
def test_a_browser_shows_the_pictures(tmp_path):
    """Their decoded width, read from the page in a headless browser."""
    compare([write_run(tmp_path / "a", 20.0, (255, 0, 0)), write_run(tmp_path / "b", 25.0, (0, 255, 0))], tmp_path)
    path = tmp_path / "compare.html"
    count = "<script>addEventListener('load', () => { document.title = [...document.images].map(i => i.naturalWidth).join() })</script>"
    path.write_text(path.read_text().replace("</body>", count + "</body>"))
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom")
    done = subprocess.run([BROWSER, *flags, path.as_uri()], capture_output=True, text=True, timeout=120)
    assert f"<title>{','.join(['32'] * 6)}</title>" in done.stdout


def test_runs_of_a_sweep_are_sorted_and_show_errors(tmp_path):
    for number in (10, 9):
        write_run(tmp_path / "sweep" / str(number), 20.0 + number, (255, 0, 0))
    (tmp_path / "sweep" / "11").mkdir()
    (tmp_path / "sweep" / "11" / FAILURE).write_text("datasets.n_point: expected more | than\nnothing")
    found = runs_below(tmp_path / "sweep")
    assert [path.name for path in found] == ["9", "10", "11"]
    compare([tmp_path / "sweep"], tmp_path / "out")
    (last,) = [line for line in (tmp_path / "out" / "compare.md").read_text().splitlines() if "| 11 |" in line]
    assert last.startswith("| not evaluated | 11 | - |") and last.endswith(r"| datasets.n_point: expected more \| than |")
    assert "1 failed" in (tmp_path / "out" / "compare.html").read_text()
    with Image.open(tmp_path / "out" / "compare.png") as sheet:  # the tile of the failed run is empty
        assert sheet.size[0] == 4 * 264 + 8 and sheet.getpixel((8 + 264 * 3 + 128, 64 + 128)) == (250, 250, 248)


def test_runs_without_a_common_view_have_no_pictures(tmp_path):
    compare([write_run(tmp_path / "a", 20.0, (0, 0, 0), ("a",)), write_run(tmp_path / "b", 21.0, (0, 0, 0), ("b",))], tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["compare.html", "compare.md"]
    assert "share no rendered test view" in (tmp_path / "out" / "compare.html").read_text()


@pytest.mark.parametrize(
    ("damage", "folders", "message"),
    [
        ({}, ["a", "a"], "given twice"),
        ({"empty/.keep": ""}, ["a", "empty"], "found no run in it"),
        ({"begun/.hydra/config.yaml": ""}, ["a", "begun"], "evaluate the run first"),
        ({"a/.hydra/overrides.yaml": "- ["}, ["a"], "overrides.yaml: expected a file written by Hydra"),
        ({"a/metrics.json": '{"datasets": []}'}, ["a"], "expected the metrics of a run"),
        ({"a/metrics.json": '{"datasets": {}, "costs": {"device": 1}}'}, ["a"], "expected the metrics of a run"),
        ({"a/metrics.json": '{"datasets": {"a": {}}}'}, ["a"], "expected the metrics of a run"),
        ({"a/rendered/ball_holdout/test_epoch10/a_gt.png": "text"}, ["a"], "expected a picture of a run"),
    ],
)
def test_folders_without_readable_runs_are_refused(tmp_path, damage, folders, message):
    write_run(tmp_path / "a", 20.0, (0, 0, 0))
    for name, text in damage.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        compare([tmp_path / folder for folder in folders], tmp_path)


def test_the_command_prints_one_message(tmp_path):
    done = run_program("npbgpp.compare", [tmp_path], tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path}: ") and len(done.stderr.splitlines()) == 1


def test_failures_stand_below_the_tables(tmp_path):
    """On one line each as far as they fit, not in a narrow column; there is no column of scores that no run has."""
    reason = "datasets.n_point: expected a positive number or null, got 0; correct it, or leave it out of the command line"
    runs = [write_run(tmp_path / name, 20.0 + k, (0, 0, 0), costs=COSTS) for k, name in enumerate(("first", "second"))]
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / FAILURE).write_text(f"{reason}\n\nTraceback")
    console = Console(width=80, file=io.StringIO())
    console.print(terminal(read_runs([*runs, tmp_path / "third"], must_be_evaluated=False)))
    text = console.file.getvalue()
    below = " ".join(text.partition("costs")[2].split())
    assert below.endswith(f"third failed: {reason}") and "ended with" not in text and "LPIPS" not in text, text


def test_lpips_has_a_column_where_a_run_has_it(tmp_path):
    runs = [write_run(tmp_path / name, 20.0 + k, (0, 0, 0)) for k, name in enumerate(("first", "second"))]
    content = (runs[0] / "metrics.json").read_text().replace('"lpips": null', '"lpips": 0.25')
    (runs[0] / "metrics.json").write_text(content)
    console = Console(width=80, file=io.StringIO())
    console.print(terminal(read_runs(runs)))
    assert "LPIPS" in console.file.getvalue() and "0.2500" in console.file.getvalue()


def test_tables_fit_a_terminal(tmp_path):
    """Runs that differ in ten keys, with costs: no word is cut, settings stand below the tables."""
    for k, name in enumerate(("first", "second")):
        run = write_run(tmp_path / name, 20.0 + k, (0, 0, 0), costs=COSTS | {"train_seconds": 60.0 + k, "units_per_s": 1e6 * (k + 1)})
        settings = {f"rather_long_name_of_a_key_{n}": k * 10 + n for n in range(10)}
        write_hydra_files(run, [f"system.{key}={value}" for key, value in settings.items()], {"system": settings}, {})
    console = Console(width=80, file=io.StringIO())
    console.print(terminal(read_runs([tmp_path / "first", tmp_path / "second"], must_be_evaluated=True)))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert all(word in text for word in ("PSNR [dB]", "20.00", "21.00", "training [s]", "61.0", "2 M points")), text
    below = " ".join(text.partition("costs")[2].split())
    assert all(f"system.rather_long_name_of_a_key_{n}={10 + n}" in below for n in range(10)), below
