"""The still life: consistency of its files, and reproduction by its generator.

uv (n, 2): pixel coordinates (column, row) from the top-left corner.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData
from scipy.ndimage import binary_dilation

EXAMPLE = Path(__file__).resolve().parents[2] / "example"
SCENE = EXAMPLE / "still_life"
COUNTS = {"train": 80, "val": 20, "test": 15}
SIZE = 200
VIEWS = [("train", 0), ("train", 47), ("val", 7), ("test", 1), ("test", 4)]
EIGHT = np.ones((3, 3), dtype=bool)  # neighbourhood


@dataclass(frozen=True)
class Frame:
    """One view: camera-to-world (4, 4), horizontal field of view in rad, image (200, 200, 4) uint8."""

    pose: np.ndarray
    angle: float
    image: np.ndarray

    def project(self, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, 2) pixel coordinates and (n,) depths of (n, 3) world points."""
        cam = (np.linalg.inv(self.pose) @ np.concatenate([xyz, np.ones((len(xyz), 1))], 1).T).T
        depth = -cam[:, 2]
        focal = 0.5 * SIZE / np.tan(0.5 * self.angle)
        return np.stack([SIZE / 2 + focal * cam[:, 0] / depth, SIZE / 2 - focal * cam[:, 1] / depth], 1), depth


def transforms(split: str) -> dict:
    return json.loads((SCENE / f"transforms_{split}.json").read_text(encoding="utf-8"))


def poses(split: str) -> np.ndarray:
    return np.array([frame["transform_matrix"] for frame in transforms(split)["frames"]])


def frame(split: str, index: int) -> Frame:
    content = transforms(split)
    entry = content["frames"][index]
    with Image.open(SCENE / f"{entry['file_path']}.png") as image:
        return Frame(np.array(entry["transform_matrix"]), content["camera_angle_x"], np.asarray(image))


@pytest.fixture(scope="module")
def cloud() -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) positions and (n, 3) uint8 colours."""
    vertices = PlyData.read(SCENE / "mvs_pc.ply")["vertex"]
    assert vertices.data.dtype == np.dtype([*((c, "<f4") for c in "xyz"), *((c, "u1") for c in ("red", "green", "blue"))])
    return np.stack([vertices[c] for c in "xyz"], 1), np.stack([vertices[c] for c in ("red", "green", "blue")], 1)


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the modules of the generator importable."""
    monkeypatch.syspath_prepend(str(EXAMPLE))


# ------------------------------------------------------------------ files
@pytest.mark.parametrize("split", COUNTS)
def test_images_match_the_json_files(split: str) -> None:
    names = [entry["file_path"] for entry in transforms(split)["frames"]]
    assert names == [f"./{split}/r_{i}" for i in range(COUNTS[split])]
    assert {path.name for path in (SCENE / split).iterdir()} == {f"r_{i}.png" for i in range(COUNTS[split])}
    for name in names:
        with Image.open(SCENE / f"{name}.png") as image:
            assert (image.size, image.mode) == ((SIZE, SIZE), "RGBA")
            pixels = np.asarray(image)
        alpha = pixels[..., 3]
        assert 0.2 < (alpha == 255).mean() < 0.7 and ((alpha > 0) & (alpha < 255)).any() and not pixels[alpha == 0].any()
        assert not np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]]).any()  # the object is not cropped


def test_cameras() -> None:
    for split in COUNTS:
        matrices = poses(split)
        rotation = matrices[:, :3, :3]
        np.testing.assert_allclose(rotation.transpose(0, 2, 1) @ rotation, np.broadcast_to(np.eye(3), rotation.shape), atol=1e-8)
        np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=1e-8)
        np.testing.assert_array_equal(matrices[:, 3], np.broadcast_to([0.0, 0.0, 0.0, 1.0], (len(matrices), 4)))
        target = matrices[:, :3, 3] - 4.0 * matrices[:, :3, 2]
        np.testing.assert_allclose(target, np.broadcast_to([0.0, 0.0, 0.22], target.shape), atol=1e-8)
        assert (matrices[:, 2, 1] > 0.0).all()  # upright
    backward = {split: poses(split)[:, :3, 2] for split in COUNTS}
    azimuth = np.sort(np.arctan2(backward["train"][:, 1], backward["train"][:, 0]))
    assert np.diff(np.append(azimuth, azimuth[0] + 2.0 * np.pi)).max() < np.radians(15.0)
    elevation = np.degrees(np.arcsin(backward["train"][:, 2]))
    assert elevation.min() < 20.0 and elevation.max() > 60.0
    for split in ("val", "test"):  # between the training views
        nearest = np.degrees(np.arccos((backward[split] @ backward["train"].T).max(1)))
        assert nearest.min() > 5.0 and nearest.max() < 20.0
    assert (backward["val"] @ backward["test"].T).max() < np.cos(np.radians(5.0))


