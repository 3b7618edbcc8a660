"""What NPCR learns from: colours weighted by their matte, and the loss on them."""

from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.losses import RGBAPerceptualLoss, ssim_loss
from npbgpp.pretrained import find_backbone
from npbgpp.systems.npcr_settings import RGBALosses


def require_mattes(scene: Scene) -> None:
    """Raises InputError when a photo has neither a matte nor an alpha channel that is one."""
    without = [view.name for view in scene.views if view.mask is None and not view.alpha_is_mask]
    if without:
        raise InputError(
            f"system=npcr: scene {scene.name} has no mattes: {len(without)} of its {len(scene.views)} photos ({', '.join(without[:3])}) have none, and NPCR "
            "learns opacity from them; add mattes or masks as its layout has them, or choose another system, such as system=npbg"
        )


def has_straight_colours(scene: Scene) -> bool:
    """Whether the photos hold colours beside an alpha channel, in place of colours mixed with what is behind."""
    return all(view.mask is None for view in scene.views)


def weighted_by_matte(
    photo: Float[Tensor, "3 h w"], matte: Float[Tensor, "1 h w"], behind: tuple[float, float, float] | None
) -> Float[Tensor, "4 h w"]:
    """Colours weighted by the matte, and the matte.

    Args:
        photo: straight colours, or those mixed with ``behind``.
        matte: opacity.
        behind: what shows through in the photo. None: straight colours; where the photo is a mixture after all, what shows through stays in, weighted by
            matte (1 - matte).
    """
    if behind is None:
        return torch.cat([photo * matte, matte])
    colour = photo - (1 - matte) * photo.new_tensor(behind)[:, None, None]
    return torch.cat([torch.minimum(colour.clamp_min(0), matte), matte])


class RGBAObjective:
    """Computes the terms of the loss. Holds the VGG network outside of the system, so that it never reaches checkpoints.

    Args:
        factors: of the terms.
        vgg: file of the VGG network; None looks in the torch hub cache when the perceptual term needs it.

    Raises:
        InputError: the perceptual term has a factor and the weights of its network are not on this machine.
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
        """Terms by the name of their factor; pixels outside of ``region`` count as right and give no gradient."""
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
        """The weighted sum."""
        return torch.stack([getattr(self.factors, name) * value for name, value in terms.items()]).sum()
