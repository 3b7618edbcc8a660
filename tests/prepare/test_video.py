"""``npbgpp prepare monocular``: results of each stage on a rendered video, skipped stages, refusals."""

import os
import shutil
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from npbgpp.data.colmap_model import ColmapModel
from npbgpp.data.images import read_photo
from npbgpp.data.motion_maps import read_flow, read_numbers, read_static
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.parsers import read_scene
from npbgpp.prepare import video
from npbgpp.prepare.__main__ import main
from npbgpp.prepare.video_maps import dis_flow, network_disparity, quantise, raft_flow, static_mask

from ..helpers.commands import Command

EXAMPLE = Path(__file__).resolve().parents[2] / "example"
FRAMES, SIZE = 6, (214, 320)
RADIAL = (260.0, 160.0, 107.0, -0.1)  # parameters of SIMPLE_RADIAL: corners move by 10 pixels


@pytest.fixture
def prepare(request, tmp_path, monkeypatch) -> Command:
    """COLMAP runs on one thread: with several its results differ from run to run."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    return Command(main, request, tmp_path)


@pytest.fixture(scope="session")
def rendered_video(tmp_path_factory) -> Path:
    """``frames`` of the moving room through a lens with radial distortion, exact ``masks``, and the camera centres."""
    root = tmp_path_factory.mktemp("rendered")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        from moving_scene_maker import measure, room
    objects = room.room(0)
    moves = np.array([obj.moves for obj in objects])
    lens = pycolmap.Camera(model="SIMPLE_RADIAL", width=SIZE[1], height=SIZE[0], params=list(RADIAL))
    centres = []
    for folder in ("frames", "masks"):
        (root / folder).mkdir()
    for k in range(FRAMES):
        camera = measure.Pinhole(room.path_camera(k / (FRAMES - 1)), SIZE)
        undistorted = lens.cam_from_img(camera.centres()) * camera.focal + np.array(SIZE[::-1]) / 2
        hits = measure.trace(objects, k / (FRAMES - 1), camera, undistorted)
        colours = np.zeros((SIZE[0] * SIZE[1], 3))
        for index, obj in enumerate(objects):
            colours[hits.index == index] = obj.colours(hits.position[hits.index == index], k / (FRAMES - 1))
        Image.fromarray((colours * 255).astype(np.uint8).reshape(*SIZE, 3)).save(root / "frames" / f"clip_{k + 7}.png")
        mask = static_mask(moves[hits.index].reshape(SIZE))
        Image.fromarray(mask).save(root / "masks" / (f"{k:05d}.png" if k % 2 else f"{k:05d}.png.png"))  # both naming schemes
        centres.append(camera.pose[:3, 3])
    np.save(root / "centres.npy", np.array(centres))
    return root


@pytest.fixture
def own(rendered_video: Path, tmp_path: Path) -> Path:
    shutil.copytree(rendered_video, tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture
def posed(moving_root: Path, tmp_path: Path) -> Path:
    """The small example scene: undistorted frames with poses, without disparity, flow and masks."""
    shutil.copytree(moving_root / "hop", tmp_path / "hop", ignore=shutil.ignore_patterns("disps", "flow_*", "masks", "novel"))
    return tmp_path / "hop"


def read(root: Path, layout: str = "auto") -> Scene:
    return read_scene(layout, root, root, root.name, CloudFile(root / "none.ply"), {})


# ------------------------------------------------------------------ all stages
def test_video_becomes_a_scene_and_a_second_run_skips_all_stages(prepare, own):
    assert "6 frames registered:" in prepare("monocular", f"root={own}")
    made = {"images_resized", "masks_resized", "images", "masks", "sparse", "disps", "flow_fw", "flow_bw", "preview"}
    assert {path.name for path in own.iterdir()} == made | {"frames", "centres.npy"}
    assert {path.name for path in (own / "preview").iterdir()} == {"resize.png", "poses.png", "depth.png", "flow.png"}
    times = {path: path.stat().st_mtime_ns for path in own.rglob("*")}
    output = prepare("monocular", f"root={own}")
    assert output.count("skipped") == 5 and "datasets.scene_name=own" in output
    assert {path: path.stat().st_mtime_ns for path in own.rglob("*")} == times

    scene = read(own)
    assert scene.layout == "monocular" and len(scene.frames) == FRAMES and not any("distortion" in note for note in scene.notes)
    distorted = ColmapModel.read(own / "sparse" / "0").lenses[1]
    assert distorted.model == "SIMPLE_RADIAL" and distorted.params[3] < -0.03 and distorted.displacement() > 2
    assert ColmapModel.read(own / "sparse").lenses[1].model == "PINHOLE"
    photo, resized = read_photo(scene.frames[2]).image, np.asarray(Image.open(own / "images_resized" / "00002.png"))
    assert photo.shape[1:] != resized.shape[:2] or (photo.permute(1, 2, 0).numpy() != resized).mean() > 0.5
    flow = read_flow(own / "flow_fw" / "00001.flo")
    np.testing.assert_array_equal(flow, dis_flow(read_photo(scene.frames[1]).image, read_photo(scene.frames[2]).image))
    assert flow.shape[:2] == scene.frames[0].camera.image_size
    centres, true = Cameras.cat([view.camera for view in scene.frames]).centers().numpy(), np.load(own / "centres.npy")
    assert similarity_error(centres, true) < 0.03 * np.linalg.norm(true[-1] - true[0])
    for view in scene.frames:
        assert 0.03 < 1 - read_static(view).float().mean() < 0.35
        assert set(np.unique(np.asarray(Image.open(view.motion.static_mask)))) == {0, 255}


def similarity_error(found: np.ndarray, true: np.ndarray) -> float:
    """Largest distance after the best similarity transform (Umeyama, 1991)."""
    a, b = found - found.mean(0), true - true.mean(0)
    u, scale, vt = np.linalg.svd(b.T @ a)
    signs = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    aligned = (scale * signs).sum() / (a**2).sum() * a @ (u * signs @ vt).T
    return float(np.linalg.norm(aligned - b, axis=1).max())


def test_existing_poses_and_flow_are_kept(prepare, posed, moving_root):
    shutil.copytree(moving_root / "hop" / "flow_fw", posed / "flow_fw")
    kept = [posed / "sparse" / "images.txt", posed / "flow_fw" / "00002.flo"]
    before = [path.read_bytes() for path in kept]
    output = prepare("monocular", f"root={posed}", "stages=[resize,poses,depth,flow]")
    assert output.count("skipped") == 2 and "flow_bw of 8 frames by dis" in output
    assert [path.read_bytes() for path in kept] == before and not (posed / "images_resized").exists()
    assert len(list((posed / "flow_bw").iterdir())) == 7
    scene = read(posed)
    assert scene.layout == "monocular" and all(view.motion.disparity is not None for view in scene.frames)


def test_failed_stage_leaves_nothing(prepare, posed, monkeypatch):
    calls = []

    def fail(first, second):
        calls.append(1)
        if len(calls) == 4:
            raise InputError("broken")
        return dis_flow(first, second)

    monkeypatch.setattr(video, "dis_flow", fail)
    assert "broken" in prepare.refused("monocular", f"root={posed}", "stages=[flow]")
    assert len(calls) == 4 and not (posed / "flow_fw").exists()
    (posed / ".flow_fw.part").mkdir()
    (posed / ".flow_fw.part" / "half.flo").touch()
    monkeypatch.setattr(video, "dis_flow", dis_flow)
    prepare("monocular", f"root={posed}", "stages=[flow]")
    assert len(list((posed / "flow_fw").iterdir())) == 7


# ------------------------------------------------------------------ single stages
def test_frames_are_only_reduced(prepare, own):
    assert "100x66 pixels from 320x214" in prepare("monocular", f"root={own}", "stages=[resize]", "max_width=100", "max_height=90")
    assert [path.name for path in sorted((own / "images_resized").iterdir())] == [f"{k:05d}.png" for k in range(FRAMES)]
    assert Image.open(own / "images_resized" / "00003.png").size == (100, 66)
    shutil.rmtree(own / "images_resized")
    prepare("monocular", f"root={own}", "stages=[resize]")
    for k in range(FRAMES):
        pair = (own / "images_resized" / f"{k:05d}.png", own / "frames" / f"clip_{k + 7}.png")
        np.testing.assert_array_equal(*(np.asarray(Image.open(path)) for path in pair))


class TwoObjects(nn.Module):
    """Mask R-CNN that finds a person on the left, a book on the right, and with a low score a person below."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        height, width = images[0].shape[1:]
        masks = torch.zeros(3, 1, height, width)
        masks[0, 0, 10:20, 2:8], masks[1, 0, 10:20, -8:-2], masks[2, 0, -2:] = 0.9, 0.9, 0.9
        return [{"labels": torch.tensor([1, 84, 1]), "scores": torch.tensor([0.9, 0.8, 0.01]), "masks": masks}]


