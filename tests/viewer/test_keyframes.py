"""Camera paths of the viewer and their files."""

import json

import pytest
import torch

from npbgpp.data import PoseTrack, read_poses, read_track, write_track
from npbgpp.errors import InputError
from npbgpp.viewer.keyframes import Keyframe, keyframes_of, path_file, saved_paths, timed_cameras, track_of

from .test_poses import camera

KEYS = [Keyframe(camera(0.0), 0.0), Keyframe(camera(0.5, focal=70.0), 2.0), Keyframe(camera(1.0), 3.0)]


@pytest.mark.parametrize(("loop", "count"), [(False, 9), (True, 12)])
def test_frames_pass_through_the_keyframes(loop, count):
    track = track_of(KEYS, 4, loop, timed=True)
    assert len(track.cameras) == count and track.keyframes == (0, 4, 8)
    for k, key in zip(track.keyframes, KEYS, strict=True):
        torch.testing.assert_close(track.cameras[k].R, key.camera.R)
        assert track.times[k] == key.time
    assert track.times[2] == pytest.approx(1.0)
    assert track.cameras[2].focal_length[0, 0].item() == pytest.approx(62.5)
    assert keyframes_of(track)[1:] == (4, loop)


def test_files_keep_keyframes_and_times(tmp_path):
    track = track_of(KEYS, 4, False, timed=True)
    write_track(tmp_path / "path.json", track, (1000.0, 0.0, 0.0))
    found = read_track(tmp_path / "path.json", KEYS[0].camera, (1000.0, 0.0, 0.0))
    assert found.times == track.times and found.keyframes == track.keyframes
    keys, between, loop = keyframes_of(found)
    assert (len(keys), between, loop) == (3, 4, False)
    torch.testing.assert_close(keys[1].camera.R, KEYS[1].camera.R, atol=1e-6, rtol=0)
    assert len(read_poses(tmp_path / "path.json", KEYS[0].camera)) == 9, "npbgpp render reads the same file"


def test_one_keyframe_is_no_path():
    with pytest.raises(InputError, match="keyframes: expected at least two"):
        track_of(KEYS[:1], 4, False, timed=False)


def test_field_of_view_of_a_keyframe():
    assert KEYS[0].with_fov(0.5).camera.focal_length[0, 1].item() == pytest.approx(48)


def test_times_of_frames():
    track = PoseTrack(tuple(camera(k / 10) for k in range(3)), (0.0, 1.5, 9.0))
    assert [(t.time_step, t.share) for t in timed_cameras(track, 4)] == [(0, 0.0), (1, 0.5), (3, 0.0)]
    assert [t.time_step for t in timed_cameras(PoseTrack(track.cameras), 6)] == [0, 2, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["cameras"][0].update(time="soon"), "time: expected a number"),
        (lambda c: c["cameras"][0].update(time=-1), "time: expected a number"),
        (lambda c: c["cameras"][0].pop("time"), "for every camera or for none"),
        (lambda c: c.update(cameras=[]), "at least one pose"),
        (lambda c: c.update(format="other"), 'expected "format"'),
        (lambda c: c["cameras"].__setitem__(0, []), "cam_to_world: expected numbers"),
    ],
)
def test_malformed_files_are_refused(tmp_path, change, message):
    file = tmp_path / "path.json"
    write_track(file, track_of(KEYS, 1, False, timed=True))
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_track(file, KEYS[0].camera)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a" * 65])
def test_names_stay_in_the_folder(tmp_path, name):
    with pytest.raises(InputError, match="name: expected letters"):
        path_file(tmp_path, name)
    assert path_file(tmp_path, "fly_1").relative_to(tmp_path).as_posix() == "paths/fly_1.json"
    assert saved_paths(tmp_path) == []
