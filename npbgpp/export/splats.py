"""Gaussians as files of other programs: ``.ply`` of 3D Gaussian Splatting, ``.glb`` (glTF), and ``.splat`` of web viewers.

A ``.splat`` file (Kwok, splat, 2023) has no header. Each gaussian takes 32 bytes, little-endian: the mean and the scales (standard deviations) as six 32-bit
floats; red, green, blue and opacity, 0 to 255; the unit quaternion, w first, with -1 to 1 as 0 to 256, at most 255. Harmonics that depend on the direction are
left out. The largest and most opaque gaussians come first, so that a viewer can show a file that is still loading.

A ``.glb`` file is binary glTF 2.0 with the extension KHR_gaussian_splatting (Khronos Group, 2026): a primitive of points whose attributes are the means, unit
quaternions with w last, standard deviations, opacities and all harmonics. Programs without the extension show points in the mean colours. The upward direction of
glTF is +y: the node has the rotation.
"""

import json
import struct
from pathlib import Path

import numpy as np
import torch

from npbgpp.core.files import write_atomically
from npbgpp.errors import InputError
from npbgpp.geometry import GaussianCloud, write_gaussian_ply

SUFFIXES = (".ply", ".splat", ".glb")
_LEVELS = 255
_GLTF_FLOAT, _GLTF_BYTE, _GLTF_VERTICES = 5126, 5121, 34962
_EXTENSION = "KHR_gaussian_splatting"


def write_splats(path: Path, cloud: GaussianCloud, up: tuple[float, float, float] = (0.0, 1.0, 0.0)) -> None:
    """Writes gaussians in the format that the suffix names.

    Args:
        path: of the file.
        cloud: on the CPU.
        up: unit vector of the upward direction, for ``.glb``; the other formats have none.

    Raises:
        InputError: features that are not colours, or a file that cannot be written.
    """
    assert path.suffix in SUFFIXES
    if path.suffix == ".ply":
        write_gaussian_ply(path, cloud)
        return
    if cloud.sh.shape[2] != 3:
        raise InputError(f"{path}: expected gaussians with colours, got {cloud.sh.shape[2]} channels; export a run without a refiner")
    content = splat_bytes(cloud) if path.suffix == ".splat" else glb_bytes(cloud, up)
    write_atomically(path, lambda file: file.write(content))


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


def glb_bytes(cloud: GaussianCloud, up: tuple[float, float, float]) -> bytes:
    """The content of a ``.glb`` file."""
    opacity = cloud.opacity_logits.sigmoid()
    unit = torch.nn.functional.normalize(cloud.quaternions, dim=1)
    fallback = (torch.cat([cloud.colours(), opacity[:, None]], 1) * _LEVELS).round().to(torch.uint8)
    arrays = {
        "POSITION": ("VEC3", cloud.means),
        "COLOR_0": ("VEC4", fallback),
        f"{_EXTENSION}:ROTATION": ("VEC4", unit[:, [1, 2, 3, 0]]),
        f"{_EXTENSION}:SCALE": ("VEC3", cloud.log_scales.exp()),
        f"{_EXTENSION}:OPACITY": ("SCALAR", opacity),
    }
    for degree in range(cloud.sh_degree + 1):
        for k in range(2 * degree + 1):
            arrays[f"{_EXTENSION}:SH_DEGREE_{degree}_COEF_{k}"] = ("VEC3", cloud.sh[:, degree * degree + k])
    binary, views, accessors = bytearray(), [], []
    for kind, values in arrays.values():
        whole = values.dtype == torch.uint8
        content = np.ascontiguousarray(values.numpy(), dtype="u1" if whole else "<f4").tobytes()
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(content), "target": _GLTF_VERTICES})
        binary += content
        accessors.append(
            {"bufferView": len(views) - 1, "componentType": _GLTF_BYTE if whole else _GLTF_FLOAT, "count": len(cloud), "type": kind}
            | ({"normalized": True} if whole else {})
        )
    accessors[0] |= {"min": cloud.means.amin(0).tolist(), "max": cloud.means.amax(0).tolist()}
    primitive = {
        "attributes": {name: k for k, name in enumerate(arrays)},
        "mode": 0,  # points
        "extensions": {_EXTENSION: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}},
    }
    document = {
        "asset": {"version": "2.0", "generator": "npbgpp"},
        "extensionsUsed": [_EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "rotation": _upright(up)}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    chunks = b""
    for name, content, filling in ((b"JSON", text, b" "), (b"BIN\0", bytes(binary), b"\0")):
        content += filling * (-len(content) % 4)
        chunks += struct.pack("<I4s", len(content), name) + content
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _upright(up: tuple[float, float, float]) -> list[float]:
    """Quaternion, w last, of the smallest rotation that turns ``up`` to +y."""
    x, y, z = up
    if y < -1 + 1e-9:
        return [1.0, 0.0, 0.0, 0.0]  # half a turn about x
    quaternion = np.array([-z, 0.0, x, 1 + y])  # up x (0, 1, 0), and 1 + their product
    return (quaternion / np.linalg.norm(quaternion)).tolist()
