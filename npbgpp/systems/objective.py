"""The weighted loss of the point-based systems: which terms, with which factors.

``loss_factors`` of the config maps a term to its factor; a factor of 0 switches the term off. Terms: ``vgg_loss``, ``l1_d<k>_loss`` (L1 after downscaling by
k), ``ssim_loss``, ``dimred_loss`` (colours of the preview), ``mask_loss`` and ``m_reg_loss`` (only with masks and a refiner that predicts one),
``rgb_reg_loss`` (NPBG++ only, not with a style). With a style weight the L1 terms give way to ``style_loss`` and
``vgg_loss`` becomes the content term of the style network (spec of the original, NPBG++ code).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.losses import VGGLoss, dice_loss, downscaled_l1, ssim_loss
from npbgpp.paths import Bases
from npbgpp.pretrained import find_backbone

_L1 = re.compile(r"l1_d(\d+)_loss")
_NAMED = ("vgg_loss", "ssim_loss", "dimred_loss", "mask_loss", "m_reg_loss", "rgb_reg_loss")
_WITHOUT_VGG = "system/loss_factors=l1_ssim"


@dataclass(frozen=True)
class ObjectiveSettings:
    """Checked factors (zero ones left out, ``style_loss`` included), the style image, and the file of the VGG network when a term needs it."""

    factors: dict[str, float]
    style_image: Path | None
    vgg: Path | None

    @classmethod
    def from_config(
        cls, factors: Mapping[str, float], style_weight: float, style_img_path: str, vgg_weights: str | None, bases: Bases
    ) -> "ObjectiveSettings":
        """Checks names and finds files. Raises InputError for an unknown term; a missing VGG network is reported when training starts."""
        for name in factors:
            if name not in _NAMED and not _L1.fullmatch(name):
                raise InputError(
                    f"system.loss_factors.{name}: unknown term; known are {', '.join(_NAMED)} and l1_d<k>_loss with a whole number k"
                )
        kept = {name: factor for name, factor in factors.items() if factor != 0}
        style_image = None
        if style_weight > 0:
            kept = {name: factor for name, factor in kept.items() if not _L1.fullmatch(name) and name != "rgb_reg_loss"} | {
                "style_loss": style_weight
            }
            style_image = bases.existing(style_img_path, "system.style_img_path")
        if not kept:
            raise InputError("system.loss_factors: every factor is 0, so nothing would be learned; give at least one term a factor")
        vgg = None if vgg_weights is None else bases.existing(vgg_weights, "system.vgg_weights")
        return cls(kept, style_image, vgg)


class Objective:
    """Computes the unweighted terms. Holds the VGG network outside of the system, so that it never reaches checkpoints.

    Raises:
        InputError: a term needs the VGG network and its weights are not on this machine.
    """

    def __init__(self, settings: ObjectiveSettings) -> None:
        self.factors = settings.factors
        self._vgg: VGGLoss | None = None
        self._grams: tuple[Tensor, ...] = ()
        if "vgg_loss" in self.factors or "style_loss" in self.factors:
            try:
                self._vgg = VGGLoss(find_backbone("vgg19_caffe", settings.vgg))
            except InputError as error:
                raise InputError(f"{error}; or train without it: {_WITHOUT_VGG}") from error
        if settings.style_image is not None:
            assert self._vgg is not None
            self._grams = self._vgg.style_grams(_read_image(settings.style_image))

    def image_terms(
        self, rendered: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"], mask: Float[Tensor, "b 1 h w"] | None
    ) -> dict[str, Float[Tensor, ""]]:
        """Terms that compare images; ``mask`` confines the style."""
        terms: dict[str, Tensor] = {}
        if self._vgg is not None:
            self._vgg.to(rendered.device)
            if "style_loss" in self.factors:
                style = self._vgg.style_terms(rendered, target, tuple(g.to(rendered.device) for g in self._grams), mask)
                terms["style_loss"] = style.style
                if "vgg_loss" in self.factors:
                    terms["vgg_loss"] = style.content
            else:
                terms["vgg_loss"] = self._vgg(rendered, target)
        for name in self.factors:
            if match := _L1.fullmatch(name):
                terms[name] = downscaled_l1(rendered, target, int(match[1]))
        if "ssim_loss" in self.factors:
            terms["ssim_loss"] = ssim_loss(rendered, target)
        return terms

    def mask_terms(
        self, mask: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b 1 h w"], empty_mask: Callable[[], Tensor]
    ) -> dict[str, Float[Tensor, ""]]:
        """Terms on the predicted mask; ``empty_mask`` gives the mask predicted where no point is."""
        terms = {}
        if "mask_loss" in self.factors:
            terms["mask_loss"] = dice_loss(mask, target)
        if "m_reg_loss" in self.factors:
            terms["m_reg_loss"] = empty_mask().mean()
        return terms


def _read_image(path: Path) -> Float[Tensor, "1 3 h w"]:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise InputError(f"system.style_img_path: {path}: expected a readable image, got {error}") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
