"""Projection matrices of calibrated cameras into their parts (Hartley and Zisserman, Multiple View Geometry, 2nd edition, section 6.2.4).

Symbols: P (3, 4) acts on columns, ``(u w, v w, w) = P (x, y, z, 1)``, with pixels (u, v) counted from the *centre* of the first pixel as OpenCV does;
``P = K [R | t]`` with K upper triangular and R, t world to camera, axes right, down, forward. P and each of its multiples are the same camera.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.geometry.cameras import Cameras

_LARGEST_SKEW = 1e-2  # of the focal length; calibrations are written with rounding errors of about 1e-6


def decompose_projection(P: Float[Tensor, "n 3 4"]) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3 3"], Float[Tensor, "n 3 1"]]:
    """(K, R, t) with ``P = +-K [R | t]``, K of positive diagonal and in the scale of P, det R = +1.

    The left 3x3 part must have full rank (see ``projection_defect``). A negative sign of P is taken out: it would mirror the camera.
    """
    left = P[:, :, :3]
    # RQ of a matrix is the QR of its transpose with the order of the rows reversed before and after
    q, upper = torch.linalg.qr(left.flip(1).transpose(1, 2))
    K = upper.transpose(1, 2).flip(1, 2)
    R = q.transpose(1, 2).flip(1)
    signs = torch.where(torch.diagonal(K, dim1=1, dim2=2) < 0, -1.0, 1.0).to(P)
    K, R = K * signs[:, None, :], R * signs[:, :, None]
    handedness = torch.sign(torch.linalg.det(R))[:, None, None]
    return K, R * handedness, torch.linalg.solve(K, P[:, :, 3:]) * handedness


def projection_defect(P: Float[Tensor, "3 4"]) -> str | None:
    """Says in words why a projection matrix is not one of a pinhole camera with straight pixels, or None when it is."""
    if not torch.isfinite(P).all():
        return "it holds values that are not finite"
    if torch.linalg.matrix_rank(P[:, :3]) < 3:
        return "its left 3x3 part is singular"
    K = decompose_projection(P[None])[0][0]
    if K[0, 1].abs() > _LARGEST_SKEW * K[0, 0]:
        return f"its pixels are skewed by {(K[0, 1] / K[0, 0]).item():.3g} of the focal length"
    return None


def cameras_from_projections(P: Float[Tensor, "n 3 4"], image_size: tuple[int, int], shared_intrinsics: bool) -> Cameras:
    """Cameras on images of one size, in single precision.

    Args:
        P: projection matrices without defect, best in double precision; a remaining skew is dropped.
        image_size: (height, width).
        shared_intrinsics: all cameras get the mean of the intrinsics, as in the NPBG++ authors' DTU and H3DS scenes; otherwise each keeps its own.
    """
    K, R, t = decompose_projection(P)
    K = K / K[:, 2:, 2:]
    if shared_intrinsics:
        K = K.mean(0, keepdim=True).expand_as(K)
    world_to_cam = torch.eye(4, dtype=P.dtype).repeat(len(P), 1, 1)
    world_to_cam[:, :3] = torch.cat([R, t], 2)
    focal_length = torch.diagonal(K[:, :2, :2], dim1=1, dim2=2)
    return Cameras.from_opencv(world_to_cam.float(), focal_length.float(), (K[:, :2, 2] + 0.5).float(), image_size)
