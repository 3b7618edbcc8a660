"""Rasterization of a surface cloud at five scales against a plain baseline; results are compared before timing.

Run: ``python benchmarks/rasterizer.py [--points 4000000] [--size 512] [--repeats 9]``.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable

import torch

import plain
from measure import camera, interleaved_ms, machine, surface_cloud
from npbgpp.geometry.pixels import PixelConvention, ProjectionSettings
from npbgpp.kernels.rasterization import ChunkedCloud, Level, rasterize
from npbgpp.points.descriptor_tables import ResidentScene, gather_visible
from npbgpp.points.feature_pyramid import feature_image, feature_table
from npbgpp.points.sparse_optim import SparseParameter


def main() -> None:
    """Prints milliseconds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=4_000_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    xyz, view = surface_cloud(options.points), camera(options.size)
    features, background = torch.rand(options.points, 8), torch.rand(8)
    start = time.perf_counter()
    cloud = ChunkedCloud.build(xyz)
    build = 1e3 * (time.perf_counter() - start)
    levels = [Level(s) for s in plain.SCALES]
    scene = ResidentScene(cloud, SparseParameter(features), torch.empty(options.points, dtype=torch.int32))

    def ours(convention: PixelConvention) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        maps = [f.index for f in rasterize(cloud, view, levels, ProjectionSettings(1.0, convention))]
        visible = gather_visible([m[None] for m in maps], ["scene"], {"scene": scene}, learn=False)
        table = feature_table(visible.values, background[None, :, None, None])
        images = [feature_image(rows, table) for rows in visible.rows]
        return images, maps

    def reference() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        focal, principal = view.to_authors_ndc()
        xyd, valid = plain.project(xyz, view.R[0], view.T[0], focal[0], principal[0], 1.0, view.image_size)
        return plain.rasterize(xyd, valid, features, background, view.image_size)

    print(f"{machine()}\n{options.points} points, {options.size}x{options.size}, five scales, from world points to feature images")
    images, maps = ours(PixelConvention.AUTHORS)
    their_images, their_maps = reference()
    cells = differing = 0
    for image, their_image, index, their_index in zip(images, their_images, maps, their_maps, strict=True):
        same = index == their_index
        cells, differing = cells + same.numel(), differing + int((~same).sum())
        if not torch.equal(image[0][:, same], their_image[0][:, same]):
            sys.exit("feature images differ where the points agree")
    # projections are rounded differently: points at pixel borders may fall on either side
    print(f"compared: {differing} of {cells} cells show another point (rounding of the projection), all others are equal")
    if differing > 1e-4 * cells:
        sys.exit("the rasters differ by more than rounding")
    works: dict[str, Callable[[], object]] = {"plain two-pass": reference}
    works |= {f"this project, {convention.value}": functools.partial(ours, convention) for convention in PixelConvention}
    times = interleaved_ms(works, options.repeats)
    (plain_best, plain_median), *_ = times.values()
    for name, (best, median) in times.items():
        ratios = f"{plain_best / best:5.1f} {plain_median / median:5.1f}"
        print(f"{name:32s} best {best:8.1f} ms   median {median:8.1f} ms   plain / this: best, median {ratios}")
    print(f"chunks, built once per scene: {build:.0f} ms")


if __name__ == "__main__":
    main()
