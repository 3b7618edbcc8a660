"""Rays per second of a trained NeRF on test views: occupancy grid against dense evaluation of the same depths.

Run: ``python benchmarks/nerf_rendering.py <run folder> [--views 3] [overrides of the run's config]``.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from measure import machine
from npbgpp.data.images import read_photo
from npbgpp.engine.run import build_run, evaluation_of, run_config
from npbgpp.methods.nerf import NeRF


def dense(system: NeRF, origins: Tensor, directions: Tensor, chunk: int = 32768) -> Tensor:
    """(n, 3) colours on white, with the field evaluated at all candidate depths of every ray."""
    count, grid = system.field.sampling.marched, system.grid
    assert grid is not None
    share = torch.linspace(0, 1, count)
    z = system.normalisation.near * (1 - share) + system.normalisation.far * share
    step = torch.cat([z[1:] - z[:-1], torch.full((1,), 1e10)])
    colours = []
    rays = max(1, chunk // count)
    for o, d in zip(origins.split(rays), directions.split(rays), strict=True):
        xyz = o[:, None] + d[:, None] * z[:, None]
        sigma, rgb = system.field.final(xyz.reshape(-1, 3), d[:, None].expand_as(xyz).reshape(-1, 3))
        # cells that the grid skips were not trained, so their density is set to 0 after the evaluation
        sigma, rgb = torch.where(grid.occupied(xyz), sigma.view(len(o), count), 0.0), rgb.view(len(o), count, 3)
        alpha = 1 - torch.exp(-step * sigma.relu())
        left = torch.cumprod(torch.cat([torch.ones(len(o), 1), 1 - alpha + 1e-10], 1), 1)[:, :-1]
        weight = alpha * left
        colours.append((weight[..., None] * rgb).sum(1) + 1 - weight.sum(1, keepdim=True))
    return torch.cat(colours)


@torch.no_grad()
def main() -> None:
    """Prints one line per implementation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--views", type=int, default=3)
    options, overrides = parser.parse_known_args()
    config, search_paths = run_config(options.run.resolve())
    scene = evaluation_of(config, options.run.resolve(), "last", None, overrides)
    parts = build_run(config, search_paths, needs_test_views=False)
    system = parts.system.eval()
    assert isinstance(system, NeRF) and system.grid is not None
    tested = parts.data.scenes[scene].splits["test"]
    views = [parts.data.scenes[scene].views[i] for i in tested[:: max(1, len(tested) // options.views)][: options.views]]
    print(machine())
    print(f"{100 * system.grid.cells.float().mean():.1f} % of the cells are occupied, {system.field.sampling.marched} depths per ray")
    seconds = {"dense": 0.0, "grid": 0.0}
    errors: dict[str, list[float]] = {"dense": [], "grid": []}
    pixels, largest = 0, 0.0
    for view in views:
        camera = view.camera
        origins, directions = (part[0].flatten(0, 1) for part in system.normalisation.cameras(camera).rays())
        target = read_photo(view).image.float() / 255
        start = time.perf_counter()
        plain = dense(system, origins, directions).T.view(target.shape).clamp(0, 1)
        middle = time.perf_counter()
        ours = system.render(camera, scene).rgb[0]
        seconds["dense"] += middle - start
        seconds["grid"] += time.perf_counter() - middle
        pixels += len(origins)
        for name, picture in (("dense", plain), ("grid", ours)):
            errors[name].append(float(-10 * torch.log10(((picture - target) ** 2).mean())))
        largest = max(largest, float((plain - ours).abs().mean()))
    for name in seconds:
        psnr = sum(errors[name]) / len(errors[name])
        print(f"{name:6s} {pixels / seconds[name]:10.0f} rays/s   PSNR {psnr:.2f} dB   dense / this {seconds['dense'] / seconds[name]:.1f}")
    print(f"mean difference of the pictures: at most {largest:.5f}")


if __name__ == "__main__":
    main()
