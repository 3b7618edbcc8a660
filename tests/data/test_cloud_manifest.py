"""How a cloud was made, written beside it: round trip, test views that were seen, another cloud, damaged files."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import npbgpp
from npbgpp.data.point_files import CloudManifest, file_sha256, manifest_path
from npbgpp.errors import InputError

SETTINGS = {"voxel": 0.25, "count": 100, "photos": "images", "seed": None}


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    path = tmp_path / "train_hull.ply"
    path.write_bytes(b"ply of points")
    return path


def manifest(cloud: Path) -> CloudManifest:
    return CloudManifest(
        "hull",
        SETTINGS,
        "ball",
        "nerf_synthetic",
        ("train-r_0", "train-ä"),
        ("test-r_0",),
        100,
        cloud.name,
        file_sha256(cloud),
        "python -m npbgpp.prepare cloud",
    )


def test_what_is_written_is_read(cloud):
    made = manifest(cloud)
    made.write(cloud)
    assert (cloud.parent / "train_hull.json").is_file()
    assert CloudManifest.read(cloud) == made
    assert made.version == npbgpp.__version__
    assert sorted(p.name for p in cloud.parent.iterdir()) == ["train_hull.json", "train_hull.ply"]


def test_a_cloud_without_manifest_has_none(cloud):
    assert CloudManifest.read(cloud) is None


def test_a_newer_manifest_takes_the_place_of_the_older(cloud):
    manifest(cloud).write(cloud)
    replace(manifest(cloud), points=7).write(cloud)
    assert CloudManifest.read(cloud).points == 7


def test_views_that_were_seen(cloud):
    made = manifest(cloud)
    assert made.saw(["test-r_0", "train-ä", "val-r_0", "train-r_0"]) == ("train-ä", "train-r_0")
    assert made.saw(["test-r_0"]) == () == made.saw([])


def test_another_cloud_is_noticed(cloud):
    made = manifest(cloud)
    assert made.describes(cloud)
    cloud.write_bytes(b"ply of others")
    assert not made.describes(cloud)
    cloud.unlink()
    with pytest.raises(InputError, match="expected the file of a cloud"):
        made.describes(cloud)


def test_sum_of_a_file_is_the_known_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_another_file_of_that_name_is_not_replaced(cloud):
    path = manifest_path(cloud)
    path.write_text('{"frames": []}')
    with pytest.raises(InputError, match="it has no method; restore it, or move it away from train_hull.ply"):
        manifest(cloud).write(cloud)
    assert path.read_text() == '{"frames": []}'


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null"])
def test_files_that_are_no_manifest_are_refused(cloud, content):
    manifest_path(cloud).write_bytes(content)
    with pytest.raises(InputError, match="expected how the cloud was made"):
        CloudManifest.read(cloud)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("points", "many"),
        ("points", True),
        ("used_views", "train-r_0"),
        ("held_out_views", [1]),
        ("settings", []),
        ("settings", {"voxel": [1]}),
        ("method", None),
        ("sha256", 5),
    ],
)
def test_wrong_values_are_refused(cloud, name, value):
    content = asdict(manifest(cloud)) | {name: value}
    manifest_path(cloud).write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"its {name} are"):
        CloudManifest.read(cloud)


@pytest.mark.parametrize("name", asdict(manifest(Path(__file__))))
def test_missing_values_are_refused(cloud, name):
    content = asdict(manifest(cloud))
    del content[name]
    manifest_path(cloud).write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"it has no {name}"):
        CloudManifest.read(cloud)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_files_are_refused_or_read(cloud, place, byte, cut):
    manifest(cloud).write(cloud)
    content = bytearray(manifest_path(cloud).read_bytes())
    place %= len(content)
    content[place] = byte
    manifest_path(cloud).write_bytes(content[:place] if cut else content)
    try:
        found = CloudManifest.read(cloud)
    except InputError:
        found = None
    assert found is None or isinstance(found, CloudManifest)
    manifest_path(cloud).unlink()
