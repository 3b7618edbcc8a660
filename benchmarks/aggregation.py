"""Aggregation of NPBG++ against a dense baseline: update by one view, solve, and state; results are compared before timing.

The baseline keeps sums of every point, as the authors' code does: every view samples, evaluates the basis and accumulates at all points, masked by visibility,
and the solve inverts a matrix per point. It shares no code with the package. Both run alternately in separate processes;
peak memory excludes the inputs (points, one feature map, visibility). Run: ``python benchmarks/aggregation.py [--points 100000 1000000 4000000]``.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from measure import best_and_median_ms, camera, in_process, machine, surface_cloud
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixels import PixelConvention
from npbgpp.methods.npbgpp.scene_sums import SceneSums
from npbgpp.nets.aggregation import PointDirections, SphereAggregator
from npbgpp.points import sample_features

BASIS, CHANNELS, SIZE, SHARE = 6, 8, 512, 0.14
VIEWS = 8  # added before the update of another view is timed


@dataclass(frozen=True)
class View:
    """A camera and its visible points."""

    camera: Cameras
    visible: Tensor
    points: Tensor


class Inputs:
    """Points, features, views and basis network, equal in every process."""

    def __init__(self, count: int) -> None:
        torch.manual_seed(0)
        self.xyz, self.features = surface_cloud(count), torch.rand(CHANNELS, SIZE, SIZE)
        self.aggregator = SphereAggregator(descriptor_dim=CHANNELS, m=BASIS).requires_grad_(False)
        self.views = [self.view(0.26 * k, torch.rand(count) < SHARE) for k in range(VIEWS)]

    @staticmethod
    def view(azimuth: float, visible: Tensor) -> View:
        """A view with the given visibility mask."""
        return View(camera(SIZE, azimuth), visible, visible.nonzero()[:, 0])


class Ours:
    """This project: sums of the visible points."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs, self.count = inputs, len(inputs.xyz)
        self.sums = SceneSums(self.count, inputs.aggregator, "cpu")

    def update(self, view: View) -> None:
        """Accumulates a view."""

        def observe(points: Tensor) -> Tensor:
            xyz = self.inputs.xyz[points]
            sampled = sample_features(self.inputs.features, xyz, view.camera, PixelConvention.AUTHORS)
            looked = PointDirections(xyz - view.camera.centers(), view.camera.R[:, :, 2])
            return self.inputs.aggregator.observe(sampled, sampled.new_ones(len(sampled)), looked)

        self.sums.add_view(view.points, observe)

    def solve(self) -> Tensor:
        """Mean and beta of every point."""
        coefficients = torch.empty(self.count, self.inputs.aggregator.coefficients)
        self.sums.solve_into(coefficients)
        return coefficients

    def bytes_used(self) -> int:
        """Bytes of the sums."""
        return self.sums.bytes_used()

    def bytes_kept(self) -> int:
        """Bytes needed to render."""
        return self.solve().nbytes


