"""Parts of gaussians: files, relocation, order, start, appearance."""

import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plyfile import PlyData
from scipy.spatial.transform import Rotation

from npbgpp.data import CloudFile, Scene, View
from npbgpp.errors import InputError
from npbgpp.export.splats import glb_bytes, splat_bytes, write_splats
from npbgpp.geometry import SH_DC, Cameras, GaussianCloud, read_gaussian_ply, write_gaussian_ply
from npbgpp.kernels.gaussians import SplattingSettings, render_gaussians
from npbgpp.methods.gaussians.appearance import Background, Exposure
from npbgpp.methods.gaussians.initial import choose_count, neighbour_distance, random_points, scene_extent, viewed_region
from npbgpp.methods.gaussians.relocation import add_noise, copies_like, draw_relocation, morton_order

from ..conftest import ring_pose

PROJECTION = SplattingSettings(dilation=1e-4, antialiased=False, near=0.1)


def random_cloud(count: int = 20, degree: int = 3) -> GaussianCloud:
    return GaussianCloud(
        torch.randn(count, 3),
        torch.randn(count, 3) - 3,
        torch.randn(count, 4),
        torch.randn(count),
        torch.randn(count, (degree + 1) ** 2, 3),
    )


def ring(count: int = 8, size: tuple[int, int] = (40, 40)) -> list[View]:
    """Views of the origin from a distance of 3."""
    views = []
    for k in range(count):
        focal, centre = torch.tensor([[50.0, 50.0]]), torch.tensor([[size[1] / 2, size[0] / 2]])
        camera = Cameras.from_opengl(ring_pose(2 * math.pi * k / count)[None], focal, centre, size)
        views.append(View(f"v{k}", Path(f"v{k}.png"), camera))
    return views


# ------------------------------------------------------------ files
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ply_files_give_back_every_number(tmp_path, degree):
    cloud = random_cloud(degree=degree)
    write_gaussian_ply(tmp_path / "a.ply", cloud)
    again = read_gaussian_ply(tmp_path / "a.ply")
    assert again.sh_degree == degree and all(torch.equal(again.__dict__[name], value) for name, value in cloud.__dict__.items())


def test_ply_files_have_the_fields_of_the_original(tmp_path):
    """All coefficients of red come first, then those of green and of blue."""
    cloud = random_cloud(2, 2)
    write_gaussian_ply(tmp_path / "a.ply", cloud)
    vertex = PlyData.read(str(tmp_path / "a.ply"))["vertex"].data
    assert vertex.dtype.names[:9] == ("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2")
    assert vertex.dtype.names[-8:] == ("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3")
    assert vertex["f_rest_0"][1] == cloud.sh[1, 1, 0] and vertex["f_rest_7"][1] == cloud.sh[1, 8, 0]
    assert vertex["f_rest_8"][1] == cloud.sh[1, 1, 1] and vertex["f_rest_23"][1] == cloud.sh[1, 8, 2]


