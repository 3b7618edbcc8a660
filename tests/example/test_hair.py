"""The scene with hair: consistency of its files, reproduction by its generator, compositing against a loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data.point_files import CloudFile, read_cloud
from npbgpp.data.scene import Scene
from npbgpp.parsers import read_scene

EXAMPLE = Path(__file__).resolve().parents[2] / "example"
HAIR = EXAMPLE / "hair"


@pytest.fixture(scope="module")
def scene() -> Scene:
    return read_scene("auto", HAIR, HAIR, "hair", CloudFile(HAIR / "pointclouds" / "frame1.xzy"), {"white_bg": False})


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the modules of the generator importable."""
    monkeypatch.syspath_prepend(str(EXAMPLE))


def test_files(scene):
    assert sum(path.stat().st_size for path in HAIR.rglob("*") if path.is_file()) <= 1_500_000
    assert scene.layout == "npcr" and len(scene.views) == 32 and not [note for note in scene.notes if "read as" not in note]
    assert {stage: len(views) for stage, views in scene.splits.items()} == {"train": 32, "val": 4, "test": 4}
    assert {view.camera.image_size for view in scene.views} == {(128, 128)}


@pytest.mark.parametrize("number", [0, 9, 30])
def test_points_cover_the_matte(scene, number):
    view = scene.views[number]
    uv, depth = view.camera.project(read_cloud(scene.cloud.path).xyz)
    assert (depth > 1).all()
    with Image.open(view.mask) as image:
        matte = np.asarray(image.convert("L"))
    column, row = uv[0].floor().long().T
    inside = (column >= 0) & (column < 128) & (row >= 0) & (row < 128)
    assert inside.float().mean() > 0.97 and (matte[row[inside], column[inside]] > 0).mean() > 0.97
    covered = torch.zeros(128, 128)
    covered[row[inside], column[inside]] = 1
    dilated = torch.nn.functional.max_pool2d(covered[None, None], 3, 1, 1)[0, 0].bool().numpy()
    assert dilated[matte > 128].mean() > 0.97
    semi_transparent = ((matte > 25) & (matte < 230)).mean()
    assert semi_transparent > 0.1 and (matte == 255).mean() > 0.1 and (matte == 0).mean() > 0.3


@pytest.mark.usefixtures("generator")
def test_generator_reproduces_the_files(scene):
    from hair_maker.rendering import poses, render
    from hair_maker.strands import cloud, strands

    for view, pose in zip(scene.views, poses(32, 0), strict=True):
        np.testing.assert_allclose(view.camera.centers()[0].numpy(), pose[:3, 3], atol=1e-5)
    np.testing.assert_allclose(read_cloud(scene.cloud.path).xyz.numpy(), cloud(strands(0), 18000, 0), atol=1e-4)
    rgba = render(strands(0), poses(32, 0)[3], 128)
    assert (rgba[..., :3] <= rgba[..., 3:] + 1e-9).all()
    with Image.open(HAIR / "img" / "0" / "img_0004_alpha.png") as image:
        assert np.abs(255 * rgba[..., 3] - np.asarray(image).astype(float)).max() <= 1
    with Image.open(HAIR / "img" / "0" / "img_0004.jpg") as image:
        photo = np.asarray(image).astype(float)
    assert np.abs(255 * (rgba[..., :3] + (1 - rgba[..., 3:]) * 60 / 255) - photo).mean() < 2.5  # JPEG


@pytest.mark.usefixtures("generator")
def test_compositing_matches_a_loop():
    from hair_maker import rendering
    from hair_maker.strands import strands

    hair, pose, size = strands(1), rendering.poses(4, 1)[0], 16
    side = rendering.CELLS * size
    K = rendering.intrinsics(side)
    head_depth, head = rendering._head(pose, K, side)
    cell, depth, strand, colour = rendering._fragments(hair, pose, K, side)
    expected = np.zeros((side * side, 4))
    for k in range(side * side):
        transmittance = 1.0
        for i in sorted(np.flatnonzero(cell == k), key=lambda i: depth[i]):
            if depth[i] < head_depth[k]:
                opacity = hair.opacity[strand[i]]
                expected[k, :3] += transmittance * opacity * colour[i]
                transmittance *= 1 - opacity
        if np.isfinite(head_depth[k]):
            expected[k, :3] += transmittance * head[k]
            transmittance = 0.0
        expected[k, 3] = 1 - transmittance
    found = rendering.render(hair, pose, size)
    np.testing.assert_allclose(found, expected.reshape(size, rendering.CELLS, size, rendering.CELLS, 4).mean((1, 3)), atol=1e-12)


@pytest.mark.usefixtures("generator")
def test_command_line(tmp_path, capsys):
    """Images of a larger run are refused."""
    from make_hair import main

    main(["--out", str(tmp_path), "--size", "16", "--views", "3", "--points", "400"])
    scene = read_scene("npcr", tmp_path, tmp_path, "hair", CloudFile(tmp_path / "pointclouds" / "frame1.xzy"), {})
    assert len(scene.views) == 3 and len(read_cloud(scene.cloud.path).xyz) == 400
    for options, message in ((["--views", "2"], "img_0003"), (["--size", "0"], "--size")):
        with pytest.raises(SystemExit):
            main(["--out", str(tmp_path), "--size", "16", *options])
        assert message in capsys.readouterr().err
