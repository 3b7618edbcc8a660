"""Surfaces of methods that render depth maps: a truncated signed distance function on a grid (Curless and Levoy, A Volumetric Method for Building Complex Models
from Range Images, SIGGRAPH 1996).

Coordinates are those of the scene. Symbols: g nodes along a side, v vertices, h x w pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import map_coordinates
from torch import Tensor
from tqdm import tqdm

from npbgpp.core.cpu_share import adapt_threads
from npbgpp.errors import InputError
from npbgpp.export.mesh import Box
from npbgpp.geometry import Cameras
from npbgpp.methods.base import Render

_QUANTILES, _MARGIN = (0.01, 0.99), 0.1  # of the coordinates of surface points; widening of their box, relative to its sides
_BOX_VIEWS, _BOX_POINTS = 20, 5000  # from which the box is estimated: views, points of each
_TRUNCATION = 4.0  # grid steps
_NODES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class FusedDepth:
    """Means over the views that see a node.

    Attributes:
        distance: signed distance in units of the truncation, at most 1 outside of surfaces, from -1 inside.
        known: whether some view sees the node, or the surface within the truncation before it.
        colours: of surfaces near the node, 0 to 1; grey where there is none.
    """

    distance: Float[np.ndarray, "g g g"]
    known: Bool[np.ndarray, "g g g"]
    colours: Float[np.ndarray, "g g g 3"]

    def colours_at(self, vertices: Float[np.ndarray, "v 3"], box: Box) -> UInt8[np.ndarray, "v 3"]:
        """Colours of points, interpolated."""
        places = ((vertices - np.array(box.low)) / np.array(box.steps())).T
        found = [map_coordinates(self.colours[..., c], places, order=1, mode="nearest") for c in range(3)]
        return (np.stack(found, 1).clip(0, 1) * 255 + 0.5).astype(np.uint8)


@torch.no_grad()
def surface_box(render: Callable[[Cameras], Render], cameras: Sequence[Cameras], count: int) -> Box:
    """A box around what the cameras show, without the farthest points.

    Args:
        render: renders one view with its depth.
        cameras: one camera each.
        count: nodes along a side.

    Raises:
        InputError: no view has a surface.
    """
    generator, points = torch.Generator().manual_seed(0), []
    for camera in cameras[:: -(-len(cameras) // _BOX_VIEWS)]:
        depth = _depth(render(camera))
        v, u = (depth > 0).nonzero(as_tuple=True)
        if len(v) == 0:
            continue
        drawn = torch.randint(len(v), (_BOX_POINTS,), generator=generator).to(v.device)
        v, u = v[drawn], u[drawn]
        origins, directions = camera.rays_through(torch.stack([u, v], 1)[None] + 0.5)
        ahead = directions[0] @ camera.R[0, :, 2]  # depth per unit along a ray
        points.append((origins[0] + directions[0] * (depth[v, u] / ahead)[:, None]).cpu().double().numpy())
    if not points:
        raise InputError("export mesh: expected a surface in the renderings of the training views, got none; train longer")
    low, high = np.quantile(np.concatenate(points), _QUANTILES, axis=0)
    wider = _MARGIN * (high - low).max()
    x, y, z = ((float(a - wider), float(b + wider)) for a, b in zip(low, high, strict=True))
    return Box((x[0], y[0], z[0]), (x[1], y[1], z[1]), count)


@torch.no_grad()
def fuse_depth_maps(render: Callable[[Cameras], Render], cameras: Sequence[Cameras], box: Box, device: torch.device) -> FusedDepth:
    """Fuses rendered depth maps. Pixels without depth show free space.

    Args:
        render: renders one view with its depth.
        cameras: one camera each.
        box: nodes of the grid.
        device: of the cameras and the grid.
    """
    total = box.count**3
    distance, weight, near = (torch.zeros(total, device=device) for _ in range(3))
    colours = torch.zeros(total, 3, device=device)
    truncation = _TRUNCATION * max(box.steps())
    for camera in tqdm(cameras, desc="depth maps", unit="view", disable=None, leave=False):
        adapt_threads()
        found = render(camera)
        depth, rgb = _depth(found), found.rgb[0]
        height, width = depth.shape
        for first in range(0, total, _NODES_AT_ONCE):
            flat = torch.arange(first, min(first + _NODES_AT_ONCE, total), device=device)
            uv_px, z = (values[0] for values in camera.project(box.nodes(torch.stack(torch.unravel_index(flat, (box.count,) * 3), -1))))
            u, v = uv_px.floor().unbind(1)
            inside = ((z > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)).nonzero()[:, 0]
            u, v, z, at = u[inside].long(), v[inside].long(), z[inside], flat[inside]
            there = depth[v, u]
            ahead = torch.where(there > 0, (there - z) / truncation, 1.0)
            seen = ahead > -1
            at, ahead = at[seen], ahead[seen].clamp(max=1)
            distance[at] += ahead
            weight[at] += 1
            close = ahead < 1
            near[at[close]] += 1
            colours[at[close]] += rgb[:, v[seen][close], u[seen][close]].T
    shape = (box.count,) * 3
    known, coloured = weight > 0, near > 0
    distance = torch.where(known, distance / weight.clamp(min=1), 1.0)
    colours = torch.where(coloured[:, None], colours / near.clamp(min=1)[:, None], 0.5)
    return FusedDepth(distance.view(shape).cpu().numpy(), known.view(shape).cpu().numpy(), colours.view(*shape, 3).cpu().numpy())


def _depth(render: Render) -> Float[Tensor, "h w"]:
    """Depths of a view, 0 where there is no surface."""
    assert render.depth is not None
    depth = render.depth[0, 0]
    return torch.where(depth.isfinite(), depth, 0.0)
