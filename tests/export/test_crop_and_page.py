"""Exports of a part of a scene, and of a run as one page."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from npbgpp.cli.export import page as export_page
from npbgpp.cli.export import splats
from npbgpp.cli.settings import CroppedExport, PageExport, SplatExport
from npbgpp.errors import InputError
from npbgpp.export.coordinates import ExportCoordinates
from npbgpp.export.page import Scores, read_scores
from npbgpp.geometry import read_gaussian_ply
from npbgpp.prepare.photo_poses import Similarity
from npbgpp.prepare.photos_manifest import PhotosManifest
from npbgpp.viewer.scene_nodes import box_edges

from ..conftest import TINY_GAUSSIANS
from ..run_folders import remember


@pytest.fixture(scope="module")
def run(run_gaussians, tiny_root, tmp_path_factory):
    launch = tmp_path_factory.mktemp("crop")
    folder = run_gaussians(launch, "trainer.max_steps=2")
    remember(folder, launch, *TINY_GAUSSIANS, f"datasets.data_root={tiny_root}")
    return folder


def test_only_the_box_is_written(run, tmp_path):
    splats(SplatExport(run=run, out=tmp_path / "all.ply"), [])
    splats(SplatExport(run=run, out=tmp_path / "part.ply", x_range=(0.0, 0.5), z_range=(-2.0, 0.1)), [])
    every, part = (read_gaussian_ply(tmp_path / f"{name}.ply").means.numpy() for name in ("all", "part"))
    inside = (every[:, 0] >= 0) & (every[:, 0] <= 0.5) & (every[:, 2] >= -2) & (every[:, 2] <= 0.1)
    assert 0 < inside.sum() < len(every)
    np.testing.assert_array_equal(part, every[inside])


def test_gaussians_in_original_coordinates(run, tiny_root, tmp_path):
    """The box stays in coordinates of the scene."""
    shutil.copytree(tiny_root / "ball", tmp_path / "ball")
    change = Similarity(2.0, ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), (1.0, 2.0, 3.0))
    PhotosManifest("photos", (), 0, 0.0, (), change, {}, {}, (), "command").write(tmp_path / "ball")
    words = [f"datasets.data_root={tmp_path}"]
    splats(SplatExport(run=run, out=tmp_path / "scene.ply", x_range=(0.0, 0.5)), words)
    splats(SplatExport(run=run, out=tmp_path / "original.ply", x_range=(0.0, 0.5), coordinates="original"), words)
    scene, original = (read_gaussian_ply(tmp_path / f"{name}.ply") for name in ("scene", "original"))
    expected = ExportCoordinates(change.inverse(), None).gaussians(scene)
    np.testing.assert_allclose(change.apply(original.means.double().numpy()), scene.means.numpy(), atol=1e-5)
    for name, value in expected.__dict__.items():
        np.testing.assert_allclose(getattr(original, name).numpy(), value.numpy(), atol=1e-5)
    for suffix in (".splat", ".glb"):
        splats(SplatExport(run=run, out=tmp_path / f"original{suffix}", coordinates="original"), words)
    means = np.frombuffer((tmp_path / "original.splat").read_bytes(), "<f4").reshape(-1, 8)[:, :3]
    assert np.abs(change.apply(means.astype(float))).max() < 3


def test_empty_and_inverted_boxes_are_refused(run, tmp_path):
    with pytest.raises(InputError, match="expected a box with points of the scene"):
        splats(SplatExport(run=run, out=tmp_path / "none.ply", y_range=(50.0, 60.0)), [])
    with pytest.raises(InputError, match=r"y_range: expected \[low,high\]"):
        CroppedExport(run=run, y_range=(1.0, 1.0))


def test_edges_of_a_box():
    edges = box_edges(np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]))
    assert edges.shape == (12, 2, 3)
    assert sorted(np.abs(edges[:, 0] - edges[:, 1]).sum(1).tolist()) == [1] * 4 + [2] * 4 + [3] * 4


def test_a_page_holds_everything(run, tmp_path):
    pytest.importorskip("viser", reason="the extra viewer is not installed")
    (run / "metrics.json").write_text(json.dumps({"datasets": {"ball": {"psnr": 12.345, "ssim": 0.5, "lpips": None, "views": 2}}}))
    Image.new("RGB", (20, 10)).save(run / "report.png")
    film = tmp_path / "film.mp4"
    film.write_bytes(b"a film")
    out = tmp_path / "page.html"
    export_page(PageExport(run=run, out=out, film=film, points=100), [])
    text = out.read_text(encoding="utf-8")
    assert read_scores(run / "metrics.json") == [Scores("ball", "2", "12.35", "0.500", "")]
    assert "12.35" in text and "Gaussians" in text
    assert "data:video/mp4;base64,YSBmaWxt" in text and "data:image/jpeg;base64," in text
    assert "__VISER_EMBED_DATA__" in text
    assert 'src="http' not in text and 'href="http' not in text
    with pytest.raises(InputError, match="overwrite=true"):
        export_page(PageExport(run=run, out=out), [])
    with pytest.raises(InputError, match="film=.*gone.mp4: no such file"):
        export_page(PageExport(run=run, out=tmp_path / "other.html", film=tmp_path / "gone.mp4"), [])


@pytest.mark.parametrize("content", ["[]", "{", json.dumps({"datasets": {"a": 3}})])
def test_damaged_scores_are_named(tmp_path, content):
    assert read_scores(tmp_path / "none.json") == []
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(InputError, match="expected scores of an evaluation"):
        read_scores(tmp_path / "metrics.json")
