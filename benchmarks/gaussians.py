"""One training step of 3D Gaussians by parts, on the CPU: numba kernels, and the plain reference at a reduced size.

The gaussians cover the surfaces of ``measure.surface_cloud`` and are about as large as the distance to their neighbours, in Morton order, with harmonics of
degree 2. A step is the rendering, its loss (L1 and SSIM) with the gradient of the image, the backward pass, and Adam on the visible gaussians. The reference
needs a minute and gigabytes for the larger cases, so it is compared on a small one, in the same run. Every case has a process of its own, whose peak memory counts.

Run: ``python benchmarks/gaussians.py [--million] [--repeats 9] [--plot growth.png]``. The plot needs matplotlib: ``pip install matplotlib``.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from measure import camera, machine, surface_cloud
from npbgpp.kernels.adam import adam_rows
from npbgpp.kernels.gaussians import SplattingSettings, render_gaussians
from npbgpp.kernels.photometric import photometric_loss

PARTS = ("forward", "loss", "backward", "optimiser")
AREA = 48.6  # of the surfaces
SETTINGS = SplattingSettings(dilation=0.1, antialiased=False, near=0.01)


def gaussians(count: int) -> list[Tensor]:
    """Means, log scales, quaternions, opacity logits and harmonics."""
    g = torch.Generator().manual_seed(0)
    means = surface_cloud(count)
    cell = ((means - means.min(0).values) / 6 * 1023).long()
    code = sum(((cell >> bit) & 1) << torch.tensor([3 * bit, 3 * bit + 1, 3 * bit + 2]) for bit in range(10)).sum(1)
    scale = 0.6 * (AREA / count) ** 0.5
    log_scales = torch.randn(count, 3, generator=g) * 0.4 + torch.tensor(scale).log()
    quaternions, logits = torch.randn(count, 4, generator=g), torch.randn(count, generator=g) * 1.5 + 0.5
    sh = torch.randn(count, 9, 3, generator=g) * 0.2
    return [t.requires_grad_() for t in (means[code.argsort()].contiguous(), log_scales, quaternions, logits, sh)]


def measure(count: int, size: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Best milliseconds of the clock and of the CPU for each part, and medians for the whole step, after one warm-up."""
    parameters, view = gaussians(count), camera(size)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    photo, background = torch.rand(3, size, size, generator=torch.Generator().manual_seed(1)), torch.ones(3)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in (*PARTS, "step")}
    for number in range(repeats + 1):
        times = [_now()]
        rendering = render_gaussians(*parameters, view, sh_degree=2, background=background, settings=SETTINGS)
        times.append(_now())
        loss = photometric_loss(rendering.image, photo, None, 0.2).loss
        times.append(_now())
        gradients = torch.autograd.grad(loss, parameters)
        times.append(_now())
        for parameter, gradient, (first, second) in zip(parameters, gradients, moments, strict=True):
            options = {"lr": 1e-4, "step": number + 1, "betas": (0.9, 0.999), "eps": 1e-15}
            adam_rows(parameter, gradient, first, second, rendering.visible, **options)
        times.append(_now())
        if number:
            for name, begin, end in zip(PARTS, times[:-1], times[1:], strict=True):
                taken[name].append((end[0] - begin[0], end[1] - begin[1]))
            taken["step"].append((times[-1][0] - times[0][0], times[-1][1] - times[0][1]))
    choose = {name: statistics.median if name == "step" else min for name in taken}
    return {name: (choose[name](c for c, _ in values), choose[name](c for _, c in values)) for name, values in taken.items()}


def _now() -> tuple[float, float]:
    """Milliseconds of the clock, and of the CPU in all threads."""
    return 1e3 * time.perf_counter(), 1e3 * time.process_time()


def measure_case(case: tuple[str, int, int, int]) -> tuple[dict[str, tuple[float, float]], float]:
    """``measure`` with a backend, and the memory that it takes at most beyond that of the imports, in MiB."""
    os.environ["NPBGPP_KERNELS"], count, size, repeats = case
    before = _peak_mib()
    return measure(count, size, repeats), _peak_mib() - before


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def draw(found: dict[tuple[int, int], tuple[dict[str, tuple[float, float]], float]], file: Path) -> None:
    """Plots time and memory over the number of gaussians, for every size of the image."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.2))
    for size in sorted({size for _, size in found}):
        counts = sorted(count for count, of in found if of == size)
        axes[0].loglog(counts, [found[count, size][0]["step"][1] for count in counts], marker="o", label=f"{size}x{size}")
        axes[1].loglog(counts, [found[count, size][1] for count in counts], marker="o", label=f"{size}x{size}")
    for axis, label in zip(axes, ("CPU ms of a training step", "MiB"), strict=True):
        axis.set(xlabel="gaussians", ylabel=label)
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=100)


def main() -> None:
    """Prints a table of milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--million", action="store_true", help="also 1,000,000 gaussians")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    counts = [25_000, 100_000, *([1_000_000] if options.million else [])]
    print(f"{machine()}\nms of the clock / of the CPU, all threads added; parts: best, step: median")
    print(f"{'':8s} {'gaussians':>10s} {'image':>9s}" + "".join(f"{name:>18s}" for name in (*PARTS, "step")) + "     MiB")
    cases = [("numba", n, size) for size in (200, 800) for n in counts] + [(name, 2_000, 64) for name in ("numba", "torch")]
    found = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, count, size in cases:
            times, memory = pool.apply(measure_case, ((name, count, size, options.repeats if name == "numba" else 3),))
            print(
                f"{name:8s} {count:10,d} {size:4d}x{size:<4d}"
                + "".join(f"{c:9.1f} / {u:6.1f}" for c, u in times.values())
                + f"{memory:8.0f}"
            )
            if size > 64:
                found[count, size] = times, memory
    if options.plot is not None:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
