"""The point cloud of a scene in the colours of its descriptors. Symbols: n points of the cloud, m points that a view shows."""

import torch
from tqdm import tqdm

from npbgpp.errors import InputError
from npbgpp.geometry import PointCloud
from npbgpp.kernels import Level
from npbgpp.methods.points import Framing, PointSystem


@torch.no_grad()
def coloured_cloud(system: PointSystem, name: str) -> PointCloud:
    """The points that training views show, as the pictures of bare points colour them, on the average of these views.

    What no training view shows has learned nothing, and its colour would mean nothing: it is left out.

    Args:
        system: with weights, and on its device.
        name: of the scene.

    Raises:
        InputError: no descriptors of the scene, or another cloud than theirs.
    """
    scene = system.scenes[name]
    xyz_world = scene.cloud.read().xyz
    total = torch.zeros_like(xyz_world, device=system.device)
    shown = torch.zeros_like(total[:, 0])
    system.prepare(name)
    with system.autocast_free():
        for k in tqdm(scene.splits["train"], desc=f"views of {name}", disable=None, leave=False):
            camera = scene.views[k].camera.to(system.device)
            visible = system.visible(Framing(camera, camera, None), [name], [Level(1.0)])
            assert visible.gathered is not None, "points of a trained scene have rows of their own"
            colours = system.rgb_converter(visible.descriptors)
            for part in visible.gathered.parts:
                total.index_add_(0, part.points, colours[part.where])
                shown.index_add_(0, part.points, torch.ones_like(part.points, dtype=shown.dtype))
    seen = (shown > 0).nonzero()[:, 0]
    if len(seen) == 0:
        raise InputError(f"scene {name}: expected points that training views show, got none; check datasets.pc_name, or lower system.near")
    rgb = ((total[seen] / shown[seen, None]).clamp(0, 1) * 255).round().to(torch.uint8)
    return PointCloud(xyz_world[seen.cpu()], rgb.cpu())
