"""Settings of NPCR (``conf/system/npcr.yaml``), mattes, and its loss on premultiplied colours."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npbgpp.data import Scene
from npbgpp.errors import InputError
from npbgpp.losses import RGBAPerceptualLoss, ssim_loss
from npbgpp.methods.base import SystemSettings
from npbgpp.nets import find_backbone
from npbgpp.points import MAX_LAYERS


@dataclass(frozen=True)
class RGBALosses:
    """Factors of the terms of the loss; a factor of 0 switches a term off."""

    rgba_mse: float
    rgba_l1: float
    ssim: float
    perceptual: float


@dataclass(frozen=True)
class NPCRRates:
    """Initial learning rates of Adam."""

    network: float
    descriptors: float


@dataclass(frozen=True, kw_only=True)
class NPCRSettings(SystemSettings):
    """Keys of ``conf/system/npcr.yaml`` apart from the network; their defaults and meaning are there."""

    descriptor_dim: int
    use_rgb: bool
    layers: int | dict[str, int]
    near: float | None
    far: float | None
    max_splat: float
    depth_threshold: float
    background: tuple[float, float, float]
    photo_background: tuple[float, float, float] | None
    loss_region: Literal["all", "seen"]
    losses: RGBALosses
    learning_rates: NPCRRates
    weight_decay: float
    warmup_epochs: int
    norms_learn_for: float
    lr_schedule: Literal["constant", "cosine"]
    colour_threshold: float
    refine_weights: tuple[float, float, float, float]
    history_weights: tuple[float, float, float, float, float, float, float]
    max_points: int | None
    descriptors_pretrained_dir: str | None
    descriptors_save_dir: str | None
    overwrite_descriptors: bool
    max_scenes_per_train_epoch: int
    vgg_weights: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(descriptor_dim=1, max_scenes_per_train_epoch=1)
        self._check_layers()
        if self.near is not None and self.far is not None and not self.near < self.far:
            raise InputError(
                f"system.near, system.far: expected near < far, got {self.near:g} and {self.far:g}; points shrink from near to far"
            )
        for key in ("max_splat", "weight_decay", "warmup_epochs", "colour_threshold", "depth_threshold"):
            if not getattr(self, key) >= 0:
                raise InputError(f"system.{key}: expected 0 or more, got {getattr(self, key)}")
        if not 0 <= self.norms_learn_for <= 1:
            raise InputError(f"system.norms_learn_for: expected a fraction of the run, 0 to 1, got {self.norms_learn_for:g}")
        target, blend = self.refine_weights[:2], self.refine_weights[2:]
        for name, weights in (
            ("refine_weights: the first two", target),
            ("refine_weights: the last two", blend),
            ("history_weights", self.history_weights),
        ):
            if min(weights) < 0 or abs(sum(weights) - 1) > 1e-4:
                raise InputError(f"system.{name}: expected weights of 0 or more that add up to 1, got {list(weights)}")
        factors = [getattr(self.losses, field.name) for field in fields(self.losses)]
        if min(factors) < 0 or not any(factors):
            raise InputError(f"system.losses: expected factors of 0 or more, at least one of them positive, got {self.losses}")

    def _check_layers(self) -> None:
        """A schedule maps the first epoch of each number of layers to it, beginning with epoch 0."""
        schedule = self.layers if isinstance(self.layers, dict) else {"0": self.layers}
        if "0" not in schedule or not all(epoch.isdecimal() for epoch in schedule):
            raise InputError(
                f"system.layers: expected a number, or numbers by the epoch they begin with, the first of them 0 (such as {{0: 1, 20: 4}}), got {self.layers}"
            )
        for count in schedule.values():
            if not 1 <= count <= MAX_LAYERS:
                raise InputError(f"system.layers: expected 1 to {MAX_LAYERS} layers, got {count}")

    def layers_at(self, epoch: int) -> int:
        """Number of layers in a training epoch."""
        if isinstance(self.layers, int):
            return self.layers
        return self.layers[str(max(begin for begin in map(int, self.layers) if begin <= epoch))]

    @property
    def most_layers(self) -> int:
        """The largest number of layers of the schedule."""
        return self.layers if isinstance(self.layers, int) else max(self.layers.values())


# ---------------------------------------------------------------- mattes and loss


def require_mattes(scene: Scene) -> None:
    """Raises InputError if a photo has neither a matte nor an alpha channel."""
    without = [view.name for view in scene.views if view.mask is None and not view.alpha_is_mask]
    if without:
        raise InputError(
            f"system=npcr: scene {scene.name} has no mattes: {len(without)} of its {len(scene.views)} photos ({', '.join(without[:3])}) have none, and NPCR "
            "learns opacity from them; add mattes or masks as its layout has them, or choose another system, such as system=npbg"
        )


def is_straight_alpha(scene: Scene) -> bool:
    """Whether the photos have an alpha channel and unmixed colours, rather than colours mixed with their background."""
    return all(view.mask is None for view in scene.views)


def premultiply(
    photo: Float[Tensor, "3 h w"], matte: Float[Tensor, "1 h w"], behind: tuple[float, float, float] | None
) -> Float[Tensor, "4 h w"]:
    """Premultiplied colours and alpha.

    Args:
        photo: straight colours, or colours mixed with ``behind``.
        matte: alpha.
        behind: background of the photo. None: straight colours; if the photo is a mixture after all, its background remains with weight
            matte (1 - matte).
    """
    if behind is None:
        return torch.cat([photo * matte, matte])
    colour = photo - (1 - matte) * photo.new_tensor(behind)[:, None, None]
    return torch.cat([torch.minimum(colour.clamp_min(0), matte), matte])


class RGBALoss:
    """Computes the loss terms. Not a module of the system, so the VGG network is not in checkpoints.

    Args:
        factors: of the terms.
        vgg: file of the VGG network; None looks in the torch hub cache when the perceptual term needs it.

    Raises:
        InputError: the perceptual term has a factor and the weights of its network are missing.
    """

    def __init__(self, factors: RGBALosses, vgg: Path | None) -> None:
        self.factors = factors
        self.perceptual: RGBAPerceptualLoss | None = None
        if factors.perceptual:
            try:
                self.perceptual = RGBAPerceptualLoss(find_backbone("vgg19", vgg))
            except InputError as error:
                raise InputError(f"{error}; or train without it: system.losses={{perceptual: 0, ssim: 0.1}}") from error

    def terms(
        self, rendered: Float[Tensor, "b 4 h w"], target: Float[Tensor, "b 4 h w"], region: Bool[Tensor, "b 1 h w"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Terms by the name of their factor; pixels outside of ``region`` have no error and no gradient."""
        ours = torch.where(region, rendered, target)
        terms = {}
        if self.factors.rgba_mse:
            terms["rgba_mse"] = torch.nn.functional.mse_loss(ours, target)
        if self.factors.rgba_l1:
            terms["rgba_l1"] = torch.nn.functional.l1_loss(ours, target)
        if self.factors.ssim:
            terms["ssim"] = ssim_loss(ours[:, :3], target[:, :3])
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual.to(ours.device)(ours, target)
        return terms

    def total(self, terms: dict[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """Weighted sum of the terms."""
        return torch.stack([getattr(self.factors, name) * value for name, value in terms.items()]).sum()
