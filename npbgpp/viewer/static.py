"""A scene in 3D without a server: viser's page with everything inside, which a browser opens from disk."""

import io
from contextlib import redirect_stdout

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from npbgpp.errors import InputError
from npbgpp.geometry import GaussianCloud
from npbgpp.viewer.access import free_port
from npbgpp.viewer.pictures import ViewedRun, thumbnail
from npbgpp.viewer.poses import ViewerFrame
from npbgpp.viewer.scene_nodes import cloud_arguments, frustums
from npbgpp.viewer.server import open_server

_PORT = 18800  # of the server that collects the scene, without clients
_LEAST_OPACITY = 1 / 255
_AWAY, _ABOVE = 1.4, 0.5  # distances of the first look, relative to that of the first view


def scene_page(run: ViewedRun, frame: ViewerFrame, points: int, photos: bool) -> str:
    """HTML of a scene: gaussians where the method has them, else its cloud; cameras, and their photos as thumbnails.

    Args:
        run: with its weights.
        frame: coordinates of the page.
        points: at most so many points or gaussians; of gaussians the largest and most opaque.
        photos: thumbnails in the cameras.

    Raises:
        InputError: a missing photo, or a scene with neither gaussians nor points.
    """
    server = open_server("127.0.0.1", free_port("127.0.0.1", _PORT), run.scene.name)
    try:
        scene = server.scene
        scene.set_up_direction(frame.up)
        gaussians = gaussians_of(run)
        if gaussians is not None:
            centres, covariances, colours, opacities = _largest(gaussians, points)
            scene.add_gaussian_splats(
                "/gaussians",
                frame.to_viewer(centres),
                (covariances * frame.scale**2).numpy(),
                colours.numpy(),
                opacities[:, None].numpy(),
            )
        else:
            arguments = cloud_arguments(run, frame, points)
            if arguments is None:
                raise InputError(f"export page: scene {run.scene.name} has neither gaussians nor a point cloud to show")
            scene.add_point_cloud("/cloud", **arguments)
        for frustum in frustums(run, frame):
            image = thumbnail(run.scene.views[frustum.index]) if photos else None
            scene.add_camera_frustum(f"/cameras/{frustum.index}", **frustum.arguments, image=image, format="jpeg")
        view = run.scene.views[(run.scene.splits["train"] or (0,))[0]].camera
        pose = frame.pose(view, view.image_size[1] / view.image_size[0])
        pivot, position = np.asarray(frame.pivot(pose)), np.asarray(pose.position)
        away = position - pivot
        camera = server.initial_camera  # behind and above the first view, so that its photo does not hide the scene
        camera.position = pivot + _AWAY * away + _ABOVE * np.linalg.norm(away) * np.asarray(frame.up)
        camera.look_at, camera.up, camera.fov = pivot, frame.up, pose.fov
        return server.get_scene_serializer().as_html()
    finally:
        with redirect_stdout(io.StringIO()):  # it says that it ends
            server.stop()


def gaussians_of(run: ViewedRun) -> GaussianCloud | None:
    """The gaussians of a run; None for methods without, and for gaussians with descriptors in place of colours."""
    try:
        cloud = run.system.gaussian_cloud(run.scene.name)
    except InputError:
        return None
    return cloud if cloud.sh.shape[2] == 3 else None


def _largest(
    cloud: GaussianCloud, count: int
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3 3"], Float[Tensor, "n 3"], Float[Tensor, " n"]]:
    """Centres, covariances, mean colours and opacities of the largest and most opaque gaussians."""
    opacity = cloud.opacity_logits.detach().cpu().sigmoid()
    log_scales, quaternions = cloud.log_scales.detach().cpu(), normalize(cloud.quaternions.detach().cpu(), dim=1)
    weight = torch.where(opacity >= _LEAST_OPACITY, log_scales.sum(1).exp() * opacity, -1.0)
    chosen = weight.sort(descending=True, stable=True).indices[: min(count, int((weight > 0).sum()))]
    w, x, y, z = quaternions[chosen].unbind(1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    axes = torch.stack([torch.stack(row, 1) for row in rows], 1) * log_scales[chosen].exp()[:, None]
    return cloud.means.detach().cpu()[chosen], axes @ axes.transpose(1, 2), cloud.colours().detach().cpu()[chosen], opacity[chosen]
