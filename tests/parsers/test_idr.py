"""DTU and H3DS: decomposition of projection matrices, intrinsics, splits, masks, published views; and the real DTU scan."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from npbgpp.data import CloudFile, Scene, read_photo
from npbgpp.errors import InputError
from npbgpp.geometry import PixelConvention, PixelGrid
from npbgpp.parsers import find_layout
from npbgpp.parsers.idr import cameras_from_projections, decompose_projection, projection_defect

from ..helpers.scenes import alternating_intrinsics, mean_intrinsics, projection_errors, share_in_mask, write_dtu, write_h3ds

SIZE = (24, 32)
HELD_OUT = {"5ae021f2805c0854": [8, 17, 27, 38, 52, 63], "7dd427509fe84baa": [15, 25, 34, 45, 56, 66]}
LISTS = OmegaConf.to_container(OmegaConf.load(Path(__file__).resolve().parents[2] / "conf" / "datasets" / "_h3ds.yaml").published_views)


def parse(layout: str, folder: Path, **options) -> Scene:
    if layout == "h3ds":
        options |= {"published_views": {name: tuple(numbers) for name, numbers in LISTS.items()}}
    return find_layout(layout).parse(folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), **options)


# ------------------------------------------------------------------ projection matrices
@pytest.fixture
def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(K, R, t) of 20 cameras in random poses; K has no skew."""
    generator = torch.Generator().manual_seed(1)
    R = torch.linalg.qr(torch.randn(20, 3, 3, generator=generator, dtype=torch.float64))[0]
    R = R * torch.linalg.det(R).sign()[:, None, None]
    K = torch.zeros(20, 3, 3, dtype=torch.float64)
    K[:, 0, 0], K[:, 1, 1], K[:, 2, 2] = *(50 + 900 * torch.rand(2, 20, generator=generator, dtype=torch.float64)), 1.0
    K[:, :2, 2] = 300 * torch.rand(20, 2, generator=generator, dtype=torch.float64) - 50
    return K, R, 10 * torch.randn(20, 3, 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 0.37, -1.0, -40.0, 1e-6])
