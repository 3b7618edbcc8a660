"""Point cloud files: text columns, vertices of .obj, damaged files; and the manifest of a cloud."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import npbgpp
from npbgpp.data.point_files import CloudFile, CloudManifest, file_sha256, manifest_path, read_cloud
from npbgpp.errors import InputError
from npbgpp.geometry import PointCloud


def read(folder: Path, content: str | bytes, name: str = "frame1.xzy") -> PointCloud:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read_cloud(folder / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.xzy", "1 2 3\n-4 5e-1 6\n"),
        ("a.xyz", "\n1\t2   3\r\n \n-4 .5 6"),
        ("a.txt", "# x y z\n1 2 3 # the first\n// the second\n-4 +0.5 6.\n"),
        ("a.xzy", "\ufeff1 2 3\n-4 0.5 6\n"),
        ("a.xyz", "1 2 3 0.1 0.2\n-4 0.5 6 7\n"),
        ("a.txt", "1 2 3 red\n-4 0.5 6 dark blue\n"),
        ("a.xyz", "1, 2, 3\n-4, 0.5, 6\n"),
        ("a.xyz", "1 2 3 0 0 1\n-4 0.5 6 0 -0.6 0.8\n"),
        ("a.xyz", "1 2 3 1 2 3.5\n-4 0.5 6 0 0 0\n"),
        ("a.xzy", "1 2 3 10 20 30\n-4 0.5 6 0 0 0\n"),
        ("a.pts", "2\n1 2 3 -1200\n-4 0.5 6 1\n"),
    ],
)
def test_text_clouds_are_read_from_their_first_three_columns(tmp_path, name, content):
    cloud = read(tmp_path, content, name)
    assert cloud.xyz.tolist() == [[1, 2, 3], [-4, 0.5, 6]] and cloud.rgb_u8 is None
    assert torch.equal(CloudFile(tmp_path / name).read().xyz, cloud.xyz)


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
def test_text_round_trip(tmp_path_factory, rows, form):
    name, letter = form
    content = "".join(letter + " ".join(map(repr, row)) + "\n" for row in rows)
    assert np.array_equal(read(tmp_path_factory.mktemp("cloud"), content, name).xyz.numpy(), np.array(rows, dtype=np.float32))


@pytest.mark.parametrize(
    ("content", "name", "value"),
    [
        ("", "a.xzy", "none"),
        ("# nothing\n\n", "a.xzy", "none"),
        ("vn 0 0 1\nf 1 2 3\n", "a.obj", "none"),
        ("1 2\n", "a.xzy", "2 columns"),
        ("1 2 3\n4 5\n", "a.xzy", "2 columns"),
        ("x y z\n1 2 3\n", "a.txt", "'x'"),
        ("1,2\n", "a.txt", "2 columns"),
        ("1,2,3\n", "a.xzy", "'1,2,3'"),
        ("v 1 2 3 1 1 1\nv 1 2 3\n", "a.obj", "3 columns"),
        (b"\xff\xfe1\0 \0", "a.xzy", "utf-8"),
        (b"\0\0\0\0", "a.xzy", "\\x00"),
        ("1 2 3\n1 nan 3\ninf 0 0\n", "a.xzy", "2 of 3"),
        ("1 2 1e39\n", "a.xzy", "1 of 1"),
        ("v 1 2 3 1 nan 1\n", "a.obj", "colours"),
        (None, "a.xzy", "no such file"),
        (Path, "a.xzy", "symbolic links"),
    ],
)
def test_damaged_text_clouds_are_refused(tmp_path, content, name, value):
    path = tmp_path / name
    with pytest.raises(InputError) as caught:
        if content is None:
            read_cloud(path)
        elif content is Path:  # a link to itself
            path.symlink_to(path)
            read_cloud(path)
        else:
            read(tmp_path, content, name)
    assert str(path) in str(caught.value) and value in str(caught.value), str(caught.value)


# ------------------------------------------------------------------ manifest
@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    path = tmp_path / "train_hull.ply"
    path.write_bytes(b"abc")
    return path


def manifest(cloud: Path) -> CloudManifest:
    numbers = {"voxel": 0.25, "count": 100, "photos": "images", "seed": None, "overwrite": True}
    views = ("train-r_0", "train-ä"), ("test-r_0",)
    return CloudManifest("hull", numbers, "ball", "nerf_synthetic", *views, 100, cloud.name, file_sha256(cloud), "python -m npbgpp.prepare")


def test_manifest_round_trip(cloud):
    assert CloudManifest.read(cloud) is None
    made = manifest(cloud)
    made.write(cloud)
    assert CloudManifest.read(cloud) == made and made.version == npbgpp.__version__
    assert sorted(p.name for p in cloud.parent.iterdir()) == ["train_hull.json", "train_hull.ply"]
    replace(made, points=7).write(cloud)
    assert CloudManifest.read(cloud).points == 7
    assert made.saw(["test-r_0", "train-ä", "val-r_0", "train-r_0"]) == ("train-ä", "train-r_0")
    assert made.saw(["test-r_0"]) == () == made.saw([])


def test_checksum_of_a_file(cloud):
    assert file_sha256(cloud) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(InputError, match=r"none\.ply"):
        file_sha256(cloud.with_name("none.ply"))


def test_another_file_of_that_name_is_not_overwritten(cloud):
    path = manifest_path(cloud)
    path.write_text('{"frames": []}')
    with pytest.raises(InputError, match=r"train_hull\.json.*method.*train_hull\.ply"):
        manifest(cloud).write(cloud)
    assert path.read_text() == '{"frames": []}'


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null"),
        *({"points": "many"}, {"points": True}, {"used_views": "train-r_0"}, {"held_out_views": [[1]]}, {"settings": []}),
        *({"settings": {"voxel": [1]}}, {"sha256": [5]}, *({name: None} for name in asdict(manifest(Path(__file__))))),
    ],
    ids=lambda content: str(content)[:30],
)
def test_damaged_manifests_are_refused(cloud, content):
    """Bytes of a file, or wrong values of its keys."""
    path = manifest_path(cloud)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(json.dumps(asdict(manifest(cloud)) | content))
    with pytest.raises(InputError) as caught:
        CloudManifest.read(cloud)
    assert str(path) in str(caught.value) and (isinstance(content, bytes) or next(iter(content)) in str(caught.value))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.booleans())
def test_random_damage_of_a_manifest_is_read_or_refused(cloud, place, byte, cut):
    manifest_path(cloud).unlink(missing_ok=True)
    manifest(cloud).write(cloud)
    content = bytearray(manifest_path(cloud).read_bytes())
    place %= len(content)
    content[place] = byte
    manifest_path(cloud).write_bytes(content[:place] if cut else content)
    try:
        assert isinstance(CloudManifest.read(cloud), CloudManifest)
    except InputError as error:
        assert "train_hull.json" in str(error)