class Dense:
    """Dense baseline: every operation on all points, without in-place updates."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs, count = inputs, len(inputs.xyz)
        self.layers = [(layer.weight, layer.bias) for layer in inputs.aggregator.mlp if hasattr(layer, "weight")]
        self.alpha = torch.ones(BASIS)
        self.seen, self.a, self.y = torch.zeros(count, 1), torch.zeros(count, BASIS), torch.zeros(count, CHANNELS)
        self.gram, self.crossed = torch.zeros(count, BASIS * BASIS), torch.zeros(count, BASIS * CHANNELS)

    def update(self, view: View) -> None:
        """Accumulates a view."""
        xyz, R, T = self.inputs.xyz, view.camera.R[0], view.camera.T[0]
        focal, half = view.camera.focal_length[0] / ((SIZE - 1) / 2), SIZE / 2
        shift = (half - view.camera.principal_point[0]) / ((SIZE - 1) / 2)
        cam = xyz @ R + T
        xy = (focal * cam[:, :2] + shift * cam[:, 2:]) / (cam[:, 2:] + 1e-7)
        y = F.grid_sample(self.inputs.features[None], -xy[None, None], align_corners=False)[0, :, 0].t()
        offset = xyz + R @ T
        direction = offset / (offset.norm(dim=1, keepdim=True) + 1e-7)
        phase = (direction[:, :, None] * (torch.pi / 2 * torch.tensor([1.0, 2.0, 4.0]))).flatten(1)
        a = torch.cat([phase.sin(), phase.cos()], 1)
        for k, (weight, bias) in enumerate(self.layers):
            a = F.linear(F.leaky_relu(a) if k else a, weight, bias)
        mask = view.visible[:, None].float()
        a, y = a * mask, y * mask
        self.seen, self.a, self.y = self.seen + mask, self.a + a, self.y + y
        self.gram = self.gram + (a[:, :, None] * a[:, None]).flatten(1)
        self.crossed = self.crossed + (a[:, :, None] * y[:, None]).flatten(1)

    def solve(self, cholesky: bool = False) -> Tensor:
        """Mean and beta of every point, by the inverse or by Cholesky decomposition."""
        seen = self.seen.clamp_min(1.0)
        self.mean = self.y / seen
        left = (self.gram.view(-1, BASIS, BASIS) + self.alpha.diag()) / seen[:, :, None]
        right = (self.crossed.view(-1, BASIS, CHANNELS) - self.a[:, :, None] * self.mean[:, None]) / seen[:, :, None]
        self.beta = torch.cholesky_solve(right, torch.linalg.cholesky_ex(left)[0]) if cholesky else torch.inverse(left) @ right
        return torch.cat([self.mean, self.beta.flatten(1)], 1)

    def bytes_used(self) -> int:
        """Bytes of the sums."""
        return sum(t.nbytes for t in (self.seen, self.a, self.y, self.gram, self.crossed))

    def bytes_kept(self) -> int:
        """Bytes needed to render: the sums are kept as well."""
        return self.bytes_used() + self.mean.nbytes + self.beta.nbytes


def compare(count: int) -> dict[str, float]:
    """Largest difference of the coefficients of visible points, relative to the largest coefficient."""
    inputs = Inputs(count)
    ours, dense = Ours(inputs), Dense(inputs)
    for view in inputs.views[:3]:
        ours.update(view)
        dense.update(view)
    seen = dense.seen[:, 0] > 0
    found, expected = ours.solve(), dense.solve()[seen]
    if len(ours.sums) != seen.sum() or found[~seen].any():
        sys.exit("the visible points differ")
    return {"seen": int(seen.sum()), "worst": ((found[seen] - expected).abs().max() / expected.abs().max()).item()}


def _memory_mib(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def timed(make: type[Ours] | type[Dense], count: int, repeats: int) -> dict[str, float]:
    """Times, peak memory and state sizes of each phase."""
    inputs, result = Inputs(count), {}
    base = _memory_mib("VmRSS")

    def phase(name: str, work: Callable[[], object]) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        result[f"{name} best"], result[f"{name} median"] = best_and_median_ms(work, repeats)
        result[f"{name} peak"] = _memory_mib("VmHWM") - base

    phase("first view", lambda: make(inputs).update(inputs.views[0]))
    state = make(inputs)
    state.update(inputs.views[0])
    result["state, one view"] = state.bytes_used() / 2**20
    for view in inputs.views[1:]:
        state.update(view)
    phase("another view", lambda: state.update(inputs.views[0]))
    state.update(inputs.view(2.5, torch.ones(count, dtype=torch.bool)))
    result["state, all seen"] = state.bytes_used() / 2**20
    phase("solve", state.solve)
    result["kept to render"] = state.bytes_kept() / 2**20
    if isinstance(state, Dense):
        phase("library Cholesky", lambda: state.solve(cholesky=True))
    return result


def together(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Best of the best times, medians of everything else."""
    return {name: (min if name.endswith(" best") else statistics.median)(r[name] for r in rounds) for name in rounds[0]}


def main() -> None:
    """Prints a table per number of points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, nargs="+", default=[100_000, 1_000_000, 4_000_000])
    parser.add_argument("--repeats", type=int, default=3, help="repeats per process")
    parser.add_argument("--rounds", type=int, default=3, help="processes per implementation")
    options = parser.parse_args()
    print(f"{machine()}\n{BASIS} basis functions, {CHANNELS} channels, {SHARE:.0%} of the points seen by a view, feature map {SIZE}x{SIZE}")
    for count in options.points:
        same = in_process(lambda count=count: compare(count))
        print(f"\n{count} points; compared at the {same['seen']} that three views see: relative difference {same['worst']:.1e}")
        if same["worst"] > 1e-4:
            sys.exit("the coefficients differ")
        rounds: dict[type, list[dict[str, float]]] = {Ours: [], Dense: []}
        for _ in range(options.rounds):  # alternately, since the load of the machine varies
            for form, measured in rounds.items():
                measured.append(in_process(lambda form=form, count=count: timed(form, count, options.repeats)))
        ours, dense = (together(measured) for measured in rounds.values())
        print(f"{'ms best / median, peak MiB':26s} {'dense':>26s} {'this project':>26s}   dense / this: best, median, peak")
        for name in ("first view", "another view", "solve", "library Cholesky"):
            mine = name if name in ("first view", "another view") else "solve"
            left, right = ([r[f"{n} {k}"] for k in ("best", "median", "peak")] for r, n in ((dense, name), (ours, mine)))
            ratios = "".join(f"{a / b:7.1f}" for a, b in zip(left, right, strict=True))
            print(f"{name:26s} " + " ".join(f"{a:8.1f} /{b:8.1f} {c:6.0f}" for a, b, c in (left, right)) + f"   {ratios}")
        for name in ("state, one view", "state, all seen", "kept to render"):
            print(f"{name + ', MiB':26s} {dense[name]:26.0f} {ours[name]:26.0f}   {dense[name] / ours[name]:7.2f}")


if __name__ == "__main__":
    main()
