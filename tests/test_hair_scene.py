"""The example scene with hair: its files agree with each other and with the program that makes them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data.point_files import CloudFile, read_cloud
from npbgpp.data.scene import Scene
from npbgpp.parsers import read_scene

EXAMPLE = Path(__file__).resolve().parents[1] / "example"
HAIR = EXAMPLE / "hair"


@pytest.fixture(scope="module")
def scene() -> Scene:
    return read_scene("auto", HAIR, HAIR, "hair", CloudFile(HAIR / "pointclouds" / "frame1.xzy"), {"white_bg": False})


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the generator's modules importable, as they are for `python example/make_hair.py`."""
    monkeypatch.syspath_prepend(str(EXAMPLE))


def test_it_is_small_and_read_as_npcr(scene):
    assert sum(path.stat().st_size for path in HAIR.rglob("*") if path.is_file()) <= 1_500_000
    assert scene.layout == "npcr" and len(scene.views) == 32 and not [note for note in scene.notes if "read as" not in note]
    assert {stage: len(views) for stage, views in scene.splits.items()} == {"train": 32, "val": 4, "test": 4}
    assert {view.camera.image_size for view in scene.views} == {(128, 128)}


@pytest.mark.parametrize("number", [0, 9, 30])
def test_points_lie_on_the_object(scene, number):
    """Points project into the matte, and fill it; mattes have all degrees of opacity."""
    view = scene.views[number]
    uv, depth = view.camera.project(read_cloud(scene.cloud.path).xyz)
    assert (depth > 1).all()
    with Image.open(view.mask) as image:
        matte = np.asarray(image.convert("L"))
    column, row = uv[0].floor().long().T
    inside = (column >= 0) & (column < 128) & (row >= 0) & (row < 128)
    assert inside.float().mean() > 0.97
    touched = torch.zeros(128, 128, dtype=torch.bool)
    touched[row[inside], column[inside]] = True
    assert (matte[row[inside], column[inside]] > 0).mean() > 0.97
    spread = torch.nn.functional.max_pool2d(touched[None, None].float(), 3, 1, 1)[0, 0].bool().numpy()
    assert spread[matte > 128].mean() > 0.97
    partly = ((matte > 25) & (matte < 230)).mean()
    assert partly > 0.1 and (matte == 255).mean() > 0.1 and (matte == 0).mean() > 0.3


@pytest.mark.usefixtures("maker")
def test_the_generator_makes_the_committed_pictures():
    from hair_maker.pictures import picture, poses
    from hair_maker.strands import strands

    rgba = picture(strands(0), poses(32, 0)[3], 128)
    with Image.open(HAIR / "img" / "0" / "img_0004_alpha.png") as image:
        matte = np.asarray(image).astype(float)
    assert np.abs(255 * rgba[..., 3] - matte).max() <= 1
    with Image.open(HAIR / "img" / "0" / "img_0004.jpg") as image:
        photo = np.asarray(image).astype(float)
    assert np.abs(255 * (rgba[..., :3] + (1 - rgba[..., 3:]) * 60 / 255) - photo).mean() < 2.5  # JPEG
    assert (rgba[..., :3] <= rgba[..., 3:] + 1e-9).all()


@pytest.mark.usefixtures("maker")
def test_the_generator_makes_the_committed_cameras_and_points(scene):
    from hair_maker.pictures import poses
    from hair_maker.strands import cloud, strands

    for view, pose in zip(scene.views, poses(32, 0), strict=True):
        np.testing.assert_allclose(view.camera.centers()[0].numpy(), pose[:3, 3], atol=1e-5)
    np.testing.assert_allclose(read_cloud(scene.cloud.path).xyz.numpy(), cloud(strands(0), 18000, 0), atol=1e-4)


@pytest.mark.usefixtures("maker")
def test_compositing_against_a_loop_over_strands():
    """A few strands, pixel by pixel: sorted by depth, front to back."""
    from hair_maker import pictures
    from hair_maker.strands import strands

    hair, pose, size = strands(1), pictures.poses(4, 1)[0], 16
    side = pictures.CELLS * size
    K = pictures.intrinsics(side)
    head_depth, head = pictures._head(pose, K, side)
    cell, depth, strand, colour = pictures._fragments(hair, pose, K, side)
    expected = np.zeros((side * side, 4))
    for k in range(side * side):
        through = 1.0
        for i in sorted(np.flatnonzero(cell == k), key=lambda i: depth[i]):
            if depth[i] < head_depth[k]:
                opacity = hair.opacity[strand[i]]
                expected[k, :3] += through * opacity * colour[i]
                through *= 1 - opacity
        if np.isfinite(head_depth[k]):
            expected[k, :3] += through * head[k]
            through = 0.0
        expected[k, 3] = 1 - through
    found = pictures.picture(hair, pose, size)
    np.testing.assert_allclose(found, expected.reshape(size, pictures.CELLS, size, pictures.CELLS, 4).mean((1, 3)), atol=1e-12)


@pytest.mark.usefixtures("maker")
def test_the_command_line_writes_a_scene_and_refuses_left_over_pictures(tmp_path, capsys):
    from make_hair import main

    main(["--out", str(tmp_path), "--size", "16", "--views", "3", "--points", "400"])
    scene = read_scene("npcr", tmp_path, tmp_path, "hair", CloudFile(tmp_path / "pointclouds" / "frame1.xzy"), {})
    assert len(scene.views) == 3 and len(read_cloud(scene.cloud.path).xyz) == 400
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--size", "16", "--views", "2"])
    assert "img_0003" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--size", "0"])
