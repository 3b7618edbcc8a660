"""XML of Metashape: sensors, cameras, ignored transforms, damaged files, a real export."""

from pathlib import Path

import numpy as np
import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.parsers.metashape import MetashapeFile

from ..helpers.layouts.npbg import metashape_xml
from ..helpers.scenes import look_at_origin

SIZE = (48, 64)
POSES = {f"P{k}": np.linalg.inv(look_at_origin(k)) for k in range(3)}
LENS = "<f>72.5</f><cx>1.5</cx><cy>-2</cy><b1>0</b1><k1>-0.06</k1><k3>0.2</k3><p1>1e-3</p1>"


def read(folder: Path, content: str | bytes) -> MetashapeFile:
    path = folder / "cameras.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return MetashapeFile.read(path)


def test_sensors_and_cameras_are_read(tmp_path):
    found = read(tmp_path, metashape_xml(POSES | {"P3": None}, SIZE, LENS))
    (sensor,) = found.sensors
    assert (sensor.image_size, sensor.focal_length, sensor.offset) == (SIZE, 72.5, (1.5, -2.0))
    assert sensor.distortion == (("k1", -0.06), ("k3", 0.2), ("p1", 1e-3))
    assert [camera.label for camera in found.cameras] == ["P0", "P1", "P2"] and found.unaligned == ("P3",) and found.transforms == ()
    for camera in found.cameras:
        assert camera.sensor == sensor
        np.testing.assert_array_equal(camera.cam_to_world, POSES[camera.label])


def test_cameras_in_groups_and_several_sensors(tmp_path):
    text = metashape_xml(POSES, SIZE, LENS)
    text = text.replace('<camera id="1" sensor_id="0"', '<group id="0"><camera id="1" sensor_id="7"').replace(
        "</cameras>", "</group></cameras>"
    )
    other = '<sensor id="7"><calibration class="initial"><f>1</f></calibration><resolution width="9" height="8"/>'
    other += '<calibration class="adjusted"><f>80</f></calibration></sensor><sensor id="8"/></sensors>'
    found = read(tmp_path, text.replace("</sensors>", other))
    assert [(c.label, c.sensor.focal_length, c.sensor.image_size) for c in found.cameras] == [
        ("P0", 72.5, SIZE),
        ("P1", 80.0, (8, 9)),
        ("P2", 72.5, SIZE),
    ]
    assert len(found.sensors) == 2, "uncalibrated sensors are ignored"


def of_parts(scale: float) -> str:
    return f"<transform><rotation>1 0 0 0 1 0 0 0 1</rotation><translation>0 0 0</translation><scale>{scale}</scale></transform>"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (of_parts(1), ()),
        (of_parts(2), ("chunk",)),
        ("<transform>1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1</transform>", ()),
        ("<transform>1 0 0 5 0 1 0 0 0 0 1 0 0 0 0 1</transform>", ("chunk",)),
        (
            f'<components><component id="3">{of_parts(1)}</component><component id="4">{of_parts(0.5)}</component></components>',
            ("component 4",),
        ),
        ("<transform>word</transform>", ("chunk",)),
    ],
)
def test_ignored_transforms_are_listed(tmp_path, more, expected):
    assert read(tmp_path, metashape_xml(POSES, SIZE, LENS, more)).transforms == expected


GOOD = metashape_xml(POSES, SIZE, LENS)
BOMB = '<!DOCTYPE d [<!ENTITY a "lol"><!ENTITY b "&a;&a;">]>'
BAD = {
    "empty": ("", "cameras.xml"),
    "text": ("hello", "cameras.xml"),
    "truncated": (GOOD[:900], "cameras.xml"),
    "other XML": ("<document/>", "<chunk>"),
    "not UTF-8": (b"\xff\xfe\x00<", "UTF-8"),
    "document type": (GOOD.replace("<document", BOMB + "<document"), "document type"),
    "document type in other bytes": (GOOD.replace("UTF-8", "UTF-16").replace("<document", BOMB + "<document").encode("utf-16"), "UTF-8"),
    "entity": (GOOD.replace("72.5", "&b;"), "cameras.xml"),
    "15 numbers": (GOOD.replace(" 1</transform>", "</transform>", 1), "camera P0: transform", "15"),
    "NaN": (GOOD.replace(" 1</transform>", " nan</transform>", 1), "camera P0: transform", "'nan'"),
    "word": (GOOD.replace(" 1</transform>", " one</transform>", 1), "'one'"),
    "last row": (GOOD.replace(" 1</transform>", " 2</transform>", 1), "camera P0: transform", "last row"),
    "singular": (metashape_xml({"P0": np.diag([0.0, 0, 0, 1])}, SIZE, LENS), "not orthonormal"),
    "mirror": (metashape_xml({"P0": np.diag([1.0, 1, -1, 1])}, SIZE, LENS), "mirror"),
    "twice": (GOOD.replace('"P1"', '"P0"'), "label", "P0"),
    "no label": (GOOD.replace('label="P1"', ""), "label", "number 1"),
    "no sensor": (GOOD.replace('sensor_id="0" label="P1"', 'sensor_id="5" label="P1"'), "camera P1", "'5'"),
    "no focal length": (GOOD.replace("<f>72.5</f>", ""), "camera P0", "sensor"),
    "sensor twice": (GOOD.replace("</sensors>", GOOD[GOOD.index("<sensor ") : GOOD.index("</sensors>")] + "</sensors>"), "sensor 0"),
    "focal length 0": (GOOD.replace("72.5", "0"), "sensor 0", "f 0.0"),
    "negative focal length": (GOOD.replace("72.5", "-72.5"), "sensor 0", "f -72.5"),
    "infinite": (GOOD.replace("72.5", "1e999"), "sensor 0: f", "1e999"),
    "far centre": (GOOD.replace("<cx>1.5", "<cx>1e7"), "sensor 0", "10000000.0"),
    "no size": (GOOD.replace('width="64"', ""), "resolution"),
    "size 0": (GOOD.replace('width="64"', 'width="0"'), "resolution", "0x48"),
    "half a pixel": (GOOD.replace('width="64"', 'width="64.5"'), "64.5x48"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_files_are_refused(tmp_path, case):
    content, *parts = BAD[case]
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    assert all(part in str(caught.value) for part in (str(tmp_path / "cameras.xml"), *parts)), str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path / "none.xml", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            MetashapeFile.read(path)


def test_axes_of_a_real_export_meet_in_front_of_its_cameras(shared):
    found = MetashapeFile.read(shared / "data" / "metashape" / "cameras.xml")
    assert len(found.cameras) == len(found.sensors) == 94 and not found.unaligned and not found.transforms
    assert len({camera.sensor for camera in found.cameras}) == 94, "every camera has its own"
    first = found.cameras[0]
    assert first.label == "001" and first.sensor.image_size == (3456, 5184) and first.sensor.offset == (0.0, 0.0)
    assert first.sensor.focal_length == 8397.0800252741 and dict(first.sensor.distortion)["b2"] == -22.8315524998528
    poses = torch.stack([camera.cam_to_world for camera in found.cameras])
    centre, axis = poses[:, :3, 3], poses[:, :3, 2]
    across = torch.eye(3, dtype=torch.float64) - axis[:, :, None] * axis[:, None]  # least squares over the distances to all axes
    meeting = torch.linalg.solve(across.sum(0), (across @ centre[:, :, None]).sum(0))[:, 0]
    depth = ((meeting - centre) * axis).sum(1)
    assert (depth > 3).all() and ((across @ (meeting - centre)[:, :, None]).norm(dim=1)[:, 0] / depth).max() < 0.25
