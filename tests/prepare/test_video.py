"""``python -m npbgpp.prepare monocular``: what each stage makes of a video, that a second run makes nothing, and what is said when something is missing."""

import logging
import shutil
import sys
from collections.abc import Callable
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
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.parsers import read_scene
from npbgpp.prepare import video
from npbgpp.prepare.__main__ import main
from npbgpp.prepare.video_maps import dis, network_disparity, raft, static_mask, stretched

EXAMPLE = Path(__file__).resolve().parents[2] / "example"
FRAMES, SIZE = 6, (214, 320)
BENT = (260.0, 160.0, 107.0, -0.1)  # of SIMPLE_RADIAL: corners are 10 pixels off


@pytest.fixture
def prepare(monkeypatch, tmp_path, caplog) -> Callable[..., str]:
    """Runs the command in this process; returns what it printed."""
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def go(root: Path, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["prepare", "monocular", f"root={root}", *words])
        caplog.clear()
        main()
        return " ".join(caplog.text.split())

    return go


def refused(prepare, root: Path, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        prepare(root, *words)
    message = str(caught.value.code)
    assert message.startswith("error: ") and "\n" not in message.strip()
    assert not [path for path in root.rglob("*") if path.name.endswith(".part")]
    return message


@pytest.fixture(scope="session")
def bent_video(tmp_path_factory) -> Path:
    """``frames`` of the moving room through a lens that distorts, ``masks`` by hand, and the true camera centres."""
    root = tmp_path_factory.mktemp("bent")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        from moving_scene_maker import measure, room
    things = room.room(0)
    moves = np.array([thing.moves for thing in things])
    lens = pycolmap.Camera(model="SIMPLE_RADIAL", width=SIZE[1], height=SIZE[0], params=list(BENT))
    centres = []
    for folder in ("frames", "masks"):
        (root / folder).mkdir()
    for k in range(FRAMES):
        camera = measure.Pinhole(room.path_camera(k / (FRAMES - 1)), SIZE)
        straight = lens.cam_from_img(camera.centres()) * camera.focal + np.array(SIZE[::-1]) / 2
        hits = measure.trace(things, k / (FRAMES - 1), camera, straight)
        colours = np.zeros((SIZE[0] * SIZE[1], 3))
        for number, thing in enumerate(things):
            colours[hits.thing == number] = thing.colours(hits.place[hits.thing == number], k / (FRAMES - 1))
        Image.fromarray((colours * 255).astype(np.uint8).reshape(*SIZE, 3)).save(root / "frames" / f"clip_{k + 7}.png")
        mask = static_mask(moves[hits.thing].reshape(SIZE))
        Image.fromarray(mask).save(root / "masks" / (f"{k:05d}.png" if k % 2 else f"{k:05d}.png.png"))  # by both rules
        centres.append(camera.pose[:3, 3])
    np.save(root / "centres.npy", np.array(centres))
    return root


@pytest.fixture
def own(bent_video: Path, tmp_path: Path) -> Path:
    shutil.copytree(bent_video, tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture
def ready(moving_root: Path, tmp_path: Path) -> Path:
    """The small example scene, undistorted and with poses, without disparity, flow and masks."""
    shutil.copytree(moving_root / "hop", tmp_path / "hop", ignore=shutil.ignore_patterns("disps", "flow_*", "masks", "novel"))
    return tmp_path / "hop"


# ---------------------------------------------------------------------- the whole
def test_a_video_becomes_a_scene_and_a_second_run_does_nothing(prepare, own):
    said = prepare(own)
    assert "6 frames registered:" in said and "datasets.scene_name=own" in said
    made = {"images_resized", "masks_resized", "images", "masks", "sparse", "disps", "flow_fw", "flow_bw", "preview"}
    assert {path.name for path in own.iterdir()} == made | {"frames", "centres.npy"}
    assert {path.name for path in (own / "preview").iterdir()} == {"resize.png", "poses.png", "depth.png", "flow.png"}
    times = {path: path.stat().st_mtime_ns for path in own.rglob("*")}
    again = prepare(own)
    assert again.count("nothing to do") == 5
    assert {path: path.stat().st_mtime_ns for path in own.rglob("*")} == times

    scene = read_scene("auto", own, own, "own", CloudFile(own / "none.ply"), {})
    assert scene.layout == "monocular" and len(scene.frames) == FRAMES and not any("distortion" in note for note in scene.notes)
    # frames without distortion, and the camera of these
    bent = ColmapModel.read(own / "sparse" / "0").lenses[1]
    assert bent.model == "SIMPLE_RADIAL" and bent.params[3] < -0.03 and bent.displacement() > 2
    assert ColmapModel.read(own / "sparse").lenses[1].model == "PINHOLE"
    photo, resized = read_photo(scene.frames[2]).image, np.asarray(Image.open(own / "images_resized" / "00002.png"))
    assert photo.shape[1:] != resized.shape[:2] or (photo.permute(1, 2, 0).numpy() != resized).mean() > 0.5
    flow = read_flow(own / "flow_fw" / "00001.flo")
    np.testing.assert_array_equal(flow, dis(read_photo(scene.frames[1]).image, read_photo(scene.frames[2]).image))
    assert flow.shape[:2] == scene.frames[0].camera.image_size
    # the path of the camera is the true one but for a similarity
    found, true = Cameras.cat([view.camera for view in scene.frames]).centers().numpy(), np.load(own / "centres.npy")
    assert _after_alignment(found, true) < 0.03 * np.linalg.norm(true[-1] - true[0])
    for view in scene.frames:
        static = read_static(view)
        assert 0.03 < 1 - static.float().mean() < 0.35
        assert set(np.unique(np.asarray(Image.open(view.motion.static_mask)))) == {0, 255}


def _after_alignment(found: np.ndarray, true: np.ndarray) -> float:
    """Largest distance between points after the best similarity (Umeyama, 1991)."""
    a, b = found - found.mean(0), true - true.mean(0)
    u, scale, vt = np.linalg.svd(b.T @ a)
    signs = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    aligned = (scale * signs).sum() / (a**2).sum() * a @ (u * signs @ vt).T
    return float(np.linalg.norm(aligned - b, axis=1).max())


def test_poses_that_are_there_are_kept(prepare, ready):
    before = (ready / "sparse" / "images.txt").read_bytes()
    said = prepare(ready, "stages=[resize,poses,depth,flow]")
    assert "images is there, nothing to do" in said and "sparse and images are there" in said
    assert (ready / "sparse" / "images.txt").read_bytes() == before and not (ready / "images_resized").exists()
    scene = read_scene("auto", ready, ready, "hop", CloudFile(ready / "none.ply"), {})
    assert scene.layout == "monocular" and all(view.motion.disparity is not None for view in scene.frames)


# -------------------------------------------------------------------------- resize
def test_frames_are_only_made_smaller(prepare, own):
    said = prepare(own, "stages=[resize]", "max_width=100", "max_height=90")
    assert "100x66 pixels from 320x214" in said
    assert [path.name for path in sorted((own / "images_resized").iterdir())] == [f"{k:05d}.png" for k in range(FRAMES)]
    assert Image.open(own / "images_resized" / "00003.png").size == (100, 66)
    shutil.rmtree(own / "images_resized")
    prepare(own, "stages=[resize]")
    for k in range(FRAMES):
        np.testing.assert_array_equal(
            np.asarray(Image.open(own / "images_resized" / f"{k:05d}.png")), np.asarray(Image.open(own / "frames" / f"clip_{k + 7}.png"))
        )


def test_frames_that_cannot_be_used(prepare, own, tmp_path):
    assert "no such folder" in refused(prepare, own, "stages=[resize]", "frames=nothing")
    Image.new("RGB", (20, 20)).save(own / "frames" / "clip_9.png")
    assert "clip_9.png: expected 320x214 pixels" in refused(prepare, own, "stages=[resize]")
    for k in (8, 9, 10, 11, 12):
        (own / "frames" / f"clip_{k}.png").unlink()
    assert "expected at least 3 frames, got 1" in refused(prepare, own, "stages=[resize]")
    assert not (own / "images_resized").exists()
    assert "there is none" in refused(prepare, tmp_path / "nowhere")


# --------------------------------------------------------------------------- masks
class TwoThings(nn.Module):
    """Stands in for Mask R-CNN: a person on the left, a book on the right, a person that it is not sure of below."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        height, width = images[0].shape[1:]
        masks = torch.zeros(3, 1, height, width)
        masks[0, 0, 10:20, 2:8], masks[1, 0, 10:20, -8:-2], masks[2, 0, -2:] = 0.9, 0.9, 0.9
        return [{"labels": torch.tensor([1, 84, 1]), "scores": torch.tensor([0.9, 0.8, 0.01]), "masks": masks}]


def test_other_classes_give_other_masks(prepare, ready, monkeypatch, tmp_path):
    monkeypatch.setattr("torchvision.models.detection.maskrcnn_resnet50_fpn", lambda **_: TwoThings())
    torch.save({}, tmp_path / "weights.pth")
    dark = {}
    for classes in ("[person]", "[book]", "[person,book]"):
        said = prepare(ready, "stages=[masks]", f"dynamic_classes={classes}", f"mask_weights={tmp_path / 'weights.pth'}")
        assert "may move" in said and (ready / "preview" / "masks.png").is_file()
        mask = np.asarray(Image.open(ready / "masks" / "00003.png.png"))
        dark[classes] = set(zip(*np.nonzero(mask == 0), strict=True))
        shutil.rmtree(ready / "masks")
    assert dark["[person]"] == {(row, column) for row in range(3, 27) for column in range(15)}  # 7 pixels wider on all sides
    assert dark["[book]"] and not dark["[book]"] & dark["[person]"]
    assert dark["[person,book]"] == dark["[book]"] | dark["[person]"]


def test_without_weights_the_stage_says_how_to_go_on(prepare, own, ready, tmp_path):
    shutil.rmtree(own / "masks")
    message = refused(prepare, own)
    assert "stage masks" in message and "maskrcnn_resnet50_fpn_coco" in message and str(tmp_path / "torch") in message
    assert "masks/<name of the frame>.png" in message and "stages=[resize,poses,depth,flow]" in message
    assert (own / "images_resized").is_dir() and not (own / "masks_resized").exists()
    assert "expected names among person, bicycle" in refused(prepare, ready, "stages=[masks]", "dynamic_classes=[dragon]")
    torch.save({"wrong": torch.zeros(2)}, tmp_path / "weights.pth")
    assert "which is for another network" in refused(prepare, ready, "stages=[masks]", f"mask_weights={tmp_path / 'weights.pth'}")


def test_masks_of_ones_own_must_be_complete(prepare, own):
    (own / "masks" / "00003.png").unlink()
    assert "got none for 00003.png" in refused(prepare, own, "stages=[resize,masks]")
    assert (own / "masks").is_dir() and not (own / "masks_resized").exists()


# --------------------------------------------------------------------------- poses
def test_frames_that_are_not_registered_are_named_and_nothing_is_left(prepare, own):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3)).astype(np.uint8)).save(own / "frames" / "clip_10.png")
    message = refused(prepare, own, "stages=[resize,masks,poses]")
    assert "got none for 1 that COLMAP could not register: 00003.png" in message
    assert not {"images", "masks", "sparse", "poses"} & {path.name for path in own.iterdir()}


def test_masks_that_leave_nothing_are_named(prepare, own):
    Image.new("L", SIZE[::-1]).save(own / "masks" / "00001.png")
    message = refused(prepare, own, "stages=[resize,masks,poses]")
    assert "00001.png: expected some pixels that stand still" in message


def test_a_video_without_texture_has_no_poses(prepare, own):
    for path in (own / "frames").iterdir():
        Image.new("RGB", SIZE[::-1], (90, 90, 90)).save(path)
    assert "expected frames that COLMAP can reconstruct, got no model" in refused(prepare, own, "stages=[resize,poses]")


def test_poses_without_their_frames_are_refused(prepare, ready):
    (ready / "images").rename(ready / "frames")
    assert "has poses but no folder images" in refused(prepare, ready, "stages=[resize,poses]")


# --------------------------------------------------------------------------- depth
def test_points_give_a_weak_disparity(prepare, ready, moving_root):
    prepare(ready, "stages=[depth]")
    for k in range(8):
        made, true = (read_numbers(root / "disps" / f"{k:05d}.png").ravel() for root in (ready, moving_root / "hop"))
        still = read_numbers(moving_root / "hop" / "masks" / f"{k:05d}.png.png").ravel() > 0.5
        assert np.corrcoef(made[still], true[still])[0, 1] > 0.93  # 0.96 was seen
    assert (ready / "preview" / "depth.png").is_file()


def test_disparity_needs_points(prepare, ready):
    lines = (ready / "sparse" / "points3D.txt").read_text().splitlines()
    (ready / "sparse" / "points3D.txt").write_text("\n".join(lines[:3]) + "\n")
    assert "expected at least 8 points of the model in frame 00000.png" in refused(prepare, ready, "stages=[depth]")
    assert not (ready / "disps").exists()
    shutil.rmtree(ready / "sparse")
    assert "needs the points of a COLMAP model" in refused(prepare, ready, "stages=[depth]")


class Brightness(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        assert image.shape[2] % 32 == 0 and image.shape[3] % 32 == 0
        return image.mean(1) + 10.0


class Colours(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image


def test_a_network_gives_disparity_or_depth(prepare, ready, tmp_path):
    path = tmp_path / "brightness.pt"
    torch.jit.script(Brightness()).save(str(path))
    image = read_photo(read_scene("colmap", ready, ready, "hop", CloudFile(ready / "none.ply"), {}).views[0]).image
    disparity = network_disparity(path, False, torch.device("cpu"))(image, 0)
    assert disparity.shape == (32, 48)
    assert np.corrcoef(disparity.ravel(), image.float().mean(0).numpy().ravel())[0, 1] > 0.85
    np.testing.assert_allclose(network_disparity(path, True, torch.device("cpu"))(image, 0), 1 / disparity, rtol=1e-4)
    prepare(ready, "stages=[depth]", f"depth={path}")
    np.testing.assert_array_equal(np.asarray(Image.open(ready / "disps" / "00000.png")), stretched(disparity))


def test_files_that_are_no_network_for_depth(prepare, ready, tmp_path):
    assert "no such file" in refused(prepare, ready, "stages=[depth]", "depth=nothing.pt")
    torch.save({}, tmp_path / "weights.pt")
    assert "written by torch.jit.save" in refused(prepare, ready, "stages=[depth]", f"depth={tmp_path / 'weights.pt'}")
    torch.jit.script(Colours()).save(str(tmp_path / "colours.pt"))
    assert "got (1, 3, 32, 64)" in refused(prepare, ready, "stages=[depth]", f"depth={tmp_path / 'colours.pt'}")
    assert not (ready / "disps").exists()


# ---------------------------------------------------------------------------- flow
def test_dense_inverse_search_finds_the_motion(prepare, ready, moving_root):
    prepare(ready, "stages=[flow]")
    for folder, first in (("flow_fw", 0), ("flow_bw", 1)):
        for k in range(first, first + 7):
            made, true = (read_flow(root / folder / f"{k:05d}.flo") for root in (ready, moving_root / "hop"))
            assert np.median(np.linalg.norm(made - true, axis=2)) < 0.25 < np.median(np.linalg.norm(true, axis=2))
    assert (ready / "preview" / "flow.png").is_file()


def test_flow_of_ones_own_is_kept(prepare, ready, moving_root):
    shutil.copytree(moving_root / "hop" / "flow_fw", ready / "flow_fw")
    before = (ready / "flow_fw" / "00002.flo").read_bytes()
    assert "flow_bw of 8 frames by dis" in prepare(ready, "stages=[flow]")
    assert (ready / "flow_fw" / "00002.flo").read_bytes() == before and len(list((ready / "flow_bw").iterdir())) == 7


def test_a_stage_that_fails_leaves_nothing(prepare, ready, monkeypatch):
    calls = []

    def fails(first, second):
        calls.append(1)
        if len(calls) == 4:
            raise InputError("something is wrong")
        return dis(first, second)

    monkeypatch.setattr(video, "dis", fails)
    assert "something is wrong" in refused(prepare, ready, "stages=[flow]")
    assert len(calls) == 4 and not (ready / "flow_fw").exists()
    (ready / ".flow_fw.part").mkdir()
    (ready / ".flow_fw.part" / "half.flo").touch()
    monkeypatch.undo()
    prepare(ready, "stages=[flow]")
    assert len(list((ready / "flow_fw").iterdir())) == 7


def test_raft_gives_flow_of_the_size_of_the_frames(prepare, ready, tmp_path):
    from torchvision.models.optical_flow import raft_large

    torch.manual_seed(0)
    torch.save(raft_large(weights=None).state_dict(), tmp_path / "raft.pth")
    estimate = raft(tmp_path / "raft.pth", torch.device("cpu"))
    image = torch.randint(0, 255, (3, 130, 133), dtype=torch.uint8)
    assert estimate(image, image).shape == (130, 133, 2)
    message = refused(prepare, ready, "stages=[flow]", "flow=raft")
    assert "weights of RAFT" in message and "flow=dis" in message and "flow_fw" in message
    torch.save({"wrong": torch.zeros(2)}, tmp_path / "other.pth")
    assert "another network" in refused(prepare, ready, "stages=[flow]", "flow=raft", f"flow_weights={tmp_path / 'other.pth'}")


# ---------------------------------------------------------------------------- keys
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("stages=[resize,polish]", "stages: expected some of resize, masks, poses, depth, flow"),
        ("stages=[]", "stages: expected some of"),
        ("flow=best", "flow: expected one of dis, raft"),
        ("max_width=0", "max_width"),
        ("device=abacus", "device: expected one of auto, cpu, cuda"),
        ("depth_network=both", "depth_network"),
        ("colour=red", "colour"),
    ],
)
def test_keys_that_make_no_sense(prepare, ready, word, message):
    assert message in refused(prepare, ready, word)


def test_stages_need_those_before_them(prepare, own):
    assert "run the stage resize first" in refused(prepare, own, "stages=[poses]")
    assert "run the stage poses first" in refused(prepare, own, "stages=[depth]")
    assert "run the stage poses first" in refused(prepare, own, "stages=[flow]")
