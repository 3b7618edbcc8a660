"""Optical flow files: round trips, OpenCV as the reference, damaged files."""

import struct

import cv2
import numpy as np
import pytest

from npbgpp.data.motion_maps import flow_size, read_flow, write_flow
from npbgpp.errors import InputError


@pytest.fixture
def flow():
    return np.random.default_rng(0).normal(0, 20, (5, 7, 2)).astype(np.float32)


def test_round_trip(tmp_path, flow):
    write_flow(tmp_path / "a.flo", flow)
    np.testing.assert_array_equal(read_flow(tmp_path / "a.flo"), flow)
    assert flow_size(tmp_path / "a.flo") == (5, 7)


def test_files_of_opencv(tmp_path, flow):
    write_flow(tmp_path / "ours.flo", flow)
    np.testing.assert_array_equal(cv2.readOpticalFlow(str(tmp_path / "ours.flo")), flow)
    assert cv2.writeOpticalFlow(str(tmp_path / "theirs.flo"), flow)
    np.testing.assert_array_equal(read_flow(tmp_path / "theirs.flo"), flow)


def damaged(flow, **header):
    numbers = {"magic": 202021.25, "width": 7, "height": 5} | header
    return struct.pack("<fii", *numbers.values()) + flow.tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flow: None, "No such file"),
        (lambda flow: b"", "0 bytes"),
        (lambda flow: b"PIEH\x07\x00", "6 bytes"),
        (lambda flow: damaged(flow, magic=1.0), "got 1;"),
        (lambda flow: damaged(flow, width=0), "0x5"),
        (lambda flow: damaged(flow, height=-5), "7x-5"),
        (lambda flow: damaged(flow, height=2**31 - 1), "7x2147483647"),
        (lambda flow: damaged(flow, width=8), "332.*8x5.*292"),
        (lambda flow: damaged(flow)[:-4], "288"),
        (lambda flow: damaged(flow) + b"more", "296"),
        (lambda flow: damaged(np.where(np.arange(7)[:, None] == 3, np.nan, flow)), "row 0, column 3"),
        (lambda flow: damaged(flow * np.float32(1e12)), "of 35 pixels"),
    ],
)
def test_damaged_flow_is_refused(tmp_path, flow, change, message):
    path = tmp_path / "00003.flo"
    if (content := change(flow)) is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_flow(path)
    assert str(path) in str(caught.value)
