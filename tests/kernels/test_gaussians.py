"""The renderer of 3D Gaussians: the fast implementations against the reference, the reference against formulas and finite differences, and borders."""

import math
from dataclasses import replace

import pytest
import torch

from npbgpp.geometry import Cameras
from npbgpp.kernels import backend as backends
from npbgpp.kernels.gaussians import GaussianImage, SplattingSettings, render_gaussians

SETTINGS = SplattingSettings(dilation=0.3, antialiased=False, near=0.01)
NAMES = ("means", "log_scales", "quaternions", "opacity_logits", "sh", "background")


def camera(image_size: tuple[int, int] = (45, 37), distance: float = 2.0, seed: int = 0) -> Cameras:
    """fx != fy, the principal point beside the centre."""
    height, width = image_size
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    rotation = rotation * torch.linalg.det(rotation)
    focal = torch.tensor([[1.1 * width, 1.3 * width]], dtype=torch.float64)
    principal = torch.tensor([[0.47 * width, 0.56 * height]], dtype=torch.float64)
    return Cameras(rotation[None], torch.tensor([[0.1, -0.05, distance]], dtype=torch.float64), focal, principal, image_size)


def scene(n: int, channels: int = 3, logit: float = 0.0, seed: int = 0) -> list[torch.Tensor]:
    """Random gaussians around the origin in float64, a few behind and beside the camera of ``camera``, and a background."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    opacity, background = normal(n) + logit, torch.rand(channels, generator=g, dtype=torch.float64)
    return [normal(n, 3) * 0.8, normal(n, 3) * 0.4 - 2.3, normal(n, 4), opacity, normal(n, 16, channels) * 0.3, background]


def render(
    tensors: list[torch.Tensor], view: Cameras, degree: int = 3, settings: SplattingSettings = SETTINGS, rgb: bool = True
) -> GaussianImage:
    *gaussians, background = tensors
    return render_gaussians(*gaussians, view, sh_degree=degree, background=background, settings=settings, rgb=rgb)


def values_and_gradients(tensors, upstream, *arguments, **options) -> tuple[GaussianImage, list[torch.Tensor]]:
    """A rendering and the gradients of its product with ``upstream``: image, and alpha and depth where it has them."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    found = render(leaves, *arguments, **options)
    outputs = (found.image, found.alpha, found.depth)[: len(upstream)]
    torch.autograd.backward(outputs, [u.to(o) for u, o in zip(upstream, outputs, strict=True)])
    return found, [leaf.grad for leaf in leaves]


def compare(
    tensors,
    view,
    outputs: int,
    degree: int = 3,
    settings: SplattingSettings = SETTINGS,
    rgb: bool = True,
    tolerance: float = 2e-5,
    floor: float = 0.05,
):
    """The float32 implementation for the CPU against the reference, which float64 tensors get: differences relative to the largest value.

    floor: gradients whose largest value is smaller are compared as if it were this.
    """
    channels, g = tensors[4].shape[2], torch.Generator().manual_seed(9)
    upstream = [torch.randn(c, *view.image_size, generator=g) for c in (channels, 1, 1)][:outputs]
    options = {"degree": degree, "settings": settings, "rgb": rgb}
    expected, expected_gradients = values_and_gradients(tensors, upstream, view, **options)
    found, gradients = values_and_gradients([t.float() for t in tensors], upstream, view, **options)
    assert torch.equal(found.visible, expected.visible)
    for name in ("image", "alpha", "depth"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.shape == other.shape and one.dtype == torch.float32
        assert (one - other).abs().max() <= tolerance * max(1.0, other.abs().max()), name
    for name, one, other in zip(NAMES, gradients, expected_gradients, strict=True):
        assert (one - other).abs().max() <= 2 * tolerance * max(floor, other.abs().max()), name
    return found


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize("outputs", [1, 3], ids=["image", "image_alpha_depth"])
def test_equals_reference(degree, outputs):
    found = compare(scene(120, seed=degree), camera(), outputs, degree)
    assert 0 < found.visible.sum() < 120


@pytest.mark.parametrize("channels", [1, 4, 8])
@pytest.mark.parametrize("outputs", [1, 3])
def test_descriptors(channels, outputs):
    compare(scene(100, channels, seed=2), camera(), outputs, 2, rgb=False)


@pytest.mark.parametrize("rgb", [True, False])
def test_antialiased(rgb):
    tensors = scene(120, seed=3)
    tensors[1] -= 2  # smaller than a pixel
    compare(tensors, camera(), 3, 1, replace(SETTINGS, antialiased=True, dilation=0.2), rgb)


def test_saturated_alpha():
    compare(scene(60, logit=6.0, seed=5), camera(), 3, 2)


def test_tiles_end_when_they_are_dark():
    """Large opaque gaussians: the fast implementation looks at the transmittance every few gaussians, the reference after each."""
    tensors = scene(200, logit=4.0, seed=6)
    tensors[1] += 1.5
    found = compare(tensors, camera(), 1, 1, tolerance=1e-3, floor=1.0)
    assert found.alpha.max() > 0.9999


@pytest.mark.parametrize("image_size", [(1, 1), (16, 16), (17, 15), (3, 70), (33, 48)])
def test_image_sizes(image_size):
    compare(scene(40, seed=7), camera(image_size), 3, 1, tolerance=1e-4, floor=0.5)


def test_background_image_and_none():
    tensors, view = scene(50, seed=8), camera()
    tensors[5] = torch.rand(3, *view.image_size, dtype=torch.float64)
    compare(tensors, view, 3, 1)
    black = render([*(t.float() for t in tensors[:5]), None], view)
    assert torch.equal(black.image, render([*(t.float() for t in tensors[:5]), torch.zeros(3)], view).image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 20])
