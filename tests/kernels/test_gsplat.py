"""The use of gsplat, with a stand-in that follows its documentation: conventions of cameras and arguments, self-check, choice."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from npbgpp.kernels.gaussians import gsplat_renderer, render_gaussians
from npbgpp.kernels.gaussians.gsplat_renderer import render_with_gsplat
from npbgpp.kernels.gaussians.self_check import difference_from_reference

from .test_gaussians import SETTINGS, camera, scene

CPU = torch.device("cpu")


def spherical_harmonics(degree: int, directions: Tensor, coefficients: Tensor) -> Tensor:
    """Values for three channels."""
    assert coefficients.shape[2] == 3
    x, y, z = torch.nn.functional.normalize(directions, dim=1).unbind(1)
    xx, yy, zz = x * x, y * y, z * z
    basis = [torch.full_like(x, 0.28209479), -0.48860251 * y, 0.48860251 * z, -0.48860251 * x]
    basis += [1.09254843 * x * y, -1.09254843 * y * z, 0.31539157 * (2 * zz - xx - yy), -1.09254843 * x * z, 0.54627422 * (xx - yy)]
    basis += [-0.59004359 * y * (3 * xx - yy), 2.89061144 * x * y * z, -0.45704580 * y * (4 * zz - xx - yy)]
    basis += [0.37317633 * z * (2 * zz - 3 * xx - 3 * yy), -0.45704580 * x * (4 * zz - xx - yy), 1.44530572 * z * (xx - yy)]
    basis += [-0.59004359 * x * (xx - 3 * yy)]
    count = (degree + 1) ** 2
    return sum(basis[k][:, None] * coefficients[:, k] for k in range(count))


def rasterization(
    means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane, eps2d, packed, render_mode, rasterize_mode
):
    """All gaussians at all pixels. Axes right, down, forward; quaternions (w, x, y, z)."""
    assert viewmats.shape == (1, 4, 4) and Ks.shape == (1, 3, 3) and not packed and render_mode == "RGB+D"
    rotation, translation, K = viewmats[0, :3, :3], viewmats[0, :3, 3], Ks[0]
    xyz = means @ rotation.T + translation
    w, x, y, z = torch.nn.functional.normalize(quats, dim=1).unbind(1)
    axes = torch.stack([
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), 2 * (x * y + w * z), 1 - 2 * (x * x + z * z),
        2 * (y * z - w * x), 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ], 1).view(-1, 3, 3) * scales[:, None]  # fmt: skip
    front = xyz[:, 2] > near_plane
    depth = torch.where(front, xyz[:, 2], 1.0)
    lows, highs = -K[:2, 2] / K[[0, 1], [0, 1]], (torch.tensor([width, height]) - K[:2, 2]) / K[[0, 1], [0, 1]]
    margin = 0.15 * (highs - lows)
    slope = torch.minimum(torch.maximum(xyz[:, :2] / depth[:, None], lows - margin), highs + margin)
    jacobian = torch.zeros(len(means), 2, 3, dtype=means.dtype)
    jacobian[:, 0, 0], jacobian[:, 1, 1] = K[0, 0] / depth, K[1, 1] / depth
    jacobian[:, :, 2] = -torch.stack([K[0, 0], K[1, 1]]) * slope / depth[:, None]
    image_axes = jacobian @ rotation @ axes
    covariance = image_axes @ image_axes.mT
    dilated = covariance + eps2d * torch.eye(2)
    if rasterize_mode == "antialiased":
        opacities = opacities * (torch.linalg.det(covariance) / torch.linalg.det(dilated)).clamp_min(1e-30).sqrt()
    uv = xyz[:, :2] / depth[:, None] * torch.stack([K[0, 0], K[1, 1]]) + K[:2, 2]
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    offset = torch.stack([u, v], -1)[None] - uv[:, None, None]
    power = torch.einsum("nhwi,nij,nhwj->nhw", offset, torch.linalg.inv(dilated), offset)
    alpha = opacities[:, None, None] * torch.exp(-power / 2)
    alpha = torch.where((alpha >= 1 / 255) & front[:, None, None], alpha.clamp_max(0.999), 0)
    order = xyz[:, 2].argsort()
    alpha, planes = alpha[order], torch.cat([colors, xyz[:, 2:]], 1)[order]
    transmittance = torch.cat([torch.ones_like(alpha[:1]), (1 - alpha).cumprod(0)])
    image = torch.einsum("nhw,nc->hwc", alpha * transmittance[:-1], planes)
    radii = torch.zeros(len(means), 2, dtype=torch.int32)
    radii[order] = (alpha.amax((1, 2)) > 0).int()[:, None].expand(-1, 2)
    return image[None], 1 - transmittance[-1][None, ..., None], {"radii": radii[None]}


@pytest.fixture
def stand_in(monkeypatch) -> ModuleType:
    module = ModuleType("gsplat")
    module.spherical_harmonics, module.rasterization = spherical_harmonics, rasterization
    monkeypatch.setitem(sys.modules, "gsplat", module)
    return module


@pytest.mark.parametrize(("channels", "rgb", "degree"), [(3, True, 3), (4, False, 2), (7, False, 1)])
def test_equals_the_renderer_of_this_project(stand_in, channels, rgb, degree):
    tensors, view = scene(60, channels, seed=2), camera()
    background = torch.rand(channels, *view.image_size, dtype=torch.float64)
    results = []
    for render in (
        lambda *leaves: render_with_gsplat(*leaves, background, view, degree, SETTINGS, rgb),
        lambda *leaves: render_gaussians(*leaves, view, sh_degree=degree, background=background, settings=SETTINGS, rgb=rgb),
    ):
        leaves = [t.clone().requires_grad_() for t in tensors[:5]]
        found = render(*leaves)
        (found.image.square().sum() + found.alpha.sum() + found.depth.square().sum()).backward()
        results.append([found.image, found.alpha, found.depth, found.visible, *(leaf.grad for leaf in leaves)])
    # visible: whose box holds a pixel centre, of which some reach none
    assert not (results[0][3] & ~results[1][3]).any() and results[0][3].sum() > 20
    for one, other in zip(results[0], results[1], strict=True):
        if one.dtype != torch.bool:
            assert one.shape == other.shape and (one - other).abs().max() <= 2e-3 * other.abs().max()


def test_self_check(stand_in):
    assert difference_from_reference(render_with_gsplat, CPU) is None
    whole = stand_in.rasterization
    stand_in.rasterization = lambda *a, **k: whole(*a, **k | {"eps2d": 0.6})
    assert "differs" in difference_from_reference(render_with_gsplat, CPU)


def test_when_it_is_used(monkeypatch):
    monkeypatch.delenv("NPBGPP_KERNELS", raising=False)
    monkeypatch.setattr(gsplat_renderer, "is_installed", lambda: True)
    assert gsplat_renderer.is_wanted()
    monkeypatch.setenv("NPBGPP_KERNELS", "cuda")
    assert not gsplat_renderer.is_wanted()
    monkeypatch.setenv("NPBGPP_KERNELS", "auto")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not gsplat_renderer.is_wanted()