def test_decomposition_at_any_scale(parts, scale):
    K, R, t = parts
    P = scale * K @ torch.cat([R, t], 2)
    found = decompose_projection(P)
    torch.testing.assert_close(found[0] / abs(scale), K, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(found[1], R, rtol=0, atol=1e-10)
    torch.testing.assert_close(found[2], t, rtol=1e-9, atol=1e-9)
    assert [projection_defect(matrix) for matrix in P] == [None] * 20


@pytest.mark.parametrize(("name", "sign"), [("KRt", 1), ("KRt_negated", -1)])
def test_recorded_decompositions(parity, name, sign):
    """The original keeps a negative sign of P, so that its rotation has determinant -1; K is the same."""
    recorded = parity("j_third_party_semantics.pt")[name]
    assert (torch.linalg.det(recorded["R"]) * sign > 0).all()
    K, R, t = decompose_projection(recorded["P"])
    torch.testing.assert_close(K, recorded["K"], rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(R, sign * recorded["R"], rtol=0, atol=1e-9)
    torch.testing.assert_close(t, sign * recorded["t"], rtol=1e-9, atol=1e-9)


def test_cameras_project_as_their_matrices_do(parts):
    K, R, t = parts
    P = K @ torch.cat([R, t], 2)
    points = torch.randn(30, 3, dtype=torch.float64)
    uvw = (P @ torch.cat([points, torch.ones(30, 1, dtype=torch.float64)], 1).T).transpose(1, 2)
    uv, depth = cameras_from_projections(P, (48, 64), shared_intrinsics=False).project(points.float())
    far = uvw[..., 2].abs() >= 1  # ill-conditioned in single precision otherwise
    torch.testing.assert_close(depth.double(), uvw[..., 2], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(uv.double()[far], (uvw[..., :2] / uvw[..., 2:] + 0.5)[far], rtol=1e-4, atol=1e-2)


def test_shared_intrinsics_are_the_mean_of_the_normalised_ones(parts):
    K, R, t = parts
    scales = torch.linspace(-3, 4, 20, dtype=torch.float64)[:, None, None]
    cameras = cameras_from_projections(scales * K @ torch.cat([R, t], 2), (48, 64), shared_intrinsics=True)
    mean = K.mean(0)
    torch.testing.assert_close(cameras.focal_length.double(), mean.diagonal()[:2].expand(20, 2), rtol=1e-6, atol=0)
    torch.testing.assert_close(cameras.principal_point.double(), (mean[:2, 2] + 0.5).expand(20, 2), rtol=1e-5, atol=0)
    torch.testing.assert_close(cameras.to_opencv()[:, :3, :3].double(), R, rtol=0, atol=1e-6)


def test_normalised_numbers_of_the_original():
    """Image 100x200, fx 150, fy 160, cx 90, cy 40, OpenCV point (0.2, 0.1, 2): its normalised intrinsics, point and pixel."""
    P = torch.tensor([[[150.0, 0.0, 90.0, 0.0], [0.0, 160.0, 40.0, 0.0], [0.0, 0.0, 1.0, 0.0]]], dtype=torch.float64)
    camera = cameras_from_projections(P, (100, 200), shared_intrinsics=False)
    fcl, prp = camera.to_authors_ndc()
    torch.testing.assert_close(fcl, torch.tensor([[3.030303, 3.232323]]), rtol=0, atol=1e-6)
    torch.testing.assert_close(prp, torch.tensor([[0.191919, 0.191919]]), rtol=0, atol=1e-6)
    point = torch.tensor([[0.2, 0.1, 2.0]])
    ndc = PixelGrid(PixelConvention.AUTHORS, (100, 200)).normalise(camera, point)
    torch.testing.assert_close(ndc[0, 0], torch.tensor([-0.111111, 0.030303, 2.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(camera.project(point)[0][0, 0], torch.tensor([105.5, 48.5]))


@pytest.mark.parametrize(
    ("row", "column", "value", "defect"),
    [
        (0, 3, math.nan, "finite"),
        (1, 1, math.inf, "finite"),
        (2, 2, 0.0, "singular"),
        (1, 1, 0.0, "singular"),
        (0, 1, 15.0, "0.1 "),
        (0, 1, 1.0, ""),
    ],
)
def test_matrices_that_are_no_projection(row, column, value, defect):
    P = torch.tensor([[150.0, 0.0, 90.0, 1.0], [0.0, 160.0, 40.0, 2.0], [0.0, 0.0, 1.0, 3.0]], dtype=torch.float64)
    P[row, column] = value
    found = projection_defect(P)
    assert defect in found if defect else found is None
    assert "singular" in projection_defect(torch.zeros(3, 4, dtype=torch.float64))


# ------------------------------------------------------------------ scenes
@pytest.mark.parametrize("version", ["dtu", "0.1", "0.2"])
def test_points_project_to_where_they_are_drawn(tmp_path, version):
    """With the intrinsics of each view; matrices of H3DS 0.1 are in a world of another size."""
    folder = tmp_path / "someone"
    if version == "dtu":
        write_dtu(folder, 9, (48, 64))
    else:
        write_h3ds(folder, range(0, 60, 6), version=version)
    layout = "dtu" if version == "dtu" else "h3ds"
    exact, shared = (parse(layout, folder, intrinsics=intrinsics) for intrinsics in ("exact", "authors"))
    error = projection_errors(exact)
    assert error.abs().max() < 0.6 and (error.mean(0).abs() < 0.1).all()
    size = exact.views[0].camera.image_size
    expected = np.mean([alternating_intrinsics(size, k) for k in range(len(exact.views))], axis=0)
    assert np.abs(expected - mean_intrinsics(size)).max() < 0.3
    for one, other in zip(shared.views, exact.views, strict=True):
        np.testing.assert_allclose(one.camera.focal_length[0], expected.diagonal()[:2], rtol=1e-4)
        np.testing.assert_allclose(one.camera.principal_point[0], expected[:2, 2] + 0.5, rtol=1e-4)
        assert torch.equal(one.camera.R, other.camera.R) and torch.equal(one.camera.T, other.camera.T)
        assert one.mask.suffix == (".jpg" if version == "0.1" else ".png")


def test_splits_of_dtu(tmp_path):
    write_dtu(tmp_path / "scan1", size=(12, 16))
    scene = parse("dtu", tmp_path / "scan1")
    assert [view.name for view in scene.views] == [str(k) for k in range(49)]
    assert scene.splits["val"] == (5, 15, 25, 35, 45) and scene.splits["test"] == (7, 12, 17, 22, 27, 32, 37, 42, 47)
    assert len(scene.with_splits(None, None).splits["train"]) == 35
    assert scene.with_splits((0,), (1, 2)).splits["train"] == tuple(range(3, 49)), "views that no longer validate train"


def test_shorter_scenes_have_the_rest_of_the_splits(tmp_path):
    write_dtu(tmp_path / "scan2", 9, (12, 16))
    write_h3ds(tmp_path / "someone", range(2, 29, 3), (12, 16))
    for layout, name in (("dtu", "scan2"), ("h3ds", "someone")):
        splits = parse(layout, tmp_path / name).with_splits(None, None).splits
        assert splits == {
            "train": (0, 1, 2, 3, 4, 6, 8),
            **({"val": (5,), "test": (7,)} if layout == "dtu" else {"val": (7,), "test": (5,)}),
        }


def test_masks_are_the_mean_of_their_channels(tmp_path):
    """One half is reached by 383 of 765: the sum decides, not one channel. Grey masks and an alpha channel of the photo are read alike."""
    write_dtu(tmp_path, 3, SIZE)
    path, photo_path = tmp_path / "mask" / "000.png", tmp_path / "image" / "000000.png"
    pixels = np.zeros((*SIZE, 3), dtype=np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[0, 2], pixels[0, 3] = (255, 127, 0), (255, 128, 0), (127, 127, 127), (0, 255, 254)
    Image.fromarray(pixels).save(path)
    photo = read_photo(parse("dtu", tmp_path).views[0])
    assert photo.mask[0, 0, :5].tolist() == [127, 128, 127, 170, 0]
    assert (photo.image[:, 0, :5] == 255).all(0).tolist() == [True, False, True, False, True]
    with Image.open(photo_path) as image:
        rgba = image.convert("RGBA")
    rgba.putalpha(100)
    rgba.save(photo_path)
    assert torch.equal(read_photo(parse("dtu", tmp_path).views[0]).image, photo.image)
    for suffix in (".png", ".jpg"):
        path.unlink()
        path = path.with_suffix(suffix)
        Image.fromarray(pixels[..., 0]).save(path)
        assert read_photo(parse("dtu", tmp_path).views[0]).mask.shape == (1, *SIZE)


def test_cameras_of_the_other_normalisation_replace_missing_ones(tmp_path):
    """Both files hold the same projections."""
    write_dtu(tmp_path, 3, SIZE)
    before = parse("dtu", tmp_path)
    (tmp_path / "cameras_sphere.npz").write_bytes(b"x")  # not read
    assert parse("dtu", tmp_path).notes == before.notes == ()
    (tmp_path / "cameras.npz").rename(tmp_path / "cameras_sphere.npz")
    after = parse("dtu", tmp_path)
    assert len(after.notes) == 1 and "cameras_sphere.npz" in after.notes[0]
    assert all(torch.equal(old.camera.T, new.camera.T) for old, new in zip(before.views, after.views, strict=True))


def test_a_mask_that_changes_after_parsing_is_refused(tmp_path):
    write_dtu(tmp_path, 3, SIZE)
    scene = parse("dtu", tmp_path)
    Image.new("RGB", (16, 12)).save(tmp_path / "mask" / "001.png")
    assert read_photo(scene.views[1]).mask.shape == (1, 24, 32)  # resampled
    Image.new("RGB", (16, 16)).save(tmp_path / "mask" / "001.png")
    with pytest.raises(InputError, match=r"001\.png: .*32x24.*16x16"):
        read_photo(scene.views[1])
    (tmp_path / "mask" / "001.png").unlink()
    with pytest.raises(InputError, match=r"001\.png: no such file"):
        read_photo(scene.views[1])


# ------------------------------------------------------------------ published views of H3DS
def test_published_views_and_splits(tmp_path):
    folder = tmp_path / "5ae021f2805c0854"
    write_h3ds(folder, size=(12, 16))
    scene = parse("h3ds", folder)
    names = [view.name for view in scene.views]
    assert names[:4] == ["0001", "0003", "0004", "0006"] and len(names) == 32
    assert [view.image.name for view in scene.views] == [f"img_{name}.jpg" for name in names]
    assert scene.splits["val"] == (7, 14, 21, 28) and scene.splits["test"] == (5, 10, 15, 20, 25, 30)
    assert len(scene.with_splits(None, None).splits["train"]) == 22
    assert [view.name for view in parse("h3ds", folder, views=(60, 2, 5)).views] == ["0060", "0002", "0005"]


def test_lists_of_the_data_set():
    """Ten scenes of 32 different photos each, in ascending order; the test views of the two scenes of the NPBG++ authors."""
    assert len(LISTS) == 10
    for name, numbers in LISTS.items():
        assert len(set(numbers)) == 32 and numbers == sorted(numbers) and numbers[-1] <= 68, name
    assert {name: LISTS[name][5:31:5] for name in HELD_OUT} == HELD_OUT


def test_published_views_without_photo_are_left_out(tmp_path):
    folder = tmp_path / "7dd427509fe84baa"
    write_h3ds(folder, range(20), (12, 16))
    scene = parse("h3ds", folder)
    assert [int(view.name) for view in scene.views] == [1, 4, 10, 12, 14, 15, 17, 18]
    assert len(scene.notes) == 1 and "24 of its 32" in scene.notes[0]
    # a list of the data set replaces that of the package; a duplicate, as two scenes of version 0.2 have, is used once
    (tmp_path / "config.toml").write_text("[scenes.7dd427509fe84baa.default_views_configs]\n32 = [3, 0, 99, 3]\n")
    scene = parse("h3ds", folder)
    assert [view.name for view in scene.views] == ["0003", "0000"]
    assert len(scene.notes) == 2 and "config.toml" in scene.notes[0] and "1 of its 3" in scene.notes[1]


VERSIONS = {
    "0.1": 'scenes = ["someone"]\n[views]\n  [views.someone]\n  3 = [2, 5, 8]\n  32 = [11, 2, 26]\n',
    "0.2": "version = 0.2\n[scenes]\n  [scenes.someone]\n  views = 9\n    [scenes.someone.default_views_configs]\n    3 = [2]\n    32 = [11, 2, 26]\n",
}


@pytest.mark.parametrize(("version", "place"), [("0.1", "someone"), ("0.2", ".")])
def test_lists_of_both_versions_are_read(tmp_path, version, place):
    folder = tmp_path / "someone"
    write_h3ds(folder, range(2, 29, 3), (12, 16))
    (tmp_path / place / "config.toml").write_text(VERSIONS[version])
    scene = parse("h3ds", folder)
    assert [view.name for view in scene.views] == ["0011", "0002", "0026"] and scene.notes == ()
    assert [view.name for view in parse("h3ds", folder, views=(5, 8)).views] == ["0005", "0008"], "a choice takes precedence"
    for text in ("", "scenes = 3", '[scenes.other]\n32 = "x"', "[scenes]\nsomeone = 1", "[views.other]\n32 = [2]"):
        (tmp_path / place / "config.toml").write_text(text)
        assert len(parse("h3ds", folder).views) == 9, "without a list for the scene all photos are used"


def test_matrices_are_needed_for_the_views_only(tmp_path):
    write_h3ds(tmp_path, range(2, 12, 3), (12, 16))
    with np.load(tmp_path / "cameras.npz") as file:
        matrices = {key: file[key] for key in file.files if key != "world_mat_5"}
    np.savez(tmp_path / "cameras.npz", **matrices)
    assert len(parse("h3ds", tmp_path, views=(2, 8)).views) == 2


# ------------------------------------------------------------------ the real scan
def test_real_scan(shared, tmp_path):
    """Both camera files hold the same cameras, and the cloud lies in the mask of its view, not of another one."""
    source = shared / "data" / "dtu" / "scan65"
    if not source.is_dir():
        pytest.skip("the DTU scan is not among the shared data")
    scan = parse("dtu", source)
    cloud = scan.cloud.read()
    assert len(scan.views) == 49 and scan.views[0].camera.image_size == (240, 320) and len(cloud) == 43_453
    for name in ("image", "mask", "cameras_sphere.npz"):
        (tmp_path / name).symlink_to(source / name)
    for ours, theirs in zip(parse("dtu", tmp_path).views, scan.views, strict=True):
        assert torch.equal(ours.camera.R, theirs.camera.R) and torch.equal(ours.camera.T, theirs.camera.T)
    for k in (0, 20, 40):
        assert share_in_mask(scan, cloud.xyz, k, k) >= 0.99 and share_in_mask(scan, cloud.xyz, k, (k + 25) % 49) < 0.98
