"""Triangle meshes from a radiance field: densities on a grid, marching cubes, colours of the vertices, mesh files.

Coordinates are those of the field (see ``npbgpp.data.normalisation``), densities are per unit of its length. Symbols: n points, q nodes, g nodes along a side,
v vertices, f triangles.
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
from skimage.filters import threshold_otsu
from skimage.measure import marching_cubes
from torch import Tensor
from tqdm import tqdm

from npbgpp.core.cpu_share import adapt_threads
from npbgpp.core.files import write_atomically
from npbgpp.data import Scene, SceneNormalisation, read_photo
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, Offset, PixelConvention
from npbgpp.points import sample_features
from npbgpp.volume import Composited, OccupancyGrid, Rays, composite, stratified

SUFFIXES = (".ply", ".obj")
_LEAST_CONTRAST, _MOST_OPAQUE = 1e-3, 0.999  # opacities
_GRID_CHUNKS = 16  # chunks of nodes looked up in the occupancy grid at a time: most nodes are empty
_RAY_CHUNKS = 16  # the same for samples of rays
_MAX_COUNT = 1625  # nodes of a larger box have no 32-bit index
_DISTANCE_WEIGHT = 0.1  # weight of a photo at distance 1 in which the vertex is occluded; photos that see it have 1 more
_UNKNOWN = 0.5  # grey


@dataclass(frozen=True)
class Box:
    """g x g x g nodes in an axis-aligned box, the outermost ones on its faces.

    Attributes:
        low: smallest coordinates.
        high: largest coordinates.
        count: g.

    Raises:
        InputError: an empty or infinite box, or a number of nodes out of range.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    count: int

    def __post_init__(self) -> None:
        for axis, low, high in zip("xyz", self.low, self.high, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(f"{axis}_range: expected two finite ascending numbers, got {low:g} and {high:g}")
        if not 2 <= self.count <= _MAX_COUNT:
            raise InputError(f"n_grid: expected 2 to {_MAX_COUNT} nodes along a side, got {self.count}")

    def __str__(self) -> str:
        return ", ".join(f"{axis} {low:g} to {high:g}" for axis, low, high in zip("xyz", self.low, self.high, strict=True))

    def steps(self) -> tuple[float, float, float]:
        """Distances between neighbouring nodes along x, y and z."""
        x, y, z = ((high - low) / (self.count - 1) for low, high in zip(self.low, self.high, strict=True))
        return x, y, z

    def nodes(self, index: Int[Tensor, "q 3"]) -> Float[Tensor, "q 3"]:
        """Coordinates of nodes, indexed by x, y and z."""
        low, high = (torch.tensor(corner, device=index.device) for corner in (self.low, self.high))
        return low + index / (self.count - 1) * (high - low)


@dataclass(frozen=True)
class DensityField:
    """Evaluates densities in chunks; negative ones become 0.

    Attributes:
        field: raw densities of points.
        grid: points in its empty cells have density 0 and are not evaluated; None evaluates all.
        chunk: points per evaluation.
        device: of the field.
    """

    field: Callable[[Float[Tensor, "n 3"]], Float[Tensor, " n"]]
    grid: OccupancyGrid | None
    chunk: int
    device: torch.device

    @torch.no_grad()
    def at(self, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Densities of points on the device of the field."""
        density = xyz.new_zeros(len(xyz))
        occupied = xyz.new_ones(len(xyz), dtype=torch.bool) if self.grid is None else self.grid.occupied(xyz)
        for index in occupied.nonzero()[:, 0].split(self.chunk):
            density[index] = self.field(xyz[index]).to(density.dtype)
        return density.clamp(min=0)

    def on_grid(self, box: Box) -> Float[np.ndarray, "g g g"]:
        """Densities at the nodes of a box, indexed by x, y and z.

        Raises:
            InputError: a density that is not finite.
        """
        total, step = box.count**3, _GRID_CHUNKS * self.chunk
        values = np.empty(total, dtype=np.float32)
        with tqdm(total=total, desc="densities", unit="node", unit_scale=True, disable=None, leave=False) as progress:
            for first in range(0, total, step):
                adapt_threads()
                flat = torch.arange(first, min(first + step, total), device=self.device)
                nodes = box.nodes(torch.stack(torch.unravel_index(flat, (box.count,) * 3), -1))
                values[first : first + len(flat)] = self.at(nodes).cpu().numpy()
                progress.update(len(flat))
        bad = np.count_nonzero(~np.isfinite(values))
        if bad:
            raise InputError(
                f"density of the field: expected finite numbers in {box}, got others at {bad} of {total} nodes; the training has diverged: choose an earlier "
                "checkpoint"
            )
        return values.reshape((box.count,) * 3)


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh.

    Attributes:
        vertices: coordinates.
        normals: unit vectors towards lower density.
        faces: vertex indices, counter-clockwise seen from outside.
    """

    vertices: Float[np.ndarray, "v 3"]
    normals: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]

    def components(self) -> Int[np.ndarray, " f"]:
        """Label of the connected component of each triangle."""
        first = self.faces[:, [0, 0]].ravel()
        edges = coo_array((np.ones(len(first), dtype=bool), (first, self.faces[:, 1:].ravel())), shape=(len(self.vertices),) * 2)
        return connected_components(edges, directed=False)[1][self.faces[:, 0]]

    def largest_component(self) -> "Mesh":
        """The connected component with the most triangles."""
        label = self.components()
        used, faces = np.unique(self.faces[label == np.bincount(label).argmax()], return_inverse=True)
        return Mesh(self.vertices[used], self.normals[used], faces.reshape(-1, 3))

    def to_world(self, normalisation: SceneNormalisation) -> "Mesh":
        """The mesh in scene units; for fields without NDC."""
        vertices = normalisation.world(torch.from_numpy(self.vertices)).numpy()
        return replace(self, vertices=vertices, normals=self.normals @ normalisation.rotation.numpy().T)


def extract_surface(
    densities: Float[np.ndarray, "g g g"], box: Box, threshold: float, known: Bool[np.ndarray, "g g g"] | None = None
) -> Mesh:
    """The isosurface of a density (marching cubes; Lewiner et al., Journal of Graphics Tools, 2003), open at the border of the box.

    Args:
        densities: at the nodes of the box, indexed by x, y and z.
        box: coordinates of the nodes.
        threshold: density of the surface.
        known: nodes whose density counts; the surface is open before others. None: all.

    Raises:
        InputError: the threshold is outside the range of the densities.
    """
    lowest, highest = densities.min().item(), densities.max().item()
    if not lowest < threshold < highest:
        advice = "lower it, or change x_range, y_range and z_range" if threshold >= highest else "raise it, or enlarge the box"
        raise InputError(
            f"sigma_threshold: expected a density in the range found in {box}, {lowest:.4g} to {highest:.4g}, got {threshold:g}; {advice}"
        )
    # "ascent" orders the vertices counter-clockwise seen from the low side and does not change the normals, which point to it
    vertices, faces, normals, _ = marching_cubes(densities, threshold, spacing=box.steps(), gradient_direction="ascent", mask=known)
    return Mesh(vertices.astype(np.float64) + np.array(box.low), normals.astype(np.float64), faces)


def surface_density(densities: Float[np.ndarray, "g g g"], box: Box) -> float:
    """A density that separates empty from dense space: the threshold of Otsu (IEEE Trans. Systems, Man, and Cybernetics, 1979) of the opacities of steps
    of the box, which are bounded, unlike densities.

    Raises:
        InputError: the densities are all the same.
    """
    step = max(box.steps())
    opacities = -np.expm1(-np.maximum(densities, 0) * step)
    if opacities.max() - opacities.min() < _LEAST_CONTRAST:
        raise InputError(
            f"sigma_threshold: expected empty and dense space in {box}, got densities of {densities.min():.4g} to {densities.max():.4g}; train longer, change "
            "x_range, y_range and z_range, or name a density"
        )
    return float(-np.log1p(-min(threshold_otsu(opacities), _MOST_OPAQUE)) / step)


def is_open(densities: Float[np.ndarray, "g g g"], threshold: float) -> bool:
    """Whether the surface of a density reaches the border of the box."""
    return any((densities.take((0, -1), axis) > threshold).any() for axis in range(3))


def write_mesh(path: Path, mesh: Mesh, colours: UInt8[np.ndarray, "v 3"], offset: Offset | None = None) -> None:
    """Writes a binary PLY file (.ply), or an OBJ file (.obj) with vertex colours in 0..1 after the coordinates, which are in double precision with an offset.

    Raises:
        InputError: a file that cannot be written.
    """
    assert path.suffix in SUFFIXES

    xyz = mesh.vertices if offset is None else mesh.vertices.astype(np.float64) + offset
    kind, number = ("<f4", "%.7g") if offset is None else ("<f8", "%.12g")

    def write_ply(file: IO[bytes]) -> None:
        fields = [(axis, kind) for axis in "xyz"] + [(colour, "u1") for colour in ("red", "green", "blue")]
        vertex = np.empty(len(mesh.vertices), dtype=fields)
        for k, name in enumerate(vertex.dtype.names or ()):
            vertex[name] = xyz[:, k] if k < 3 else colours[:, k - 3]
        face = np.empty(len(mesh.faces), dtype=[("vertex_indices", "<i4", (3,))])
        face["vertex_indices"] = mesh.faces
        PlyData([PlyElement.describe(vertex, "vertex"), PlyElement.describe(face, "face")], byte_order="<").write(file)

    def write_obj(file: IO[bytes]) -> None:
        text = TextIOWrapper(file, encoding="ascii", newline="\n")
        np.savetxt(text, np.concatenate([xyz, colours / 255], 1), fmt=f"v {number} {number} {number} %.4f %.4f %.4f")
        np.savetxt(text, mesh.faces + 1, fmt="f %d %d %d")
        text.detach()

    write_atomically(path, write_ply if path.suffix == ".ply" else write_obj)


# ------------------------------------------------------------------ colours
@dataclass(frozen=True)
class OcclusionTest:
    """Decides by the opacity between a camera and a vertex whether the camera sees it.

    Attributes:
        densities: of the field.
        normalisation: bounds of rays.
        samples: number of depths between camera and vertex.
        threshold: opacity from which a vertex is occluded.
        margin: distance before the vertex that is not sampled, since the surface itself is dense.

    Raises:
        InputError: a number out of range.
    """

    densities: DensityField
    normalisation: SceneNormalisation
    samples: int
    threshold: float
    margin: float

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples: expected 1 or more, got {self.samples}")
        if not 0 < self.threshold <= 1:
            raise InputError(f"occ_threshold: expected an opacity above 0, at most 1, got {self.threshold:g}")

    def visible(self, centre: Float[Tensor, "1 3"], vertices: Float[Tensor, "v 3"]) -> Bool[Tensor, " v"]:
        """Whether a camera at ``centre`` sees vertices that face it."""
        visible = []
        for part in vertices.split(max(1, _RAY_CHUNKS * self.densities.chunk // self.samples)):
            offset = part - centre
            distance = offset.norm(dim=1)
            far = distance - self.margin
            near = torch.full_like(far, self.normalisation.near)
            sampled = far > near
            rays = Rays(centre.expand_as(part)[sampled], (offset / distance[:, None])[sampled], near[sampled], far[sampled])
            opacity = torch.zeros_like(far)
            opacity[sampled] = self._opacity(rays)
            visible.append(opacity < self.threshold)  # NaN occludes
        return torch.cat(visible) if visible else vertices.new_zeros(0, dtype=torch.bool)

    def _opacity(self, rays: Rays) -> Float[Tensor, " n"]:
        z = stratified(rays.near, rays.far, self.samples + 1)
        sigma = self.densities.at(rays.points(z).flatten(0, 1)).view_as(z)
        sigma[:, -1] = -torch.inf  # the last interval extends to infinity, beyond the surface
        return composite(sigma, None, z, torch.ones_like(rays.near)).opacity


@torch.no_grad()
def photo_colours(
    scene: Scene, vertices: Float[Tensor, "v 3"], normals: Float[Tensor, "v 3"], occlusion: OcclusionTest
) -> tuple[Float[Tensor, "v 3"], Bool[Tensor, " v"]]:
    """Weighted mean colour, 0..1, of the training photos that show each vertex, grey if there is none, and whether there is one.

    Raises:
        InputError: a photo that cannot be read.
    """
    total, weight = torch.zeros_like(vertices), vertices.new_zeros(len(vertices))
    for k in tqdm(scene.splits["train"], desc=f"photos of {scene.name}", disable=None, leave=False):
        adapt_threads()
        view = scene.views[k]
        camera = occlusion.normalisation.cameras(view.camera.to(vertices.device))
        inside = _inside_image(camera, vertices).nonzero()[:, 0]
        centre, xyz = camera.centers(), vertices[inside]
        facing = ((centre - xyz) * normals[inside]).sum(1) > 0
        visible = torch.zeros_like(facing)
        visible[facing] = occlusion.visible(centre, xyz[facing])
        photo = read_photo(view).image.to(vertices.device).float() / 255
        photo_weight = _DISTANCE_WEIGHT / (xyz - centre).norm(dim=1) + visible
        total[inside] += photo_weight[:, None] * sample_features(photo, xyz, camera, PixelConvention.EXACT)
        weight[inside] += photo_weight
    known = weight > 0
    return torch.where(known[:, None], total / torch.where(known, weight, 1.0)[:, None], _UNKNOWN), known


def _inside_image(camera: Cameras, vertices: Float[Tensor, "v 3"]) -> Bool[Tensor, " v"]:
    uv_px, depth = camera.project(vertices)
    height, width = camera.image_size
    return (depth[0] > 0) & (uv_px[0] >= 0).all(1) & (uv_px[0] <= uv_px.new_tensor([width, height])).all(1)


@torch.no_grad()
def rendered_colours(
    render_rays: Callable[[Rays, Float[Tensor, "n 3"]], Composited],
    vertices: Float[Tensor, "v 3"],
    normals: Float[Tensor, "v 3"],
    normalisation: SceneNormalisation,
    chunk: int,
    near_t: float,
) -> Float[Tensor, "v 3"]:
    """Colours, 0..1, of rays against the normals.

    Args:
        render_rays: renders rays, given viewing directions, without background.
        vertices: on the surface.
        normals: outward.
        normalisation: bounds of rays.
        chunk: rays at a time.
        near_t: the first sample is ``(near_t - 1) * near`` outside of a vertex: 1 starts on it.
    """
    colours = []
    for xyz, outward in zip(vertices.split(chunk), normals.split(chunk), strict=True):
        near, far = (xyz.new_full((len(xyz),), bound) for bound in (normalisation.near, normalisation.far))
        rendered = render_rays(Rays(xyz + normalisation.near * near_t * outward, -outward, near, far), -outward)
        assert rendered.rgb is not None
        known = rendered.opacity > 0
        colours.append(torch.where(known[:, None], rendered.rgb / torch.where(known, rendered.opacity, 1.0)[:, None], _UNKNOWN))
    return torch.cat(colours).clamp(0, 1)
