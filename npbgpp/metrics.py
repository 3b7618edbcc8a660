"""Scores of rendered images against photographs: PSNR, SSIM, LPIPS.

Symbols: images are RGB, (b, 3, h, w), in [0, 1]. Scores are per image; averaging is left to whoever collects them.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lpips
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from npbgpp.errors import InputError
from npbgpp.losses import SSIM_MIN_SIDE, ssim, ssim_map
from npbgpp.nets import find_backbone, read_backbone

PSNR_CAP_DB = 100.0
"""PSNR of equal images, and the largest one reported: infinity is no number in JSON. It means a root mean square error of 1e-5."""

LPIPS_MIN_SIDE = 16
"""Shortest image side in pixels for LPIPS: four poolings halve it."""

_ORIGINAL_BORDER = 5


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image: `psnr` in dB (at most `PSNR_CAP_DB`), `ssim` in [-1, 1], `lpips` from 0 (equal), None without its backbone."""

    psnr: float
    ssim: float
    lpips: float | None


@dataclass(frozen=True)
class MetricProtocol:
    """How the scores of a run were computed, in words, to be stored beside them; `margin` in pixels."""

    psnr: str
    ssim: str
    lpips: str
    margin: int
    range: str


class ImageMetrics:
    """PSNR, SSIM and LPIPS of image pairs under one fixed protocol, computed where the renderings are.

    Both images lose `image_margin` pixels on every side, the rendering is clamped to [0, 1]. Then per image:

    * PSNR: -10 log10(MSE), at most `PSNR_CAP_DB`.
    * SSIM: `npbgpp.losses.ssim`, the range is 1 and the whole map counts. The released NPBG++ took the range from the batch, so that the
      score of an image depended on the others, and left out a border; `ssim_original` does that.
    * LPIPS: Zhang et al. 2018, version 0.1 on the VGG-16 trunk. None without the weights of the trunk; `lpips_status` then says why.

    The class is no `nn.Module`, so that the weights of LPIPS stay out of checkpoints.
    """

    def __init__(self, lpips_backbone: str | Path | None = None, image_margin: int = 0) -> None:
        """Load the LPIPS backbone if it is on this machine.

        Args:
            lpips_backbone: weight file of VGG-16; None looks into the torch hub cache, and without a file there LPIPS is not available.
            image_margin: pixels cut from each side before scoring.

        Raises:
            InputError: a negative margin; a given backbone file that does not exist; a backbone file that holds something else.
        """
        if image_margin < 0:
            raise InputError(f"image_margin: expected a number of pixels of at least 0, got {image_margin}")
        self._margin = image_margin
        self._lpips: lpips.LPIPS | None = None
        try:
            path = find_backbone("vgg16", lpips_backbone)
        except InputError as error:
            if lpips_backbone is not None:
                raise
            self.lpips_status = f"not available: {error}"
        else:
            self._lpips = _load_lpips(path)
            self.lpips_status = f"VGG-16 trunk from {path.name}, heads v0.1 of the lpips package"

    def protocol(self) -> MetricProtocol:
        """What these scores mean, for the file that stores them."""
        return MetricProtocol(
            psnr=f"-10 log10(mse), capped at {PSNR_CAP_DB:g} dB",
            ssim="11x11 gaussian, sigma 1.5, range 1",
            lpips=self.lpips_status,
            margin=self._margin,
            range="[0, 1], rendering clamped",
        )

    @torch.no_grad()
    def __call__(self, rendering: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> tuple[ImageScores, ...]:
        """Scores of each pair, in the order of the batch.

        Raises:
            InputError: too few pixels are left inside the margin, or an image holds values that are not finite.
        """
        ours, wanted = self._prepare(rendering, "rendering").clamp(0, 1), self._prepare(target.to(rendering.device), "target")
        psnr = peak_signal_noise_ratio(ours, wanted, data_range=1.0, dim=(1, 2, 3), reduction="none").clamp(max=PSNR_CAP_DB)
        distances: Sequence[float | None] = [None] * len(ours)
        if self._lpips is not None:
            try:
                distances = _distances(self._lpips, ours.float(), wanted.float())
            except torch.OutOfMemoryError:  # some kilobytes per pixel
                distances = _distances(self._lpips, ours.float().cpu(), wanted.float().cpu())
        return tuple(map(ImageScores, psnr.tolist(), ssim(ours, wanted).tolist(), distances))

    def _prepare(self, images: Float[Tensor, "b 3 h w"], name: str) -> Float[Tensor, "b 3 h2 w2"]:
        height, width = images.shape[-2:]
        inner = images[..., self._margin : height - self._margin, self._margin : width - self._margin]
        smallest = SSIM_MIN_SIDE if self._lpips is None else LPIPS_MIN_SIDE
        if min(height, width) - 2 * self._margin < smallest:
            raise InputError(
                f"{name}: expected at least {smallest}x{smallest} pixels inside image_margin={self._margin}, "
                f"got an image of {height}x{width}; lower image_margin or score larger images"
            )
        if bad := int((~inner.isfinite()).sum()):
            raise InputError(
                f"{name}: expected finite pixel values, got {bad} of {inner.numel()} that are not; check the weights and the input"
            )
        # CUDA may round float32 convolutions to TF32, which spoils the variances in SSIM; on a CPU float64 takes 25 times as long.
        return inner.to(torch.float64 if inner.device.type == "cuda" else torch.float32)


def ssim_original(rendering: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """SSIM of each image as the released NPBG++ computed it (torchmetrics 0.5.1), to compare with published numbers.

    Differs from `npbgpp.losses.ssim` twice: the data range is the larger of (max - min of all renderings) and (max - min of all targets) of
    the BATCH, and the map loses a border of 5 px. Where every image of the batch is constant the range is 0 and the result not a number.

    Raises:
        InputError: images of 10 px or less on a side, of which nothing is left.
    """
    height, width = rendering.shape[-2:]
    if min(height, width) <= 2 * _ORIGINAL_BORDER:
        raise InputError(f"ssim_original: expected images larger than 10x10 pixels, got {height}x{width}; use larger images")
    _, similarity = structural_similarity_index_measure(rendering, target, data_range=None, reduction="none", return_full_image=True)
    inner = slice(_ORIGINAL_BORDER, -_ORIGINAL_BORDER)
    return similarity[..., inner, inner].mean(dim=(1, 2, 3))


def _distances(network: lpips.LPIPS, ours: Float[Tensor, "b 3 h w"], wanted: Float[Tensor, "b 3 h w"]) -> list[float]:
    """LPIPS of each pair, in full precision, whatever the device prefers."""
    with torch.inference_mode(False):  # weights that are moved while it lasts could not be moved again afterwards
        network.to(ours.device)
    with torch.autocast(ours.device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return network(ours, wanted, normalize=True).flatten().tolist()


def _load_lpips(backbone: Path) -> lpips.LPIPS:
    # Built on the meta device: a random trunk is never in memory and no random number is drawn.
    with torch.device("meta"), warnings.catch_warnings():
        # lpips calls torchvision with arguments of older versions
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    heads = torch.load(Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth", map_location="cpu", weights_only=True)
    features = read_backbone(backbone, "vgg16")
    # keys of the trunk are sliceS.N.weight, N counts the layers across the slices
    trunk = {f"net.{key}": features[key.partition(".")[2]] for key in network.net.state_dict()}
    # not strict: the heads are registered twice in the network and named once in their file
    network.load_state_dict({**trunk, **heads}, strict=False, assign=True)
    assert not any(tensor.is_meta for tensor in network.state_dict().values())
    return network.requires_grad_(False).eval()


@dataclass(frozen=True)
class MovingScores:
    """Scores of one image of a video: `psnr_dynamic` (dB) and `ssim_dynamic` of the pixels that move, None where none does; `ssim_legacy` is
    (1 + SSIM) / 2 of the whole image, which nsff_pl calls SSIM."""

    psnr_dynamic: float | None
    ssim_dynamic: float | None
    ssim_legacy: float


@torch.no_grad()
def moving_scores(rendering: Float[Tensor, "3 h w"], target: Float[Tensor, "3 h w"], moving: Bool[Tensor, "h w"]) -> MovingScores:
    """Scores of the pixels that move; the windows of their SSIM also show what is around them.

    Raises:
        InputError: an image side that is shorter than `SSIM_MIN_SIDE`.
    """
    similarity = ssim_map(rendering.clamp(0, 1)[None], target[None])[0]
    whole = similarity.mean().item()
    if not moving.any():
        return MovingScores(None, None, (1 + whole) / 2)
    error = ((rendering.clamp(0, 1) - target) ** 2)[:, moving].double().mean()
    psnr = min(PSNR_CAP_DB, -10 * math.log10(max(error.item(), 1e-300)))
    return MovingScores(psnr, similarity[:, moving].mean().item(), (1 + whole) / 2)


# ----------------------------------------------------------------------
# Scores of renderings with a matte: of the four channels, of the matte alone, and of the colours over several backgrounds.


BACKGROUNDS = {"black": (0.0, 0.0, 0.0), "grey": (0.5, 0.5, 0.5), "white": (1.0, 1.0, 1.0)}


@dataclass(frozen=True)
class MatteScores:
    """Scores of one rendering.

    Attributes:
        psnr_rgba: of the four channels together, dB, at most ``PSNR_CAP_DB``.
        matte_mse: mean squared difference of the opacities.
        matte_sad: sum of their absolute differences, in thousands of pixels, as matting benchmarks count it.
        over: scores of the colours over each of ``BACKGROUNDS``.
    """

    psnr_rgba: float
    matte_mse: float
    matte_sad: float
    over: dict[str, ImageScores]


def composite_over(rgba: Float[Tensor, "*b 4 h w"], background: tuple[float, float, float]) -> Float[Tensor, "*b 3 h w"]:
    """Colours with a background behind them."""
    behind = rgba.new_tensor(background)[:, None, None]
    return rgba[..., :3, :, :] + (1 - rgba[..., 3:, :, :]) * behind


@torch.no_grad()
def matte_scores(metrics: ImageMetrics, rendering: Float[Tensor, "4 h w"], target: Float[Tensor, "4 h w"]) -> MatteScores:
    """Scores of one rendering, cut to [0, 1], under the protocol of ``metrics``; pixels in its margin do not count."""
    margin = metrics.protocol().margin
    ours, wanted = (image.double().clamp(0, 1) for image in (rendering, target))
    inner = (..., slice(margin, ours.shape[1] - margin), slice(margin, ours.shape[2] - margin))
    difference = ours[inner] - wanted[inner]
    mse = difference.square().mean().clamp_min(10 ** (-PSNR_CAP_DB / 10))
    over = {}
    for name, colour in BACKGROUNDS.items():
        (over[name],) = metrics(composite_over(ours, colour)[None].float(), composite_over(wanted, colour)[None].float())
    return MatteScores(
        psnr_rgba=float(-10 * torch.log10(mse)),
        matte_mse=float(difference[3].square().mean()),
        matte_sad=float(difference[3].abs().sum()) / 1000,
        over=over,
    )
