"""``python -m npbgpp.render``: films of trained runs of every system, and one message when something is wrong."""

import json
import logging
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from npbgpp.core.cpu_share import CpuShare
from npbgpp.data.pose_files import read_poses, write_poses
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixels import PixelConvention, PixelGrid
from npbgpp.geometry.point_cloud import read_ply
from npbgpp.render import main

from ..conftest import TINY_NPBGPP, TINY_OVERRIDES, TINY_SIZE, ring_pose
from ..helpers.programs import run_program
from ..helpers.rasterize_reference import rasterize_reference
from ..run_folders import remember

# descriptors of another width, as many as the aggregator has coefficients: the basis that NPBG++ was trained with
FINETUNE = (*(word for word in TINY_OVERRIDES if word != "system=npbg"), "system=coefficients_ft")


@pytest.fixture(scope="module")
def trained(run_in, tiny_root, tmp_path_factory) -> dict[str, Path]:
    """Evaluated run folders of every system, launched from one folder."""
    launch = tmp_path_factory.mktemp("films")

    def go(name: str, tiny: tuple[str, ...], *overrides: str) -> Path:
        words = ("test_after_fit=true", "trainer.limit_val_batches=0", *overrides)
        folder = run_in(launch, *words, name=name, tiny=tiny)
        remember(folder, launch, *tiny, f"datasets.data_root={tiny_root}", *words)
        return folder

    runs = {"npbg": go("npbg", TINY_OVERRIDES), "npbgpp": go("npbgpp", TINY_NPBGPP)}
    start = ("system.descriptors_pretrained_dir=npbgpp/descriptors", "weights_path=npbgpp/checkpoints/last.ckpt")
    runs["coefficients_ft"] = go("coefficients_ft", FINETUNE, *start)
    return runs


@pytest.fixture
def render(monkeypatch, tmp_path, capsys, caplog) -> Callable[..., str]:
    """Runs the command in this process, in a folder of its own; returns what it said."""
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)

    def go(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["render", *words])
        caplog.clear()
        main()
        return " ".join((capsys.readouterr().out + " " + caplog.text).split())

    return go


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def frames_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"[0-9]{5}\.png", path.name))


# ------------------------------------------------------------------ pictures
def test_every_frame_follows_the_load_of_the_machine(trained, render, monkeypatch):
    asked = []
    monkeypatch.setattr(CpuShare, "adapt", lambda self: asked.append(self))
    render(f"run={trained['npbg']}", "path=circle", "frames=3", "out=film")
    assert len(asked) >= 3


@pytest.mark.parametrize("system", ["npbg", "npbgpp", "coefficients_ft"])
def test_test_views_are_those_of_the_evaluation(trained, render, tmp_path, system):
    run = trained[system]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = render(f"run={run}", "out=film", "fps=5")
    assert re.search(r"2 frames, [0-9.]+ s per frame .*/film/film\.mp4", said)
    assert sorted(path.name for path in (tmp_path / "film").iterdir()) == [
        "00000.png",
        "00001.png",
        "cameras.json",
        "contact_sheet.png",
        "film.mp4",
    ]
    (evaluated,) = (run / "rendered" / "ball_holdout").iterdir()
    for k in range(2):
        difference = np.abs(pixels(tmp_path / "film" / f"0000{k}.png") - pixels(evaluated / f"test-r_{k}_rendered.png"))
        assert difference.max() <= 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before, "a film leaves its run as it was"


@pytest.mark.parametrize("system", ["npbg", "npbgpp"])
def test_a_circle_around_the_scene(trained, render, tmp_path, system):
    render(f"run={trained[system]}", "path=circle", "frames=6", "out=film")
    found = frames_of(tmp_path / "film")
    pictures = [pixels(path) for path in found]
    assert [path.name for path in found] == [f"0000{k}.png" for k in range(6)]
    assert all(picture.shape == (TINY_SIZE, TINY_SIZE, 3) for picture in pictures)
    assert all(np.abs(pictures[k] - pictures[j]).max() > 2 for k in range(6) for j in range(k))
    cameras = Cameras.cat(read_poses(tmp_path / "film" / "cameras.json", some_camera()))
    assert torch.allclose(cameras.centers().norm(dim=1), torch.full((6,), 3.0), atol=1e-3)  # as the photos were taken
    middle, _ = cameras.project(torch.zeros(1, 3))
    assert torch.allclose(middle, torch.full((6, 1, 2), TINY_SIZE / 2), atol=1e-2)


