"""Depth peeling of a surface cloud against a plain baseline; results are compared before timing.

Run: ``python benchmarks/peeling.py [--points 1000000] [--size 512] [--layers 4] [--repeats 7]``.
"""

import argparse
import sys

import torch

import plain
from measure import camera, in_turn, machine, print_timings, surface_cloud
from npbgpp.kernels.peeling import Footprint, peel
from npbgpp.kernels.rasterization import ChunkedCloud

NEAR, FAR, MAX_SPLAT = 3.0, 7.0, 1.0


def main() -> None:
    """Prints milliseconds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    o = parser.parse_args()
    torch.manual_seed(0)
    xyz, view = surface_cloud(o.points), camera(o.size)
    cloud, footprint = ChunkedCloud.build(xyz), Footprint(NEAR, FAR, MAX_SPLAT)

    def ours() -> list[torch.Tensor]:
        return [layer.index for layer in peel(cloud, view, o.layers, footprint)]

    def reference() -> list[torch.Tensor]:
        intrinsics = (view.focal_length[0].float(), view.principal_point[0].float())
        return plain.peel(xyz, view.R[0], view.T[0], *intrinsics, view.image_size, o.layers, NEAR, FAR, MAX_SPLAT)

    print(f"{machine()}\n{o.points} points, {o.size}x{o.size}, {o.layers} layers, squares of up to three pixels a side")
    found, expected = ours(), reference()
    # projections are rounded differently: points at pixel borders may fall on either side, which also changes later layers
    for k, (index, other) in enumerate(zip(found, expected, strict=True)):
        differing = (index != other).float().mean().item()
        print(
            f"compared: layer {k} shows {(index >= 0).float().mean().item():.3f} of the pixels, {differing:.1e} of them another point (rounding)"
        )
        if differing > 2e-3:
            sys.exit("the layers differ by more than rounding")
    print_timings(in_turn({"plain": reference, "this project": ours}, o.repeats))


if __name__ == "__main__":
    main()
