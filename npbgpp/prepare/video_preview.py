"""Pictures of what every stage made of a video: a few frames, each beside its result."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.utils import flow_to_image

from npbgpp.callbacks.pictures import write_image
from npbgpp.callbacks.tile_sheet import TileRow, tile_sheet
from npbgpp.data.flow_files import read_flow
from npbgpp.data.motion_maps import read_numbers
from npbgpp.data.scene import Scene
from npbgpp.prepare.sheet import dots, reduced

_SHOWN = 4
_RED = (1.0, 0.1, 0.1)
_NEAR = 1e-6  # all points in front of the cameras are drawn


def shown(count: int) -> list[int]:
    """Which of so many frames are drawn: spread from the first to the last."""
    return sorted({round(k * (count - 1) / (_SHOWN - 1)) for k in range(_SHOWN)})


def colours(path: Path) -> Float[Tensor, "3 h w"]:
    """A picture, 0..1."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255


def masked(frame: Float[Tensor, "3 h w"], mask: Path) -> Float[Tensor, "3 h w"]:
    """The frame, red where it is masked."""
    dark = torch.from_numpy(read_numbers(mask)) < 0.5
    return torch.where(dark, 0.4 * frame + 0.6 * torch.tensor(_RED)[:, None, None], frame)


def grey(path: Path) -> Float[Tensor, "3 h w"]:
    """A map of numbers, from its smallest, black, to its largest, white."""
    values = torch.from_numpy(read_numbers(path))
    values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12)
    return values.expand(3, -1, -1)


def directions(path: Path) -> Float[Tensor, "3 h w"]:
    """Flow by the usual wheel of colours: none is white."""
    return flow_to_image(torch.from_numpy(read_flow(path)).permute(2, 0, 1)).float() / 255


def points(scene: Scene, k: int) -> Float[Tensor, "3 h w"]:
    """Points of the model over a frame, red near, blue far; the frame alone where the poses came without points."""
    camera, photo = reduced(scene.views[k])
    return photo if scene.carried_points is None else dots(photo, camera, scene.cloud.read().xyz, _NEAR)


def write_preview(
    path: Path, title: str, column: str, frames: Sequence[Path], result: Callable[[int], Float[Tensor, "3 h w"] | None] | None
) -> None:
    """Draws some frames, the results of a stage at their side; without any the frames alone."""
    rows = [
        TileRow(frames[k].name, (colours(frames[k]),) if result is None else (colours(frames[k]), result(k))) for k in shown(len(frames))
    ]
    write_image(path, tile_sheet(title, ("frame",) if result is None else ("frame", column), rows))