def test_nothing_visible(dtype, n):
    """No gaussians, or all of them behind the camera, beside it, transparent, or not finite."""
    view, tensors = camera(), [t.to(dtype) for t in scene(n)]
    view = replace(view, R=torch.eye(3, dtype=torch.float64)[None], T=torch.zeros(1, 3, dtype=torch.float64))
    tensors[0][:5] = torch.tensor([0.1, 0.1, -2.0], dtype=dtype)
    tensors[0][5:10] = torch.tensor([80.0, 0.1, 2.0], dtype=dtype)
    tensors[0][10:] = torch.tensor([0.1, 0.1, 2.0], dtype=dtype)
    tensors[3][10:15] = -8.0
    tensors[0][15:17, 1] = math.nan
    tensors[1][17:, 0] = math.nan
    found, gradients = values_and_gradients(tensors, [torch.ones(3, 45, 37)], view)
    assert not found.visible.any() and not found.alpha.any() and not found.depth.any()
    assert torch.equal(found.image, tensors[5][:, None, None].expand_as(found.image))
    assert all(not g.nan_to_num().any() for g in gradients[:5])
    torch.testing.assert_close(gradients[5], torch.full((3,), 45.0 * 37, dtype=dtype))


def test_one_gaussian_by_hand():
    """Position, extent, colour and depth of one gaussian from the formulas."""
    view = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.tensor([[20.0, 30.0]]), torch.tensor([[16.0, 12.0]]), (24, 32))
    mean, scales = torch.tensor([[0.2, -0.1, 2.0]]), torch.tensor([[0.2, 0.1, 1e-4]])
    sh = torch.zeros(1, 4, 3)
    sh[0, :, 0] = torch.tensor([0.3, 0.1, 0.2, -0.4])
    gaussian = [mean, scales.log(), torch.tensor([[2.0, 0.0, 0.0, 0.0]]), torch.tensor([0.5]), sh, torch.tensor([0.0, 0.0, 1.0])]
    found = render(gaussian, view, 1)
    u, v = 16 - 20 * 0.1, 12 + 30 * 0.05
    y, x = torch.meshgrid(torch.arange(24) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    power = -0.5 * ((x - u) ** 2 / (2.0**2 + 0.3) + (y - v) ** 2 / (1.5**2 + 0.3))
    alpha = torch.sigmoid(torch.tensor(0.5)) * power.exp()
    alpha = torch.where(alpha >= 1 / 255, alpha, 0)
    dx, dy, dz = (mean[0] / mean[0].norm()).tolist()
    red = 0.5 + 0.28209479 * 0.3 + 0.48860251 * (-0.1 * dy + 0.2 * dz + 0.4 * dx)
    expected = torch.stack([alpha * red, alpha * 0.5, alpha * 0.5 + 1 - alpha])
    torch.testing.assert_close(found.image, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(found.depth[0], 2 * alpha, atol=5e-5, rtol=0)


def test_order_of_equal_depths():
    """The lowest index is in front."""
    view = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.full((1, 2), 20.0), torch.full((1, 2), 8.0), (16, 16))
    sh = torch.zeros(2, 1, 3)
    sh[0, 0, 0] = sh[1, 0, 1] = 2.0
    means, logits = torch.tensor([[0.0, 0.0, 2.0]]).expand(2, 3), torch.full((2,), 8.0)
    gaussians = [means, torch.full((2, 3), -1.0), torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(2, 4), logits, sh, torch.zeros(3)]
    for dtype in (torch.float32, torch.float64):
        image = render([t.to(dtype) for t in gaussians], view, 0).image
        assert image[0, 8, 8] > image[1, 8, 8]


def test_reference_passes_gradcheck():
    view, tensors = camera((5, 6)), scene(6, seed=11)
    tensors[1] += 0.5

    def outputs(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = render(list(leaves), view, 2)
        return found.image, found.alpha, found.depth

    assert torch.autograd.gradcheck(outputs, [t.requires_grad_() for t in tensors], eps=1e-7, atol=1e-5, fast_mode=True)


def test_independent_of_threads():
    """Bitwise equal values and gradients."""
    tensors, view, before = [t.float() for t in scene(6000, seed=12)], camera((70, 90)), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found, gradients = values_and_gradients(tensors, [torch.ones(3, 70, 90), torch.ones(1, 70, 90)], view)
            results.append([found.image, found.alpha, found.depth, *gradients])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_torch_can_be_forced(monkeypatch):
    tensors, view = [t.float() for t in scene(30)], camera()
    fast = render(tensors, view).image
    monkeypatch.setenv("NPBGPP_KERNELS", "torch")
    plain = render(tensors, view).image
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=0)
    assert not backends.numba_is_available() or not torch.equal(fast, plain)


def test_errors():
    tensors, view = scene(3), camera()
    with pytest.raises(ValueError, match="one camera"):
        render(tensors, Cameras.cat([view, view]))
    with pytest.raises(ValueError, match="degree"):
        render(tensors, view, 4)
    with pytest.raises(ValueError, match="degree"):
        render([*tensors[:4], tensors[4][:, :4], tensors[5]], view, 2)
    with pytest.raises(ValueError, match="background"):
        render([*tensors[:5], torch.zeros(3, 45, 36, dtype=torch.float64)], view)


@pytest.mark.parametrize("capability", ["75", "80", "90", "100"])
def test_cuda_source_compiles(capability):
    module = backends.MODULES["gaussians"]
    assert backends.compile_for(module.source, module.kernels[0], capability)  # compiles all kernels of the source