def test_size_of_the_files_and_extent_of_the_cloud(cloud: tuple[np.ndarray, np.ndarray]) -> None:
    assert sum(path.stat().st_size for path in SCENE.rglob("*") if path.is_file()) <= 8_000_000
    xyz, _ = cloud
    assert xyz.shape == (70_000, 3) and np.isfinite(xyz).all()
    assert np.hypot(xyz[:, 0], xyz[:, 1]).max() <= 1.3 + 1e-6 and -0.12 <= xyz[:, 2].min() < 0.0 < 1.0 < xyz[:, 2].max()
    cameras = np.concatenate([poses(split) for split in COUNTS])
    depth = np.einsum("kd,knd->kn", cameras[:, :3, 2], cameras[:, None, :3, 3] - xyz[::10].astype(np.float64))
    assert depth.min() > 1.0


@pytest.mark.parametrize(("split", "index"), VIEWS)
def test_cloud_matches_masks_and_colours(cloud: tuple[np.ndarray, np.ndarray], split: str, index: int) -> None:
    view = frame(split, index)
    uv, depth = view.project(cloud[0])
    column, row = np.floor(uv).astype(int).T
    mask = view.image[..., 3] > 0
    assert binary_dilation(mask, EIGHT)[row, column].mean() >= 0.995
    covered = np.zeros_like(mask)
    covered[row, column] = True
    assert binary_dilation(covered, EIGHT)[mask].mean() >= 0.99
    back_to_front = np.argsort(-depth)
    nearest = np.full((SIZE, SIZE), -1)
    nearest[row[back_to_front], column[back_to_front]] = back_to_front  # the last one written, the nearest, stays

    def correlation(image: np.ndarray) -> float:
        both = (nearest >= 0) & (image[..., 3] == 255)
        return float(np.corrcoef(cloud[1][nearest[both]].ravel(), image[both][:, :3].ravel())[0, 1])

    # the colours of points have no light, shadow and reflections: the exact cameras reach 0.73 to 0.85
    assert correlation(view.image) > max(0.68, correlation(view.image[:, ::-1]) + 0.1)


# ------------------------------------------------------------------ generator
@pytest.mark.usefixtures("generator")
def test_generator_reproduces_cameras_and_pixels() -> None:
    from make_scene import split_cameras
    from still_life_maker.views import ANGLE_X, render

    for split, matrices in split_cameras(COUNTS, seed=0).items():
        np.testing.assert_allclose(matrices, poses(split), atol=1.5e-10)
    view = frame("test", 1)
    assert view.angle == ANGLE_X
    difference = np.abs(render(view.pose, SIZE, samples=4).astype(int) - view.image.astype(int))
    assert (difference > 0).mean() < 0.001  # the last bits of another processor may change single pixels


@pytest.mark.usefixtures("generator")
def test_generator_has_the_surface_of_the_cloud(cloud: tuple[np.ndarray, np.ndarray]) -> None:
    from still_life_maker.arrangement import still_life
    from still_life_maker.views import to_srgb

    p = torch.from_numpy(cloud[0][::7].T.astype(np.float64))
    solids = still_life()
    distance, index = torch.stack([solid.distance(p) for solid in solids]).min(0)
    assert distance.abs().max() < 1e-6 and {solids[i].name for i in index.tolist()} == {solid.name for solid in solids}
    colours = np.empty((p.shape[1], 3))
    for k, solid in enumerate(solids):
        own = index == k
        colours[own.numpy()] = 255.0 * to_srgb(solid.material.albedo(solid.to_local(p[:, own]))).T.numpy()
    # float32 positions at the edge of a colour may fall on its other side
    assert (np.abs(colours - cloud[1][::7]).max(1) > 1.0).mean() < 0.001


@pytest.mark.usefixtures("generator")
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images of a larger run are refused."""
    from make_scene import main

    options = ["--size", "12", "--val", "1", "--test", "1", "--samples", "1", "--points", "300", "--workers", "1"]
    main(["--out", str(tmp_path), "--train", "3", *options])
    made = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    images = ["test/r_0.png", "train/r_0.png", "train/r_1.png", "train/r_2.png"]
    assert made == ["mvs_pc.ply", *images, "transforms_test.json", "transforms_train.json", "transforms_val.json", "val/r_0.png"]
    assert len(PlyData.read(tmp_path / "mvs_pc.ply")["vertex"]) == 300
    with Image.open(tmp_path / "val" / "r_0.png") as image:
        assert (image.size, image.mode) == ((12, 12), "RGBA")
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--train", "2", *options])
    assert "r_2.png" in capsys.readouterr().err
