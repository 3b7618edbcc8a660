"""Image loading: photos per second from disk and from memory, with and without worker processes, and their memory.

Reads random crops of JPEG photos for two epochs. Run: ``python benchmarks/loading.py [--views 60] [--size 1024] [--crop 256]
[--workers 2]``.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from measure import camera, machine
from npbgpp.data.dataset import Augmentation, SceneDataset
from npbgpp.data.images import PhotoCache
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Batch, Scene, View


def write_photos(folder: Path, count: int, size: int) -> list[Path]:
    """Writes smooth noise with grain, which compresses about as well as photos."""
    random = np.random.default_rng(0)
    paths = []
    for k in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        grain = random.integers(-6, 7, (size, size, 3))
        paths.append(folder / f"{k:04}.jpg")
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(paths[-1], quality=92)
    return paths


def own_mib() -> float:
    """Proportional set size of this process and its children."""
    children = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    total = 0
    for pid in (os.getpid(), *children):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def epochs(dataset: SceneDataset, workers: int) -> tuple[list[float], float]:
    """Photos per second of two epochs, and the memory of all processes after them."""
    loader = DataLoader(dataset, 1, shuffle=True, collate_fn=Batch.collate, num_workers=workers, persistent_workers=workers > 0)
    rates = []
    for _ in range(2):
        start = time.perf_counter()
        for _ in loader:
            pass
        rates.append(len(dataset) / (time.perf_counter() - start))
        memory = own_mib()
    return rates, memory


def main() -> None:
    """Prints one line per configuration."""
    parser = argparse.ArgumentParser()
    for name, value in (("views", 60), ("size", 1024), ("crop", 256), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    print(f"{options.views} photos {options.size}x{options.size}, crops of {options.crop}, batch 1")
    print(f"{'photos per second':28s} first epoch   second epoch   memory of all processes [MiB]")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), options.views, options.size)
        views = tuple(View(path.stem, path, camera(options.size)) for path in paths)
        scene = Scene("bench", views, {"train": tuple(range(len(views))), "val": (), "test": ()}, CloudFile(Path(folder) / "none.ply"))
        for kept in (False, True):
            for workers in (0, options.workers):
                photos = PhotoCache(views, 4 << 30) if kept else None
                augmentation = Augmentation((options.crop, options.crop), random_shift=True)
                dataset = SceneDataset("bench", scene, scene.splits["train"], augmentation=augmentation, photos=photos)
                rates, memory = epochs(dataset, workers)
                print(f"{'kept' if kept else 'decoded'}, {workers} workers{'':10s} {rates[0]:14.1f} {rates[1]:14.1f} {memory:12.0f}")


if __name__ == "__main__":
    main()
