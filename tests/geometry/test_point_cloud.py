"""Reading and writing PLY clouds in every encoding, sub-sampling, and invalid files."""

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from npbgpp.data.point_files import CloudFile
from npbgpp.errors import InputError
from npbgpp.geometry.point_cloud import PointCloud, read_ply, write_ply


def some_cloud(count: int = 500) -> PointCloud:
    """Points whose colour is a function of their position."""
    xyz = torch.rand(count, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return PointCloud(xyz, colour_of(xyz))


def colour_of(xyz: torch.Tensor) -> torch.Tensor:
    return ((xyz * 0.5 + 0.5) * 255).to(torch.uint8)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "cloud.ply"
    write_ply(path, some_cloud())
    return path


def test_round_trip_is_exact(file):
    cloud = read_ply(file)
    assert torch.equal(cloud.xyz, some_cloud().xyz) and torch.equal(cloud.rgb_u8, some_cloud().rgb_u8) and len(cloud) == 500
    assert cloud.xyz.dtype == torch.float32


def test_round_trip_without_colours(tmp_path):
    write_ply(tmp_path / "new" / "folder" / "bare.ply", PointCloud(some_cloud().xyz))
    cloud = read_ply(tmp_path / "new" / "folder" / "bare.ply")
    assert cloud.rgb_u8 is None and torch.equal(cloud.xyz, some_cloud().xyz)


@pytest.mark.parametrize("encoding", ["ascii", "little", "big"])
@pytest.mark.parametrize("colour", ["u1", "f4", None])
def test_other_encodings(tmp_path, encoding, colour):
    """Doubles, big endian, text, more properties, colours as floats in 0..1, and a face element behind the vertices."""
    cloud = some_cloud(50)
    fields = [("nx", "f4"), ("x", "f8"), ("y", "f8"), ("z", "f8")] + ([(c, colour) for c in ("blue", "green", "red")] if colour else [])
    vertex = np.zeros(50, dtype=fields)
    for k, axis in enumerate("xyz"):
        vertex[axis] = cloud.xyz[:, k]
    for k, c in enumerate(("red", "green", "blue") if colour else ()):
        vertex[c] = cloud.rgb_u8[:, k].numpy() / (255 if colour == "f4" else 1)
    face = np.array([([0, 1, 2],)], dtype=[("vertex_indices", "i4", (3,))])
    elements = [PlyElement.describe(vertex, "vertex"), PlyElement.describe(face, "face")]
    order = {"ascii": "=", "little": "<", "big": ">"}[encoding]
    PlyData(elements, text=encoding == "ascii", byte_order=order).write(str(tmp_path / "other.ply"))
    read = read_ply(tmp_path / "other.ply")
    assert torch.allclose(read.xyz, cloud.xyz, atol=1e-6)
    assert read.rgb_u8 is None if colour is None else torch.equal(read.rgb_u8, cloud.rgb_u8)


def test_sub_sampling_keeps_colours_with_their_points(file):
    part = CloudFile(file, n_point=100).read()
    assert len(part) == 100 and torch.equal(part.rgb_u8, colour_of(part.xyz))
    rows = {tuple(row) for row in part.xyz.tolist()}
    assert len(rows) == 100 and rows < {tuple(row) for row in some_cloud().xyz.tolist()}


def test_sub_sampling_is_the_authors_permutation(file):
    """Generator seed 123, first n_point entries; drawing anything else beforehand must not matter."""
    torch.rand(10)
    keep = torch.randperm(500, generator=torch.Generator().manual_seed(123))[:100]
    assert torch.equal(CloudFile(file, n_point=100).read().xyz, some_cloud().xyz[keep])


@pytest.mark.parametrize("n_point", [500, 501, 10**9])
def test_small_clouds_keep_their_order(file, n_point):
    assert torch.equal(CloudFile(file, n_point=n_point).read().xyz, some_cloud().xyz)


def test_noise_has_the_given_scale_and_is_reproducible(file):
    first, second = CloudFile(file, noise_sigma=0.05).read(), CloudFile(file, noise_sigma=0.05).read()
    added = first.xyz - some_cloud().xyz
    assert torch.equal(first.xyz, second.xyz) and torch.equal(first.rgb_u8, some_cloud().rgb_u8)
    assert abs(added.std().item() - 0.05) < 0.005 and abs(added.mean().item()) < 0.005
    assert torch.equal(CloudFile(file, noise_sigma=0.0).read().xyz, some_cloud().xyz)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"n_point": 0}, "n_point"),
        ({"n_point": -5}, "n_point"),
        ({"noise_sigma": -1.0}, "noise_sigma"),
        ({"noise_sigma": float("nan")}, "noise_sigma"),
    ],
)
def test_invalid_settings_are_refused(file, options, key):
    with pytest.raises(InputError, match=f"datasets.{key}"):
        CloudFile(file, **options)


def header(count: int, *properties: str) -> bytes:
    lines = ["ply", "format ascii 1.0", f"element vertex {count}", *(f"property {p}" for p in properties), "end_header"]
    return ("\n".join(lines) + "\n").encode()


XYZ = ("float x", "float y", "float z")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"solid cube\nfacet normal 0 0 1\n", id="text of another kind"),
        pytest.param(bytes(range(256)), id="bytes"),
        pytest.param(header(0, *XYZ), id="no points"),
        pytest.param(header(1, *XYZ) + b"1 2 nan\n", id="nan"),
        pytest.param(header(1, *XYZ) + b"1 2 inf\n", id="infinite"),
        pytest.param(
            header(1, "double x", "double y", "double z") + b"1 2 1e200\n",
            id="too large",
            marks=pytest.mark.filterwarnings("ignore:overflow"),
        ),
        pytest.param(header(2, *XYZ) + b"1 2 3\n", id="a line short"),
        pytest.param(header(1, *XYZ) + b"1 two 3\n", id="a word"),
        pytest.param(header(1, "float x", "float y") + b"1 2\n", id="no z"),
        pytest.param(header(1, "float a", "float b", "float c") + b"1 2 3\n", id="no xyz"),
        pytest.param(header(1, "list uchar float x", "float y", "float z") + b"2 1 1 2 3\n", id="x is a list"),
        pytest.param(b"ply\nformat ascii 1.0\nelement face 0\nproperty list uchar int vertex_indices\nend_header\n", id="no vertices"),
        pytest.param(b"ply\nformat ascii 1.0\nelement vertex 5\nproperty float x\n", id="header without end"),
        pytest.param(header(-3, *XYZ), id="negative count"),
    ],
)
def test_invalid_clouds_are_refused(tmp_path, content):
    path = tmp_path / "bad.ply"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.ply"):
        read_ply(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_truncated_clouds_are_refused(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"cloud\.ply"):
        read_ply(file)


@pytest.mark.parametrize("place", ["absent.ply", "."])
def test_missing_clouds_are_refused(tmp_path, place):
    with pytest.raises(InputError, match=r"no such file.*datasets\.pc_name"):
        read_ply(tmp_path / place)
