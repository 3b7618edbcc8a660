"""Makes the example scene: images, cameras and point cloud of a still life, in the NeRF-Synthetic ("Blender") layout.

    python example/make_scene.py --out example/still_life

writes `transforms_{train,val,test}.json`, `{train,val,test}/r_<i>.png` and `mvs_pc.ply`. The objects are fixed; the seed
sets the cameras and the points of the cloud. Needs numpy, torch, Pillow and plyfile.
"""

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from blender_layout import write_cloud, write_transforms
from still_life_maker.cloud import surface_cloud
from still_life_maker.views import ANGLE_X, poses, render, spread

SPLITS = ("train", "val", "test")


def at_least_one(text: str) -> int:
    """A positive integer from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
    return value


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; refuses a folder with images of a larger run, which would not match the json files."""
    parser = argparse.ArgumentParser(description="Render the example scene.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the scene")
    parser.add_argument("--size", type=at_least_one, default=200, help="size of the square images, pixels")
    parser.add_argument("--train", type=at_least_one, default=80, help="number of training views")
    parser.add_argument("--val", type=at_least_one, default=20, help="number of validation views")
    parser.add_argument("--test", type=at_least_one, default=15, help="number of test views")
    parser.add_argument("--samples", type=at_least_one, default=4, help="rays along each side of a pixel")
    parser.add_argument("--points", type=at_least_one, default=70000, help="points of the cloud")
    parser.add_argument("--seed", type=int, default=0, help="of the cameras and the points of the cloud")
    parser.add_argument("--workers", type=at_least_one, default=os.cpu_count() or 1, help="rendering processes")
    arguments = parser.parse_args(argv)
    kept = {arguments.out / split / f"r_{i}.png" for split in SPLITS for i in range(getattr(arguments, split))}
    stale = sorted({path for split in SPLITS for path in (arguments.out / split).glob("r_*.png")} - kept)
    if stale:
        parser.error(f"--out: expected no images beyond those of this run, got {len(stale)}, the first is {stale[0]}; remove them")
    return arguments


def split_cameras(counts: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """(k, 4, 4) cameras of each split; test and validation views are spread out between the training views."""
    cameras = spread(poses(sum(counts.values()), seed))
    test, val, train = np.split(cameras, [counts["test"], counts["test"] + counts["val"]])
    return {"train": train, "val": val, "test": test}


def write_view(path: Path, pose: np.ndarray, size: int, samples: int) -> None:
    """Renders one image and writes it as PNG."""
    Image.fromarray(render(pose, size, samples)).save(path, optimize=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the whole scene; `argv` replaces the arguments of the command line."""
    arguments = parse_arguments(argv)
    cameras = split_cameras({split: getattr(arguments, split) for split in SPLITS}, arguments.seed)
    # torch does not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        jobs = []
        for split in SPLITS:
            (arguments.out / split).mkdir(parents=True, exist_ok=True)
            write_transforms(arguments.out / f"transforms_{split}.json", split, cameras[split], ANGLE_X)
            for i, pose in enumerate(cameras[split]):
                jobs.append(pool.submit(write_view, arguments.out / split / f"r_{i}.png", pose, arguments.size, arguments.samples))
        cloud = pool.submit(surface_cloud, cameras["train"], arguments.size, arguments.points, arguments.seed)
        for job in jobs:
            job.result()
        write_cloud(arguments.out / "mvs_pc.ply", *cloud.result())


if __name__ == "__main__":
    main()
