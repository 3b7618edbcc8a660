"""Temporal stability of NPCR videos: reprojection between frames, flicker, temporal filter, temporal finetuning.

Functions take one camera at a time. Depths are along the viewing axis, scene units, inf for empty pixels.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npbgpp.core.cpu_share import adapt_threads
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras
from npbgpp.methods.base import Render
from npbgpp.points import DescriptorTables

_SAME_DEPTH = 0.02  # relative tolerance in depth of the occlusion test


@dataclass(frozen=True)
class Reprojected:
    """An image reprojected to another camera.

    Attributes:
        picture: nearest pixels of the source; undefined where ``known`` is false.
        known: pixels whose points are visible in the source, not occluded there.
    """

    picture: Float[Tensor, "c h w"]
    known: Bool[Tensor, "h w"]

    def similar(self, current: Float[Tensor, "c h w"], threshold: float) -> Bool[Tensor, "h w"]:
        """Known pixels whose squared colour difference to ``current``, summed over three channels of 0 to 255, is at most ``threshold``."""
        difference = (255 * (self.picture[:3] - current[:3])).square().sum(0)
        return self.known & (difference <= threshold)


@torch.no_grad()
def world_points(depth: Float[Tensor, "h w"], camera: Cameras) -> Float[Tensor, "h w 3"]:
    """Unprojects every pixel centre to world coordinates; not finite for empty pixels."""
    height, width = camera.image_size
    v, u = torch.meshgrid(torch.arange(height, device=depth.device) + 0.5, torch.arange(width, device=depth.device) + 0.5, indexing="ij")
    focal, principal = camera.focal_length[0].to(depth), camera.principal_point[0].to(depth)
    xy = (principal - torch.stack([u, v], -1)) / focal
    xyz_cam = torch.cat([xy, torch.ones_like(xy[..., :1])], -1) * depth[..., None]
    return (xyz_cam - camera.T[0]) @ torch.linalg.inv(camera.R[0])


@torch.no_grad()
def reproject(
    picture: Float[Tensor, "c h2 w2"],
    picture_depth: Float[Tensor, "h2 w2"],
    its_camera: Cameras,
    depth: Float[Tensor, "h w"],
    camera: Cameras,
) -> Reprojected:
    """Reprojects an image to the camera of a frame, with an occlusion test.

    Args:
        picture: image of another camera.
        picture_depth: its depths.
        its_camera: its camera.
        depth: of the frame.
        camera: of the frame.
    """
    shown = depth.isfinite()
    with torch.autocast(depth.device.type, enabled=False):  # mixed precision has errors of pixels
        xyz_world = world_points(depth.masked_fill(~shown, 1.0), camera)
        uv_px, there = its_camera.project(xyz_world.view(-1, 3))
    height, width = its_camera.image_size
    known = shown.view(-1) & (there[0] > 0) & (uv_px[0] >= 0).all(1) & (uv_px[0] < uv_px.new_tensor([width, height])).all(1)
    column, row = torch.where(known[:, None], uv_px[0], 0.0).floor().long().unbind(1)
    cell = row * width + column
    # points do not fill surfaces: a gap in the source shows the surface behind, so larger depths are rejected, too
    known &= (picture_depth.reshape(-1).index_select(0, cell) - there[0]).abs() <= _SAME_DEPTH * there[0]
    values = picture.flatten(1).index_select(1, cell)
    return Reprojected(values.view(-1, *depth.shape), known.view(depth.shape))


def flicker(pictures: list[Float[Tensor, "c h w"]], depths: list[Float[Tensor, "h w"]], cameras: list[Cameras]) -> float:
    """Flicker of a video: mean absolute difference of frames to the reprojected frame before, 0 to 255, over all channels and known pixels.

    Raises:
        ValueError: no two consecutive frames show the same points.
    """
    total, count = 0.0, 0
    for k in range(1, len(pictures)):
        before = reproject(pictures[k - 1], depths[k - 1], cameras[k - 1], depths[k], cameras[k])
        difference = (pictures[k] - before.picture).abs()[:, before.known]
        total, count = total + float(difference.double().sum()), count + difference.numel()
    if count == 0:
        raise ValueError("flicker: no two consecutive frames show the same points")
    return 255 * total / count


@runtime_checkable
class LayeredMethod(Protocol):
    """A method that renders layers of colour and opacity; the part of NPCR that the functions below use."""

    settings: Any
    tables: DescriptorTables

    @property
    def device(self) -> torch.device: ...

    def render_layers(self, cameras: Cameras, scenes: Sequence[str], learn: bool = False) -> Any: ...

    def over_background(self, rgba: Tensor, depth: Tensor) -> Render: ...

    def render(self, cameras: Cameras, scene: str, raster: bool = False, depth: bool = False) -> Render: ...

    def objective(self) -> Any: ...

    def configure_optimizers(self) -> list[torch.optim.Optimizer]: ...

    def eval(self) -> Any: ...


_FRAMES_KEPT = 5


@dataclass(frozen=True)
class _Frame:
    """A frame of one camera with premultiplied colours."""

    rgba: Float[Tensor, "4 h w"]
    depth: Float[Tensor, "h w"]
    camera: Cameras

    def reprojected_to(self, frame: "_Frame", threshold: float, rgba: Float[Tensor, "4 h w"] | None = None) -> Float[Tensor, "4 h w"]:
        """This frame, or ``rgba`` of the same camera, reprojected to ``frame``; colours of ``frame`` where it is unknown or not similar."""
        there = reproject(self.rgba if rgba is None else rgba, self.depth, self.camera, frame.depth, frame.camera)
        return torch.where(there.similar(frame.rgba, threshold), there.picture, frame.rgba)


class TemporalFilter:
    """Renders the frames of a video in order, each blended with the five frames before it and with the blend so far.

    Weights and threshold are ``history_weights`` and ``colour_threshold`` of the system. Reprojected pixels that are occluded, empty or of another colour are
    replaced by those of the current frame.

    Args:
        system: renders the frames.
        scene: name of the scene.
    """

    def __init__(self, system: LayeredMethod, scene: str) -> None:
        self.system, self.scene = system, scene
        self._last: deque[_Frame] = deque(maxlen=_FRAMES_KEPT)
        self._mixed: Float[Tensor, "4 h w"] | None = None

    @torch.no_grad()
    def render(self, camera: Cameras) -> Render:
        """The next frame."""
        settings = self.system.settings
        drawn = self.system.render_layers(camera.to(self.system.device), [self.scene])
        frame = _Frame(drawn.rgba[0].clamp(0, 1), drawn.depth[0], camera.to(self.system.device))
        pictures = [frame.rgba]
        if self._mixed is not None:
            pictures.append(self._last[0].reprojected_to(frame, settings.colour_threshold, self._mixed))
        pictures += [shot.reprojected_to(frame, settings.colour_threshold) for shot in self._last]
        pictures += [frame.rgba] * (len(settings.history_weights) - len(pictures))
        mixed = sum(weight * picture for weight, picture in zip(settings.history_weights, pictures, strict=True))
        assert isinstance(mixed, Tensor)
        self._last.appendleft(frame)
        self._mixed = mixed
        return self.system.over_background(mixed[None], drawn.depth)


@dataclass(frozen=True)
class RenderedPath:
    """Images along a path over the background of the system, with depths (inf for empty pixels) and cameras."""

    pictures: list[Float[Tensor, "3 h w"]]
    depths: list[Float[Tensor, "h w"]]
    cameras: list[Cameras]

    def flicker(self) -> float:
        """``flicker`` of the video. Raises InputError if its frames show nothing in common."""
        try:
            return flicker(self.pictures, self.depths, self.cameras)
        except ValueError as error:
            raise InputError(f"path: {error}; take more frames, or another path") from error

    def change_to(self, other: "RenderedPath") -> float:
        """Mean absolute difference to another video of the same path, 0 to 255."""
        return 255 * float(torch.stack([(a - b).abs().mean() for a, b in zip(self.pictures, other.pictures, strict=True)]).mean())


def render_path(system: LayeredMethod, scene: str, cameras: Sequence[Cameras]) -> RenderedPath:
    """Renders a path without temporal filter. Raises InputError for fewer than two cameras."""
    _require_path(cameras)
    pictures, depths = [], []
    for camera in cameras:
        adapt_threads()
        render = system.render(camera, scene, depth=True)
        assert render.depth is not None
        pictures.append(render.rgb[0])
        depths.append(render.depth[0, 0].masked_fill(render.depth[0, 0] == 0, torch.inf))
    return RenderedPath(pictures, depths, [camera.to(system.device) for camera in cameras])


def _require_path(cameras: Sequence[Cameras]) -> None:
    if len(cameras) < 2:
        raise InputError(f"path: expected at least two cameras, got {len(cameras)}; take more frames, or another path")


def finetune(
    system: LayeredMethod,
    scene: str,
    cameras: Sequence[Cameras],
    passes: int,
    lr: float,
    precision: Callable[[], AbstractContextManager[object]],
) -> list[float]:
    """Temporal finetuning: fits network and descriptors to the reprojected output of the frame before; returns the loss of every pass.

    The target of a frame blends the output of the frame before it with the blend so far, both reprojected; ``refine_weights`` of the system are their
    weights, and the weights of the frame and its target in the next blend. Each pass renders the whole path and makes one step. Norms use their running
    statistics, as in rendering.

    Args:
        system: finetuned in place.
        scene: name of its scene.
        cameras: the path, at least two.
        passes: number of passes.
        lr: learning rate; twice that for biases. Large values blur the images, which also lowers flicker.
        precision: context to render in.
    """
    _require_path(cameras)
    system.eval()
    system.tables.resident(scene, training=False)  # needs trained descriptors; opened for training, they may be zeros
    (optimizer,) = system.configure_optimizers()
    weights, biases, default = optimizer.param_groups
    weights["lr"], biases["lr"], default["lr"] = lr, 2 * lr, lr
    losses = []
    for _ in range(passes):
        total = 0.0
        before: tuple[_Frame, Tensor] | None = None
        for camera in cameras:
            adapt_threads()
            with precision():
                drawn = system.render_layers(camera.to(system.device), [scene], learn=True)
                frame = _Frame(drawn.rgba[0].detach(), drawn.depth[0], camera.to(system.device))
                target = frame.rgba if before is None else _target(system, frame, *before)
                if before is not None:
                    loss = _difference(system, drawn.rgba, target[None]) / (len(cameras) - 1)
                    loss.backward()
                    system.tables.accumulate(drawn.gathered)
                    total += float(loss.detach())
            of_frame, of_target = system.settings.refine_weights[2:]
            before = (frame, of_frame * frame.rgba + of_target * target)
        optimizer.step()
        optimizer.zero_grad()
        system.tables.step(lr)
        losses.append(total)
    return losses


def _target(system: LayeredMethod, frame: _Frame, last: _Frame, blend: Float[Tensor, "4 h w"]) -> Float[Tensor, "4 h w"]:
    threshold = system.settings.colour_threshold
    of_blend, of_last = system.settings.refine_weights[:2]
    return of_blend * last.reprojected_to(frame, threshold, blend) + of_last * last.reprojected_to(frame, threshold)


def _difference(system: LayeredMethod, rendered: Float[Tensor, "1 4 h w"], target: Float[Tensor, "1 4 h w"]) -> Float[Tensor, ""]:
    """Mean squared error, plus that of the first VGG activations if the system was trained with them."""
    loss = torch.nn.functional.mse_loss(rendered, target)
    perceptual = system.objective().perceptual
    return loss if perceptual is None else loss + perceptual.to(rendered.device).colours(rendered[:, :3], target[:, :3])
