"""Gaussians as files of other programs: ``.ply`` of 3D Gaussian Splatting, and ``.splat`` of web viewers.

A ``.splat`` file (Kwok, splat, 2023) has no header. Each gaussian takes 32 bytes, little-endian: the mean and the scales (standard deviations) as six 32-bit
floats; red, green, blue and opacity, 0 to 255; the unit quaternion, w first, with -1 to 1 as 0 to 256, at most 255. Harmonics that depend on the direction are
left out. The largest and most opaque gaussians come first, so that a viewer can show a file that is still loading.
"""

from pathlib import Path

import numpy as np
import torch

from npbgpp.core.files import write_atomically
from npbgpp.errors import InputError
from npbgpp.geometry import GaussianCloud, write_gaussian_ply

SUFFIXES = (".ply", ".splat")
_LEVELS = 255


def write_splats(path: Path, cloud: GaussianCloud) -> None:
    """Writes gaussians in the format that the suffix names.

    Raises:
        InputError: features that are not colours, or a file that cannot be written.
    """
    assert path.suffix in SUFFIXES
    if path.suffix == ".ply":
        write_gaussian_ply(path, cloud)
        return
    if cloud.sh.shape[2] != 3:
        raise InputError(f"{path}: expected gaussians with colours, got {cloud.sh.shape[2]} channels; export a run without a refiner")
    write_atomically(path, lambda file: file.write(splat_bytes(cloud)))


def splat_bytes(cloud: GaussianCloud) -> bytes:
    """The content of a ``.splat`` file."""
    opacity = cloud.opacity_logits.sigmoid()
    order = torch.sort(cloud.log_scales.sum(1).exp() * opacity, descending=True, stable=True).indices
    unit = torch.nn.functional.normalize(cloud.quaternions[order], dim=1)
    colours = torch.cat([cloud.colours(), opacity[:, None]], 1)[order]
    record = np.empty(len(cloud), dtype=[("mean", "<f4", 3), ("scale", "<f4", 3), ("colour", "u1", 4), ("rotation", "u1", 4)])
    record["mean"], record["scale"] = cloud.means[order].numpy(), cloud.log_scales[order].exp().numpy()
    record["colour"] = (colours * _LEVELS).round().to(torch.uint8).numpy()
    record["rotation"] = (unit * 128 + 128).round().clamp(0, _LEVELS).to(torch.uint8).numpy()
    return record.tobytes()
