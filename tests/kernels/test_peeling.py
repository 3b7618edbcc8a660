"""Depth peeling against its reference in values and gradients, image borders, and invalid arguments."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixels import ProjectionSettings
from npbgpp.kernels import peeling as module
from npbgpp.kernels.peeling import Footprint, peel
from npbgpp.kernels.rasterization import ChunkedCloud, Fragments, Level, rasterize
from npbgpp.points.feature_pyramid import feature_image, feature_table

FOCAL = 16.0


def peel_reference(
    uvd: torch.Tensor, image_size: tuple[int, int], layers: int, near: float, far: float, max_splat: float, gap: float
) -> list[tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]]]:
    """Index (-1 empty), depth (inf empty) and closed pixels (behind a gap) of every layer, front to back; the lowest index wins ties.

    ``uvd`` holds pixel coordinates from the top-left corner, and depth.
    """
    height, width = image_size
    remaining = [i for i in range(len(uvd)) if uvd[i, 2] > 0]
    closed: set[tuple[int, int]] = set()
    found: list[tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]]] = []
    for _ in range(layers):
        index = torch.full((height, width), -1, dtype=torch.int64)
        depth = torch.full((height, width), math.inf)
        for i in remaining:
            u, v, z = uvd[i].tolist()
            radius = max_splat * min(max(1 - (z - near) / (far - near), 0.0), 1.0)
            for row in range(math.floor(v - radius), math.floor(v + radius) + 1):
                for column in range(math.floor(u - radius), math.floor(u + radius) + 1):
                    if 0 <= row < height and 0 <= column < width and z < depth[row, column]:
                        index[row, column], depth[row, column] = i, z
        winners = set(index.flatten().tolist())
        if found:
            before = found[-1][1]
            for row in range(height):
                for column in range(width):
                    if index[row, column] >= 0 and depth[row, column] - before[row, column] > gap:
                        closed.add((row, column))
            for row, column in closed:
                index[row, column], depth[row, column] = -1, math.inf
        found.append((index, depth, sorted(closed)))
        remaining = [i for i in remaining if i not in winners]
    return found


def dyadic_camera(image_size: tuple[int, int]) -> Cameras:
    """Identity pose and power-of-two intrinsics: projections of dyadic points are exact in float32."""
    height, width = image_size
    return Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.full((1, 2), FOCAL), torch.tensor([[width / 2, height / 2]]), image_size)


def dyadic_points(count: int, seed: int, image_size: tuple[int, int]) -> torch.Tensor:
    """Points around the image, some behind the camera, with exact depth ties and duplicates."""
    g = torch.Generator().manual_seed(seed)
    height, width = image_size
    z = 2.0 ** torch.randint(-1, 3, (count,), generator=g)
    # pixels in steps of a quarter, up to three pixels outside of the image
    u = torch.randint(-12, 4 * width + 12, (count,), generator=g) / 4
    v = torch.randint(-12, 4 * height + 12, (count,), generator=g) / 4
    xyz = torch.stack([(width / 2 - u) / FOCAL * z, (height / 2 - v) / FOCAL * z, z], 1)
    xyz[torch.rand(count, generator=g) < 0.1, 2] *= -1
    xyz[: count // 10] = xyz[count // 2 : count // 2 + count // 10]
    return xyz


def at_pixels(*uvz: tuple[float, float, float], image_size: tuple[int, int]) -> torch.Tensor:
    height, width = image_size
    return torch.tensor([[(width / 2 - u) / FOCAL * z, (height / 2 - v) / FOCAL * z, z] for u, v, z in uvz])


def projected(points: torch.Tensor, camera: Cameras) -> torch.Tensor:
    uv_px, depth = camera.project(points)
    return torch.cat([uv_px[0], depth[0][:, None]], 1)


FOOTPRINTS = [
    Footprint(0.5, 4.5, 1.0),
    Footprint(0.0, 8.0, 2.0),
    Footprint(1.0, 2.0, 0.5),
    Footprint(1.0, 2.0, 0.0),
    Footprint(-1.0, 1.0, 3.0),
]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 80),
    st.integers(4, 18),
    st.integers(4, 18),
    st.integers(1, 5),
    st.sampled_from(FOOTPRINTS),
    st.sampled_from([math.inf, 1.0, 0.25]),
)
def test_equals_reference(seed, count, height, width, layers, footprint, gap):
    """Indices, depths, and values and gradients of the feature images, background included."""
    size = (height, width)
    points, camera = dyadic_points(count, seed, size), dyadic_camera(size)
    found = peel(ChunkedCloud.build(points, chunk_size=8), camera, layers, footprint, gap)
    expected = peel_reference(projected(points, camera), size, layers, footprint.near, footprint.far, footprint.max_splat, gap)
    features = torch.randn(count, 3, dtype=torch.float64, requires_grad=True)
    default = torch.randn(1, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    plain_features, plain_default = (t.detach().clone().requires_grad_() for t in (features, default))
    for layer, (index, depth, beyond) in zip(found, expected, strict=True):
        assert torch.equal(layer.index, index) and torch.equal(layer.depth, depth)
        assert [tuple(place) for place in layer.closed.nonzero().tolist()] == beyond
    images = torch.cat([feature_image(layer.index[None], feature_table(features, default)) for layer in found])[:, :3]
    plain = torch.stack(
        [
            torch.stack([plain_features[i] if i >= 0 else plain_default[0, :, 0, 0] for i in index.flatten().tolist()]).T.view(3, *size)
            for index, _, _ in expected
        ]
    )
    assert torch.equal(images, plain)
    plain = plain + 0 * (plain_features.sum() + plain_default.sum())  # so that unused features have zero gradients
    weights = torch.randn_like(images)
    (images * weights).sum().backward()
    (plain * weights).sum().backward()
    torch.testing.assert_close(features.grad, plain_features.grad)
    torch.testing.assert_close(default.grad, plain_default.grad)


@pytest.mark.parametrize("image_size", [(200, 320), (97, 61)])
def test_one_layer_of_single_pixels_equals_the_rasterizer(image_size):
    """Random points, so that both must round equally."""
    rotation = torch.linalg.qr(torch.randn(3, 3))[0]
    rotation = rotation * torch.linalg.det(rotation).sign()
    principal = torch.tensor([[image_size[1] / 2 + 0.3, image_size[0] / 2 - 0.7]])
    camera = Cameras(rotation[None], torch.tensor([[0.1, -0.2, 3.0]]), torch.full((1, 2), 1.1 * image_size[1]), principal, image_size)
    cloud = ChunkedCloud.build(torch.randn(50_000, 3))
    (level,) = rasterize(cloud, camera, [Level(1.0)], ProjectionSettings())
    (layer,) = peel(cloud, camera, 1, Footprint(1.0, 2.0, 0.0))
    assert torch.equal(layer.index, level.index) and torch.equal(layer.depth, level.depth)
    assert (layer.index >= 0).any() and not layer.closed.any()


def test_layers_of_single_pixels_are_sorted_by_depth():
    size = (24, 32)
    points, camera = dyadic_points(4000, 3, size), dyadic_camera(size)
    layers = peel(ChunkedCloud.build(points), camera, 6, Footprint(1.0, 2.0, 0.0))
    uvd = projected(points, camera)
    for row, column in ((0, 0), (5, 31), (23, 17), (12, 8)):
        there = ((uvd[:, 0].floor() == column) & (uvd[:, 1].floor() == row) & (uvd[:, 2] > 0)).nonzero()[:, 0].tolist()
        there = sorted(there, key=lambda i: (uvd[i, 2].item(), i))[:6]
        assert [int(layer.index[row, column]) for layer in layers] == there + [-1] * (6 - len(there))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(FOOTPRINTS), st.integers(2, 8))
def test_layers_are_disjoint_and_depth_increases(seed, footprint, count):
    size = (20, 28)
    points = dyadic_points(300, seed, size)
    layers = peel(ChunkedCloud.build(points, chunk_size=16), dyadic_camera(size), count, footprint)
    seen: set[int] = set()
    for k, layer in enumerate(layers):
        winners = set(layer.index.flatten().tolist()) - {-1}
        assert not winners & seen
        seen |= winners
        if k:
            shown = layer.index >= 0
            assert (layer.depth[shown] >= layers[k - 1].depth[shown]).all()


# ---------------------------------------------------- footprints at the borders
@pytest.mark.parametrize("image_size", [(8, 12), (12, 8)])
def test_footprints_are_clipped_at_corners(image_size):
    """The 3x3 square of a point in a corner pixel is clipped to 2x2."""
    height, width = image_size
    corners = [(0.5, 0.5), (width - 0.5, 0.5), (0.5, height - 0.5), (width - 0.5, height - 0.5)]
    points = at_pixels(*((u, v, 1.0) for u, v in corners), image_size=image_size)
    (layer,) = peel(ChunkedCloud.build(points), dyadic_camera(image_size), 1, Footprint(1.0, 2.0, 1.0))
    expected = torch.full(image_size, -1)
    expected[:2, :2], expected[:2, -2:], expected[-2:, :2], expected[-2:, -2:] = 0, 1, 2, 3
    assert torch.equal(layer.index, expected)


@pytest.mark.parametrize("image_size", [(8, 12), (12, 8)])
def test_footprints_of_points_outside_reach_into_the_image(image_size):
    """Centres one pixel left of, above, right of and below the image."""
    height, width = image_size
    middles = [(-0.5, height / 2 + 0.5), (width / 2 + 0.5, -0.5), (width + 0.5, height / 2 + 0.5), (width / 2 + 0.5, height + 0.5)]
    points = at_pixels(*((u, v, 1.0) for u, v in middles), image_size=image_size)
    (layer,) = peel(ChunkedCloud.build(points, chunk_size=1), dyadic_camera(image_size), 1, Footprint(1.0, 2.0, 1.0))
    row, column = height // 2, width // 2
    for k, place in enumerate(
        (
            (slice(row - 1, row + 2), 0),
            (0, slice(column - 1, column + 2)),
            (slice(row - 1, row + 2), -1),
            (-1, slice(column - 1, column + 2)),
        )
    ):
        assert (layer.index[place] == k).all()
    assert (layer.index >= 0).sum() == 12


@pytest.mark.parametrize("image_size", [(6, 16), (16, 6)])
def test_every_pixel_gives_its_gradient(image_size):
    """One point per pixel gets the gradient of that pixel, in wide and in tall images."""
    height, width = image_size
    points = at_pixels(*((j + 0.5, i + 0.5, 1.0) for i in range(height) for j in range(width)), image_size=image_size)
    (layer,) = peel(ChunkedCloud.build(points), dyadic_camera(image_size), 1, Footprint(1.0, 2.0, 0.0))
    features = torch.zeros(height * width, 1, requires_grad=True)
    image = feature_image(layer.index[None], feature_table(features, torch.zeros(1, 1, 1, 1)))[0, 0]
    weights = torch.arange(1.0, height * width + 1)
    (image.flatten() * weights).sum().backward()
    assert torch.equal(features.grad[:, 0], weights)


def test_gradient_sums_over_the_footprint():
    size = (8, 8)
    (layer,) = peel(ChunkedCloud.build(at_pixels((4.5, 4.5, 1.0), image_size=size)), dyadic_camera(size), 1, Footprint(1.0, 2.0, 1.0))
    feature = torch.zeros(1, 1, requires_grad=True)
    feature_image(layer.index[None], feature_table(feature, torch.zeros(1, 1, 1, 1)))[0, 0].sum().backward()
    assert feature.grad.item() == 9


# ----------------------------------------------------------------- removal, gaps
def test_winning_points_are_removed_from_all_pixels():
    """Point 1 wins one pixel and is occluded in the others: there the next layer shows the point behind it."""
    size = (8, 8)
    points = at_pixels((4.5, 4.5, 1.0), (3.5, 4.5, 1.5), (4.5, 4.5, 1.75), image_size=size)
    first, second = peel(ChunkedCloud.build(points), dyadic_camera(size), 2, Footprint(1.0, 16.0, 1.0))
    assert first.index[4, 4] == 0 and (first.index == 1).any()
    assert second.index[4, 4] == 2 and not (second.index == 1).any()


def test_a_gap_closes_a_pixel():
    size = (4, 4)
    points = at_pixels((1.5, 1.5, 1.0), (1.5, 1.5, 1.5), (1.5, 1.5, 3.0), (1.5, 1.5, 3.25), image_size=size)
    layers = peel(ChunkedCloud.build(points), dyadic_camera(size), 4, Footprint(1.0, 2.0, 0.0), gap=1.0)
    assert [int(layer.index[1, 1]) for layer in layers] == [0, 1, -1, -1]
    assert [bool(layer.closed[1, 1]) for layer in layers] == [False, False, True, True]
    assert sum(int(layer.closed.sum()) for layer in layers) == 2
    assert [int(layer.index[1, 1]) for layer in peel(ChunkedCloud.build(points), dyadic_camera(size), 4, Footprint(1.0, 2.0, 0.0))] == [
        0,
        1,
        2,
        3,
    ]


# ------------------------------------------------------------- implementations
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def random_cloud(count: int) -> torch.Tensor:
    """Duplicates, points behind the camera, and points that are not finite."""
    points = torch.cat([torch.randn(count, 2) * 2, torch.rand(count, 1) * 6 - 1], 1)
    points[: count // 8] = points[count // 2 : count // 2 + count // 8]
    for k, value in enumerate((math.nan, math.inf, -math.inf)):
        points[k::97, k] = value
    return points


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [0, 1, 700, 150_000])
@pytest.mark.parametrize("image_size", [(1, 1), (1, 40), (33, 57)])
@pytest.mark.parametrize("footprint", [Footprint(0.5, 4.5, 0.0), Footprint(0.5, 4.5, 2.5)])
def test_layers_equal_those_of_plain_pytorch(count, image_size, footprint, device, monkeypatch):
    """Projections are rounded differently: points at pixel borders may fall on either side."""
    points = random_cloud(count)
    cloud, camera = ChunkedCloud.build(points, chunk_size=64).to(device), dyadic_camera(image_size)
    found = peel(cloud, camera, 3, footprint, 2.0)
    monkeypatch.setenv("NPBGPP_KERNELS", "torch")
    expected = peel(cloud, camera, 3, footprint, 2.0)
    for layer, other in zip(found, expected, strict=True):
        for one, two in ((layer.index, other.index), (layer.depth, other.depth), (layer.closed, other.closed)):
            assert (one != two).sum() <= 2e-3 * one.numel()


def test_threads_do_not_change_layers(monkeypatch):
    cloud, camera = ChunkedCloud.build(random_cloud(200_000)), dyadic_camera((64, 48))
    drawn = []
    for threads in (1, 3):
        monkeypatch.setattr(module, "thread_count", lambda items, least, threads=threads: threads)
        drawn.append(peel(cloud, camera, 4, Footprint(0.5, 4.5, 1.0)))
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one.index, other.index) and torch.equal(one.depth, other.depth)


@pytest.mark.skipif(module.backend(torch.device("cpu")) != "numba", reason="numba is missing")
def test_only_remaining_points_in_the_image_are_kept():
    size = (32, 32)
    xy = torch.rand(40_000, 2) * 40 - 20
    cloud = ChunkedCloud.build(torch.cat([xy, torch.rand(40_000, 1) + 4], 1), chunk_size=64)
    points = module._NumbaPoints(cloud, dyadic_camera(size), Footprint(4.0, 8.0, 1.0))
    assert 0 < sum(points.counts) < 0.15 * len(cloud)  # the camera sees a twenty-fifth of the cloud
    before, removed = sum(points.counts), torch.zeros(len(cloud) + 1, dtype=torch.bool)
    winners = Fragments(points.nearest(removed)).index
    assert sum(points.counts) == before
    removed[winners.view(-1)] = True
    points.nearest(removed)
    assert sum(points.counts) == before - len(set(winners.flatten().tolist()) - {-1})


def test_empty_clouds_points_behind_and_invalid_arguments():
    size = (8, 8)
    camera, footprint = dyadic_camera(size), Footprint(1.0, 2.0, 1.0)
    for points in (torch.zeros(0, 3), torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 0.0]])):
        layers = peel(ChunkedCloud.build(points), camera, 3, footprint)
        assert all((layer.index == -1).all() and layer.depth.isinf().all() and not layer.closed.any() for layer in layers)
    some = ChunkedCloud.build(torch.ones(1, 3))
    with pytest.raises(ValueError, match="at least one layer"):
        peel(some, camera, 0, footprint)
    with pytest.raises(ValueError, match="one camera"):
        peel(some, Cameras.cat([camera, camera]), 1, footprint)
    with pytest.raises(ValueError, match="near < far"):
        peel(some, camera, 1, Footprint(2.0, 2.0, 1.0))


def test_subsets_keep_row_indices():
    size = (8, 8)
    points = at_pixels((4.5, 4.5, 1.0), (4.5, 4.5, 1.5), (4.5, 4.5, 1.75), image_size=size)
    cloud = ChunkedCloud.build(points, rows=torch.tensor([1, 2]))
    assert [int(layer.index[4, 4]) for layer in peel(cloud, dyadic_camera(size), 3, Footprint(1.0, 2.0, 0.0))] == [1, 2, -1]
