"""Comparison of a renderer of 3D Gaussians with the reference, on the device where it is to be used."""

from collections.abc import Callable

import torch
from torch import Tensor

from npbgpp.geometry import Cameras
from npbgpp.kernels.gaussians.reference import render_reference
from npbgpp.kernels.gaussians.types import GaussianImage, SplattingSettings


def difference_from_reference(render: Callable[..., GaussianImage], device: torch.device) -> str | None:
    """Compares values and gradients of a few gaussians, some of them outside of the image.

    Args:
        render: takes means, log scales, quaternions, opacity logits, harmonics, background, camera, degree, settings, rgb; see ``render_gaussians``.
        device: where to render.

    Returns:
        What differs, None if nothing does.
    """
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device)

    settings = SplattingSettings(dilation=0.3, antialiased=True, near=0.01)
    intrinsics = (torch.tensor([[50.0, 60.0]]), torch.tensor([[20.0, 25.0]]))
    camera = Cameras(torch.eye(3)[None], torch.tensor([[0.1, -0.1, 2.0]]), *intrinsics, (45, 37)).to(device)
    for channels, rgb in ((3, True), (8, False)):
        leaves = [
            normal(300, 3) * 0.8,
            normal(300, 3) * 0.3 - 2,
            normal(300, 4),
            normal(300),
            normal(300, 16, channels),
            normal(channels, 1, 1),
        ]
        upstream = [normal(c, 45, 37) for c in (channels, 1, 1)]
        results = []
        for is_reference in (False, True):
            tensors = [t.clone().requires_grad_() for t in leaves]
            with torch.enable_grad():
                if is_reference:
                    means, log_scales, quaternions, logits, sh, background = tensors
                    found = render_reference(means, log_scales, quaternions, logits, sh, camera, 3, background, settings, rgb)
                else:
                    found = render(*tensors, camera, 3, settings, rgb)
                values = [found.image, found.alpha, found.depth]
                torch.autograd.backward(values, upstream)
            results.append([*(v.detach() for v in values), *(t.grad for t in tensors)])
        for number, (one, other) in enumerate(zip(*results, strict=True)):
            # alphas on either side of 1/255 by rounding change a pixel by that much
            if not (one - other).abs().mean() <= 1e-3 * other.abs().mean():
                return f"output {number} with {channels} channels differs from the reference"
    return None
