"""Reference renderer of 3D Gaussians in plain differentiable PyTorch, for any device and float type.

Every gaussian is evaluated at every pixel of the tile rows that it touches. Tile rows are recomputed in the backward pass to bound the memory.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from npbgpp.geometry import Cameras
from npbgpp.kernels.gaussians.types import FOV_MARGIN, MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, TILE, GaussianImage, SplattingSettings


def render_reference(
    means: Float[Tensor, "n 3"],
    log_scales: Float[Tensor, "n 3"],
    quaternions: Float[Tensor, "n 4"],
    opacity_logits: Float[Tensor, " n"],
    sh: Float[Tensor, "n k c"],
    camera: Cameras,
    sh_degree: int,
    background: Float[Tensor, "c 1 1"] | Float[Tensor, "c h w"],
    settings: SplattingSettings,
    rgb: bool,
) -> GaussianImage:
    """See ``render_gaussians``."""
    height, width = camera.image_size
    camera = camera.to(means.device)
    R, T, focal, principal = (value[0].to(means.dtype) for value in (camera.R, camera.T, camera.focal_length, camera.principal_point))
    xyz = means @ R + T
    front = (xyz[:, 2] > settings.near).nonzero()[:, 0]
    front = front[torch.sort(xyz[front, 2].detach(), stable=True).indices]
    xyz, opacity = xyz[front], torch.sigmoid(opacity_logits[front])
    z = xyz[:, 2]
    uv = principal - focal * xyz[:, :2] / z[:, None]

    # covariance of the image of a gaussian to first order (Zwicker et al. 2001)
    rotated = _rotations(quaternions[front]) * log_scales[front].exp()[:, None, :]
    in_camera = R.T @ rotated  # columns: axes of the gaussian, scaled
    size = torch.tensor([width, height], dtype=means.dtype, device=means.device)
    margin = FOV_MARGIN * size / (2 * focal)
    slope = torch.minimum(torch.maximum(xyz[:, :2] / z[:, None], -(size - principal) / focal - margin), principal / focal + margin)
    jacobian = torch.zeros(len(front), 2, 3, dtype=means.dtype, device=means.device)
    jacobian[:, 0, 0], jacobian[:, 1, 1] = -focal[0] / z, -focal[1] / z
    jacobian[:, :, 2] = focal * slope / z[:, None]
    axes = jacobian @ in_camera
    covariance = axes @ axes.mT
    dilated = covariance + settings.dilation * torch.eye(2, dtype=means.dtype, device=means.device)
    if settings.antialiased:
        ratio = torch.linalg.det(covariance) / torch.linalg.det(dilated)
        opacity = opacity * ratio.clamp_min(torch.finfo(means.dtype).tiny).sqrt()

    direction = torch.nn.functional.normalize(means[front] - camera.centers().to(means.dtype), dim=1)
    features = torch.einsum("nk,nkc->nc", _sh_basis(direction, sh_degree), sh[front, : (sh_degree + 1) ** 2])
    if rgb:
        features = (features + 0.5).clamp_min(0)

    with torch.no_grad():  # where opacity * exp(-d^2 / 2) is at least MIN_ALPHA
        reach = (2 * (opacity / MIN_ALPHA).clamp_min(1).log())[:, None] * torch.diagonal(dilated, dim1=1, dim2=2)
        first, last = (uv - reach.sqrt() - 0.5).ceil(), (uv + reach.sqrt() - 0.5).floor()
        touches = ((opacity >= MIN_ALPHA)[:, None] & (first <= last) & (last >= 0) & (first < size)).all(1)
    visible = torch.zeros(len(means), dtype=torch.bool, device=means.device)
    visible[front] = touches

    rows = []
    per_gaussian = torch.cat([uv, torch.linalg.inv(dilated).flatten(1), opacity[:, None], features, z[:, None]], 1)
    for top in range(0, height, TILE):
        bottom = min(top + TILE, height)
        chosen = (touches & (last[:, 1] >= top) & (first[:, 1] < bottom)).nonzero()[:, 0]
        rows.append(checkpoint(_render_rows, per_gaussian[chosen], top, bottom, width, use_reentrant=False))
    composited = torch.cat([image for image, _ in rows], 1)
    transmittance = torch.cat([t for _, t in rows], 1)
    return GaussianImage(composited[:-1] + transmittance * background, 1 - transmittance, composited[-1:], visible)


def _render_rows(
    gaussians: Float[Tensor, "n f"], top: int, bottom: int, width: int
) -> tuple[Float[Tensor, "c h w"], Float[Tensor, "1 h w"]]:
    """Sum of weighted features (depth last) and transmittance of gaussians in front-to-back order in some rows of the image."""
    uv, conic, opacity, features = gaussians.split([2, 4, 1, gaussians.shape[1] - 7], 1)
    v, u = torch.meshgrid(torch.arange(top, bottom).to(gaussians) + 0.5, torch.arange(width).to(gaussians) + 0.5, indexing="ij")
    du, dv = u - uv[:, 0, None, None], v - uv[:, 1, None, None]
    xx, xy, yx, yy = conic[:, :, None, None].unbind(1)
    alpha = opacity[:, :, None] * torch.exp(-0.5 * (xx * du * du + (xy + yx) * du * dv + yy * dv * dv))
    alpha = torch.where(alpha >= MIN_ALPHA, alpha.clamp_max(MAX_ALPHA), 0)
    alpha = torch.where(_tile_goes_on(alpha.detach()), alpha, 0)
    transmittance = torch.cat([gaussians.new_ones(1, bottom - top, width), (1 - alpha).cumprod(0)])
    return torch.einsum("nhw,nc->chw", alpha * transmittance[:-1], features), transmittance[-1:]


def _tile_goes_on(alpha: Float[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """Whether some pixel of the tile still lets light through when a gaussian is reached."""
    n, height, width = alpha.shape
    before = torch.cat([torch.ones_like(alpha[:1]), (1 - alpha).cumprod(0)])[:-1]
    padded = torch.nn.functional.pad(before, [0, -width % TILE])
    largest = padded.view(n, height, -1, TILE).amax((1, 3)) if n else padded.new_zeros(0, math.ceil(width / TILE))
    return (largest >= MIN_TRANSMITTANCE).repeat_interleave(TILE, 1)[:, None, :width].expand_as(alpha)


def _rotations(quaternions: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3 3"]:
    """Rotation matrices acting on columns; quaternions (w, x, y, z) of any length."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=1).unbind(1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _sh_basis(direction: Float[Tensor, "n 3"], degree: int) -> Float[Tensor, "n k"]:
    """Real spherical harmonics in the order and with the signs of 3DGS: those with the Condon-Shortley phase, m from -l to l."""
    x, y, z = direction.unbind(1)
    pi = math.pi
    basis = [torch.full_like(x, math.sqrt(1 / pi) / 2)]
    if degree > 0:
        factor = math.sqrt(3 / (4 * pi))
        basis += [-factor * y, factor * z, -factor * x]
    if degree > 1:
        factor = math.sqrt(15 / pi) / 2
        basis += [factor * x * y, -factor * y * z, math.sqrt(5 / pi) / 4 * (3 * z * z - 1), -factor * x * z, factor / 2 * (x * x - y * y)]
    if degree > 2:
        outer, middle, inner = math.sqrt(35 / (2 * pi)) / 4, math.sqrt(105 / pi) / 4, math.sqrt(21 / (2 * pi)) / 4
        basis += [
            -outer * y * (3 * x * x - y * y),
            2 * middle * x * y * z,
            -inner * y * (5 * z * z - 1),
            math.sqrt(7 / pi) / 4 * z * (5 * z * z - 3),
            -inner * x * (5 * z * z - 1),
            middle * z * (x * x - y * y),
            -outer * x * (x * x - 3 * y * y),
        ]
    return torch.stack(basis, 1)