def test_masks_of_chosen_classes(prepare, posed, monkeypatch, tmp_path):
    monkeypatch.setattr("torchvision.models.detection.maskrcnn_resnet50_fpn", lambda **_: TwoObjects())
    torch.save({}, tmp_path / "weights.pth")
    masked = {}
    for classes in ("[person]", "[book]", "[person,book]"):
        prepare("monocular", f"root={posed}", "stages=[masks]", f"dynamic_classes={classes}", f"mask_weights={tmp_path / 'weights.pth'}")
        mask = np.asarray(Image.open(posed / "masks" / "00003.png.png"))
        masked[classes] = set(zip(*np.nonzero(mask == 0), strict=True))
        shutil.rmtree(posed / "masks")
    assert (posed / "preview" / "masks.png").is_file()
    assert masked["[person]"] == {(row, column) for row in range(3, 27) for column in range(15)}  # dilated by 7 pixels
    assert masked["[book]"] and not masked["[book]"] & masked["[person]"]
    assert masked["[person,book]"] == masked["[book]"] | masked["[person]"]


def test_disparity_from_sparse_points(prepare, posed, moving_root):
    prepare("monocular", f"root={posed}", "stages=[depth]")
    for k in range(8):
        found, true = (read_numbers(root / "disps" / f"{k:05d}.png").ravel() for root in (posed, moving_root / "hop"))
        static = read_numbers(moving_root / "hop" / "masks" / f"{k:05d}.png.png").ravel() > 0.5
        assert np.corrcoef(found[static], true[static])[0, 1] > 0.93  # measured: 0.96
    assert (posed / "preview" / "depth.png").is_file()


