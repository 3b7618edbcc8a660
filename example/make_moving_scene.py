"""Makes the moving example scene: a video of a room with a hopping ball and an approaching crate, with exact motion maps and held-out views.

    python example/make_moving_scene.py --out data/monocular/hop

writes the layout `monocular` (see `npbgpp/parsers/monocular.py`): `images/`, `disps/` (16 bits, scaled per frame, larger is nearer), `flow_fw/`, `flow_bw/`,
`masks/` (255 in static regions), `sparse/` (COLMAP text model with static points), and in `novel/` images, masks and depths of the same times from a static
camera beside the path, for scores. Only the textures and the choice of points are random; the seed sets both.

Then `python train_net.py datasets=monocular datasets.data_root=data/monocular datasets.scene_name=hop ...` trains on it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from moving_scene_maker.measure import Pinhole, flow, render, to_world, trace
from moving_scene_maker.room import path_camera, room, static_camera
from moving_scene_maker.solids import Array, SceneObject
from npbgpp.data.motion_maps import write_flow
from npbgpp.data.pose_files import write_poses
from npbgpp.geometry import Cameras

DEPTH_STEPS = 1000  # per unit, of the depths in novel/
OCCLUSION_TOLERANCE = 1e-6  # relative difference in depth up to which a point is visible
POINTS_PER_FRAME = 60


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; refuses a folder that is not empty."""
    parser = argparse.ArgumentParser(description="Render the moving example scene.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the scene, new or empty")
    parser.add_argument("--frames", type=int, default=12, help="frames of the video, at least 3")
    parser.add_argument("--size", type=int, nargs=2, default=(72, 48), metavar=("WIDTH", "HEIGHT"), help="pixels")
    parser.add_argument("--samples", type=int, default=4, help="rays along each side of a pixel")
    parser.add_argument("--seed", type=int, default=0, help="of the textures and the points")
    arguments = parser.parse_args(argv)
    for name, value, least in (("frames", arguments.frames, 3), ("size", min(arguments.size), 8), ("samples", arguments.samples, 1)):
        if value < least:
            parser.error(f"--{name}: expected at least {least}, got {value}")
    if arguments.out.is_dir() and any(arguments.out.iterdir()):
        parser.error(f"--out: expected a new or empty folder, got {arguments.out} with files")
    return arguments


def quantised_disparity(depth: Array) -> Array:
    """(h, w) uint16 disparity, 0 for the largest depth, 65535 for the smallest."""
    disparity = 1 / depth
    return ((disparity - disparity.min()) / np.ptp(disparity) * 65535 + 0.5).astype(np.uint16)


