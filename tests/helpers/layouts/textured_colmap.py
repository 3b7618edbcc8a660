"""A COLMAP scene with texture everywhere, for multi-view stereo."""

from pathlib import Path

import numpy as np
from PIL import Image
from pycolmap import Camera

from ..room import ROOM
from .colmap import write_text

VIEWS, SIZE = 8, (96, 128)


def write(folder: Path) -> None:
    """Photos of a textured room, and a model whose points are those of pixels of the first photos, observed where they are not occluded."""
    room = ROOM.rendered(VIEWS, *SIZE)
    (folder / "images").mkdir(parents=True)
    for k, view in enumerate(room.views):
        grey = np.round(view.grey * 255).astype(np.uint8)
        Image.fromarray(np.stack([grey, grey // 2 + 60, 255 - grey], -1)).save(folder / "images" / f"view_{k}.png")
    rng = np.random.default_rng(0)
    xyz = []
    for view, depth in zip(room.views[:3], room.depths[:3], strict=True):
        row, column = rng.integers(0, SIZE[0], 120), rng.integers(0, SIZE[1], 120)
        xyz_cam = np.stack([column + 0.5, row + 0.5, np.ones(120)], 1) @ np.linalg.inv(view.K).T * depth[row, column][:, None]
        xyz.append((xyz_cam - view.world_to_cam[:3, 3]) @ view.world_to_cam[:3, :3])
    points = np.concatenate(xyz)
    images, tracks = {}, [[] for _ in points]
    for k, (view, depth) in enumerate(zip(room.views, room.depths, strict=True)):
        uvw = (points @ view.world_to_cam[:3, :3].T + view.world_to_cam[:3, 3]) @ view.K.T
        uv = uvw[:, :2] / uvw[:, 2:]
        inside = (uvw[:, 2] > 0) & (uv >= 0).all(1) & (uv < SIZE[::-1]).all(1)
        row, column = (np.where(inside, part, 0).astype(int) for part in (uv[:, 1], uv[:, 0]))
        shown = np.flatnonzero(inside & (np.abs(depth[row, column] / uvw[:, 2] - 1) < 0.02))
        for place, j in enumerate(shown):
            tracks[j].append((k + 1, place))
        images[k + 1] = (f"view_{k}.png", view.world_to_cam, uv[shown], [int(j) + 1 for j in shown])
    K = room.views[0].K
    camera = Camera(model="PINHOLE", width=SIZE[1], height=SIZE[0], params=[K[0, 0], K[1, 1], K[0, 2], K[1, 2]])
    (folder / "sparse" / "0").mkdir(parents=True)
    write_text(folder / "sparse" / "0", camera, images, {j + 1: (points[j], (200, 100, 50), track) for j, track in enumerate(tracks)})
