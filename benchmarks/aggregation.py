"""Aggregation of NPBG++ against a dense baseline: update by one view, solve, and state; results are compared before timing.

The baseline keeps sums of every point, as the authors' code does: every view samples, evaluates the basis and accumulates at all points, masked by visibility,
and the solve inverts a matrix per point. It shares no code with the package. Both are timed in turn in one process; peak memory is measured in one process each
and excludes the inputs (points, one feature map, visibility). Run: ``python benchmarks/aggregation.py [--points 100000 1000000 4000000]``.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from measure import camera, in_process, in_turn, machine, print_timings, surface_cloud
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixels import PixelConvention
from npbgpp.methods.npbgpp import SceneSums
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

        def look(points: Tensor) -> tuple[Tensor, PointDirections]:
            xyz = self.inputs.xyz[points]
            sampled = sample_features(self.inputs.features, xyz, view.camera, PixelConvention.AUTHORS)
            return sampled, PointDirections(xyz - view.camera.centers(), view.camera.R[:, :, 2])

        self.sums.add_view(view.points, look)

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


def peaks(make: type[Ours] | type[Dense], count: int) -> dict[str, float]:
    """Peak memory and state sizes of each phase, MiB."""
    inputs, result = Inputs(count), {}
    base = _memory_mib("VmRSS")

    def phase(name: str, work: Callable[[], object]) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        work()
        result[f"{name}, peak"] = _memory_mib("VmHWM") - base

    state = make(inputs)
    phase("first view", lambda: state.update(inputs.views[0]))
    result["state, one view"] = state.bytes_used() / 2**20
    for view in inputs.views[1:]:
        state.update(view)
    phase("another view", lambda: state.update(inputs.views[0]))
    state.update(inputs.view(2.5, torch.ones(count, dtype=torch.bool)))
    result["state, all seen"] = state.bytes_used() / 2**20
    phase("solve", state.solve)
    result["kept to render"] = state.bytes_kept() / 2**20
    return result


def speed(count: int, repeats: int) -> dict[str, float]:
    """Prints the times of both forms, in turn, in this process."""
    inputs = Inputs(count)
    ours, dense = Ours(inputs), Dense(inputs)
    for view in inputs.views:
        ours.update(view)
        dense.update(view)
    print("update by another view")
    print_timings(in_turn({"dense": lambda: dense.update(inputs.views[0]), "this project": lambda: ours.update(inputs.views[0])}, repeats))
    everything = inputs.view(2.5, torch.ones(count, dtype=torch.bool))
    ours.update(everything)
    dense.update(everything)
    print("solve, all points seen")
    works = {"dense, inverse": dense.solve, "dense, library Cholesky": lambda: dense.solve(cholesky=True), "this project": ours.solve}
    print_timings(in_turn(works, repeats))
    return {}


def main() -> None:
    """Prints tables per number of points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, nargs="+", default=[100_000, 1_000_000, 4_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{machine()}\n{BASIS} basis functions, {CHANNELS} channels, {SHARE:.0%} of the points seen by a view, feature map {SIZE}x{SIZE}")
    for count in options.points:
        same = in_process(lambda count=count: compare(count))
        print(f"\n{count} points; compared at the {same['seen']} that three views see: relative difference {same['worst']:.1e}")
        if same["worst"] > 1e-4:
            sys.exit("the coefficients differ")
        sys.stdout.flush()
        in_process(lambda count=count: speed(count, options.repeats))
        ours, dense = (in_process(lambda form=form, count=count: peaks(form, count)) for form in (Ours, Dense))
        print(f"{'MiB':28s} {'dense':>12s} {'this project':>12s}   dense / this")
        for name in dense:
            if name != "peak_mib":
                print(f"{name:28s} {dense[name]:12.0f} {ours[name]:12.0f}   {dense[name] / ours[name]:7.2f}")


if __name__ == "__main__":
    main()
