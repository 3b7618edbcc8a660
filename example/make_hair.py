"""Makes the example scene with hair: semi-transparent strands around a head, in the layout of NPCR.

    python example/make_hair.py --out example/hair

writes `img/0/img_0001.jpg`, `img/0/img_0001_alpha.png` and so on, `CamPose.inf`, `Intrinsic.inf` and `pointclouds/frame1.xzy`. The photos have a grey
background of 60/255. Needs numpy and Pillow.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hair_maker.rendering import intrinsics, poses, render
from hair_maker.strands import cloud, strands

BACKGROUND = 60 / 255


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the whole scene; `argv` replaces the arguments of the command line."""
    parser = argparse.ArgumentParser(description="Render the example scene with hair.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the scene")
    parser.add_argument("--size", type=int, default=128, help="size of the square images, pixels")
    parser.add_argument("--views", type=int, default=32, help="number of views")
    parser.add_argument("--points", type=int, default=18000, help="points of the cloud")
    parser.add_argument("--seed", type=int, default=0, help="of the strands and the cameras")
    arguments = parser.parse_args(argv)
    if min(arguments.size, arguments.views, arguments.points) < 1:
        parser.error("--size, --views, --points: expected positive numbers")
    stale = [path for path in (arguments.out / "img" / "0").glob("img_*") if int(path.stem.split("_")[1]) > arguments.views]
    if stale:
        parser.error(f"--out: expected no images beyond those of this run, got {len(stale)}, the first is {min(stale)}; remove them")
    hair, cameras = strands(arguments.seed), poses(arguments.views, arguments.seed)
    (arguments.out / "img" / "0").mkdir(parents=True, exist_ok=True)
    (arguments.out / "pointclouds").mkdir(exist_ok=True)
    for k, pose in enumerate(cameras):
        rgba = render(hair, pose, arguments.size)
        photo = rgba[..., :3] + (1.0 - rgba[..., 3:]) * BACKGROUND
        name = f"img_{k + 1:04}"
        Image.fromarray(_bytes(photo)).save(arguments.out / "img" / "0" / f"{name}.jpg", quality=95, subsampling=0)
        Image.fromarray(_bytes(rgba[..., 3])).save(arguments.out / "img" / "0" / f"{name}_alpha.png", optimize=True)
    K = "\n".join(" ".join(f"{value:g}" for value in row) for row in intrinsics(arguments.size))
    # columns z, x, y and the centre of each camera
    rows = [" ".join(f"{value:.10g}" for value in pose[:3, [2, 0, 1, 3]].T.ravel()) for pose in cameras]
    (arguments.out / "CamPose.inf").write_text("\n".join(rows) + "\n")
    (arguments.out / "Intrinsic.inf").write_text("\n".join(f"{k}\n{K}\n" for k in range(len(cameras))))
    np.savetxt(arguments.out / "pointclouds" / "frame1.xzy", cloud(hair, arguments.points, arguments.seed), fmt="%.4f")


def _bytes(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


if __name__ == "__main__":
    main()
