"""Makes a small moving scene: a video of a room in which a ball hops and a crate comes nearer, with exact motion maps and held-out views.

    python example/make_moving_scene.py --out data/monocular/hop

writes the layout `monocular` (see `npbgpp/data/parsers/monocular.py`): `images/`, `disps/` (16 bits, stretched per frame, larger is nearer), `flow_fw/`,
`flow_bw/`, `masks/` (255 where nothing moves), `sparse/` (a text model of COLMAP, with points that stand still), and in `novel/` the same moments from a camera
that stands beside the path of the video, with masks and depths, for scores. Nothing is random but the paint and the choice of points, which the seed decides.

Then `python train_net.py datasets=monocular datasets.data_root=data/monocular datasets.scene_name=hop ...` trains on it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from moving_scene_maker.measure import Hits, Pinhole, flow, picture, trace, world
from moving_scene_maker.room import path_camera, room, still_camera
from moving_scene_maker.solids import Array, Thing
from npbgpp.data.motion_maps import write_flow
from npbgpp.data.pose_files import write_poses
from npbgpp.geometry.cameras import Cameras

DEPTH_STEPS = 1000  # of the depths in novel/, per unit
HIDDEN = 1e-6  # a point is seen where the nearest depth differs by no more than this share
POINTS_PER_FRAME = 60


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line; refuses a folder that holds something."""
    parser = argparse.ArgumentParser(description="Render the moving example scene.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the scene, made if absent, else empty")
    parser.add_argument("--frames", type=int, default=12, help="frames of the video, at least 3")
    parser.add_argument("--size", type=int, nargs=2, default=(72, 48), metavar=("WIDTH", "HEIGHT"), help="pixels")
    parser.add_argument("--samples", type=int, default=4, help="rays along each side of a pixel")
    parser.add_argument("--seed", type=int, default=0, help="paints the things and chooses the points")
    arguments = parser.parse_args(argv)
    for name, value, least in (("frames", arguments.frames, 3), ("size", min(arguments.size), 8), ("samples", arguments.samples, 1)):
        if value < least:
            parser.error(f"--{name}: expected at least {least}, got {value}")
    if arguments.out.is_dir() and any(arguments.out.iterdir()):
        parser.error(f"--out: expected a new or empty folder, got {arguments.out}, which holds something")
    return arguments


def stretched(depth: Array) -> Array:
    """(h, w) uint16 disparity: 1 / depth, from the farthest at 0 to the nearest at 65535."""
    disparity = 1 / depth
    return ((disparity - disparity.min()) / np.ptp(disparity) * 65535 + 0.5).astype(np.uint16)


