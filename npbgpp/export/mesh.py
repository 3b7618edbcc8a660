"""Densities of a radiance field, at any points and at the nodes of a box.

Coordinates are those of the field (see ``npbgpp.data.normalisation``), densities are per unit of its length. Symbols: n points, q nodes, g nodes along a side.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from plyfile import PlyData, PlyElement
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes
from torch import Tensor
from tqdm import tqdm

from npbgpp.core.files import write_atomically
from npbgpp.data import Scene, SceneNormalisation, read_photo
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, PixelConvention
from npbgpp.points import sample_features
from npbgpp.volume import Composited, OccupancyGrid, Rays, composite, stratified

_CHUNKS_AT_ONCE = 16  # nodes looked up in the occupancy grid for one that the field is asked about: most are empty
_LARGEST_COUNT = 1625  # nodes of a larger box have no number of 32 bits


@dataclass(frozen=True)
class Box:
    """g x g x g nodes, the first and the last ones on the faces of an axis-aligned box.

    Attributes:
        low: least corner.
        high: greatest corner.
        count: g.

    Raises:
        InputError: no box, or a number of nodes out of range.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    count: int

    def __post_init__(self) -> None:
        for axis, low, high in zip("xyz", self.low, self.high, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(f"{axis}_range: expected two finite numbers that ascend, got {low:g} and {high:g}")
        if not 2 <= self.count <= _LARGEST_COUNT:
            raise InputError(f"n_grid: expected 2 to {_LARGEST_COUNT} nodes along a side, got {self.count}")

    def __str__(self) -> str:
        return ", ".join(f"{axis} {low:g} to {high:g}" for axis, low, high in zip("xyz", self.low, self.high, strict=True))

    def steps(self) -> tuple[float, float, float]:
        """Distances between neighbouring nodes along x, y and z."""
        x, y, z = ((high - low) / (self.count - 1) for low, high in zip(self.low, self.high, strict=True))
        return x, y, z

    def nodes(self, index: Int[Tensor, "q 3"]) -> Float[Tensor, "q 3"]:
        """Nodes by their numbers along x, y and z."""
        low, high = (torch.tensor(corner, device=index.device) for corner in (self.low, self.high))
        return low + index / (self.count - 1) * (high - low)


@dataclass(frozen=True)
class Densities:
    """Asks a field for densities in portions; negative ones become 0.

    Attributes:
        field: raw densities of points.
        grid: where it says empty, the field is not asked and the density is 0.
        chunk: points that the field is asked about at a time.
        device: where the field is.
    """

    field: Callable[[Float[Tensor, "n 3"]], Float[Tensor, " n"]]
    grid: OccupancyGrid | None
    chunk: int
    device: torch.device

    @torch.no_grad()
    def at(self, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Densities of points, on their device."""
        found = xyz.new_zeros(len(xyz))
        occupied = xyz.new_ones(len(xyz), dtype=torch.bool) if self.grid is None else self.grid.occupied(xyz)
        for part in occupied.nonzero()[:, 0].split(self.chunk):
            found[part] = self.field(xyz[part]).to(found.dtype)
        return found.clamp(min=0)

    def inside(self, box: Box) -> Float[np.ndarray, "g g g"]:
        """Densities at the nodes of a box, by their numbers along x, y and z.

        Raises:
            InputError: a density that is not finite.
        """
        total, at_once = box.count**3, _CHUNKS_AT_ONCE * self.chunk
        values = np.empty(total, dtype=np.float32)
        with tqdm(total=total, desc="densities", unit="node", unit_scale=True, disable=None, leave=False) as progress:
            for first in range(0, total, at_once):
                flat = torch.arange(first, min(first + at_once, total), device=self.device)
                nodes = box.nodes(torch.stack(torch.unravel_index(flat, (box.count,) * 3), -1))
                values[first : first + len(flat)] = self.at(nodes).cpu().numpy()
                progress.update(len(flat))
        if not np.isfinite(values).all():
            raise InputError(
                f"density of the field: expected finite numbers in {box}, got others at {np.count_nonzero(~np.isfinite(values))} of {total} nodes; the "
                "training has diverged: choose an earlier checkpoint"
            )
        return values.reshape((box.count,) * 3)


# ----------------------------------------------------------------------
# The surface on which a density has some value, as triangles (marching cubes; Lewiner et al., Journal of Graphics Tools, 2003), and files of it.


SUFFIXES = (".ply", ".obj")


@dataclass(frozen=True)
class Mesh:
    """v vertices and f triangles.

    Attributes:
        vertices: points.
        normals: unit vectors that point outwards, to where the density is lower.
        faces: three vertices of each triangle, counter-clockwise as seen from outside.
    """

    vertices: Float[np.ndarray, "v 3"]
    normals: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]

    def pieces(self) -> Int[np.ndarray, " f"]:
        """Number of the connected piece that each triangle belongs to."""
        first = self.faces[:, [0, 0]].ravel()
        edges = coo_array((np.ones(len(first), dtype=bool), (first, self.faces[:, 1:].ravel())), shape=(len(self.vertices),) * 2)
        return connected_components(edges, directed=False)[1][self.faces[:, 0]]

    def largest_piece(self) -> "Mesh":
        """The connected piece of the most triangles, alone."""
        piece = self.pieces()
        used, faces = np.unique(self.faces[piece == np.bincount(piece).argmax()], return_inverse=True)
        return Mesh(self.vertices[used], self.normals[used], faces.reshape(-1, 3))

    def in_world(self, frame: SceneNormalisation) -> "Mesh":
        """The mesh of a field without NDC in scene units."""
        rotation = frame.rotation.numpy()
        return replace(self, vertices=self.vertices / frame.scale @ rotation.T + frame.centre.numpy(), normals=self.normals @ rotation.T)


def surface(densities: Float[np.ndarray, "g g g"], box: Box, threshold: float) -> Mesh:
    """Where a density falls below a threshold; open where the border of the box cuts what is dense.

    Args:
        densities: at the nodes of the box, by their numbers along x, y and z.
        box: coordinates of the nodes.
        threshold: density.

    Raises:
        InputError: the threshold is above or below all densities.
    """
    least, largest = densities.min().item(), densities.max().item()
    if not least < threshold < largest:
        advice = "lower it, or look elsewhere with x_range, y_range and z_range" if threshold >= largest else "raise it, or look farther"
        raise InputError(
            f"sigma_threshold: expected a density between those found in {box}, which are {least:.4g} to {largest:.4g}, got {threshold:g}; {advice}"
        )
    # scikit-image counts triangles by the left hand: its "ascent" turns them counter-clockwise and leaves the normals, which point outwards, alone
    vertices, faces, normals, _ = marching_cubes(densities, threshold, spacing=box.steps(), gradient_direction="ascent")
    return Mesh(vertices.astype(np.float64) + np.array(box.low), normals.astype(np.float64), faces)


def is_cut(densities: Float[np.ndarray, "g g g"], threshold: float) -> bool:
    """Whether something dense reaches the border of the box."""
    return any((densities.take((0, -1), axis) > threshold).any() for axis in range(3))


def write_mesh(path: Path, mesh: Mesh, colours: UInt8[np.ndarray, "v 3"]) -> None:
    """Writes a binary PLY file (.ply), or an OBJ file (.obj) with the colours, 0..1, behind the coordinates of vertices, as most programs read them.

    Raises:
        InputError: a file that cannot be written.
    """
    assert path.suffix in SUFFIXES

    def write_ply(file: IO[bytes]) -> None:
        fields = [(axis, "<f4") for axis in "xyz"] + [(colour, "u1") for colour in ("red", "green", "blue")]
        vertex = np.empty(len(mesh.vertices), dtype=fields)
        for k, name in enumerate(vertex.dtype.names or ()):
            vertex[name] = mesh.vertices[:, k] if k < 3 else colours[:, k - 3]
        face = np.empty(len(mesh.faces), dtype=[("vertex_indices", "<i4", (3,))])
        face["vertex_indices"] = mesh.faces
        PlyData([PlyElement.describe(vertex, "vertex"), PlyElement.describe(face, "face")], byte_order="<").write(file)

    def write_obj(file: IO[bytes]) -> None:
        text = TextIOWrapper(file, encoding="ascii", newline="\n")
        np.savetxt(text, np.concatenate([mesh.vertices, colours / 255], 1), fmt="v %.7g %.7g %.7g %.4f %.4f %.4f")
        np.savetxt(text, mesh.faces + 1, fmt="f %d %d %d")
        text.detach()

    write_atomically(path, write_ply if path.suffix == ".ply" else write_obj)


# ----------------------------------------------------------------------
# Colours of the vertices of a mesh: from the photos that see them, or from the field.


_NEARNESS = 0.1  # weight of a photo at distance 1 that does not see the vertex; one that does has 1 more
_RAYS_AT_ONCE = 16  # see Densities
_UNSEEN = 0.5  # grey


@dataclass(frozen=True)
class Occlusion:
    """How it is found out whether something lies in front of a vertex.

    Attributes:
        densities: of the field.
        frame: bounds of rays.
        samples: depths between camera and vertex at which the field is asked.
        threshold: opacity that hides a vertex.
        margin: the way ends so far before the vertex, that the surface itself is not in it.

    Raises:
        InputError: a number out of range.
    """

    densities: Densities
    frame: SceneNormalisation
    samples: int
    threshold: float
    margin: float

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples: expected 1 or more, got {self.samples}")
        if not 0 < self.threshold <= 1:
            raise InputError(f"occ_threshold: expected an opacity, more than 0 and at most 1, got {self.threshold:g}")

    def visible(self, eye: Float[Tensor, "1 3"], vertices: Float[Tensor, "v 3"]) -> Bool[Tensor, " v"]:
        """Whether a camera at ``eye`` sees vertices that it looks at from their front."""
        found = []
        for part in vertices.split(max(1, _RAYS_AT_ONCE * self.densities.chunk // self.samples)):
            offset = part - eye
            distance = offset.norm(dim=1)
            far = distance - self.margin
            near = torch.full_like(far, self.frame.near)
            between = far > near  # else there is no way that a ray of the field would go
            rays = Rays(eye.expand_as(part)[between], (offset / distance[:, None])[between], near[between], far[between])
            opacity = torch.zeros_like(far)
            opacity[between] = self._opacity(rays)
            found.append(opacity < self.threshold)  # an unknown one, NaN, hides
        return torch.cat(found) if found else vertices.new_zeros(0, dtype=torch.bool)

    def _opacity(self, rays: Rays) -> Float[Tensor, " n"]:
        z = stratified(rays.near, rays.far, self.samples + 1)
        sigma = self.densities.at(rays.points(z).flatten(0, 1)).view_as(z)
        sigma[:, -1] = -torch.inf  # the last sample reaches to infinity, through the surface
        return composite(sigma, None, z, torch.ones_like(rays.near)).opacity


@torch.no_grad()
def fused_colours(
    scene: Scene, vertices: Float[Tensor, "v 3"], normals: Float[Tensor, "v 3"], occlusion: Occlusion
) -> tuple[Float[Tensor, "v 3"], Bool[Tensor, " v"]]:
    """Colours, 0..1, from the training photos of a scene, and which vertices are in one at all; others are grey.

    Raises:
        InputError: a photo that cannot be read.
    """
    total, weight = torch.zeros_like(vertices), vertices.new_zeros(len(vertices))
    for k in tqdm(scene.splits["train"], desc=f"photos of {scene.name}", disable=None, leave=False):
        view = scene.views[k]
        camera = occlusion.frame.cameras(view.camera.to(vertices.device))
        inside = _inside(camera, vertices).nonzero()[:, 0]
        eye, seen = camera.centers(), vertices[inside]
        front = ((eye - seen) * normals[inside]).sum(1) > 0
        visible = torch.zeros_like(front)
        visible[front] = occlusion.visible(eye, seen[front])
        photo = read_photo(view).image.to(vertices.device).float() / 255
        counts = _NEARNESS / (seen - eye).norm(dim=1) + visible
        total[inside] += counts[:, None] * sample_features(photo, seen, camera, PixelConvention.EXACT)
        weight[inside] += counts
    known = weight > 0
    return torch.where(known[:, None], total / torch.where(known, weight, 1.0)[:, None], _UNSEEN), known


def _inside(camera: Cameras, vertices: Float[Tensor, "v 3"]) -> Bool[Tensor, " v"]:
    uv_px, depth = camera.project(vertices)
    height, width = camera.image_size
    return (depth[0] > 0) & (uv_px[0] >= 0).all(1) & (uv_px[0] <= uv_px.new_tensor([width, height])).all(1)


@torch.no_grad()
def colours_along_normals(
    render_rays: Callable[[Rays, Float[Tensor, "n 3"]], Composited],
    vertices: Float[Tensor, "v 3"],
    normals: Float[Tensor, "v 3"],
    densities: Densities,
    frame: SceneNormalisation,
    near_t: float,
) -> Float[Tensor, "v 3"]:
    """Colours, 0..1, that the field shows to rays that come against the normals.

    Args:
        render_rays: renders rays, given viewing directions, without background.
        vertices: where to look.
        normals: outwards.
        densities: occupancy grid and portions of the field.
        frame: bounds of rays.
        near_t: samples begin ``(near_t - 1) * near`` outside of a vertex: 1 is on it.
    """
    colours = []
    for part, outwards in zip(vertices.split(densities.chunk), normals.split(densities.chunk), strict=True):
        near, far = (part.new_full((len(part),), bound) for bound in (frame.near, frame.far))
        rays = Rays(part + frame.near * near_t * outwards, -outwards, near, far)
        seen = render_rays(rays, -outwards)
        assert seen.rgb is not None
        known = seen.opacity > 0
        colours.append(torch.where(known[:, None], seen.rgb / torch.where(known, seen.opacity, 1.0)[:, None], _UNSEEN))
    return torch.cat(colours).clamp(0, 1)
