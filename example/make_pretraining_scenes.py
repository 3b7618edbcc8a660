"""Makes random scenes for the pretraining of NPBG++: images, cameras and point clouds, in the NeRF-Synthetic ("Blender") layout.

    python example/make_pretraining_scenes.py --out data/pretraining --scenes 30

writes the folders `scene_000`, `scene_001`, ... with `transforms_{train,val,test}.json`, `{train,val,test}/r_<i>.png`, `mvs_pc.ply` (a cloud with the
faults of stereo in most scenes) and `exact_pc.ply`. Scenes that are there are kept, so that a call that was stopped can be repeated. The seed sets everything.
With `--dense K` every K-th scene gets the cloud of `npbgpp prepare dense` in place of simulated faults. Needs numpy, numba, Pillow and plyfile; a view of
200x200 pixels takes about a second of one core.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from blender_layout import write_cloud, write_transforms
from pretraining_maker.clouds import Faults, draw_faults, scene_cloud
from pretraining_maker.scenes import RandomScene, draw_scene
from pretraining_maker.tracer import render

DONE = "scene.json"  # written last: what the scene is


def number(least: int):
    """A reader of integers of the command line that are at least ``least``."""

    def read(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text}")
        return int(text)

    return read


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Render random scenes for the pretraining of NPBG++.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the scenes")
    parser.add_argument("--scenes", type=number(1), default=30, help="number of scenes")
    parser.add_argument("--first", type=number(0), default=0, help="number of the first scene")
    parser.add_argument("--views", type=number(6), default=40, help="views of a scene, of which a tenth each validates and tests")
    parser.add_argument("--size", type=number(16), default=200, help="size of the square images, pixels")
    parser.add_argument("--samples", type=number(1), default=3, help="rays along each side of a pixel")
    parser.add_argument("--points", type=number(100), default=60000, help="points of the largest cloud; others have down to a third")
    parser.add_argument("--dense", type=number(0), default=0, help="every so many scenes get a cloud of npbgpp prepare dense; 0: none")
    parser.add_argument("--seed", type=number(0), default=0, help="of everything")
    parser.add_argument("--workers", type=number(1), default=os.cpu_count() or 1, help="rendering threads")
    return parser.parse_args(argv)


def write_scene(folder: Path, seed: int, arguments: argparse.Namespace, dense: bool) -> None:
    """Renders and writes one scene."""
    scene = draw_scene(seed, arguments.views)
    held_out = max(1, arguments.views // 10)
    splits = {"test": range(held_out), "val": range(held_out, 2 * held_out), "train": range(2 * held_out, arguments.views)}
    with ThreadPoolExecutor(arguments.workers) as pool:
        jobs = []
        for split, views in splits.items():
            (folder / split).mkdir(parents=True, exist_ok=True)
            for i, view in enumerate(views):
                jobs.append(pool.submit(write_view, folder / split / f"r_{i}.png", scene, view, arguments))
        for job in jobs:
            job.result()
    for split, views in splits.items():
        write_transforms(folder / f"transforms_{split}.json", split, scene.poses[list(views)], scene.angle_x)

    rng = np.random.default_rng([seed, 1])
    count = int(arguments.points * rng.uniform(1.0 / 3.0, 1.0))
    faults = draw_faults(rng)
    views = np.array(splits["train"])
    exact = scene_cloud(scene, views, count, Faults(), rng)
    write_cloud(folder / "exact_pc.ply", *exact)
    write_cloud(folder / "mvs_pc.ply", *(exact if dense else scene_cloud(scene, views, count, faults, rng)))
    if dense:  # stereo takes the points that are there to find views that show the same
        subprocess.run([sys.executable, "-m", "npbgpp", "prepare", "dense", str(folder), f"count={count}", "overwrite=true"], check=True)
    about = {"seed": seed, "room": scene.room, "solids": len(scene.solids.kind), "faults": "stereo" if dense else vars(faults)}
    (folder / DONE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def write_view(path: Path, scene: RandomScene, view: int, arguments: argparse.Namespace) -> None:
    """Renders one image and writes it as PNG."""
    image = render(scene.solids, scene.light, scene.poses[view], scene.angle_x, arguments.size, arguments.samples)
    Image.fromarray(image).save(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the scenes; `argv` replaces the arguments of the command line."""
    arguments = parse_arguments(argv)
    for index in range(arguments.first, arguments.first + arguments.scenes):
        folder = arguments.out / f"scene_{index:03d}"
        if (folder / DONE).is_file():
            continue
        dense = arguments.dense > 0 and index % arguments.dense == arguments.dense - 1
        write_scene(folder, arguments.seed * 100_000 + index, arguments, dense)
        print(folder, flush=True)


if __name__ == "__main__":
    main()
