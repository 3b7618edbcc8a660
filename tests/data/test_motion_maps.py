"""Files with optical flow: round trips, OpenCV's reader and writer as the reference, and files that are no flow."""

import struct

import cv2
import numpy as np
import pytest

from npbgpp.data.motion_maps import flow_size, read_flow, write_flow
from npbgpp.errors import InputError


@pytest.fixture
def flow():
    return np.random.default_rng(0).normal(0, 20, (5, 7, 2)).astype(np.float32)


def test_flow_comes_back(tmp_path, flow):
    write_flow(tmp_path / "a.flo", flow)
    np.testing.assert_array_equal(read_flow(tmp_path / "a.flo"), flow)
    assert flow_size(tmp_path / "a.flo") == (5, 7)


def test_opencv_reads_what_is_written_and_the_other_way_round(tmp_path, flow):
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
        (lambda flow: b"", "ends after 0 bytes"),
        (lambda flow: b"PIEH\x07\x00", "ends after 6 bytes"),
        (lambda flow: damaged(flow, magic=1.0), "the number 202021.25"),
        (lambda flow: damaged(flow, width=0), "from 1 to"),
        (lambda flow: damaged(flow, height=-5), "from 1 to"),
        (lambda flow: damaged(flow, height=2**31 - 1), "from 1 to"),
        (lambda flow: damaged(flow, width=8), "expected 332 bytes for 8x5 pixels, got 292"),
        (lambda flow: damaged(flow)[:-4], "got 288"),
        (lambda flow: damaged(flow) + b"more", "got 296"),
        (lambda flow: damaged(np.where(np.arange(7)[:, None] == 3, np.nan, flow)), "row 0, column 3"),
        (lambda flow: damaged(flow * np.float32(1e12)), "of 35 pixels"),
    ],
)
def test_files_that_are_no_flow_are_named(tmp_path, flow, change, message):
    path = tmp_path / "00003.flo"
    path.write_bytes(change(flow))
    with pytest.raises(InputError, match=message) as caught:
        read_flow(path)
    assert str(path) in str(caught.value)


def test_a_missing_flow_is_named(tmp_path):
    with pytest.raises(InputError, match="none.flo"):
        read_flow(tmp_path / "none.flo")
