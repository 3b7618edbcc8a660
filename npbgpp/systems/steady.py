"""Films of NPCR that do not flicker: frames mixed with those before them, and the model refined along a path of cameras (NPCR, temporal refinement)."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.optim import RowAdam
from npbgpp.render.reprojection import carry, unsteadiness
from npbgpp.systems.base import Render
from npbgpp.systems.npcr import NPCR

_FRAMES_KEPT = 5


@dataclass(frozen=True)
class _Shot:
    """A frame of one camera; colours are weighted by opacity."""

    rgba: Float[Tensor, "4 h w"]
    depth: Float[Tensor, "h w"]
    camera: Cameras

    def carried_to(self, frame: "_Shot", threshold: float, rgba: Float[Tensor, "4 h w"] | None = None) -> Float[Tensor, "4 h w"]:
        """This frame, or another picture of its camera, as that of ``frame`` sees it; the current colours where it is unknown or unlike."""
        there = carry(self.rgba if rgba is None else rgba, self.depth, self.camera, frame.depth, frame.camera)
        return torch.where(there.alike(frame.rgba, threshold), there.picture, frame.rgba)


class SteadyFilm:
    """Renders the frames of a film one after the other, each mixed with the five before it and with the mixture so far.

    Weights and threshold are ``history_weights`` and ``colour_threshold`` of the system. Where an earlier frame does not show a point of the current one,
    or shows it in another colour, the current frame takes its place; so do all of them in pixels that show no point.

    Args:
        system: draws the frames.
        scene: name of the scene.
    """

    def __init__(self, system: NPCR, scene: str) -> None:
        self.system, self.scene = system, scene
        self._last: deque[_Shot] = deque(maxlen=_FRAMES_KEPT)
        self._mixed: Float[Tensor, "4 h w"] | None = None

    @torch.no_grad()
    def render(self, camera: Cameras) -> Render:
        """The next frame."""
        settings = self.system.settings
        drawn = self.system.draw(camera.to(self.system.device), [self.scene])
        frame = _Shot(drawn.rgba[0].clamp(0, 1), drawn.depth[0], camera.to(self.system.device))
        pictures = [frame.rgba]
        if self._mixed is not None:
            pictures.append(self._last[0].carried_to(frame, settings.colour_threshold, self._mixed))
        pictures += [shot.carried_to(frame, settings.colour_threshold) for shot in self._last]
        pictures += [frame.rgba] * (len(settings.history_weights) - len(pictures))
        mixed = sum(weight * picture for weight, picture in zip(settings.history_weights, pictures, strict=True))
        assert isinstance(mixed, Tensor)
        self._last.appendleft(frame)
        self._mixed = mixed
        return self.system.shown(mixed[None], drawn.depth)


@dataclass(frozen=True)
class Film:
    """Pictures of a path over the background of the system, with their depths (inf where there is no point) and cameras."""

    pictures: list[Float[Tensor, "3 h w"]]
    depths: list[Float[Tensor, "h w"]]
    cameras: list[Cameras]

    def flicker(self) -> float:
        """``unsteadiness`` of the film. Raises InputError for one whose frames show nothing in common."""
        try:
            return unsteadiness(self.pictures, self.depths, self.cameras)
        except ValueError as error:
            raise InputError(f"path: {error}; take more frames, or another path") from error

    def change_to(self, other: "Film") -> float:
        """Mean absolute difference to another film along the same path, on a scale of 0 to 255."""
        return 255 * float(torch.stack([(a - b).abs().mean() for a, b in zip(self.pictures, other.pictures, strict=True)]).mean())


def shoot(system: NPCR, scene: str, cameras: Sequence[Cameras]) -> Film:
    """The film along a path, without history. Raises InputError for fewer than two cameras."""
    _require_path(cameras)
    pictures, depths = [], []
    for camera in cameras:
        render = system.render(camera, scene, depth=True)
        assert render.depth is not None
        pictures.append(render.rgb[0])
        depths.append(render.depth[0, 0].masked_fill(render.depth[0, 0] == 0, torch.inf))
    return Film(pictures, depths, [camera.to(system.device) for camera in cameras])


def _require_path(cameras: Sequence[Cameras]) -> None:
    if len(cameras) < 2:
        raise InputError(f"path: expected at least two cameras to refine along, got {len(cameras)}; take more frames, or another path")


def refine(
    system: NPCR,
    scene: str,
    cameras: Sequence[Cameras],
    passes: int,
    lr: float,
    precision: Callable[[], AbstractContextManager[object]],
) -> list[float]:
    """Fits the network and the descriptors to what the film along a path showed a frame earlier; returns the loss of every pass.

    The target of a frame is made of the raw output of the frame before it and of the blend so far, both carried over; ``refine_weights`` of the system are
    their shares, and those of the frame and its target in the next blend. Each pass goes along the whole path and makes one step. The network keeps the
    statistics of its norms: what is refined is what is rendered.

    Args:
        system: refined in place.
        scene: name of its scene.
        cameras: the path, at least two.
        passes: how many.
        lr: learning rate; biases learn at twice the rate. A large one teaches the network that pictures without content never flicker.
        precision: context to draw in.
    """
    _require_path(cameras)
    system.eval()
    system.tables.resident(scene, training=False)  # learned descriptors are needed: training would begin with zeros
    (optimizer,) = system.configure_optimizers()
    weights, biases, default = optimizer.param_groups
    weights["lr"], biases["lr"], default["lr"] = lr, 2 * lr, lr
    descriptors = RowAdam(lr, system.settings.weight_decay)
    losses = []
    for _ in range(passes):
        total = 0.0
        before: tuple[_Shot, Tensor] | None = None
        for camera in cameras:
            with precision():
                drawn = system.draw(camera.to(system.device), [scene], learn=True)
                frame = _Shot(drawn.rgba[0].detach(), drawn.depth[0], camera.to(system.device))
                target = frame.rgba if before is None else _target(system, frame, *before)
                if before is not None:
                    loss = _difference(system, drawn.rgba, target[None]) / (len(cameras) - 1)
                    loss.backward()
                    system.tables.keep_gradients(drawn.gathered)
                    total += float(loss.detach())
            of_frame, of_target = system.settings.refine_weights[2:]
            before = (frame, of_frame * frame.rgba + of_target * target)
        optimizer.step()
        optimizer.zero_grad()
        for name, rows, gradient in system.tables.take_gradients():
            descriptors.update(system.tables.residents[name].table, rows, gradient)
        losses.append(total)
    return losses


def _target(system: NPCR, frame: _Shot, last: _Shot, blend: Float[Tensor, "4 h w"]) -> Float[Tensor, "4 h w"]:
    threshold = system.settings.colour_threshold
    of_blend, of_last = system.settings.refine_weights[:2]
    return of_blend * last.carried_to(frame, threshold, blend) + of_last * last.carried_to(frame, threshold)


def _difference(system: NPCR, rendered: Float[Tensor, "1 4 h w"], target: Float[Tensor, "1 4 h w"]) -> Float[Tensor, ""]:
    """Mean squared difference, and that of the first activations of VGG where the system was trained with them."""
    loss = torch.nn.functional.mse_loss(rendered, target)
    perceptual = system.objective().perceptual
    return loss if perceptual is None else loss + perceptual.to(rendered.device).colours(rendered[:, :3], target[:, :3])
