"""Scene normalisation for radiance fields: a similarity from world to field coordinates, near and far bounds of rays, and NDC.

``plain`` keeps world coordinates; ``inward`` is centred on the mean camera; ``forward`` maps the space in front of the mean camera of forward-facing scenes to
normalised device coordinates, NDC (Mildenhall et al., NeRF, 2020, appendix C). Centred coordinates have the axes of the mean camera: right, up, backward.

Symbols: v views, n rays or points, t distance along a ray in units of its direction.
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
_SYNTHETIC = (2.0, 6.0)  # bounds of NeRF-Synthetic scenes
_NEAREST = 1 / 0.75  # nearest depth of a centred scene, beyond the near plane 1 of NDC
_LARGEST_RATIO = 8.0  # far to near, of inward scenes
_OUTLIERS = 0.001  # quantile of point depths before the near, and beyond the far bound
_MARGIN = 1.1  # factor between point depths and bounds
_SAMPLED_POINTS = 100_000  # of a cloud, to estimate bounds
_SMALLEST_MEAN = 1e-3  # norm of a mean of unit vectors with a direction


@dataclass(frozen=True)
class NdcCamera:
    """The camera that defines NDC: at the origin of the field, looking along -z.

    Attributes:
        focal: focal length, pixels.
        image_size: (height, width), pixels.
    """

    focal: float
    image_size: tuple[int, int]


@dataclass(frozen=True)
class SceneNormalisation:
    """Maps world to field coordinates, ``x_field = scale * (x_world - centre) @ rotation`` on row vectors, then to NDC if ``ndc`` is given.

    Attributes:
        rotation: applied to row vectors from the right.
        centre: origin of the field, scene units.
        scale: field units per scene unit.
        near: t of the first sample of a ray.
        far: t of the last one.
        ndc: camera of NDC; None keeps Euclidean coordinates.
    """

    rotation: Float64[Tensor, "3 3"]
    centre: Float64[Tensor, " 3"]
    scale: float
    near: float
    far: float
    ndc: NdcCamera | None = None

    def cameras(self, cameras: Cameras) -> Cameras:
        """Cameras in Euclidean field coordinates; computed in double precision, returned in the dtype of the input."""
        rotation, centre = self.rotation.to(cameras.R.device), self.centre.to(cameras.R.device)
        R, T = cameras.R.double(), cameras.T.double()
        return replace(cameras, R=(rotation.T @ R).to(cameras.R.dtype), T=(self.scale * (centre @ R + T)).to(cameras.T.dtype))

    def points(self, xyz_world: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """World to field coordinates or NDC; NDC of points at depth 0 are not finite."""
        rotation, centre = self.rotation.to(xyz_world.device), self.centre.to(xyz_world.device)
        xyz = self.scale * (xyz_world.double() - centre) @ rotation
        if self.ndc is not None:
            height, width = self.ndc.image_size
            x, y, z = (xyz * xyz.new_tensor([-2 * self.ndc.focal / width, -2 * self.ndc.focal / height, 1])).unbind(1)
            xyz = torch.stack([x / z, y / z, 1 + 2 / z], 1)
        return xyz.to(xyz_world.dtype)

    def world(self, xyz_field: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Field coordinates or NDC to world; points at infinity (z = 1 in NDC) are not finite."""
        rotation, centre = self.rotation.to(xyz_field.device), self.centre.to(xyz_field.device)
        xyz = xyz_field.double()
        if self.ndc is not None:
            height, width = self.ndc.image_size
            z = 2 / (xyz[:, 2:] - 1)
            xyz = torch.cat([xyz[:, :2] * z / xyz.new_tensor([-2 * self.ndc.focal / width, -2 * self.ndc.focal / height]), z], 1)
        return (xyz @ rotation.T / self.scale + centre).to(xyz_field.dtype)

    def rays(self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """Euclidean rays of the field to the rays that are sampled: in NDC from the near plane (t = 0) to infinity (t = 1), else unchanged.

        Directions in NDC are no unit vectors. Raises InputError for rays that do not point to -z in NDC.
        """
        return (origins, directions) if self.ndc is None else to_ndc(origins, directions, self.ndc.focal, self.ndc.image_size)


def scene_normalisation(scene: Scene, kind: str, bounds: tuple[float, float] | None = None) -> SceneNormalisation:
    """The normalisation of a scene, from all its views, so that it does not depend on the split.

    ``plain`` samples rays between ``bounds``, by default distances 2 and 6 in NeRF-Synthetic scenes and the depths of ``bounds_of`` in others, the far one
    extended to the image corners. ``forward`` and ``inward`` are centred on the mean camera and scaled to a nearest depth of 4/3, as in nerf_pl; ``forward``
    samples t from 0 to 1 in NDC, ``inward`` between the bounds, at most to 8 times the near one.

    Args:
        scene: a scene with bounds in its views, or with a cloud.
        kind: ``plain``, ``forward`` or ``inward``.
        bounds: nearest and farthest depth, scene units; None takes those of the scene.

    Raises:
        InputError: an unknown kind, bounds that are not finite, positive and ascending, a missing cloud, or ``forward`` with a ray that points backward.
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
    first = scene.views[0].camera  # any view will do, but all share one NDC camera
    normalisation = SceneNormalisation(rotation, centre, scale, 0.0, 1.0, NdcCamera(first.focal_length.mean().item(), first.image_size))
    for view in scene.views:
        if not (corner_directions(normalisation.cameras(double(view)))[:, 2] < 0).all():
            raise InputError(
                f"system.ray_frame: expected a forward-facing scene for forward, got rays of view {view.name} ({view.image}) that point backward; "
                "choose inward or plain"
            )
    return normalisation


def bounds_of(scene: Scene) -> tuple[float, float]:
    """Nearest and farthest depth of a scene, scene units: stated by its views, else of the cloud in the training views.

    From the cloud these are the quantiles 0.001 and 0.999 of point depths, with a margin of 10 %.

    Raises:
        InputError: bounds of a view that are not finite, positive and ascending; a missing or damaged cloud, or one outside the training views.
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
        # the distance of a point at an image corner exceeds its depth
        far = depth * max(_corner_distance(view) for view in scene.views)
    return SceneNormalisation(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 1.0, near, far)


def _cloud_bounds(scene: Scene) -> tuple[float, float]:
    xyz = scene.cloud.read().xyz
    if len(xyz) > _SAMPLED_POINTS:
        xyz = xyz[torch.randperm(len(xyz), generator=torch.Generator().manual_seed(0))[:_SAMPLED_POINTS]]
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
            f"{scene.cloud.path}: expected points in the training views of scene {scene.name}, got none; correct the cloud or its poses, or set "
            "system.ray_bounds"
        )
    near, far = np.quantile(seen, [_OUTLIERS, 1 - _OUTLIERS]).tolist()
    return near / _MARGIN, far * _MARGIN


def double(view: View) -> Cameras:
    """The camera of a view in double precision."""
    camera = view.camera
    return Cameras(camera.R.double(), camera.T.double(), camera.focal_length.double(), camera.principal_point.double(), camera.image_size)


def mean_pose(cam_to_world: Float64[Tensor, "v 4 4"]) -> tuple[Float64[Tensor, "3 3"], Float64[Tensor, " 3"]]:
    """Mean pose (axes as columns, position): z is the mean z axis (backward), x is orthogonal to z and the mean y axis (up).

    Where the means vanish, because cameras surround the scene evenly, the axes are those of the first view.
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
    """Unit directions of the rays through the four image corners: the corners are the pixel centres of a shifted 2x2 image."""
    pixel = camera.resize((1, 1))
    return replace(pixel, principal_point=pixel.principal_point + 0.5, image_size=(2, 2)).rays()[1].reshape(4, 3)


def _corner_distance(view: View) -> float:
    """Distance from the camera of the point at depth 1 in the farthest image corner."""
    camera = double(view)
    return 1 / (corner_directions(camera) @ camera.R[0])[:, 2].min().item()
