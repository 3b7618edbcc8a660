"""Coordinates of exported files: those of the scene, or those of the COLMAP model that ``npbgpp prepare photos`` made it from.

A scene of ``npbgpp prepare photos`` is upright and of usual scale; its ``photos.json`` has the similarity ``new = scale * rotation @ old + translation``, whose
inverse takes points, surfaces, gaussians and cameras back. Far from the origin, coordinates are reduced by an offset (see ``npbgpp.geometry.origin``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y
from torch import Tensor

from npbgpp.data import Scene
from npbgpp.errors import InputError
from npbgpp.export.mesh import Mesh
from npbgpp.geometry import Cameras, GaussianCloud, Offset, PointCloud, far_offset
from npbgpp.prepare.photo_poses import Similarity
from npbgpp.prepare.photos_manifest import PhotosManifest

_FOLDERS = 3  # from a photo up to its scene at most: <scene>/images/<folder>/<photo>
_DIRECTIONS = 64  # at which spherical harmonics are compared; 16 are needed for degree 3


@dataclass(frozen=True)
class ExportCoordinates:
    """How scene coordinates are changed before they are written.

    Attributes:
        change: from coordinates of the system, reduced by the offset of the scene, to those written, reduced by ``offset``; None: they are the same.
        offset: which writers add to coordinates; None adds nothing.
    """

    change: Similarity | None
    offset: Offset | None

    @classmethod
    def of_scene(cls, scene: Scene) -> "ExportCoordinates":
        """Those of the files of the scene."""
        return cls(None, scene.offset)

    @classmethod
    def of_original_model(cls, scene: Scene) -> "ExportCoordinates":
        """Those of the model that the scene was made from. Raises InputError for a scene of other programs."""
        to_original = _manifest(scene).from_colmap.inverse()
        before = to_original.apply(np.array([scene.offset or (0.0, 0.0, 0.0)]))[0]
        whole = cls(Similarity(to_original.scale, to_original.rotation, tuple(before.tolist())), None)
        offset = far_offset(torch.cat([camera.centers() for camera in whole.cameras([view.camera for view in scene.views])]))
        if offset is None:
            return whole
        assert whole.change is not None
        return cls(replace(whole.change, translation=tuple((before - np.array(offset)).tolist())), offset)

    def _moved(self, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        assert self.change is not None
        return torch.from_numpy(self.change.apply(xyz.detach().cpu().double().numpy())).to(xyz.dtype)

    def points(self, cloud: PointCloud) -> PointCloud:
        """A cloud."""
        return cloud if self.change is None else replace(cloud, xyz=self._moved(cloud.xyz))

    def mesh(self, mesh: Mesh) -> Mesh:
        """A surface with its normals; its triangles keep their orientation, since a similarity does not mirror."""
        if self.change is None:
            return mesh
        return replace(mesh, vertices=self.change.apply(mesh.vertices), normals=mesh.normals @ np.array(self.change.rotation).T)

    def direction(self, xyz: tuple[float, float, float]) -> tuple[float, float, float]:
        """A unit vector, such as the upward direction."""
        if self.change is None:
            return xyz
        x, y, z = (np.array(self.change.rotation) @ xyz).tolist()
        return x, y, z

    def gaussians(self, cloud: GaussianCloud) -> GaussianCloud:
        """Gaussians: centres, sizes, axes, and the directions of their spherical harmonics."""
        if self.change is None:
            return cloud
        turn = Rotation.from_matrix(self.change.rotation)
        # scipy has w last
        axes = turn * Rotation.from_quat(cloud.quaternions.detach().cpu().double().numpy()[:, [1, 2, 3, 0]])
        harmonics = torch.from_numpy(harmonics_rotation(np.array(self.change.rotation), cloud.sh_degree)).to(cloud.sh)
        return GaussianCloud(
            means=self._moved(cloud.means),
            log_scales=cloud.log_scales + float(np.log(self.change.scale)),
            quaternions=torch.from_numpy(axes.as_quat()[:, [3, 0, 1, 2]]).to(cloud.quaternions),
            opacity_logits=cloud.opacity_logits,
            sh=torch.einsum("jk,nkc->njc", harmonics, cloud.sh),
        )

    def cameras(self, cameras: Sequence[Cameras]) -> list[Cameras]:
        """Cameras, which see the same from their new places."""
        if self.change is None:
            return list(cameras)
        rotation, translation = (torch.tensor(part, dtype=torch.float64) for part in (self.change.rotation, self.change.translation))
        moved = []
        for camera in cameras:
            R = rotation.to(camera.R.device) @ camera.R.double()
            T = self.change.scale * camera.T.double() - translation.to(camera.R.device) @ R
            moved.append(replace(camera, R=R.to(camera.R), T=T.to(camera.T)))
        return moved


def _manifest(scene: Scene) -> PhotosManifest:
    for folder in scene.views[0].image.parents[:_FOLDERS]:
        manifest = PhotosManifest.read(folder)
        if manifest is not None:
            return manifest
    raise InputError(
        f"coordinates=original: expected a scene of npbgpp prepare photos with its photos.json, scene {scene.name} has none: its coordinates are those of its "
        "files; leave the key out"
    )


def harmonics_rotation(rotation: Float64[np.ndarray, "3 3"], degree: int) -> Float64[np.ndarray, "k k"]:
    """The matrix that takes coefficients of real spherical harmonics to those of the turned function, whose value along ``rotation @ d`` is the one along d.

    The turned harmonics of a degree are sums of the harmonics of that degree: solved from values along some directions, which is exact.
    """
    # points of a Fibonacci lattice
    k = np.arange(_DIRECTIONS) + 0.5
    polar, azimuth = np.arccos(1 - 2 * k / _DIRECTIONS), np.pi * (1 + 5**0.5) * k
    directions = np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], 1)
    before, after = _harmonics(directions @ rotation, degree), _harmonics(directions, degree)
    solved: Float64[np.ndarray, "k k"] = np.linalg.lstsq(after, before, rcond=None)[0]
    return solved


def _harmonics(directions: Float64[np.ndarray, "n 3"], degree: int) -> Float64[np.ndarray, "n k"]:
    """Real spherical harmonics in the order and with the signs of 3D Gaussian Splatting: with the Condon-Shortley phase, m from -l to l."""
    x, y, z = directions.T
    polar, azimuth = np.arccos(z.clip(-1, 1)), np.arctan2(y, x)
    columns = []
    for order in range(degree + 1):
        for m in range(-order, order + 1):
            value = sph_harm_y(order, abs(m), polar, azimuth)
            columns.append(value.real if m == 0 else 2**0.5 * (value.imag if m < 0 else value.real))
    return np.stack(columns, 1)