def some_camera() -> Cameras:
    return Cameras.from_opengl(ring_pose(0.7)[None], torch.full((1, 2), 40.0), torch.full((1, 2), 16.0), (TINY_SIZE, TINY_SIZE))


def test_the_cameras_of_a_film_give_the_film_again(trained, render, tmp_path):
    run = f"run={trained['npbg']}"
    assert re.search(r"the pictures: \S+/first", render(run, "path=interpolate", "frames=5", "out=first", "video=none"))
    render(run, "path=file", "poses=first/cameras.json", "out=second", "video=none")
    assert [pixels(path).tolist() for path in frames_of(tmp_path / "first")] == [
        pixels(path).tolist() for path in frames_of(tmp_path / "second")
    ]


def test_poses_of_ones_own(trained, render, tmp_path):
    """The pose of a test view in a text: the picture of that view."""
    run = trained["npbg"]
    content = json.loads(
        (Path(OmegaConf.load(run / ".hydra" / "config.yaml").datasets.data_root) / "ball" / "transforms_test.json").read_text()
    )
    np.savetxt(tmp_path / "path.txt", np.concatenate([frame["transform_matrix"] for frame in content["frames"]]))
    render(f"run={run}", "path=file", "poses=path.txt", "out=film", "images=true", "video=none")
    (evaluated,) = (run / "rendered" / "ball_holdout").iterdir()
    for k in range(2):
        assert np.abs(pixels(tmp_path / "film" / f"0000{k}.png") - pixels(evaluated / f"test-r_{k}_rendered.png")).max() <= 1


def test_a_way_through_chosen_views(trained, render, tmp_path):
    run = f"run={trained['npbg']}"
    render(run, "path=interpolate", "views=[train-r_3,5,test-r_0]", "frames=7", "out=film", "video=none")
    render(run, "path=train", "views=[3,train-r_5]", "out=train", "video=none")
    render(run, "path=test", "views=[test-r_0]", "out=test", "video=none")
    film = frames_of(tmp_path / "film")
    for frame, view in ((0, "train/00000"), (3, "train/00001"), (6, "test/00000")):
        assert np.array_equal(pixels(film[frame]), pixels(tmp_path / f"{view}.png"))


def test_a_loop_does_not_repeat_its_first_view(trained, render, tmp_path):
    render(f"run={trained['npbg']}", "path=interpolate", "views=[0,4,8]", "frames=6", "loop=true", "out=film", "video=none")
    pictures = [pixels(path) for path in frames_of(tmp_path / "film")]
    assert len(pictures) == 6 and np.abs(pictures[0] - pictures[5]).max() > 20


def test_a_spiral(trained, render, tmp_path):
    render(f"run={trained['npbg']}", "path=spiral", "views=[0,1,2]", "frames=3", "out=film", "video=none")
    cameras = Cameras.cat(read_poses(tmp_path / "film" / "cameras.json", some_camera()))
    # what all look at lies as deep as the middle of the ball's points
    origins, directions = cameras.centers(), cameras.R[:, :, 2]
    aside = torch.eye(3) - directions[:, :, None] * directions[:, None]
    met = torch.linalg.solve(aside.sum(0), (aside @ origins[:, :, None]).sum(0)[:, 0])
    assert met.norm() < 1 and ((aside @ (met - origins)[:, :, None])[:, :, 0].norm(dim=1) < 1e-3).all()


@pytest.mark.parametrize(("size", "video"), [((48, 64), (64, 48)), ((33, 47), (48, 34))])
def test_another_size(trained, render, tmp_path, size, video):
    render(f"run={trained['npbg']}", f"size=[{size[0]},{size[1]}]", "out=film")
    assert pixels(tmp_path / "film" / "00000.png").shape == (*size, 3)
    with imageio.get_reader(tmp_path / "film" / "film.mp4") as reader:
        assert reader.get_meta_data()["size"] == video  # H.264 has even sides


