"""Output files: images, depth maps, videos, contact sheets. Each file is either complete or absent."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import torch
from imageio_ffmpeg import count_frames_and_secs
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from npbgpp.core.files import put_in_place, write_atomically
from npbgpp.errors import InputError

DEPTH_FORMATS = ("npy", "pfm", "bytes")


def to_pil(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """Colours in [0, 1], clamped and rounded to 8 bits."""
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def write_png(path: Path, image: Image.Image | Float[Tensor, "3 _ _"]) -> None:
    """Writes an image, or colours in [0, 1], as 8-bit PNG. Raises InputError if the file cannot be written."""
    buffer = io.BytesIO()  # Pillow hides the reason when it cannot write to a file itself
    (to_pil(image) if isinstance(image, Tensor) else image).save(buffer, format="PNG")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def write_depth(path: Path, depth: Float[Tensor, "h w"]) -> None:
    """Writes a depth map as 32-bit floats.

    Args:
        path: ends in .npy (NumPy), .pfm (portable float map) or .bytes (rows from the top, little endian, no header, as nerf_pl's Unity scripts read them).
        depth: scene units, 0 where there is no surface.

    Raises:
        InputError: the file cannot be written.
    """
    values = depth.detach().float().cpu().contiguous().numpy()
    if path.suffix == ".npy":
        write_atomically(path, lambda file: np.save(file, values))
    elif path.suffix == ".pfm":
        import cv2  # slow to import, rarely needed

        done, encoded = cv2.imencode(".pfm", values)
        assert done
        write_atomically(path, lambda file: file.write(encoded.tobytes()))
    else:
        assert path.suffix == ".bytes", path
        write_atomically(path, lambda file: file.write(values.astype("<f4").tobytes()))


def depth_range(depth: Float[Tensor, "..."]) -> tuple[float, float]:
    """1st and 99th percentile of the finite positive depths; (0, 1) if there are none."""
    valid = depth[(depth > 0) & depth.isfinite()].flatten()
    if not len(valid):
        return 0.0, 1.0
    valid = valid[:: max(1, len(valid) // 100_000)].sort().values
    low, high = valid[int(0.01 * (len(valid) - 1))].item(), valid[int(0.99 * (len(valid) - 1))].item()
    return low, high


def depth_colormap(depth: Float[Tensor, "*s"], near: float, far: float) -> Float[Tensor, "3 *s"]:
    """Depths in the Turbo colour map: red at ``near`` and before, blue at ``far`` and beyond, black where the depth is 0."""
    import cv2

    turbo = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_TURBO).reshape(256, 3)[:, ::-1]
    position = ((far - depth.cpu()) / max(far - near, 1e-12)).clamp(0, 1)
    colours = torch.from_numpy(turbo.copy())[(position * 255).round().long()].movedim(-1, 0).float() / 255
    return torch.where(depth.cpu() > 0, colours, 0.0)


# ----------------------------------------------------------------------
# Videos, written frame by frame


VIDEO_FORMATS = ("mp4", "gif")


class VideoWriter:
    """Appends frames of one size to a temporary file; ``close`` moves it to its place.

    H.264 needs even sides: frames with an odd one are padded by repeating the last row or column. A GIF stores durations in hundredths of a second.

    Args:
        path: ends in .mp4 or .gif.
        fps: frames per second.

    Raises:
        InputError: the folder cannot be written, or the file cannot.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")
        self._is_gif, self._frames = path.suffix == ".gif", 0
        options: dict[str, Any] = {"mode": "I", "duration": 1000 / fps, "loop": 0}
        if not self._is_gif:
            options = {"fps": fps, "codec": "libx264", "quality": 8, "macro_block_size": 2, "ffmpeg_log_level": "error"}
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer: Any = imageio.get_writer(self._part, **options)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self._part.unlink(missing_ok=True)
            raise InputError(f"{self.path}: cannot be written ({error}); free space, or choose another folder") from error

    def append(self, frame: Float[Tensor, "3 h w"]) -> None:
        """Appends a frame with colours in [0, 1]."""
        height, width = frame.shape[1:]
        even = frame if self._is_gif else torch.nn.functional.pad(frame[None], (0, width % 2, 0, height % 2), mode="replicate")[0]
        with self._writing():
            self._writer.append_data(np.asarray(to_pil(even)))
        self._frames += 1

    def close(self) -> None:
        """Finishes the file and moves it to its place. Raises InputError if the encoder did not write all frames, as on a full disk."""
        with self._writing():
            self._writer.close()
            if not self._is_gif:
                self._check_frames()
            put_in_place(self._part, self.path)

    def _check_frames(self) -> None:
        """Counts the frames of the file: imageio does not look at the exit code of the encoder."""
        try:
            count, _ = count_frames_and_secs(str(self._part))
        except RuntimeError as error:
            raise OSError("the encoder failed and left an unplayable file") from error
        if count != self._frames:
            raise OSError(f"the encoder wrote {count} of {self._frames} frames")

    def discard(self) -> None:
        """Removes the temporary file."""
        with suppress(OSError):  # the encoder may fail to write its trailer
            self._writer.close()
        self._part.unlink(missing_ok=True)


@contextmanager
def open_video(path: Path, fps: float) -> Iterator[VideoWriter]:
    """A ``VideoWriter`` that is closed at the end of the block, or discarded if it raises."""
    writer = VideoWriter(path, fps)
    try:
        yield writer
    except BaseException:
        writer.discard()
        raise
    writer.close()


# ----------------------------------------------------------------------
# Contact sheets: rows of captioned images below a title


ERROR_RANGE = 0.25  # absolute difference drawn as white
_TILE_WIDTH = 256
_GAP = 8
_HEADER = 64
_CAPTION = 22
_SPARSE = 0.25  # share of pixels that points cover, below which they are drawn larger
_WANTED = 0.3  # share that they then cover, if they lie apart
_LARGEST_RADIUS = 6.0  # pixels
_BACKGROUND, _TEXT = (250, 250, 248), (30, 30, 34)


@dataclass(frozen=True)
class SheetRow:
    """Images of one size, colours in [0, 1], above a caption. None leaves a tile empty; the first image must not be None."""

    caption: str
    images: tuple[Float[Tensor, "3 _ _"] | None, ...]


def contact_sheet(title: str, columns: Sequence[str], rows: Sequence[SheetRow]) -> Image.Image:
    """Draws one tile per image, scaled to the same width, below a title and the names of the columns. ``rows`` must not be empty."""
    assert rows
    heights = []
    for row in rows:
        first = row.images[0]
        assert first is not None
        heights.append(round(_TILE_WIDTH * first.shape[1] / first.shape[2]))
    width = len(columns) * (_TILE_WIDTH + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _HEADER + sum(h + _CAPTION + _GAP for h in heights)), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 8), title, fill=_TEXT, font=ImageFont.load_default(18))
    small = ImageFont.load_default(13)
    for k, name in enumerate(columns):
        draw.text((_GAP + k * (_TILE_WIDTH + _GAP), 42), name, fill=_TEXT, font=small)
    top = _HEADER
    for row, height in zip(rows, heights, strict=True):
        for k, image in enumerate(row.images):
            if image is not None:
                resampling = Image.Resampling.LANCZOS if image.shape[2] > _TILE_WIDTH else Image.Resampling.BICUBIC
                sheet.paste(to_pil(image).resize((_TILE_WIDTH, height), resampling), (_GAP + k * (_TILE_WIDTH + _GAP), top))
        draw.text((_GAP, top + height + 3), row.caption, fill=_TEXT, font=small)
        top += height + _CAPTION + _GAP
    return sheet


