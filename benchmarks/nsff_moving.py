"""Evaluation of a trained NSFF on a moving scene: held-out views, motion masks and optical flow, with trivial baselines.

Make the scene (``python example/make_moving_scene.py --out data/monocular/hop``), train (``python train_net.py experiment=nsff_quick datasets.scene_name=hop
datasets.data_root=data/monocular``), then run: ``python benchmarks/nsff_moving.py experiments/nsff_hop [overrides of the run's config]``.

Test views must be photos of other cameras, with masks. The optical flow of the frames was used in training, so its error measures
how well the scene flow explains it, not generalisation.
"""

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from measure import machine
from npbgpp.data.images import read_photo
from npbgpp.data.motion_maps import read_static, read_uv
from npbgpp.engine.run import build_run, evaluation_of, run_config
from npbgpp.methods.nsff.system import NSFF


@dataclass
class Overlap:
    """Intersection over union of motion masks."""

    both: int = 0
    either: int = 0

    def add(self, found: Tensor, expected: Tensor) -> None:
        """Adds two masks."""
        self.both += int((found & expected).sum())
        self.either += int((found | expected).sum())

    def share(self) -> float:
        """Intersection over union."""
        return self.both / max(1, self.either)


@dataclass
class Errors:
    """Errors of all pixels and of moving pixels."""

    everywhere: list[Tensor] = field(default_factory=list)
    moving: list[Tensor] = field(default_factory=list)

    def add(self, error: Tensor, moving: Tensor) -> None:
        """Adds (h, w) errors."""
        self.everywhere.append(error.flatten())
        self.moving.append(error[moving])

    def means(self) -> tuple[float, float]:
        """Means of (all pixels, moving pixels)."""
        return torch.cat(self.everywhere).mean().item(), torch.cat(self.moving).mean().item()


def decibels(mean_square: float) -> float:
    """PSNR of all pixels together."""
    return -10 * torch.log10(torch.tensor(max(mean_square, 1e-10))).item()


def photo_of(view) -> Tensor:
    """(3, h, w) colours."""
    return read_photo(view).image.float() / 255


@torch.no_grad()
def main() -> None:
    """Prints one line per quantity."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--checkpoint", default="last", help="name of a file in the checkpoints of the run")
    parser.add_argument("--every", type=int, default=1, help="use every n-th view")
    options, overrides = parser.parse_known_args()
    config, search_paths = run_config(options.run.resolve())
    scene_name = evaluation_of(config, options.run.resolve(), options.checkpoint, None, overrides)
    parts = build_run(config, search_paths, needs_test_views=False)
    system, scene = parts.system.eval(), parts.data.scenes[scene_name]
    assert isinstance(system, NSFF), "expected a run of system=nsff"
    renderer, frames = system.renderer(), scene.frames
    print(machine())

    overlap, square, copied = Overlap(), Errors(), Errors()
    tested = [scene.views[i] for i in scene.splits["test"]][:: options.every]
    for view in tested:
        moving, photo, size = ~read_static(view), photo_of(view), view.camera.image_size
        outputs = renderer.render(view.camera, view.time_step)
        overlap.add(outputs.dynamic_alpha.view(size) > 0.5, moving)
        square.add(((renderer.colours(outputs, "full").T.view(3, *size) - photo) ** 2).mean(0), moving)
        copied.add(((photo_of(frames[view.time_step]) - photo) ** 2).mean(0), moving)

    own, flow, rigid, still, share = Overlap(), Errors(), Errors(), Errors(), Overlap()
    watched = frames[: -1 : options.every]
    for view in watched:
        k = view.time_step
        moving, known = ~read_static(view), read_uv(view, True)
        outputs = renderer.render(view.camera, k)
        own.add(outputs.dynamic_alpha.view(view.camera.image_size) > 0.5, moving)
        share.add(torch.ones_like(moving), moving)
        rays, _ = renderer.rays(view.camera)
        standing = replace(outputs, forward=rays.origins + outputs.depth[:, None] * rays.directions)
        for errors, seen in ((flow, outputs), (rigid, standing)):
            errors.add((renderer.optical_flow(seen, k, True) - known).norm(dim=-1), moving)
        still.add(known.norm(dim=-1), moving)

    print(f"{len(tested)} held-out views, {len(watched)} frames; all pixels / moving pixels")
    for name, errors in (("NSFF", square), ("frame of that time step", copied)):
        everywhere, there = errors.means()
        print(f"PSNR of held-out views, {name:22s} {decibels(everywhere):6.2f} / {decibels(there):6.2f} dB")
    for name, errors in (("NSFF", flow), ("only the camera moves", rigid), ("no flow", still)):
        everywhere, there = errors.means()
        print(f"end-point error of flow, {name:21s} {everywhere:6.2f} / {there:6.2f} px")
    print(f"motion masks, intersection over union: held-out views {overlap.share():.3f}, frames {own.share():.3f}")
    print(f"everything moving {share.share():.3f}, nothing moving 0")


if __name__ == "__main__":
    main()
