"""Clouds in the formats of other programs have the coordinates and the colours that were written; damaged files are refused."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npbgpp.data import read_cloud
from npbgpp.data.point_files import CLOUD_SUFFIXES, decompress_lzf
from npbgpp.errors import InputError
from npbgpp.geometry import GaussianCloud, PointCloud, write_gaussian_ply

XYZ = np.array([[1.0, 2.0, 3.0], [-4.0, 0.5, 6.0], [0.25, -8.0, 100.0], [0.0, 0.0, 1.0]])
RGB = np.array([[120, 78, 63], [0, 255, 1], [255, 255, 255], [7, 0, 200]], np.uint8)


def packed(rgb: np.ndarray) -> np.ndarray:
    """Three bytes in one number of four, as PCL stores them."""
    return (rgb.astype("<u4") << np.array([16, 8, 0], "<u4")).sum(1).astype("<u4")


def compress_lzf(data: bytes) -> bytes:
    """The first repetitions that a greedy search finds, the rest as literals."""
    out, literals, place = bytearray(), bytearray(), 0

    def flush() -> None:
        for k in range(0, len(literals), 32):
            part = literals[k : k + 32]
            out.extend([len(part) - 1, *part])
        literals.clear()

    while place < len(data):
        best, distance = 0, 0
        for back in range(1, min(place, 300) + 1):
            length = 0
            while place + length < len(data) and length < 264 and data[place + length] == data[place - back + length]:
                length += 1
            if length > best:
                best, distance = length, back
        if best < 3:
            literals.append(data[place])
            place += 1
            continue
        flush()
        length, offset = best - 2, distance - 1
        out.append((min(length, 7) << 5) | offset >> 8)
        if length >= 7:
            out.append(length - 7)
        out.append(offset & 255)
        place += best
    flush()
    return bytes(out)


def write_pcd(path: Path, data: str, colour: str = "F", xyz: np.ndarray = XYZ, rgb: np.ndarray = RGB) -> None:
    """x, y, z, two values of padding, and colours in one number of this type."""
    header = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z _ rgb\nSIZE 4 4 4 1 4\n"
        f"TYPE F F F U {colour}\nCOUNT 1 1 1 2 1\nWIDTH {len(xyz)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(xyz)}\nDATA {data}\n"
    )
    numbers = packed(rgb)
    if data == "ascii":
        shown = [f"{n.view('<f4'):.9g}" if colour == "F" else str(n) for n in numbers]
        body = "".join(f"{' '.join(map(str, point))} 1 2 {text}\n" for point, text in zip(xyz.tolist(), shown, strict=True)).encode()
    else:
        table = np.zeros(len(xyz), [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("_", "u1", (2,)), ("rgb", "<u4")])
        for k, axis in enumerate("xyz"):
            table[axis] = xyz[:, k]
        table["rgb"] = numbers
        body = table.tobytes()
        if data == "binary_compressed":
            body = b"".join(table[name].tobytes() for name in table.dtype.names)
            small = compress_lzf(body)
            body = struct.pack("<II", len(small), len(body)) + small
    path.write_bytes(header.encode() + body)


def text(rows: np.ndarray, separator: str = " ") -> str:
    return "".join(separator.join(f"{value:g}" for value in row) + "\n" for row in rows)


def check(path: Path, coloured: bool = True) -> None:
    cloud = read_cloud(path)
    assert np.array_equal(cloud.xyz.numpy(), XYZ.astype(np.float32))
    assert (cloud.rgb_u8 is not None) == coloured
    if coloured:
        assert np.array_equal(cloud.rgb_u8.numpy(), RGB)


@pytest.mark.parametrize("colour", ["F", "U"])
@pytest.mark.parametrize("data", ["ascii", "binary", "binary_compressed"])
def test_pcd(tmp_path, data, colour):
    write_pcd(tmp_path / "a.pcd", data, colour)
    check(tmp_path / "a.pcd")


def test_gaps_of_pcd_are_left_out(tmp_path):
    xyz, rgb = np.insert(XYZ, 2, np.nan, 0), np.insert(RGB, 2, 9, 0)
    write_pcd(tmp_path / "a.pcd", "binary", xyz=xyz, rgb=rgb)
    check(tmp_path / "a.pcd")


def test_channels_of_pcd_in_fields_of_their_own(tmp_path):
    rows = text(np.concatenate([XYZ, RGB], 1))
    header = (
        "VERSION .7\nFIELDS x y z r g b\nSIZE 8 8 8 1 1 1\nTYPE F F F U U U\nCOUNT 1 1 1 1 1 1\nWIDTH 4\nHEIGHT 1\nPOINTS 4\nDATA ascii\n"
    )
    (tmp_path / "a.pcd").write_text(header + rows)
    check(tmp_path / "a.pcd")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([b"abc", b"\0" * 40, b"x" * 300, b"0123456789", b"q"]), max_size=30))
def test_lzf_round_trip(parts):
    data = b"".join(parts)
    assert decompress_lzf(compress_lzf(data), len(data)) == data


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.xyz", text(np.concatenate([XYZ, RGB], 1))),
        ("a.xyz", "# x y z r g b\n" + text(np.concatenate([XYZ, RGB], 1), ",")),
        ("a.txt", "//X Y Z R G B Nx Ny Nz\n" + text(np.concatenate([XYZ, RGB, XYZ], 1))),
        ("a.xyz", text(np.concatenate([XYZ, -np.ones((4, 3)), RGB], 1))),
        (
            "a.xyz",
            "".join(f"{line} {rgb}\n" for line, rgb in zip(text(XYZ).splitlines(), text(np.round(RGB / 255, 7)).splitlines(), strict=True)),
        ),
        ("a.pts", "4\n" + text(np.concatenate([XYZ, [[-100]] * 4, RGB], 1))),
        ("a.PTS", text(np.concatenate([XYZ, RGB], 1))),
        ("a.obj", "".join(f"v {line}\n" for line in text(np.concatenate([XYZ, RGB], 1)).splitlines())),
    ],
)
def test_text(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    check(tmp_path / name)


FIELDS = [("x", "f8"), ("y", "f8"), ("z", "f8"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]


@pytest.mark.parametrize(
    ("content", "coloured"),
    [
        (XYZ, False),
        (np.concatenate([XYZ, RGB], 1), True),
        (np.concatenate([XYZ, RGB / 255], 1).astype(np.float32), True),
        (np.array([(*point, *rgb) for point, rgb in zip(XYZ.tolist(), RGB.tolist(), strict=True)], dtype=FIELDS), True),
        ({"points": XYZ, "colors": RGB / 255}, True),
        ({"xyz": XYZ, "rgb": RGB.astype(np.uint16) * 257, "normals": XYZ}, True),
        ({"anything": XYZ}, False),
    ],
)
def test_arrays_of_numpy(tmp_path, content, coloured):
    path = tmp_path / ("a.npz" if isinstance(content, dict) else "a.npy")
    if isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content)
    check(path, coloured)


def test_las(tmp_path):
    laspy = pytest.importorskip("laspy", reason="laspy is an optional dependency")
    file = laspy.create(point_format=2, file_version="1.2")
    file.header.scales, file.header.offsets = [1 / 1024] * 3, [0, 0, 0]
    file.x, file.y, file.z = XYZ.T
    file.red, file.green, file.blue = RGB.astype(np.uint16).T * 257
    file.write(tmp_path / "a.las")
    check(tmp_path / "a.las")


def test_las_without_laspy_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "laspy", None)
    (tmp_path / "a.laz").write_bytes(b"LASF")
    with pytest.raises(InputError, match=r"a\.laz: \.laz is read with laspy, which is not installed: pip install"):
        read_cloud(tmp_path / "a.laz")


def test_gaussians(tmp_path):
    sh = (torch.from_numpy(RGB).double() / 255 - 0.5) / (0.5 / np.sqrt(np.pi))
    ones = torch.ones(4, 4)
    write_gaussian_ply(tmp_path / "a.ply", GaussianCloud(torch.from_numpy(XYZ).float(), ones[:, :3], ones, ones[:, 0], sh[:, None].float()))
    check(tmp_path / "a.ply")


def test_points_of_bundler(tmp_path):
    points = "".join(
        f"{' '.join(map(str, point))}\n{' '.join(map(str, rgb))}\n0\n" for point, rgb in zip(XYZ.tolist(), RGB.tolist(), strict=True)
    )
    (tmp_path / "bundle.out").write_text(f"# Bundle file v0.3\n1 4\n100 0 0\n1 0 0\n0 1 0\n0 0 1\n0 0 0\n{points}")
    check(tmp_path / "bundle.out")


@pytest.mark.parametrize("name", ["a.e57", "a.splat", "a.spz", "a.stl", "a.glb", "cloud"])
def test_other_formats_are_refused_with_those_that_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"ASTM-E57\0\1")
    with pytest.raises(InputError) as caught:
        read_cloud(tmp_path / name)
    assert all(suffix in str(caught.value) for suffix in CLOUD_SUFFIXES) and "\n" not in str(caught.value)


def write_all(folder: Path) -> list[Path]:
    """One file of each kind."""
    for data in ("ascii", "binary", "binary_compressed"):
        write_pcd(folder / f"{data}.pcd", data)
    rows = text(np.concatenate([XYZ, RGB], 1))
    for name in ("a.xyz", "a.pts"):
        (folder / name).write_text(rows)
    np.save(folder / "a.npy", XYZ)
    np.savez(folder / "a.npz", xyz=XYZ, rgb=RGB)
    test_points_of_bundler(folder)
    return sorted(folder.iterdir())


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.floats(0, 1, exclude_max=True),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    st.floats(0.2, 1),
)
def test_damaged_files_are_read_or_refused(tmp_path_factory, which, flips, kept):
    files = write_all(tmp_path_factory.mktemp("clouds"))
    path = files[int(which * len(files))]
    content = bytearray(path.read_bytes())
    for place, change in flips:
        content[int(place * len(content))] ^= change
    path.write_bytes(content[: int(kept * len(content))])
    try:
        cloud = read_cloud(path)
    except InputError as error:
        assert str(path) in str(error)
        return
    assert isinstance(cloud, PointCloud) and len(cloud) > 0 and cloud.xyz.isfinite().all()
