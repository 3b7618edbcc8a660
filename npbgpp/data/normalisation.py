"""How the rays of a scene are expressed for a field: a similarity of the world, the distances between which rays are sampled, and NDC.

Scenes that surround an object keep their world (``plain``) or are centred on their cameras (``inward``); scenes whose photos all look the same way
(``forward``) are seen in normalised device coordinates, NDC, in which the space in front of the mean camera is a box (Mildenhall et al., NeRF, 2020,
appendix C). Centred fields have the axes of the mean camera: right, up, backward.

Symbols: v views, n rays or points, o origins and d directions of rays, t distance along a ray in lengths of d.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from npbgpp.data.scene import Scene, View
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras
from npbgpp.volume import to_ndc

KINDS = ("plain", "forward", "inward")
_SYNTHETIC = (2.0, 6.0)  # of every NeRF-Synthetic scene
_NEAREST = 1 / 0.75  # depth of the nearest point of a centred scene, beyond the near plane 1 of NDC
_LARGEST_RATIO = 8.0  # of far to near in inward scenes
_OUTLIERS = 0.001  # share of the points of a cloud that may lie in front of the near and behind the far bound
_MARGIN = 1.1  # what the bounds of a cloud leave around its points
_LOOKED_AT = 100_000  # points of a cloud that its bounds are read from
_SMALLEST_MEAN = 1e-3  # length of a mean of unit vectors that still is a direction


@dataclass(frozen=True)
class NdcCamera:
    """The camera that normalised device coordinates are those of; it is at the origin of a field and looks along -z.

    Attributes:
        focal: in pixels.
        image_size: (height, width) in pixels.
    """

    focal: float
    image_size: tuple[int, int]


@dataclass(frozen=True)
class SceneNormalisation:
    """Maps a scene to the coordinates of its field: ``x_field = scale * (x_world - centre) @ rotation`` on row vectors, then NDC where that is used.

    Attributes:
        rotation: of row vectors.
        centre: what becomes the origin, scene units.
        scale: field units per scene unit.
        near: where the samples of a ray begin, t.
        far: where they end, t.
        ndc: the camera of NDC; None keeps Euclidean coordinates.
    """

    rotation: Float64[Tensor, "3 3"]
    centre: Float64[Tensor, " 3"]
    scale: float
    near: float
    far: float
    ndc: NdcCamera | None = None

    def cameras(self, cameras: Cameras) -> Cameras:
        """The same cameras in the Euclidean coordinates of the field, computed in double precision and returned in that of their rotation."""
        rotation, centre = self.rotation.to(cameras.R.device), self.centre.to(cameras.R.device)
        R, T = cameras.R.double(), cameras.T.double()
        return replace(cameras, R=(rotation.T @ R).to(cameras.R.dtype), T=(self.scale * (centre @ R + T)).to(cameras.T.dtype))

    def points(self, xyz_world: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """World points in coordinates of the field, NDC where it has them; those of points at the depth of the mean camera are then not finite."""
        rotation, centre = self.rotation.to(xyz_world.device), self.centre.to(xyz_world.device)
        xyz = self.scale * (xyz_world.double() - centre) @ rotation
        if self.ndc is not None:
            height, width = self.ndc.image_size
            x, y, z = (xyz * xyz.new_tensor([-2 * self.ndc.focal / width, -2 * self.ndc.focal / height, 1])).unbind(1)
            xyz = torch.stack([x / z, y / z, 1 + 2 / z], 1)
        return xyz.to(xyz_world.dtype)

    def world(self, xyz_field: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """World points of points in coordinates of the field; those at infinity in NDC (z = 1) are not finite."""
        rotation, centre = self.rotation.to(xyz_field.device), self.centre.to(xyz_field.device)
        xyz = xyz_field.double()
        if self.ndc is not None:
            height, width = self.ndc.image_size
            z = 2 / (xyz[:, 2:] - 1)
            xyz = torch.cat([xyz[:, :2] * z / xyz.new_tensor([-2 * self.ndc.focal / width, -2 * self.ndc.focal / height]), z], 1)
        return (xyz @ rotation.T / self.scale + centre).to(xyz_field.dtype)

    def rays(self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """Rays of cameras of the field as they are sampled: in NDC from the near plane at t = 0 to infinity at t = 1, else unchanged.

        Directions in NDC have no unit length. Raises InputError for rays that do not look along -z where there are NDC.
        """
        return (origins, directions) if self.ndc is None else to_ndc(origins, directions, self.ndc.focal, self.ndc.image_size)


def ray_frame(scene: Scene, kind: str, bounds: tuple[float, float] | None = None) -> SceneNormalisation:
    """The frame of a scene; all its views take part, so that the same folder gives the same frame whatever is trained on.

    ``plain`` is the world. Its rays begin and end at distances 2 and 6 in NeRF-Synthetic scenes, at ``bounds`` where these are given, else at the depths
    of ``bounds_of``, the far one stretched for the corners of photos. ``forward`` and ``inward`` are centred on the mean camera and scaled so that the
    nearest depth is 4/3, as nerf_pl has it; ``forward`` has NDC with t from 0 to 1, ``inward`` rays between the bounds, but not beyond 8 times the near one.

    Args:
        scene: with bounds of its views, or with a cloud.
        kind: ``plain``, ``forward`` or ``inward``.
        bounds: nearest and farthest depth, scene units, in place of those of the scene.

    Raises:
        InputError: an unknown kind, bounds that are not finite, positive and ascending, no cloud where it is needed, photos that look back in ``forward``.
    """
    if kind not in KINDS:
        raise InputError(f"system.ray_frame: expected one of {', '.join(KINDS)}, got {kind}")
    if bounds is not None and not _usable(bounds):
        raise InputError(f"system.ray_bounds: expected two finite depths, 0 < near < far, or null, got {list(bounds)}")
    if kind == "plain":
        return _plain(scene, bounds)
    near, far = bounds or bounds_of(scene)
    rotation, centre = mean_pose(torch.cat([double(view).to_opengl() for view in scene.views]))
    scale = _NEAREST / near
    if kind == "inward":
        return SceneNormalisation(rotation, centre, scale, _NEAREST, min(_LARGEST_RATIO * _NEAREST, far * scale))
    first = scene.views[0].camera  # of views that differ any one would do, but all need the same
    frame = SceneNormalisation(rotation, centre, scale, 0.0, 1.0, NdcCamera(first.focal_length.mean().item(), first.image_size))
    for view in scene.views:
        if not (corner_directions(frame.cameras(double(view)))[:, 2] < 0).all():
            raise InputError(
                f"system.ray_frame: forward needs photos that all look the same way, but part of view {view.name} ({view.image}) looks back; choose "
                "inward or plain"
            )
    return frame


def bounds_of(scene: Scene) -> tuple[float, float]:
    """The nearest and the farthest depth of a scene, scene units: as its views state them, else of the points of its cloud that training views see.

    A thousandth of the points may lie in front of and behind these, and a tenth of the depth is left as margin.

    Raises:
        InputError: bounds of a view that are not finite, positive and ascending; a cloud that is missing, damaged or not in the training views.
    """
    for view in scene.views:
        if view.bounds is not None and not _usable(view.bounds):
            raise InputError(
                f"view {view.name} ({view.image}): expected two finite depths, 0 < near < far, as its bounds, got {list(view.bounds)}; correct its row of "
                "poses_bounds.npy, or set system.ray_bounds"
            )
    stated = [view.bounds for view in scene.views if view.bounds is not None]
    if len(stated) == len(scene.views):
        return min(near for near, _ in stated), max(far for _, far in stated)
    return _cloud_bounds(scene)


def _usable(bounds: tuple[float, float]) -> bool:
    near, far = bounds
    return 0 < near < far < math.inf


def _plain(scene: Scene, bounds: tuple[float, float] | None) -> SceneNormalisation:
    if bounds is not None or scene.layout == "nerf_synthetic":
        near, far = bounds or _SYNTHETIC
    else:
        near, depth = bounds_of(scene)
        # a point at the corner of a photo is farther away than it is deep
        far = depth * max(_corner_distance(view) for view in scene.views)
    return SceneNormalisation(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 1.0, near, far)


def _cloud_bounds(scene: Scene) -> tuple[float, float]:
    xyz = scene.cloud.read().xyz
    if len(xyz) > _LOOKED_AT:
        xyz = xyz[torch.randperm(len(xyz), generator=torch.Generator().manual_seed(0))[:_LOOKED_AT]]
    depths = []
    for index in scene.splits["train"]:
        camera = scene.views[index].camera
        uv_px, depth = camera.project(xyz)
        height, width = camera.image_size
        inside = (depth > 0) & (uv_px >= 0).all(2) & (uv_px <= uv_px.new_tensor([width, height])).all(2)
        depths.append(depth[inside].numpy())
    seen = np.concatenate(depths)
    if len(seen) == 0:
        raise InputError(
            f"{scene.cloud.path}: expected points that the training views of scene {scene.name} see, got none; correct the cloud or its poses, or set "
            "system.ray_bounds"
        )
    near, far = np.quantile(seen, [_OUTLIERS, 1 - _OUTLIERS]).tolist()
    return near / _MARGIN, far * _MARGIN


def double(view: View) -> Cameras:
    """The camera of a view in double precision."""
    camera = view.camera
    return Cameras(camera.R.double(), camera.T.double(), camera.focal_length.double(), camera.principal_point.double(), camera.image_size)


def mean_pose(cam_to_world: Float64[Tensor, "v 4 4"]) -> tuple[Float64[Tensor, "3 3"], Float64[Tensor, " 3"]]:
    """(axes as columns, position): z is the mean of the z axes (backward), x is normal to it and to the mean of the y axes (up).

    Where these have no direction, because cameras surround the scene evenly, the axes are those of the first view.
    """
    centre = cam_to_world[:, :3, 3].mean(0)
    up, back = cam_to_world[:, :3, 1].mean(0), cam_to_world[:, :3, 2].mean(0)
    right = torch.linalg.cross(up, torch.nn.functional.normalize(back, dim=0))
    if min(back.norm().item(), right.norm().item()) < _SMALLEST_MEAN:
        up, back = cam_to_world[0, :3, 1], cam_to_world[0, :3, 2]
        right = torch.linalg.cross(up, back)
    back, right = torch.nn.functional.normalize(torch.stack([back, right]), dim=1)
    return torch.stack([right, torch.linalg.cross(back, right), back], 1), centre


def corner_directions(camera: Cameras) -> Float[Tensor, "4 3"]:
    """Unit directions of the rays through the four corners of an image: it becomes one pixel, and pixel centres are moved to its corners."""
    pixel = camera.resize((1, 1))
    return replace(pixel, principal_point=pixel.principal_point + 0.5, image_size=(2, 2)).rays()[1].reshape(4, 3)


def _corner_distance(view: View) -> float:
    """Distance from the camera of a point at depth 1 that is shown at the farthest corner."""
    camera = double(view)
    return 1 / (corner_directions(camera) @ camera.R[0])[:, 2].min().item()
