"""Image metrics: PSNR, SSIM and LPIPS of RGB images, of moving pixels, and of images with a matte.

Symbols: images are RGB, (b, 3, h, w), in [0, 1]. All scores are per image.
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
from torchmetrics.functional.image import peak_signal_noise_ratio

from npbgpp.errors import InputError
from npbgpp.losses import SSIM_MIN_SIDE, ssim, ssim_map
from npbgpp.nets import find_backbone, read_backbone

PSNR_CAP_DB = 100.0
"""Upper limit of PSNR, reported for equal images (JSON has no infinity): a root mean square error of 1e-5."""

LPIPS_MIN_SIDE = 16
"""Shortest image side for LPIPS, pixels: four poolings halve it."""


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image: `psnr` in dB (at most `PSNR_CAP_DB`), `ssim` in [-1, 1], `lpips` from 0 (equal images); None without the backbone."""

    psnr: float
    ssim: float
    lpips: float | None


@dataclass(frozen=True)
class MetricProtocol:
    """Description of the metrics, stored with the scores; `margin` in pixels."""

    psnr: str
    ssim: str
    lpips: str
    margin: int
    range: str


class ImageMetrics:
    """PSNR, SSIM and LPIPS of image pairs, computed on the device of the renderings.

    `image_margin` pixels are cropped from every side of both images, and the rendering is clamped to [0, 1]. Then per image:

    * PSNR: -10 log10(MSE), at most `PSNR_CAP_DB`.
    * SSIM: `npbgpp.losses.ssim` with data range 1. The released NPBG++ took the data range from the batch and excluded a border of 5 pixels, so its numbers
      differ slightly.
    * LPIPS: Zhang et al. 2018, version 0.1 on VGG-16; None without the weights of VGG-16, `lpips_status` has the reason.

    Not an `nn.Module`, so that the weights of LPIPS stay out of checkpoints.
    """

    def __init__(self, lpips_backbone: str | Path | None = None, image_margin: int = 0) -> None:
        """Load the LPIPS backbone if its weights are found.

        Args:
            lpips_backbone: weight file of VGG-16; None searches the torch hub cache, and LPIPS is not available if there is none.
            image_margin: pixels cropped from each side.

        Raises:
            InputError: a negative margin, a given backbone file that does not exist, or a file with other weights.
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
        """Description of these metrics."""
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
            InputError: too few pixels inside the margin, or values that are not finite.
        """
        rendering, target = self._prepare(rendering, "rendering").clamp(0, 1), self._prepare(target.to(rendering.device), "target")
        psnr = peak_signal_noise_ratio(rendering, target, data_range=1.0, dim=(1, 2, 3), reduction="none").clamp(max=PSNR_CAP_DB)
        distances: Sequence[float | None] = [None] * len(rendering)
        if self._lpips is not None:
            try:
                distances = _lpips_distances(self._lpips, rendering.float(), target.float())
            except torch.OutOfMemoryError:  # some kilobytes per pixel
                distances = _lpips_distances(self._lpips, rendering.float().cpu(), target.float().cpu())
        return tuple(map(ImageScores, psnr.tolist(), ssim(rendering, target).tolist(), distances))

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
        # CUDA may round float32 convolutions to TF32, too coarse for the variances in SSIM; on a CPU float64 takes 25 times as long
        return inner.to(torch.float64 if inner.device.type == "cuda" else torch.float32)