def test_splat_files_have_32_bytes_for_each_gaussian(tmp_path):
    cloud = random_cloud()
    write_splats(tmp_path / "a.splat", cloud)
    content = (tmp_path / "a.splat").read_bytes()
    assert content == splat_bytes(cloud) and len(content) == 32 * len(cloud)
    numbers = np.frombuffer(content, dtype=[("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])
    order = [int((cloud.means == torch.tensor(mean)).all(1).nonzero()) for mean in numbers["mean"]]
    size = cloud.log_scales.sum(1).exp() * cloud.opacity_logits.sigmoid()
    assert sorted(order) == list(range(20)) and bool((size[order].diff() <= 0).all())
    np.testing.assert_allclose(numbers["scale"], cloud.log_scales[order].exp(), rtol=1e-6)
    np.testing.assert_allclose(numbers["rgba"][:, 3] / 255, cloud.opacity_logits[order].sigmoid(), atol=0.002)
    np.testing.assert_allclose(numbers["rgba"][:, :3] / 255, (0.5 + SH_DC * cloud.sh[order, 0]).clamp(0, 1), atol=0.002)
    unit = torch.nn.functional.normalize(cloud.quaternions[order], dim=1)
    np.testing.assert_allclose(numbers["rotation"] / 128.0 - 1, unit, atol=0.01)


@pytest.mark.parametrize("degree", [0, 3])
def test_gltf_files_follow_the_extension(tmp_path, degree):
    """Read as the glTF 2.0 specification defines files, accessors and attributes."""
    cloud = random_cloud(degree=degree)
    write_splats(tmp_path / "a.glb", cloud, (0.0, 0.0, 1.0))
    content = (tmp_path / "a.glb").read_bytes()
    magic, version, length, json_length, json_kind = struct.unpack_from("<4sIII4s", content)
    assert (magic, version, length, json_kind) == (b"glTF", 2, len(content), b"JSON") and len(content) % 4 == json_length % 4 == 0
    document = json.loads(content[20 : 20 + json_length])
    binary_length, binary_kind = struct.unpack_from("<I4s", content, 20 + json_length)
    binary = content[28 + json_length :]
    assert binary_kind == b"BIN\0" and len(binary) == binary_length >= document["buffers"][0]["byteLength"]
    (primitive,) = document["meshes"][0]["primitives"]
    assert primitive["mode"] == 0 and document["extensionsUsed"] == ["KHR_gaussian_splatting"]
    assert primitive["extensions"]["KHR_gaussian_splatting"] == {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}

    def values(name: str) -> np.ndarray:
        accessor = document["accessors"][primitive["attributes"][name]]
        view = document["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0 and accessor["count"] == len(cloud)
        kind = {5126: "<f4", 5121: "u1"}[accessor["componentType"]]
        part = np.frombuffer(binary, kind, view["byteLength"] // np.dtype(kind).itemsize, view["byteOffset"])
        return part.reshape(len(cloud), {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]])

    position = document["accessors"][primitive["attributes"]["POSITION"]]
    np.testing.assert_array_equal(values("POSITION"), cloud.means)
    np.testing.assert_allclose([position["min"], position["max"]], [cloud.means.amin(0).tolist(), cloud.means.amax(0).tolist()], rtol=1e-6)
    prefix = "KHR_gaussian_splatting:"
    np.testing.assert_allclose(values(prefix + "SCALE"), cloud.log_scales.exp(), rtol=1e-6)
    np.testing.assert_allclose(values(prefix + "OPACITY")[:, 0], cloud.opacity_logits.sigmoid(), rtol=1e-6)
    unit = torch.nn.functional.normalize(cloud.quaternions, dim=1)
    np.testing.assert_allclose(values(prefix + "ROTATION"), unit[:, [1, 2, 3, 0]], atol=1e-6)
    names = [f"{prefix}SH_DEGREE_{k}_COEF_{n}" for k in range(degree + 1) for n in range(2 * k + 1)]
    np.testing.assert_array_equal(np.stack([values(name) for name in names], 1), cloud.sh)
    assert set(primitive["attributes"]) == {"POSITION", "COLOR_0", *names, *(prefix + n for n in ("SCALE", "OPACITY", "ROTATION"))}
    np.testing.assert_allclose(values("COLOR_0")[:, :3] / 255, cloud.colours(), atol=0.003)
    turned = Rotation.from_quat(document["nodes"][0]["rotation"]).apply([0.0, 0.0, 1.0])
    np.testing.assert_allclose(turned, [0.0, 1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("up", [(0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.6, -0.8, 0.0)])
def test_gltf_files_are_upright(up):
    cloud = random_cloud()
    content = glb_bytes(cloud, up)
    document = json.loads(content[20 : 20 + struct.unpack_from("<I", content, 12)[0]])
    np.testing.assert_allclose(Rotation.from_quat(document["nodes"][0]["rotation"]).apply(up), [0.0, 1.0, 0.0], atol=1e-6)


def test_features_are_no_colours(tmp_path):
    cloud = replace(random_cloud(degree=0), sh=torch.zeros(20, 1, 8))
    for name in ("a.ply", "a.splat", "a.glb"):
        with pytest.raises(InputError, match="8 channels"):
            write_splats(tmp_path / name, cloud)


# ------------------------------------------------------------ relocation
def rendered(opacity: torch.Tensor, scale: torch.Tensor, copies: int) -> torch.Tensor:
    """The alpha of coinciding gaussians, seen from a distance of 4."""
    camera = Cameras(torch.eye(3)[None], torch.tensor([[0.0, 0.0, 4.0]]), torch.full((1, 2), 40.0), torch.full((1, 2), 16.0), (32, 32))
    new = torch.zeros
    quaternions = torch.tensor([[1.0, 0, 0, 0]]).repeat(copies, 1)
    arguments = (new(copies, 3), scale.log() * torch.ones(copies, 3), quaternions, torch.logit(opacity) * torch.ones(copies))
    found = render_gaussians(*arguments, new(copies, 1, 3), camera, sh_degree=0, background=None, settings=PROJECTION)
    return found.alpha[0]


@settings(max_examples=15, deadline=None)
@given(opacity=st.floats(0.3, 0.95), copies=st.integers(2, 6))
def test_copies_look_like_the_gaussian_that_they_replace(opacity, copies):
    """The opacity in the centre is kept exactly, the image nearly; the more copies, the earlier they fall below what is drawn."""
    old = torch.tensor([opacity])
    new, factor = copies_like(old, torch.tensor([copies]))
    before, after = rendered(old, torch.tensor(0.5), 1), rendered(new, 0.5 * factor, copies)
    assert (before - after).abs().max() < 0.15 * opacity
    assert after.sum().item() == pytest.approx(before.sum().item(), rel=0.25)
    assert (1 - (1 - new) ** copies).item() == pytest.approx(opacity, rel=1e-4)


@pytest.mark.parametrize(("opacity", "copies"), [(0.3, 2), (0.7, 3), (0.9, 5)])
def test_scales_of_copies_follow_the_paper(opacity, copies):
    """Equation 9 as it is printed."""
    new, factor = copies_like(torch.tensor([opacity]), torch.tensor([copies]))
    p = 1 - (1 - opacity) ** (1 / copies)
    total = sum(math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * p ** (k + 1) for i in range(1, copies + 1) for k in range(i))
    assert new.item() == pytest.approx(p, rel=1e-5) and factor.item() == pytest.approx(opacity / total, rel=1e-5)


def test_dead_gaussians_become_copies_in_proportion_to_opacity():
    opacity = torch.cat([torch.full((3000,), 0.001), torch.full((10,), 0.2), torch.full((10,), 0.6), torch.tensor([0.9])])
    seen = torch.ones(len(opacity), dtype=torch.bool)
    seen[-1] = False  # nothing has shown it
    drawn = draw_relocation(opacity, seen, 0.005, torch.Generator().manual_seed(1))
    assert drawn.dead.tolist() == [*range(3000), len(opacity) - 1]
    share = (drawn.source < 3010).float().mean()
    assert share == pytest.approx(0.25, abs=0.03) and drawn.source.min() >= 3000 and drawn.source.max() < 3020
    assert drawn.copies.sum() == len(drawn.dead) + len(drawn.copied)
    assert draw_relocation(opacity[-5:-1], seen[:4], 0.005, torch.Generator()) is None, "none is dead"
    assert draw_relocation(opacity[:5], seen[:5], 0.005, torch.Generator()) is None, "none is alive"


def test_noise_moves_gaussians_of_low_opacity_along_their_shape():
    count = 4000
    means, scales = torch.zeros(count, 3), torch.tensor([0.0, -1.0, -20.0]).repeat(count, 1)
    quaternions = torch.tensor([[math.cos(math.pi / 4), 0, 0, math.sin(math.pi / 4)]]).repeat(count, 1)  # x to y
    opacity = torch.where(torch.arange(count) < 2000, 0.001, 0.5)
    add_noise(means, scales, quaternions, opacity, 0.01, torch.Generator().manual_seed(0))
    assert (means[2000:] == 0).all() and means[:2000].std(0)[2] < 1e-6
    gate = 1 / (1 + math.exp(100 * (0.001 - 0.005)))
    assert means[:2000].std(0)[1].item() == pytest.approx(0.01 * gate, rel=0.1)
    assert means[:2000].std(0)[0].item() == pytest.approx(0.01 * gate * math.exp(-2), rel=0.1)


def test_sorted_gaussians_are_near_their_neighbours():
    xyz = torch.rand(2000, 3)
    order = morton_order(xyz)
    assert sorted(order.tolist()) == list(range(2000))
    near, random = (points.diff(dim=0).norm(dim=1).mean() for points in (xyz[order], xyz))
    assert near < 0.25 * random
    corners = torch.tensor([[1.0, 1, 1], [0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]])
    assert morton_order(corners).tolist() == [1, 3, 4, 2, 0]
    assert morton_order(torch.zeros(3, 3)).tolist() == [0, 1, 2]


# ------------------------------------------------------------ start
def test_the_distance_to_three_neighbours():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert neighbour_distance(corners)[0] == 1 and neighbour_distance(corners)[1].item() == pytest.approx(math.sqrt(5 / 3))
    assert (neighbour_distance(torch.zeros(5, 3)) > 0).all() and (neighbour_distance(torch.zeros(1, 3)) > 0).all()


def test_cameras_look_at_a_ball():
    region = viewed_region(ring())
    assert region.centre.norm() < 1e-4 and region.radius == pytest.approx(3 * 0.4, rel=1e-4)
    assert viewed_region(ring(1)) is None
    assert scene_extent([view.camera for view in ring()], 3.0) == pytest.approx(1.1 * 3 * math.sqrt(1 - 0.3**2 / 1.09), rel=1e-3)
    assert scene_extent([ring(1)[0].camera], 3.0) == pytest.approx(0.3)


def test_random_points_fill_what_the_views_show():
    views = ring()
    scene = Scene("s", tuple(views), {"train": tuple(range(8)), "val": (), "test": ()}, CloudFile(Path("none.ply")))
    xyz = random_points(scene, views, 1000, None, torch.Generator().manual_seed(0))
    assert len(xyz) == 1000 and xyz.norm(dim=1).max() <= 1.2 and xyz.norm(dim=1).mean() == pytest.approx(0.75 * 1.2, abs=0.03)
    bounded = [replace(view, bounds=(1.0, 4.0)) for view in views[:3]]
    xyz = random_points(scene, bounded, 1001, None, torch.Generator().manual_seed(0))
    uv_px, depth = views[0].camera.project(xyz[:333])
    assert len(xyz) == 1001 and depth.min() > 0.99 and depth.max() < 4.01 and uv_px.min() > -0.01 and uv_px.max() < 40.01


@pytest.mark.parametrize(("wanted", "points", "expected"), [(7, None, 7), (None, None, 12500), (None, 13000, 13000), (None, 90000, 12500)])
def test_the_number_of_gaussians(wanted, points, expected):
    assert choose_count(wanted, ring(10, (400, 400)), points)[0] == expected


# ------------------------------------------------------------ appearance
def test_backgrounds():
    camera = ring()[0].camera
    assert (Background("white", 3)(camera) == 1).all() and not list(Background("black", 3).parameters())
    colour = Background("learned", 3)
    with torch.no_grad():
        colour.coefficients += torch.tensor([1.0, 0, -1]) * 0.1 / (0.5 / math.sqrt(math.pi))
    assert colour(camera).tolist() == pytest.approx([0.6, 0.5, 0.4])
    environment = Background("environment", 1)
    with torch.no_grad():
        environment.coefficients[3] = 0.2  # along x
    image, directions = environment(camera), camera.rays()[1][0]
    torch.testing.assert_close(image[0], 0.5 + 0.2 * directions[..., 0], atol=0.02, rtol=0)


def test_exposures_have_no_mean():
    exposure = Exposure(["a", "b"])
    image = torch.rand(3, 5, 6)
    assert torch.equal(exposure(image, "b"), image)
    with torch.no_grad():
        exposure.change[0, :, 3], exposure.change[1, :, 0] = 0.2, 0.4
    exposure.centre()
    assert exposure.change.mean(0).abs().max() < 1e-7
    torch.testing.assert_close(exposure(image, "a"), image + 0.1 - 0.2 * image[:1])