def test_pictures_are_turned_as_those_of_the_evaluation(trained, render, tmp_path):
    run = f"run={trained['npbg']}"
    render(run, "out=plain", "video=none")
    render(run, "out=turned", "video=none", "system.postprocessing_transform=rotate_90_ccw")
    assert np.array_equal(np.rot90(pixels(tmp_path / "plain" / "00000.png")), pixels(tmp_path / "turned" / "00000.png"))


# ------------------------------------------------------------------ depth
@pytest.mark.parametrize("system", ["npbg", "npbgpp"])
def test_depths_of_points(trained, render, tmp_path, tiny_root, system):
    """Raw depths are those of the nearest points; every format holds the same numbers."""
    said = render(f"run={trained[system]}", "out=film", "depth=[picture,npy,pfm,bytes]", "views=[test-r_1]")
    folder = tmp_path / "film"
    depth = np.load(folder / "depth_00000.npy")
    (camera,) = read_poses(folder / "cameras.json", some_camera())
    xyz = read_ply(tiny_root / "ball" / "mvs_pc.ply").xyz
    grid = PixelGrid(PixelConvention.AUTHORS, camera.image_size)
    near = OmegaConf.load(trained[system] / ".hydra" / "config.yaml").system.near
    _, nearest = rasterize_reference(grid.normalise(camera, xyz)[0], camera.image_size, 1.0, 1, near, authors=True)
    differs = ~np.isclose(depth, nearest.nan_to_num(posinf=0.0).numpy(), atol=1e-5)
    assert (depth > 0).sum() > 100 and differs.sum() <= (system == "npbgpp"), "NPBG++ leaves out the one point that no photo sees"
    assert np.array_equal(cv2.imread(str(folder / "depth_00000.pfm"), cv2.IMREAD_UNCHANGED), depth)
    assert np.array_equal(np.fromfile(folder / "depth_00000.bytes", "<f4").reshape(TINY_SIZE, TINY_SIZE), depth)
    picture = pixels(folder / "depth_00000.png")
    assert (picture[depth == 0] == 0).all() and (picture[depth > 0].sum(-1) > 0).all()
    front, back = (picture[np.unravel_index(at, depth.shape)] for at in (np.where(depth > 0, depth, 9).argmin(), depth.argmax()))
    assert front[0] > front[2] and back[2] > back[0], "red is near, blue is far"
    red, blue = map(float, re.search(r"red is ([0-9.]+) scene units or less, blue ([0-9.]+)", said).groups())
    assert depth[depth > 0].min() <= red < blue <= depth.max()
    with imageio.get_reader(folder / "depth.mp4") as reader:
        assert reader.count_frames() == 1


def test_a_film_of_raw_depths_alone(trained, render, tmp_path):
    words = (f"run={trained['npbg']}", "path=circle", "out=film", "overwrite=true")
    render(*words, "frames=3", "depth=[npy]", "images=false", "video=none")
    assert sorted(path.name for path in (tmp_path / "film").iterdir()) == [
        "cameras.json",
        "contact_sheet.png",
        *(f"depth_0000{k}.npy" for k in range(3)),
    ]
    render(*words, "frames=2", "images=false", "video=gif")
    assert sorted(path.name for path in (tmp_path / "film").iterdir()) == ["cameras.json", "contact_sheet.png", "film.gif"]


# ------------------------------------------------------------------ videos
def test_the_video_has_every_frame(trained, render, tmp_path):
    render(f"run={trained['npbg']}", "path=circle", "frames=9", "fps=12", "out=film")
    with imageio.get_reader(tmp_path / "film" / "film.mp4") as reader:
        assert reader.count_frames() == 9 and reader.get_meta_data()["fps"] == 12
        shown = [np.asarray(frame).astype(int) for frame in reader]
    for k, frame in enumerate(shown):
        assert np.abs(frame - pixels(tmp_path / "film" / f"0000{k}.png")).mean() < 12  # coded with loss
    with Image.open(tmp_path / "film" / "contact_sheet.png") as sheet:
        assert sheet.width > 4 * 256


