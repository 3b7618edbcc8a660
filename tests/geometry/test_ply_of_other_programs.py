"""Colours and headers of PLY files as other programs write them."""

import struct
from pathlib import Path

import numpy as np
import pytest

from npbgpp.errors import InputError
from npbgpp.geometry import read_ply

XYZ = [(0.5, -1.0, 2.0), (3.0, 4.0, 5.0)]
RGB = [(120, 78, 63), (255, 0, 9)]
RED, SHORT, DIFFUSE = ("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue")


def write(
    path: Path, names: tuple[str, ...] = RED, kind: str = "uchar", code: str = "B", colours: list = RGB, comment: bytes = b""
) -> None:
    header = (
        b"ply\nformat binary_little_endian 1.0\n" + comment + b"element vertex 2\nproperty float x\nproperty float y\nproperty float z\n"
    )
    header += b"".join(f"property {kind} {name}\n".encode() for name in names) + b"end_header\n"
    path.write_bytes(header + b"".join(struct.pack(f"<3f3{code}", *xyz, *rgb) for xyz, rgb in zip(XYZ, colours, strict=True)))


def scaled(factor: float) -> list:
    return [tuple(type(factor)(value * factor) for value in rgb) for rgb in RGB]


@pytest.mark.parametrize(
    ("kind", "code", "colours"),
    [
        ("uchar", "B", RGB),
        ("float", "f", scaled(1.0)),
        ("float", "f", scaled(1 / 255)),
        ("double", "d", scaled(1 / 255)),
        ("ushort", "H", scaled(257)),
        ("ushort", "H", scaled(256)),
        ("ushort", "H", RGB),
        ("int", "i", RGB),
        ("int", "i", scaled(257)),
        ("char", "b", [tuple(np.array(rgb, np.uint8).view(np.int8).tolist()) for rgb in RGB]),
    ],
)
@pytest.mark.parametrize("names", [RED, SHORT, DIFFUSE, ("Red", "Green", "Blue")])
def test_colours(tmp_path, names, kind, code, colours):
    write(tmp_path / "a.ply", names, kind, code, colours)
    found = read_ply(tmp_path / "a.ply").rgb_u8
    assert found is not None and found.tolist() == [list(rgb) for rgb in (RGB if colours != scaled(256) else [(120, 78, 63), (254, 0, 9)])]


def test_a_bright_point_does_not_darken_the_others(tmp_path):
    write(tmp_path / "a.ply", RED, "float", "f", [(0.5, 0.25, 0.0), (1.3, 1.0, 0.0)])
    found = read_ply(tmp_path / "a.ply").rgb_u8
    assert found is not None and found.tolist() == [[128, 64, 0], [255, 255, 0]]


def test_colours_beyond_16_bits_are_refused(tmp_path):
    write(tmp_path / "a.ply", RED, "int", "i", [(0, 0, 0), (70000, 0, 0)])
    with pytest.raises(InputError, match=r"a\.ply: expected colours of 8 or 16 bits, got 0 to 70000"):
        read_ply(tmp_path / "a.ply")


def test_gaussians_have_the_colour_of_degree_0(tmp_path):
    harmonics = [tuple((value / 255 - 0.5) * 2 * np.sqrt(np.pi) for value in rgb) for rgb in RGB]
    write(tmp_path / "a.ply", ("f_dc_0", "f_dc_1", "f_dc_2"), "float", "f", harmonics)
    found = read_ply(tmp_path / "a.ply").rgb_u8
    assert found is not None and found.tolist() == [list(rgb) for rgb in RGB]


@pytest.mark.parametrize(
    "comment", ["comment écrit à Paris\n".encode(), "comment 点云\n".encode("gbk"), "obj_info ü\n".encode("latin-1"), b""]
)
def test_comments_of_any_encoding(tmp_path, comment):
    write(tmp_path / "a.ply", comment=comment)
    cloud = read_ply(tmp_path / "a.ply")
    assert (
        cloud.xyz.tolist() == [list(xyz) for xyz in XYZ]
        and cloud.rgb_u8 is not None
        and cloud.rgb_u8.tolist() == [list(rgb) for rgb in RGB]
    )


@pytest.mark.parametrize("place", ["start", "data"])
def test_byte_order_marks(tmp_path, place):
    header = b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.ply").write_bytes(mark + header + b"1 2 3\n" if place == "start" else header + mark + b"1 2 3\n")
    assert read_ply(tmp_path / "a.ply").xyz.tolist() == [[1, 2, 3]]


def test_coordinates_are_transformed_in_double_precision(tmp_path):
    header = (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty double x\nproperty double y\nproperty double z\nend_header\n"
    )
    (tmp_path / "a.ply").write_bytes(header + struct.pack("<3d", 500000.25, 4650002.3, 125.125))
    moved = ((1.0, 0.0, 0.0, -500000.0), (0.0, 1.0, 0.0, -4650002.0), (0.0, 0.0, 2.0, -125.0))
    np.testing.assert_allclose(read_ply(tmp_path / "a.ply", moved).xyz.numpy(), [[0.25, 0.3, 125.25]], atol=1e-6)
