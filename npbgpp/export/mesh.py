"""The surface on which a density has some value, as triangles (marching cubes; Lewiner et al., Journal of Graphics Tools, 2003), and files of it.

Symbols: v vertices, f triangles, g nodes along a side of the box.
"""

from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Float, Int, UInt8
from plyfile import PlyData, PlyElement
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes

from npbgpp.data.ray_frames import RayFrame
from npbgpp.errors import InputError
from npbgpp.export.densities import Box
from npbgpp.files import write_atomically

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

    def in_world(self, frame: RayFrame) -> "Mesh":
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