def save(path: Path, pixels: Array) -> None:
    """Writes a picture, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, optimize=True)


def quaternion(rotation: Array) -> Array:
    """(w, x, y, z) of a rotation (3, 3) by less than half a turn."""
    w = np.sqrt(1 + np.trace(rotation)) / 2
    return np.array([w, *(rotation[[2, 0, 1], [1, 2, 0]] - rotation[[1, 2, 0], [2, 0, 1]]) / (4 * w)])


def write_model(folder: Path, things: tuple[Thing, ...], cameras: list[Pinhole], moments: Array, seed: int) -> None:
    """A text model of COLMAP: one camera, a pose per frame, points that stand still, with the frames that see them."""
    rng = np.random.default_rng(seed)
    moving = np.array([thing.moves for thing in things])
    xyz, rgb = [], []
    for moment, camera in zip(moments, cameras, strict=True):
        uv = rng.uniform((1, 1), np.array(camera.size[::-1]) - 1, (POINTS_PER_FRAME, 2))
        hits = trace(things, moment, camera, uv)
        still = ~moving[hits.thing]
        colours = np.stack([things[k].colours(hits.place[i : i + 1], moment)[0] for i, k in enumerate(hits.thing)])
        xyz.append(world(things, hits, moment)[still])
        rgb.append((colours[still] * 255).astype(int))
    points, colours = np.concatenate(xyz), np.concatenate(rgb)
    tracks: list[list[tuple[int, int]]] = [[] for _ in points]
    images = ["# id, quaternion w x y z, translation, camera, name; then x y point of every place"]
    for k, (moment, camera) in enumerate(zip(moments, cameras, strict=True)):
        uv, depth = camera.project(points)
        seen = np.abs(trace(things, moment, camera, uv).depth - depth) < HIDDEN * depth
        seen &= (uv > 0).all(1) & (uv < np.array(camera.size[::-1])).all(1)
        to_cam = np.linalg.inv(camera.pose)[:3] * [[1], [-1], [-1]]  # axes right, down, forward
        numbers = " ".join(f"{value:.12g}" for value in (*quaternion(to_cam[:, :3]), *to_cam[:, 3]))
        images.append(f"{k + 1} {numbers} 1 {k:05d}.png")
        images.append(" ".join(f"{u:.6f} {v:.6f} {number + 1}" for number, (u, v) in zip(np.flatnonzero(seen), uv[seen], strict=True)))
        for place, number in enumerate(np.flatnonzero(seen)):
            tracks[number].append((k + 1, place))
    height, width = cameras[0].size
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text(
        f"1 PINHOLE {width} {height} {cameras[0].focal:.12g} {cameras[0].focal:.12g} {width / 2} {height / 2}\n"
    )
    (folder / "images.txt").write_text("\n".join(images) + "\n")
    rows = (
        f"{number + 1} {' '.join(f'{value:.9g}' for value in point)} {' '.join(map(str, colour))} 0 {' '.join(f'{k} {place}' for k, place in track)}"
        for number, (point, colour, track) in enumerate(zip(points, colours, tracks, strict=True))
    )
    (folder / "points3D.txt").write_text("\n".join(rows) + "\n")


def write_frame(out: Path, things: tuple[Thing, ...], cameras: list[Pinhole], moments: Array, k: int, samples: int) -> None:
    """Picture, mask, disparity and flow of one frame."""
    camera, moment = cameras[k], float(moments[k])
    colours, moves = picture(things, moment, camera, samples)
    hits: Hits = trace(things, moment, camera, camera.centres())
    save(out / "images" / f"{k:05d}.png", colours)
    save(out / "masks" / f"{k:05d}.png.png", np.where(moves, 0, 255).astype(np.uint8))
    save(out / "disps" / f"{k:05d}.png", stretched(hits.depth.reshape(camera.size)))
    for folder, other, number in (("flow_fw", k + 1, k), ("flow_bw", k - 1, k)):
        if 0 <= other < len(cameras):
            moved = flow(things, hits, camera, cameras[other], float(moments[other]))
            write_flow(out / folder / f"{number:05d}.flo", moved.astype(np.float32))


def write_novel(out: Path, things: tuple[Thing, ...], camera: Pinhole, moments: Array, samples: int) -> None:
    """The same moments from a camera that stands still."""
    for k, moment in enumerate(moments):
        colours, moves = picture(things, float(moment), camera, samples)
        depth = trace(things, float(moment), camera, camera.centres()).depth.reshape(camera.size)
        save(out / "images" / f"{k:05d}.png", colours)
        save(out / "masks" / f"{k:05d}.png", np.where(moves, 0, 255).astype(np.uint8))
        save(out / "depths" / f"{k:05d}.png", (depth * DEPTH_STEPS + 0.5).astype(np.uint16))
    height, width = camera.size
    one = Cameras.from_opengl(
        torch.from_numpy(camera.pose)[None],
        torch.full((1, 2), camera.focal, dtype=torch.float64),
        torch.tensor([[width / 2, height / 2]], dtype=torch.float64),
        camera.size,
    )
    write_poses(out / "cameras.json", [one] * len(moments))


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the whole scene; `argv` replaces the command line's arguments."""
    arguments = parse_arguments(argv)
    things, size = room(arguments.seed), tuple(arguments.size[::-1])
    moments = np.linspace(0, 1, arguments.frames)
    cameras = [Pinhole(path_camera(float(moment)), size) for moment in moments]
    for k in range(len(cameras)):
        write_frame(arguments.out, things, cameras, moments, k, arguments.samples)
    write_model(arguments.out / "sparse", things, cameras, moments, arguments.seed)
    write_novel(arguments.out / "novel", things, Pinhole(still_camera(), size), moments, arguments.samples)


if __name__ == "__main__":
    main()
