"""A tiny scene in the layout of nsff_pl: poses as LLFF has them, with motion maps that say nothing of the pictures."""

from pathlib import Path

import numpy as np
from PIL import Image

from npbgpp.data.motion_maps import write_flow

from . import llff


def write(folder: Path, views: int = 8, size: tuple[int, int] = (48, 64)) -> None:
    """The photos, ``poses_bounds.npy`` and the cloud of ``llff.write``, and ``disps``, ``flow_fw``, ``flow_bw`` and ``masks``."""
    llff.write(folder, views, size)
    ramp = np.linspace(0, 65535, size[0] * size[1]).reshape(size).astype(np.uint16)
    for kind in ("disps", "masks"):
        (folder / kind).mkdir()
    for k in range(views):
        Image.fromarray(ramp).save(folder / "disps" / f"{k:05}.png")
        Image.fromarray(np.full(size, 255, np.uint8)).save(folder / "masks" / f"photo_{k:03}.png")
    for k in range(views - 1):
        write_flow(folder / "flow_fw" / f"{k:05}.flo", np.zeros((*size, 2), np.float32))
        write_flow(folder / "flow_bw" / f"{k:05}.flo", np.zeros((*size, 2), np.float32))