class Brightness(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        assert image.shape[2] % 32 == 0 and image.shape[3] % 32 == 0
        return image.mean(1) + 10.0


class Identity(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image


def test_disparity_from_a_network(prepare, posed, tmp_path):
    path = tmp_path / "brightness.pt"
    torch.jit.script(Brightness()).save(str(path))
    image = read_photo(read(posed, "colmap").views[0]).image
    disparity = network_disparity(path, False, torch.device("cpu"))(image, 0)
    assert disparity.shape == (32, 48)
    assert np.corrcoef(disparity.ravel(), image.float().mean(0).numpy().ravel())[0, 1] > 0.85
    np.testing.assert_allclose(network_disparity(path, True, torch.device("cpu"))(image, 0), 1 / disparity, rtol=1e-4)
    prepare("monocular", f"root={posed}", "stages=[depth]", f"depth={path}")
    np.testing.assert_array_equal(np.asarray(Image.open(posed / "disps" / "00000.png")), quantise(disparity))


def test_flow_by_dense_inverse_search(prepare, posed, moving_root):
    prepare("monocular", f"root={posed}", "stages=[flow]")
    for folder, first in (("flow_fw", 0), ("flow_bw", 1)):
        for k in range(first, first + 7):
            found, true = (read_flow(root / folder / f"{k:05d}.flo") for root in (posed, moving_root / "hop"))
            assert np.median(np.linalg.norm(found - true, axis=2)) < 0.25 < np.median(np.linalg.norm(true, axis=2))
    assert (posed / "preview" / "flow.png").is_file()


def test_flow_by_raft_has_the_size_of_the_frames(tmp_path):
    from torchvision.models.optical_flow import raft_large

    torch.save(raft_large(weights=None).state_dict(), tmp_path / "raft.pth")
    estimate = raft_flow(tmp_path / "raft.pth", torch.device("cpu"))
    image = torch.randint(0, 255, (3, 130, 133), dtype=torch.uint8)
    assert estimate(image, image).shape == (130, 133, 2)


# ------------------------------------------------------------------ refusals
def save(content, path: Path) -> None:
    torch.save(content, path)


def remove_points(root: Path) -> None:
    path = root / "sparse" / "points3D.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:3]) + "\n")


def replace_frames(root: Path, numbers, colour) -> None:
    for k in numbers:
        pixels = np.broadcast_to(colour, (*SIZE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "frames" / f"clip_{k}.png")


NOISE = np.random.default_rng(0).integers(0, 255, (*SIZE, 3))
# how the video is changed, arguments, parts of the message
OWN_REFUSALS = {
    "unknown stage": (lambda root: None, "stages=[resize,polish]", ["stages", "polish", "resize, masks, poses, depth, flow"]),
    "no stage": (lambda root: None, "stages=[]", ["stages"]),
    "unknown flow": (lambda root: None, "flow=best", ["flow", "dis, raft", "best"]),
    "zero width": (lambda root: None, "max_width=0", ["max_width", "0"]),
    "unknown device": (lambda root: None, "device=abacus", ["device", "auto, cpu, cuda", "abacus"]),
    "unknown output": (lambda root: None, "depth_network=both", ["depth_network", "both"]),
    "unknown key": (lambda root: None, "colour=red", ["colour"]),
    "poses before resize": (lambda root: None, "stages=[poses]", ["stage resize"]),
    "depth before poses": (lambda root: None, "stages=[depth]", ["stage poses"]),
    "flow before poses": (lambda root: None, "stages=[flow]", ["stage poses"]),
    "no frames": (lambda root: None, "stages=[resize] frames=nothing", ["frames", "nothing"]),
    "mixed sizes": (
        lambda root: Image.new("RGB", (20, 20)).save(root / "frames" / "clip_9.png"),
        "stages=[resize]",
        ["clip_9.png", "320x214"],
    ),
    "single frame": (
        lambda root: [(root / "frames" / f"clip_{k}.png").unlink() for k in range(8, 13)],
        "stages=[resize]",
        ["3 frames, got 1"],
    ),
    "missing mask": (lambda root: (root / "masks" / "00003.png").unlink(), "stages=[resize,masks]", ["00003.png"]),
    "empty mask": (
        lambda root: Image.new("L", SIZE[::-1]).save(root / "masks" / "00001.png"),
        "stages=[resize,masks,poses]",
        ["masks_resized/00001.png"],
    ),
    "no mask weights": (
        lambda root: shutil.rmtree(root / "masks"),
        "",
        ["stage masks", "maskrcnn_resnet50_fpn_coco", "/torch/", "masks/<name of the frame>.png", "stages=[resize,poses,depth,flow]"],
    ),
    "unregistered frame": (lambda root: replace_frames(root, [10], NOISE), "stages=[resize,masks,poses]", ["none for 1", "00003.png"]),
    "no texture": (lambda root: replace_frames(root, range(7, 13), 90), "stages=[resize,poses]", ["no model"]),
}
POSED_REFUSALS = {
    "unknown class": (lambda root: None, "stages=[masks] dynamic_classes=[dragon]", ["dynamic_classes", "person, bicycle", "dragon"]),
    "other mask weights": (
        lambda root: save({"wrong": torch.zeros(2)}, root / "w"),
        "stages=[masks] mask_weights={root}/w",
        ["mask_weights"],
    ),
    "no frames of the poses": (lambda root: (root / "images").rename(root / "frames"), "stages=[resize,poses]", ["images"]),
    "few points": (remove_points, "stages=[depth]", ["8 points", "00000.png"]),
    "no points": (lambda root: shutil.rmtree(root / "sparse"), "stages=[depth]", ["depth=sparse", "COLMAP model"]),
    "no network": (lambda root: None, "stages=[depth] depth=nothing.pt", ["depth=nothing.pt"]),
    "no TorchScript": (lambda root: save({}, root / "w.pt"), "stages=[depth] depth={root}/w.pt", ["torch.jit.save"]),
    "output of the network": (
        lambda root: torch.jit.script(Identity()).save(str(root / "w.pt")),
        "stages=[depth] depth={root}/w.pt",
        ["(1, h, w)", "(1, 3, 32, 64)"],
    ),
    "no flow weights": (lambda root: None, "stages=[flow] flow=raft", ["raft_large", "flow=dis", "flow_fw"]),
    "other flow weights": (
        lambda root: save({"wrong": torch.zeros(2)}, root / "w"),
        "stages=[flow] flow=raft flow_weights={root}/w",
        ["flow_weights"],
    ),
}


@pytest.mark.parametrize("case", [*OWN_REFUSALS, *POSED_REFUSALS])
def test_refusals(prepare, request, case):
    root = request.getfixturevalue("own" if case in OWN_REFUSALS else "posed")
    change, arguments, expected = (OWN_REFUSALS | POSED_REFUSALS)[case]
    change(root)
    existing = {path.name for path in root.iterdir()}
    message = prepare.refused("monocular", f"root={root}", *arguments.format(root=root).split())
    assert all(part in message for part in expected), message
    # results of earlier stages stay, of the failed stage nothing
    assert not [path for path in root.rglob("*") if path.name.endswith(".part")]
    assert {path.name for path in root.iterdir()} - existing <= {"images_resized", "masks_resized", "preview"}


def test_missing_folder(prepare):
    assert "nowhere" in prepare.refused("monocular", "root=nowhere")
