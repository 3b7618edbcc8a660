"""Paths through a video: around its way, about one of its frames, with time as the names of the paths say."""

from pathlib import Path

import pytest
import torch

from npbgpp.cli.settings import VideoPath
from npbgpp.cli.trajectory import spread_over_time, timed_path
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene, View
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras

FRAMES, STEP = 5, 0.5


def way() -> Cameras:
    """Frames half a unit apart, from left to right, that look along -z."""
    poses = torch.eye(4).repeat(FRAMES, 1, 1)
    poses[:, 0, 3] = STEP * torch.arange(FRAMES)
    return Cameras.from_opengl(poses, torch.full((FRAMES, 2), 20.0), torch.tensor([[12.0, 8.0]]).repeat(FRAMES, 1), (16, 24))


def scene() -> Scene:
    cameras = way()
    views = tuple(View(f"{k:05}", Path(f"{k}.png"), cameras[k], time_step=k) for k in range(FRAMES))
    return Scene("video", views, {"train": tuple(range(FRAMES)), "val": (), "test": ()}, CloudFile(Path("none.ply")))


def test_time_goes_on_along_the_spiral():
    found = timed_path("spiral", scene(), None, None)
    assert [timed.time_step for timed in found] == [k for k in range(FRAMES) for _ in range(6)] and all(timed.share == 0 for timed in found)


def test_time_stands_still_about_a_frame():
    found = timed_path("spiral3", scene(), None, None)
    assert len(found) == 60 and {(timed.time_step, timed.share) for timed in found} == {(3, 0.0)}
    assert len(timed_path("spiral3", scene(), 7, (32, 48))) == 7 and found[0].camera.image_size == (16, 24)


@pytest.mark.parametrize("new", [0, 1, 3])
def test_as_many_new_pictures_between_moments_as_the_name_says(new):
    found = timed_path(f"fixview1_interp{new}", scene(), None, None)
    assert len(found) == (FRAMES - 1) * (new + 1) + 1
    assert [timed.time_step + timed.share for timed in found] == pytest.approx([k / (new + 1) for k in range(len(found))])
    assert all(timed.camera is found[0].camera for timed in found[:-1])
    assert torch.equal(found[0].camera.T, way().T[1:2]) and found[-1].time_step == FRAMES - 1


def test_time_is_spread_over_any_path():
    cameras = [way()[0]] * 10
    assert [timed.time_step for timed in spread_over_time(cameras, FRAMES)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_names_of_paths():
    assert VideoPath.parse("spiral12") == VideoPath(12, None) and VideoPath.parse("fixview0_interp10") == VideoPath(0, 10)
    assert not any(VideoPath.parse(path) for path in ("spiral", "test", "fixview_interp1", "spiralx"))
    with pytest.raises(InputError, match="0 to 4"):
        timed_path("spiral5", scene(), None, None)