def save(path: Path, pixels: Array) -> None:
    """Writes an image, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, optimize=True)


def write_model(folder: Path, objects: tuple[SceneObject, ...], cameras: list[Pinhole], times: Array, seed: int) -> None:
    """Writes a COLMAP text model: one camera, a pose per frame, and static points with their observations."""
    rng = np.random.default_rng(seed)
    moving = np.array([obj.moves for obj in objects])
    xyz, rgb = [], []
    for time, camera in zip(times, cameras, strict=True):
        uv = rng.uniform((1, 1), np.array(camera.size[::-1]) - 1, (POINTS_PER_FRAME, 2))
        hits = trace(objects, time, camera, uv)
        static = ~moving[hits.index]
        colours = np.stack([objects[k].colours(hits.position[i : i + 1], time)[0] for i, k in enumerate(hits.index)])
        xyz.append(to_world(objects, hits, time)[static])
        rgb.append((colours[static] * 255).astype(int))
    points, colours = np.concatenate(xyz), np.concatenate(rgb)
    tracks: list[list[tuple[int, int]]] = [[] for _ in points]
    images = ["# id, quaternion w x y z, translation, camera, name; then x y point of each observation"]
    for k, (time, camera) in enumerate(zip(times, cameras, strict=True)):
        uv, depth = camera.project(points)
        visible = np.abs(trace(objects, time, camera, uv).depth - depth) < OCCLUSION_TOLERANCE * depth
        visible &= (uv > 0).all(1) & (uv < np.array(camera.size[::-1])).all(1)
        to_cam = np.linalg.inv(camera.pose)[:3] * [[1], [-1], [-1]]  # axes right, down, forward
        x, y, z, w = Rotation.from_matrix(to_cam[:, :3]).as_quat()
        numbers = " ".join(f"{value:.12g}" for value in (w, x, y, z, *to_cam[:, 3]))
        images.append(f"{k + 1} {numbers} 1 {k:05d}.png")
        images.append(" ".join(f"{u:.6f} {v:.6f} {point + 1}" for point, (u, v) in zip(np.flatnonzero(visible), uv[visible], strict=True)))
        for observation, point in enumerate(np.flatnonzero(visible)):
            tracks[point].append((k + 1, observation))
    height, width = cameras[0].size
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text(
        f"1 PINHOLE {width} {height} {cameras[0].focal:.12g} {cameras[0].focal:.12g} {width / 2} {height / 2}\n"
    )
    (folder / "images.txt").write_text("\n".join(images) + "\n")
    rows = (
        f"{k + 1} {' '.join(f'{value:.9g}' for value in point)} {' '.join(map(str, colour))} 0 {' '.join(f'{i} {j}' for i, j in track)}"
        for k, (point, colour, track) in enumerate(zip(points, colours, tracks, strict=True))
    )
    (folder / "points3D.txt").write_text("\n".join(rows) + "\n")


def write_frame(out: Path, objects: tuple[SceneObject, ...], cameras: list[Pinhole], times: Array, k: int, samples: int) -> None:
    """Writes image, mask, disparity and flow of one frame."""
    camera, time = cameras[k], float(times[k])
    colours, moves = render(objects, time, camera, samples)
    hits = trace(objects, time, camera, camera.centres())
    save(out / "images" / f"{k:05d}.png", colours)
    save(out / "masks" / f"{k:05d}.png.png", np.where(moves, 0, 255).astype(np.uint8))
    save(out / "disps" / f"{k:05d}.png", quantised_disparity(hits.depth.reshape(camera.size)))
    for folder, other in (("flow_fw", k + 1), ("flow_bw", k - 1)):
        if 0 <= other < len(cameras):
            uv_flow = flow(objects, hits, camera, cameras[other], float(times[other]))
            write_flow(out / folder / f"{k:05d}.flo", uv_flow.astype(np.float32))


def write_novel(out: Path, objects: tuple[SceneObject, ...], camera: Pinhole, times: Array, samples: int) -> None:
    """Writes the same times from a static camera."""
    for k, time in enumerate(times):
        colours, moves = render(objects, float(time), camera, samples)
        depth = trace(objects, float(time), camera, camera.centres()).depth.reshape(camera.size)
        save(out / "images" / f"{k:05d}.png", colours)
        save(out / "masks" / f"{k:05d}.png", np.where(moves, 0, 255).astype(np.uint8))
        save(out / "depths" / f"{k:05d}.png", (depth * DEPTH_STEPS + 0.5).astype(np.uint16))
    height, width = camera.size
    cameras = Cameras.from_opengl(
        torch.from_numpy(camera.pose)[None],
        torch.full((1, 2), camera.focal, dtype=torch.float64),
        torch.tensor([[width / 2, height / 2]], dtype=torch.float64),
        camera.size,
    )
    write_poses(out / "cameras.json", [cameras] * len(times))


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the whole scene; `argv` replaces the arguments of the command line."""
    arguments = parse_arguments(argv)
    objects, size = room(arguments.seed), tuple(arguments.size[::-1])
    times = np.linspace(0, 1, arguments.frames)
    cameras = [Pinhole(path_camera(float(time)), size) for time in times]
    for k in range(len(cameras)):
        write_frame(arguments.out, objects, cameras, times, k, arguments.samples)
    write_model(arguments.out / "sparse", objects, cameras, times, arguments.seed)
    write_novel(arguments.out / "novel", objects, Pinhole(static_camera(), size), times, arguments.samples)


if __name__ == "__main__":
    main()
