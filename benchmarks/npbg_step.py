"""Training step of NPBG on a large cloud against a dense baseline: time and peak memory, in separate processes.

Both train on 256 px crops, batch 1, with the same network and L1 loss. The baseline has one parameter for all points, dense gradients and dense
RMSprop. Run: ``python benchmarks/npbg_step.py [--points 4000000] [--crop 256] [--steps 6]``.
"""

import argparse
import statistics
import time

import torch

import plain
from measure import camera, in_process, machine, surface_cloud
from npbgpp.geometry.pixels import PixelConvention, ProjectionSettings
from npbgpp.kernels.rasterization import ChunkedCloud, Level, rasterize
from npbgpp.nets.unet import NPBGPlusPlusUNet
from npbgpp.points.descriptor_tables import ResidentScene, gather_visible
from npbgpp.points.feature_pyramid import FeaturePyramid
from npbgpp.points.sparse_optim import SparseParameter, SparseRMSprop

CHANNELS = 8


def refiner() -> NPBGPlusPlusUNet:
    """The network of the shipped configuration."""
    return NPBGPlusPlusUNet(in_channels=[CHANNELS + 1] * 5, out_channels=3, filters=[16, 32, 48, 64, 80], padding_mode="reflect")


def dense_steps(points: int, crop: int, steps: int) -> dict[str, float]:
    """Times of the dense baseline."""
    torch.manual_seed(0)
    xyz, net = surface_cloud(points), refiner()
    descriptors, background = torch.nn.Parameter(torch.zeros(points, CHANNELS)), torch.nn.Parameter(torch.rand(CHANNELS))
    rmsprop, adam = torch.optim.RMSprop([descriptors, background], lr=0.1), torch.optim.Adam(net.parameters(), lr=1e-4)
    times = []
    for step in range(steps + 1):
        view = camera(2 * crop, azimuth=0.3 * step).crop(crop // 2, crop // 2, (crop, crop))
        start = time.perf_counter()
        focal, principal = view.to_authors_ndc()
        xyd, valid = plain.project(xyz, view.R[0], view.T[0], focal[0], principal[0], 1.0, view.image_size)
        images, _ = plain.rasterize(xyd, valid, descriptors, background, view.image_size)
        (net(images) - 0.5).abs().mean().backward()
        rmsprop.step()
        adam.step()
        rmsprop.zero_grad()
        adam.zero_grad()
        times.append(time.perf_counter() - start)
    return {"ms": 1e3 * statistics.median(times[1:])}


def sparse_steps(points: int, crop: int, steps: int) -> dict[str, float]:
    """Times of this project."""
    torch.manual_seed(0)
    cloud, net = ChunkedCloud.build(surface_cloud(points)), refiner()
    scene = ResidentScene(cloud, SparseParameter(torch.zeros(points, CHANNELS)), torch.empty(points, dtype=torch.int32))
    raster = FeaturePyramid(descriptor_dim=CHANNELS, learnable=True)
    sparse = SparseRMSprop(lr=0.1)
    rmsprop, adam = torch.optim.RMSprop(raster.parameters(), lr=0.1), torch.optim.Adam(net.parameters(), lr=1e-4)
    levels = [Level(s) for s in plain.SCALES]
    times = []
    for step in range(steps + 1):
        view = camera(2 * crop, azimuth=0.3 * step).crop(crop // 2, crop // 2, (crop, crop))
        start = time.perf_counter()
        maps = [f.index[None] for f in rasterize(cloud, view, levels, ProjectionSettings(1.0, PixelConvention.AUTHORS))]
        visible = gather_visible(maps, ["scene"], {"scene": scene}, learn=True)
        (net(raster(visible.rows, visible.values)) - 0.5).abs().mean().backward()
        sparse.begin_step()
        (part,) = visible.parts
        sparse.update(scene.table, part.points, visible.values.grad[part.where])
        rmsprop.step()
        adam.step()
        rmsprop.zero_grad()
        adam.zero_grad()
        times.append(time.perf_counter() - start)
    return {"ms": 1e3 * statistics.median(times[1:])}


def main() -> None:
    """Prints both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=4_000_000)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--steps", type=int, default=6)
    o = parser.parse_args()
    print(f"{machine()}\n{o.points} points, {o.crop} px crops, batch 1, one training step")
    dense = in_process(lambda: dense_steps(o.points, o.crop, o.steps))
    sparse = in_process(lambda: sparse_steps(o.points, o.crop, o.steps))
    for name, result in (("dense", dense), ("this project", sparse)):
        print(f"{name:14s} {result['ms']:8.1f} ms   peak {result['peak_mib']:8.0f} MiB")
    print(f"dense / this: time {dense['ms'] / sparse['ms']:.1f}, memory {dense['peak_mib'] / sparse['peak_mib']:.1f}")


if __name__ == "__main__":
    main()
