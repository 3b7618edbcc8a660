"""Clouds as text: columns, comments, vertices and colours of .obj, round trips, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npbgpp.data.point_files import CloudFile, read_text_cloud
from npbgpp.errors import InputError
from npbgpp.geometry.point_cloud import PointCloud


def read(folder: Path, content: str | bytes, name: str = "frame1.xzy") -> PointCloud:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read_text_cloud(folder / name)


@pytest.mark.parametrize(
    "content",
    [
        "1 2 3\n-4 5e-1 6\n",
        "\n1\t2   3\r\n \n-4 .5 6",
        "# x y z\n1 2 3 # the first\n// the second\n-4 +0.5 6.\n",
        "\ufeff1 2 3\n-4 0.5 6\n",
        "1 2 3 0.1 0.2\n-4 0.5 6 7\n",
        "1 2 3 red\n-4 0.5 6 dark blue\n",
    ],
)
@pytest.mark.parametrize("suffix", [".xzy", ".xyz", ".txt"])
def test_the_first_three_columns_are_read(tmp_path, content, suffix):
    """In the order x, y, z, also of .xzy."""
    cloud = read(tmp_path, content, "frame1" + suffix)
    assert cloud.xyz.tolist() == [[1, 2, 3], [-4, 0.5, 6]] and cloud.rgb_u8 is None
    assert torch.equal(CloudFile(tmp_path / ("frame1" + suffix)).read().xyz, cloud.xyz)


@pytest.mark.parametrize(
    ("content", "rgb"),
    [
        ("o hair\nv 1 2 3\nvn 0 0 1\nvt 0 0\n  v\t4 5 6 1\nf 1 2 1\n", None),
        ("v 1 2 3 0 0.5 1\nv 4 5 6 1 1 0.999\n", [[0, 128, 255], [255, 255, 255]]),
        ("v 1 2 3 0 128 255\nv 4 5 6 1 2 300\n", [[0, 128, 255], [1, 2, 255]]),
        ("v 1 2 3 # r g b\nv 4 5 6\n", None),
    ],
)
def test_vertices_and_colours_of_an_obj(tmp_path, content, rgb):
    cloud = read(tmp_path, content, "frame1.OBJ")
    assert cloud.xyz.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert (None if cloud.rgb_u8 is None else cloud.rgb_u8.tolist()) == rgb


numbers = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=20), st.sampled_from([("frame1.xzy", ""), ("frame1.obj", "v ")]))
def test_what_is_written_is_read(tmp_path_factory, rows, form):
    name, letter = form
    content = "".join(letter + " ".join(map(repr, row)) + "\n" for row in rows)
    assert np.array_equal(read(tmp_path_factory.mktemp("cloud"), content, name).xyz.numpy(), np.array(rows, dtype=np.float32))


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        ("", "a.xzy", ["at least one point", "none"]),
        ("# nothing\n\n", "a.xzy", ["at least one point", "none"]),
        ("vn 0 0 1\nf 1 2 3\n", "a.obj", ["at least one point", "none"]),
        ("1 2\n", "a.xzy", ["three numbers or more", "2 columns"]),
        ("1 2 3\n4 5\n", "a.xzy", ["three numbers or more", "2 columns"]),
        ("x y z\n1 2 3\n", "a.txt", ["lines of three numbers", "'x'"]),
        ("1,2,3\n", "a.txt", ["lines of three numbers", "'1,2,3'"]),
        ("v 1 2 3 1 1 1\nv 1 2 3\n", "a.obj", ["as many as the first one", "3 columns"]),
        (b"\xff\xfe1\0 \0", "a.xzy", ["lines of three numbers", "utf-8"]),
        (b"\0\0\0\0", "a.xzy", ["lines of three numbers"]),
        ("1 2 3\n1 nan 3\ninf 0 0\n", "a.xzy", ["2 of 3 points", "not finite"]),
        ("1 2 1e39\n", "a.xzy", ["1 of 1 points", "not finite"]),
        ("v 1 2 3 1 nan 1\n", "a.obj", ["colours", "not finite"]),
    ],
)
def test_what_is_no_cloud_is_refused(tmp_path, content, name, words):
    with pytest.raises(InputError) as caught:
        read(tmp_path, content, name)
    assert all(word in str(caught.value) for word in (name, *words)), str(caught.value)


def test_a_missing_file_and_a_loop_of_links_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.xzy: no such file.*datasets\.pc_name"):
        read_text_cloud(tmp_path / "a.xzy")
    (tmp_path / "b.xzy").symlink_to(tmp_path / "b.xzy")
    with pytest.raises(InputError, match=r"b\.xzy.*symbolic links"):
        read_text_cloud(tmp_path / "b.xzy")