def _lpips_distances(network: lpips.LPIPS, rendering: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> list[float]:
    """LPIPS of each pair in float32, without autocast and TF32."""
    with torch.inference_mode(False):  # parameters moved in inference mode could not be moved again outside of it
        network.to(rendering.device)
    with torch.autocast(rendering.device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return network(rendering, target, normalize=True).flatten().tolist()


def _load_lpips(backbone: Path) -> lpips.LPIPS:
    # on the meta device: allocates no random weights and draws no random numbers
    with torch.device("meta"), warnings.catch_warnings():
        # lpips calls torchvision with deprecated arguments
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    heads = torch.load(Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth", map_location="cpu", weights_only=True)
    features = read_backbone(backbone, "vgg16")
    # keys of the trunk are sliceS.N.weight with N counted across the slices
    trunk = {f"net.{key}": features[key.partition(".")[2]] for key in network.net.state_dict()}
    # not strict: the heads are registered twice in the network but stored once
    network.load_state_dict({**trunk, **heads}, strict=False, assign=True)
    assert not any(tensor.is_meta for tensor in network.state_dict().values())
    return network.requires_grad_(False).eval()


@dataclass(frozen=True)
class MovingScores:
    """Scores of one image of a video: `psnr_dynamic` (dB) and `ssim_dynamic` of the moving pixels, None without any; `ssim_legacy` is (1 + SSIM) / 2 of the
    whole image, the SSIM of nsff_pl."""

    psnr_dynamic: float | None
    ssim_dynamic: float | None
    ssim_legacy: float


@torch.no_grad()
def moving_scores(rendering: Float[Tensor, "3 h w"], target: Float[Tensor, "3 h w"], moving: Bool[Tensor, "h w"]) -> MovingScores:
    """Scores of the moving pixels; the SSIM windows extend beyond them.

    Raises:
        InputError: an image side shorter than `SSIM_MIN_SIDE`.
    """
    similarity = ssim_map(rendering.clamp(0, 1)[None], target[None])[0]
    whole_image = similarity.mean().item()
    if not moving.any():
        return MovingScores(None, None, (1 + whole_image) / 2)
    error = ((rendering.clamp(0, 1) - target) ** 2)[:, moving].double().mean()
    return MovingScores(_psnr(error), similarity[:, moving].mean().item(), (1 + whole_image) / 2)


@torch.no_grad()
def colour_corrected_psnr(metrics: ImageMetrics, rendering: Float[Tensor, "3 h w"], target: Float[Tensor, "3 h w"]) -> float:
    """PSNR in dB after the affine change of the colours of the rendering that fits best, for photos of changing exposure and white balance.

    The change (3x4) is the least-squares solution over the pixels inside the margin of ``metrics``; corrected colours are clamped to [0, 1]. Known as
    ``cc_psnr``, for example in gsplat.
    """
    margin = metrics.protocol().margin
    inner = (..., slice(margin, rendering.shape[1] - margin), slice(margin, rendering.shape[2] - margin))
    colours, wanted = (image[inner].double().cpu().clamp(0, 1).flatten(1).T for image in (rendering, target))
    colours = torch.cat([colours, colours.new_ones(len(colours), 1)], 1)
    change = torch.linalg.lstsq(colours, wanted, driver="gelsd").solution  # also where an image of one colour leaves it undetermined
    return _psnr(((colours @ change).clamp(0, 1) - wanted).square().mean())


def _psnr(mse: Float[Tensor, ""]) -> float:
    return min(PSNR_CAP_DB, -10 * math.log10(max(mse.item(), 1e-300)))


BACKGROUNDS = {"black": (0.0, 0.0, 0.0), "grey": (0.5, 0.5, 0.5), "white": (1.0, 1.0, 1.0)}


@dataclass(frozen=True)
class MatteScores:
    """Scores of one RGBA rendering.

    Attributes:
        psnr_rgba: PSNR of the four channels, dB, at most ``PSNR_CAP_DB``.
        matte_mse: mean squared error of the matte.
        matte_sad: sum of absolute differences of the matte, in thousands of pixels, as in matting benchmarks.
        over: scores of the colours composited over each of ``BACKGROUNDS``.
    """

    psnr_rgba: float
    matte_mse: float
    matte_sad: float
    over: dict[str, ImageScores]


def composite_over(rgba: Float[Tensor, "*b 4 h w"], background: tuple[float, float, float]) -> Float[Tensor, "*b 3 h w"]:
    """Composites premultiplied RGBA images over a background colour."""
    colour = rgba.new_tensor(background)[:, None, None]
    return rgba[..., :3, :, :] + (1 - rgba[..., 3:, :, :]) * colour


@torch.no_grad()
def matte_scores(metrics: ImageMetrics, rendering: Float[Tensor, "4 h w"], target: Float[Tensor, "4 h w"]) -> MatteScores:
    """Scores of one premultiplied rendering, clamped to [0, 1], inside the margin of ``metrics``."""
    margin = metrics.protocol().margin
    rendering, target = (image.double().clamp(0, 1) for image in (rendering, target))
    inner = (..., slice(margin, rendering.shape[1] - margin), slice(margin, rendering.shape[2] - margin))
    difference = rendering[inner] - target[inner]
    mse = difference.square().mean().clamp_min(10 ** (-PSNR_CAP_DB / 10))
    over = {}
    for name, colour in BACKGROUNDS.items():
        (over[name],) = metrics(composite_over(rendering, colour)[None].float(), composite_over(target, colour)[None].float())
    return MatteScores(
        psnr_rgba=float(-10 * torch.log10(mse)),
        matte_mse=float(difference[3].square().mean()),
        matte_sad=float(difference[3].abs().sum()) / 1000,
        over=over,
    )