@dataclass(frozen=True)
class EvaluationRow:
    """One evaluated view above a caption; images in [0, 1] on the CPU. ``raster`` shows the points alone."""

    caption: str
    target: Float[Tensor, "3 h w"]
    rendered: Float[Tensor, "3 h w"]
    raster: Float[Tensor, "3 h w"] | None


def evaluation_sheet(title: str, rows: Sequence[EvaluationRow]) -> Image.Image:
    """The contact sheet of an evaluation: photo (gt), rendering, points (or depth, of methods without) and error of each view. ``rows`` must not be empty."""
    columns = ("gt", "rendering", "points or depth", f"error (white: {ERROR_RANGE:g} or more)")
    tiles = [
        SheetRow(row.caption, (row.target, row.rendered, enlarged_points(row.raster), error_map(row.rendered, row.target))) for row in rows
    ]
    return contact_sheet(title, columns, tiles)


def error_map(rendered: Float[Tensor, "3 h w"], target: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """Mean absolute difference over the channels, from black (0) over red and yellow to white (ERROR_RANGE or more)."""
    heat = (rendered - target).abs().mean(0) / ERROR_RANGE
    return torch.stack([(3 * heat - k).clamp(0, 1) for k in range(3)])


def enlarged_points(raster: Float[Tensor, "3 h w"] | None) -> Float[Tensor, "3 h w"] | None:
    """Points of a sparse cloud as discs that can be seen; each pixel near points takes the colour of the nearest one. Dense rasters are as they are.

    Args:
        raster: points on white, one pixel each; None gives None.
    """
    if raster is None:
        return None
    empty = (raster == 1).all(0)
    covered = 1 - float(empty.float().mean())
    if not 0 < covered < _SPARSE:
        return raster
    distance, (row, column) = distance_transform_edt(empty.numpy(), return_indices=True)
    radius = min(max(1.0, (_WANTED / covered / math.pi) ** 0.5), _LARGEST_RADIUS)
    return torch.where(torch.from_numpy(distance <= radius), raster[:, row, column], raster)