def test_a_gif_alone(trained, render, tmp_path):
    render(f"run={trained['npbg']}", "path=circle", "frames=4", "fps=10", "video=gif", "images=false", "out=film")
    assert sorted(path.name for path in (tmp_path / "film").iterdir()) == ["cameras.json", "contact_sheet.png", "film.gif"]
    with Image.open(tmp_path / "film" / "film.gif") as film:
        assert film.n_frames == 4 and film.size == (TINY_SIZE, TINY_SIZE) and film.info["duration"] == 100 and film.info["loop"] == 0


def test_a_film_is_replaced_only_when_asked(trained, render, tmp_path):
    run = f"run={trained['npbg']}"
    render(run, "path=circle", "frames=3", "out=film", "video=gif")
    (tmp_path / "film" / "mine.png").write_bytes(b"kept")
    assert "overwrite=true" in refused(render, run, "out=film", "video=none")
    assert len(frames_of(tmp_path / "film")) == 3
    render(run, "out=film", "video=none", "overwrite=true")
    assert sorted(path.name for path in (tmp_path / "film").iterdir()) == [
        "00000.png",
        "00001.png",
        "cameras.json",
        "contact_sheet.png",
        "mine.png",
    ]


# ------------------------------------------------------------------ where things come from
def test_the_run_of_an_evaluation_names_its_weights(trained, run_in, tiny_root, render, tmp_path):
    """It has no checkpoints of its own, and paths that refer to where it was launched."""
    launch = trained["npbg"].parent
    words = ("eval_only=true", "weights_path=npbg/checkpoints/last.ckpt", "system.descriptors_pretrained_dir=npbg/descriptors")
    remember(tmp_path / "evaluated", launch, *TINY_OVERRIDES, f"datasets.data_root={tiny_root}", *words)
    render(f"run={tmp_path / 'evaluated'}", "out=film", "video=none")
    render(f"run={trained['npbg']}", "out=other", "video=none")
    assert np.array_equal(pixels(tmp_path / "film" / "00001.png"), pixels(tmp_path / "other" / "00001.png"))


def test_a_run_that_has_been_moved(trained, render, tmp_path):
    """Its folder is known to nobody but the command; what the config says of Hydra's folders follows it."""
    shutil.copytree(trained["npbg"], tmp_path / "moved")
    path = tmp_path / "moved" / ".hydra" / "config.yaml"
    config = OmegaConf.load(path)
    config.system.descriptors_save_dir = "${hydra:run.dir}/descriptors"
    config.cache_dir = "${hydra:runtime.cwd}"
    OmegaConf.save(config, path)
    hydra = OmegaConf.load(path.with_name("hydra.yaml"))
    hydra.hydra.runtime.cwd = str(tmp_path / "gone")
    OmegaConf.save(hydra, path.with_name("hydra.yaml"))
    render("run=moved", "video=none")
    assert frames_of(tmp_path / "moved" / "films" / "ball_test")


def test_a_scene_without_held_out_views(trained, render, tmp_path):
    render(
        f"run={trained['npbg']}",
        "path=circle",
        "frames=2",
        "video=none",
        "out=film",
        "datasets.test_indices=[]",
        "datasets.val_indices=[]",
    )
    assert len(frames_of(tmp_path / "film")) == 2


def test_another_scene_of_photos(trained, render, tmp_path):
    """NPBG++ reads the photos of any scene; NPBG knows those that it was trained on."""
    render(f"run={trained['npbgpp']}", "scene=globe", "video=none", "out=film")
    assert len(frames_of(tmp_path / "film")) == 2
    assert "descriptors of scene globe" in refused(render, f"run={trained['npbg']}", "scene=globe", "video=none", "out=other")


def test_views_of_several_sizes(trained, render, tmp_path):
    cameras = [some_camera(), some_camera().resize((40, 48))]
    write_poses(tmp_path / "path.json", cameras)
    run = (f"run={trained['npbg']}", "path=file", "poses=path.json")
    assert "2 sizes" in refused(render, *run, "out=film")
    render(*run, "out=film", "video=none")
    assert [pixels(path).shape for path in frames_of(tmp_path / "film")] == [(32, 32, 3), (40, 48, 3)]
    render(*run, "out=fitted", "size=[36,36]")
    assert [pixels(path).shape for path in frames_of(tmp_path / "fitted")] == [(36, 36, 3)] * 2


