"""The parameters of a scene of gaussians, and their optimizer.

Symbols: n gaussians, k coefficients of spherical harmonics, c channels of a colour or descriptor.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from npbgpp.geometry import Cameras, GaussianCloud
from npbgpp.kernels.adam import adam_rows
from npbgpp.kernels.gaussians import GaussianImage, SplattingSettings, render_gaussians

GAUSSIAN_FIELDS = ("means", "log_scales", "quaternions", "opacity_logits", "sh")
BETAS, EPSILON = (0.9, 0.999), 1e-15  # of Adam, as in the code of 3D Gaussian Splatting


class GaussianModel(nn.Module):
    """n gaussians as parameters; none before ``replace``.

    Args:
        sh_degree: of the coefficients.
        channels: c.

    Attributes:
        active_degree: degree up to which coefficients are used so far.
        seen: gaussians that some training view has shown since the last relocation.
    """

    means: nn.Parameter
    log_scales: nn.Parameter
    quaternions: nn.Parameter
    opacity_logits: nn.Parameter
    sh: nn.Parameter
    active_degree: Int[Tensor, ""]
    seen: Bool[Tensor, " n"]

    def __init__(self, sh_degree: int, channels: int = 3) -> None:
        super().__init__()
        self.sh_degree, self.channels = sh_degree, channels
        self.register_buffer("active_degree", torch.zeros((), dtype=torch.int64))
        self.resize(0)

    def __len__(self) -> int:
        return self.means.shape[0]

    def resize(self, count: int) -> None:
        """New parameters for so many gaussians, to be filled by ``load_state_dict``."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(count, *shape, device=self.active_degree.device)

        self.replace(GaussianCloud(zeros(3), zeros(3), zeros(4), zeros(), zeros((self.sh_degree + 1) ** 2, self.channels)))

    def replace(self, cloud: GaussianCloud) -> None:
        """Takes over gaussians, on the device of the model; coefficients of higher degree than those of the cloud begin at 0."""
        device = self.active_degree.device
        lacking = (self.sh_degree + 1) ** 2 - cloud.sh.shape[1]
        sh = torch.cat([cloud.sh, cloud.sh.new_zeros(len(cloud), lacking, self.channels)], 1)
        for name, value in (cloud.__dict__ | {"sh": sh}).items():
            setattr(self, name, nn.Parameter(value.detach().to(device).contiguous()))
        self.register_buffer("seen", torch.zeros(len(cloud), dtype=torch.bool, device=device))

    def cloud(self) -> GaussianCloud:
        """The gaussians, detached, on the CPU, with the coefficients in use."""
        values = {name: getattr(self, name).detach().cpu() for name in GAUSSIAN_FIELDS}
        return GaussianCloud(**values)

    def opacity(self) -> Float[Tensor, " n"]:
        """Opacities, without gradient."""
        return self.opacity_logits.detach().sigmoid()

    def render(
        self,
        camera: Cameras,
        degree: int,
        background: Float[Tensor, " c"] | Float[Tensor, "c h w"] | None,
        settings: SplattingSettings,
        means: Float[Tensor, "n 3"] | None = None,
        rgb: bool = True,
    ) -> GaussianImage:
        """Renders with one camera; see ``render_gaussians``. ``means`` replace those of the model."""
        return render_gaussians(
            self.means if means is None else means,
            self.log_scales,
            self.quaternions,
            self.opacity_logits,
            self.sh,
            camera,
            sh_degree=degree,
            background=background,
            settings=settings,
            rgb=rgb,
        )


class GaussianAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba, ICLR 2015) that steps only some rows of the parameters of gaussians; moments of other rows stay as they are.

    Each group has the keys ``params`` (one parameter), ``name``, ``lr``, and ``rows``: whether rows are gaussians; groups without are stepped whole. The
    first coefficients of the group ``sh`` have the rate ``lr * first``, with a key ``first``.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "rows": False})
        for group in self.param_groups:
            (parameter,) = group["params"]
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.int64),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, rows: Bool[Tensor, " n"] | None = None) -> None:  # type: ignore[override]
        """Steps the rows of gaussians that are set in ``rows`` (None: all), and the other groups.

        Args:
            closure: run first, as Lightning asks for.
            rows: the gaussians to step.
        """
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            (parameter,) = group["params"]
            if parameter.grad is None or group["lr"] == 0:
                continue
            state = self.state[parameter]
            state["step"] += 1
            first = parameter[:, 0].clone() if "first" in group else None
            chosen = rows if group["rows"] and rows is not None else torch.ones(len(parameter), dtype=torch.bool, device=parameter.device)
            adam_rows(
                parameter,
                parameter.grad,
                state["exp_avg"],
                state["exp_avg_sq"],
                chosen,
                lr=group["lr"],
                step=int(state["step"]),
                betas=BETAS,
                eps=EPSILON,
            )
            if first is not None:  # Adam is linear in the rate
                parameter[:, 0] = first + group["first"] * (parameter[:, 0] - first)

    def gaussian_tensors(self) -> list[Tensor]:
        """Parameters of gaussians and their moments."""
        found: list[Tensor] = []
        for group in self.param_groups:
            if group["rows"]:
                (parameter,) = group["params"]
                found += [parameter.data, self.state[parameter]["exp_avg"], self.state[parameter]["exp_avg_sq"]]
        return found

    def clear_moments(self, index: Int[Tensor, " m"]) -> None:
        """Sets the moments of some gaussians to 0."""
        for group in self.param_groups:
            if group["rows"]:
                (parameter,) = group["params"]
                for name in ("exp_avg", "exp_avg_sq"):
                    self.state[parameter][name][index] = 0