# ------------------------------------------------------------------ mistakes
def refused(render, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        render(*words)
    message = str(caught.value.code)
    assert message.startswith("error: ") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("path",), ["path", "key=value"]),
        (("path=around",), ["path", "around", "circle"]),
        (("fraems=3",), ["fraems", "frames"]),
        (("frames=0", "path=circle"), ["frames", "0"]),
        (("frames=9",), ["frames=9", "path=test", "add path=circle"]),
        (("path=file", "poses=README.md"), ["README.md"]),
        (("frames=many", "path=circle"), ["frames", "many"]),
        (("loop=true", "path=circle"), ["loop", "interpolate"]),
        (("path=file",), ["poses"]),
        (("poses=a.json",), ["poses", "path=file"]),
        (("path=file", "poses=none.json"), ["none.json"]),
        (("path=file", "poses=none.json", "views=[1]"), ["views", "path=file"]),
        (("views=[]",), ["views"]),
        (("views=[99]",), ["views", "99", "train-r_0"]),
        (("views=[val-r_0]",), ["val-r_0", "no test views"]),
        (("path=interpolate", "views=[test-r_0]"), ["at least two views"]),
        (("path=circle", "views=[3]"), ["one direction"]),
        (("path=val", "datasets.val_indices=[]"), ["no val views"]),
        (("fps=0",), ["fps", "0"]),
        (("size=[0,32]",), ["size", "0"]),
        (("size=32",), ["size", "list of 2"]),
        (("size=[8,40]",), ["size", "at least 16 pixels", "(8, 40)"]),
        (("size=[20,40]",), ["at least 32 pixels", "20 x 40"]),
        (("video=avi",), ["video", "avi", "mp4"]),
        (("depth=[exr]",), ["depth", "exr", "npy"]),
        (("scene=nothing",), ["nothing", "ball, globe, moon"]),
        (("checkpoint=epoch7",), ["checkpoint", "epoch7", "epoch0, last"]),
        (("weights_path=none.ckpt",), ["none.ckpt"]),
        (("datasets.data_root=nowhere",), ["datasets.data_root", "nowhere"]),
        (("datasets.scenes.train=[ball,moon]",), ["scene", "ball, moon", "choose"]),
        (("system.neer=2",), ["system.neer", "near"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_one_message(trained, render, tmp_path, words, expected):
    message = refused(render, f"run={trained['npbg']}", "out=film", *words)
    assert all(word in message for word in expected), message
    assert not list(tmp_path.rglob("*.png")) and not list(tmp_path.rglob("film.*"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "does not exist"),
        ("", "there is none"),
        ("- 1\n", "ListConfig"),
        ("a: [", "unreadable"),
        ("a: 1\n", "none called datasets"),
        ("\xff", "unreadable|ListConfig|str"),
    ],
)
def test_what_is_no_run(render, tmp_path, config, expected):
    if config is not None:
        (tmp_path / "run" / ".hydra").mkdir(parents=True)
        if config:
            (tmp_path / "run" / ".hydra" / "config.yaml").write_text(config, encoding="latin-1")
    assert re.search(expected, refused(render, "run=run"))


def test_an_interrupted_film_leaves_no_video(trained, render, tmp_path, monkeypatch):
    def full(path: Path, picture: torch.Tensor) -> None:
        raise InputError("No space left on device")

    monkeypatch.setattr("npbgpp.cli.render.write_png", full)
    assert "No space left" in refused(render, f"run={trained['npbg']}", "out=film")
    assert list((tmp_path / "film").iterdir()) == []


def test_without_arguments_it_says_what_it_takes(render):
    with pytest.raises(SystemExit) as caught:
        render()
    assert "run= " in str(caught.value.code) and "frames=null" in str(caught.value.code)


@pytest.mark.slow
def test_as_a_user_types_it(run_command, tmp_path):
    """Processes of their own: a run leaves what the command needs."""
    done = run_command(f"hydra.run.dir={tmp_path / 'run'}", "trainer.limit_val_batches=0", "loggers=[csv]")
    assert done.returncode == 0, done.stderr
    film = run_program("npbgpp", ["render", "run", "path=circle", "frames=2"], tmp_path)
    assert film.returncode == 0, film.stderr
    assert "2 frames" in film.stdout and (tmp_path / "run" / "films" / "ball_circle" / "film.mp4").is_file()
