"""Image metrics: analytic values and invariances, LPIPS with random weights, mattes, and recordings of the released code."""

import dataclasses
import json
import math
import warnings
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torchvision
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from npbgpp import metrics as metrics_module
from npbgpp.errors import InputError
from npbgpp.losses import ssim, ssim_map
from npbgpp.metrics import BACKGROUNDS, PSNR_CAP_DB, ImageMetrics, colour_corrected_psnr, composite_over, matte_scores, moving_scores

from .pretend_gpu import pretended_gpu


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    return tmp_path / "torch_home" / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random VGG-16 convolutions in half precision, scaled to keep the magnitude of activations."""
    with torch.device("meta"):
        shapes = torchvision.models.vgg16(weights=None).features.state_dict()
    generator = torch.Generator().manual_seed(5)
    state = {}
    for key, tensor in shapes.items():
        scale = math.sqrt(2 / tensor[0].numel()) if tensor.ndim == 4 else 0.1
        state[f"features.{key}"] = (scale * torch.randn(tensor.shape, generator=generator)).half()
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def metrics(trunk_file: Path) -> ImageMetrics:
    return ImageMetrics(lpips_backbone=trunk_file)


# --- PSNR and SSIM ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [0.5, 0.1, 0.01, 1e-4])
def test_psnr_of_a_constant_error(error: float) -> None:
    target = torch.full((1, 3, 12, 12), 0.5)
    (scores,) = ImageMetrics()(target + error, target)
    # float32 rounds 0.5 + 1e-4 by up to 3e-8: 3e-3 dB
    assert scores.psnr == pytest.approx(-20 * math.log10(error), abs=3e-3)


def test_psnr_of_equal_images_is_capped() -> None:
    image = images(1, 3, 12, 12)
    (scores,) = ImageMetrics()(image, image)
    assert scores.psnr == PSNR_CAP_DB == 100
    assert scores.ssim == pytest.approx(1)
    assert json.loads(json.dumps(dataclasses.asdict(scores), allow_nan=False))["lpips"] is None


def test_scores_are_independent_of_the_batch() -> None:
    a, b = images(3, 3, 14, 17), images(3, 3, 14, 17, seed=1)
    b[2] *= 0.1
    together = ImageMetrics()(a, b)
    assert len(together) == 3
    for i, scores in enumerate(together):
        (alone,) = ImageMetrics()(a[i : i + 1], b[i : i + 1])
        assert scores.psnr == pytest.approx(alone.psnr, rel=1e-6)
        assert scores.ssim == pytest.approx(alone.ssim, rel=1e-5)


def test_scores_are_symmetric_and_decrease_with_noise() -> None:
    target, noise = 0.25 + 0.5 * images(1, 3, 16, 16), images(1, 3, 16, 16, seed=1) - 0.5
    (little,), (much,), (swapped,) = (
        ImageMetrics()(*p) for p in ((target + 0.1 * noise, target), (target + 0.3 * noise, target), (target, target + 0.1 * noise))
    )
    assert little.psnr == pytest.approx(swapped.psnr)
    assert little.ssim == pytest.approx(swapped.ssim)
    assert little.psnr - much.psnr == pytest.approx(20 * math.log10(3), rel=1e-4)
    assert little.ssim > much.ssim


def test_rendering_is_clamped() -> None:
    target = torch.cat([torch.zeros(1, 3, 8, 16), torch.ones(1, 3, 8, 16)], dim=2)
    (scores,) = ImageMetrics()(target * 4 - 1.5, target)
    assert scores.psnr == PSNR_CAP_DB


def test_margin_is_cropped_from_every_side() -> None:
    a, b = images(2, 3, 20, 24), images(2, 3, 20, 24, seed=1)
    assert ImageMetrics(image_margin=4)(a, b) == ImageMetrics()(a[..., 4:-4, 4:-4], b[..., 4:-4, 4:-4])
    spoiled = a.clone()
    spoiled[..., :4, :], spoiled[..., -4:, :], spoiled[..., :4], spoiled[..., -4:] = 0, 1, 0, 1
    assert ImageMetrics(image_margin=4)(spoiled, b) == ImageMetrics(image_margin=4)(a, b)


@pytest.mark.parametrize("margin", [8, 10, 11, 100])
def test_too_large_margin_is_refused(margin: int) -> None:
    with pytest.raises(InputError, match=rf"at least 6x6 pixels inside image_margin={margin}, got an image of 20x30"):
        ImageMetrics(image_margin=margin)(images(1, 3, 20, 30), images(1, 3, 20, 30))


def test_negative_margin_and_non_finite_values_are_refused() -> None:
    with pytest.raises(InputError, match=r"image_margin: .* got -1"):
        ImageMetrics(image_margin=-1)
    good, bad = images(1, 3, 8, 8), images(1, 3, 8, 8)
    bad[0, 0, 3, 3], bad[0, 1, 3, 3] = math.nan, math.inf
    with pytest.raises(InputError, match="rendering: expected finite pixel values, got 2 of 192"):
        ImageMetrics()(bad, good)
    with pytest.raises(InputError, match="target: expected finite"):
        ImageMetrics()(good, bad)


def test_protocol() -> None:
    protocol = dataclasses.asdict(ImageMetrics(image_margin=3).protocol())
    assert protocol.keys() == {"psnr", "ssim", "lpips", "margin", "range"}
    assert protocol["margin"] == 3
    assert protocol["ssim"] == "11x11 gaussian, sigma 1.5, range 1"
    assert protocol["lpips"].startswith("not available: vgg16-397923af.pth")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the pretended device would take the place of the GPU for the rest of the process")
def test_scores_are_computed_on_the_device_of_the_renderings(metrics: ImageMetrics) -> None:
    rendering, target = images(2, 3, 32, 40), images(2, 3, 32, 40, seed=1)
    expected = metrics(rendering, target)
    with pretended_gpu() as device:
        found = metrics(rendering.to(device), target)
    for there, here in zip(found, expected, strict=True):
        assert dataclasses.astuple(there) == pytest.approx(dataclasses.astuple(here), rel=1e-5)
    assert metrics(rendering, target) == expected


# --- LPIPS --------------------------------------------------------------------------------------------------------------------------------


def test_lpips_falls_back_to_the_cpu_if_memory_runs_out(metrics: ImageMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = images(1, 3, 32, 32), images(1, 3, 32, 32, seed=1)
    expected, distances, devices = metrics(*pair), metrics_module._lpips_distances, []

    def out_of_memory(network, rendering, target):
        devices.append(rendering.device.type)
        if len(devices) == 1:
            raise torch.OutOfMemoryError
        return distances(network, rendering, target)

    monkeypatch.setattr(metrics_module, "_lpips_distances", out_of_memory)
    assert metrics(*pair) == expected and devices == ["cpu", "cpu"]


def test_lpips_without_backbone_is_none_with_a_reason(empty_cache: Path) -> None:
    metrics = ImageMetrics()
    (scores,) = metrics(images(1, 3, 32, 32), images(1, 3, 32, 32, seed=1))
    assert scores.lpips is None
    assert str(empty_cache) in metrics.lpips_status
    assert "system.lpips_weights=PATH" in metrics.lpips_status


def test_lpips_finds_its_backbone_in_the_cache(empty_cache: Path, trunk_file: Path, metrics: ImageMetrics) -> None:
    empty_cache.mkdir(parents=True)
    (empty_cache / "vgg16-397923af.pth").symlink_to(trunk_file)
    cached = ImageMetrics()
    assert cached.protocol().lpips == "VGG-16 trunk from vgg16-397923af.pth, heads v0.1 of the lpips package"
    pair = images(1, 3, 16, 16), images(1, 3, 16, 16, seed=1)
    assert cached(*pair) == metrics(*pair)


def test_missing_and_other_lpips_backbones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"system\.lpips_weights"):
        ImageMetrics(lpips_backbone=tmp_path / "absent.pth")
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "foreign.pth")
    with pytest.raises(InputError, match=r"foreign\.pth"):
        ImageMetrics(lpips_backbone=tmp_path / "foreign.pth")


def test_lpips_is_silent_and_draws_no_random_numbers(trunk_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = ImageMetrics(lpips_backbone=trunk_file)
        metrics(images(1, 3, 16, 16), images(1, 3, 16, 16, seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


def test_lpips_is_zero_for_equal_images_and_grows_with_noise(metrics: ImageMetrics) -> None:
    target, noise = 0.25 + 0.5 * images(1, 3, 32, 32), images(1, 3, 32, 32, seed=1) - 0.5
    equal, little, much = (metrics(target + scale * noise, target)[0].lpips for scale in (0.0, 0.05, 0.5))
    assert equal == 0
    assert 0 < little < much


def test_lpips_equals_the_package(trunk_file: Path, metrics: ImageMetrics) -> None:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    state = torch.load(trunk_file, weights_only=True)
    slices = (reference.net.slice1, reference.net.slice2, reference.net.slice3, reference.net.slice4, reference.net.slice5)
    convolutions = {name: layer for part in slices for name, layer in part.named_children() if isinstance(layer, torch.nn.Conv2d)}
    assert len(convolutions) == 13
    for name, layer in convolutions.items():
        layer.weight.data.copy_(state[f"features.{name}.weight"])
        layer.bias.data.copy_(state[f"features.{name}.bias"])
    a, b = images(2, 3, 40, 33), images(2, 3, 40, 33, seed=1)
    with torch.no_grad():
        expected = reference(2 * a - 1, 2 * b - 1).flatten().tolist()
    assert [scores.lpips for scores in metrics(a, b)] == pytest.approx(expected, rel=1e-5)


def test_lpips_refuses_small_images(metrics: ImageMetrics) -> None:
    with pytest.raises(InputError, match="at least 16x16 pixels"):
        metrics(images(1, 3, 15, 20), images(1, 3, 15, 20))


def test_scores_ignore_autocast(metrics: ImageMetrics) -> None:
    pair = images(1, 3, 16, 16), images(1, 3, 16, 16, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = metrics(*pair)
    assert mixed == metrics(*pair)


def test_recorded_psnr_and_ssim(shared: Path) -> None:
    recorded = torch.load(shared / "parity" / "j_third_party_semantics.pt", weights_only=True)["metrics"]
    scores = ImageMetrics()(recorded["pred"], recorded["target"])
    torch.testing.assert_close(torch.tensor([s.psnr for s in scores]), recorded["psnr_per_image"], rtol=1e-5, atol=0)
    # the released code takes the data range from the batch and leaves out a border of 5 pixels; scaling the images scales the range
    data_range = max((images.max() - images.min()).item() for images in (recorded["pred"], recorded["target"]))
    inner = ssim_map(recorded["pred"] / data_range, recorded["target"] / data_range)[..., 5:-5, 5:-5]
    assert list(inner.shape) == recorded["ssim_map_shape"]
    torch.testing.assert_close(inner.mean((1, 2, 3)), recorded["ssim_per_image"], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ moving pixels
def test_moving_scores():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, 20, 24, generator=generator)
    moving = torch.zeros(20, 24, dtype=torch.bool)
    moving[4:9, 5:12] = True
    rendered = torch.where(moving, (target + 0.1).clamp(0, 1), target)
    found = moving_scores(rendered, target, moving)
    error = (rendered - target)[:, moving].square().mean().item()
    assert found.psnr_dynamic == pytest.approx(-10 * math.log10(error), abs=1e-4)
    whole = ssim(rendered[None], target[None]).item()
    assert found.ssim_legacy == pytest.approx((1 + whole) / 2, abs=1e-5) and found.ssim_dynamic < whole
    everything = moving_scores(rendered, target, torch.ones_like(moving))
    assert everything.ssim_dynamic == pytest.approx(whole, abs=1e-5)
    assert everything.psnr_dynamic == pytest.approx(ImageMetrics()(rendered[None], target[None])[0].psnr, abs=1e-3)


def test_moving_scores_without_motion_and_of_equal_images():
    image = torch.rand(3, 12, 12)
    still = moving_scores(image, image, torch.zeros(12, 12, dtype=torch.bool))
    assert still.psnr_dynamic is None and still.ssim_dynamic is None and still.ssim_legacy == pytest.approx(1)
    assert moving_scores(image, image, torch.ones(12, 12, dtype=torch.bool)).psnr_dynamic == 100


# ------------------------------------------------------------------ mattes


def premultiplied(seed: int) -> torch.Tensor:
    image = torch.rand(4, 20, 24, generator=torch.Generator().manual_seed(seed))
    return torch.cat([image[:3] * image[3:], image[3:]])


def test_matte_scores_equal_skimage():
    ours, wanted = premultiplied(0), premultiplied(1)
    scores = matte_scores(ImageMetrics(), ours, wanted)
    a, b = (image.double().numpy() for image in (ours, wanted))
    assert scores.psnr_rgba == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1.0), abs=1e-4)
    assert scores.matte_mse == pytest.approx(np.square(a[3] - b[3]).mean(), abs=1e-7)
    assert scores.matte_sad == pytest.approx(np.abs(a[3] - b[3]).sum() / 1000, abs=1e-6)
    assert set(scores.over) == set(BACKGROUNDS)
    for name, colour in BACKGROUNDS.items():
        pictures = [image[:3] + (1 - image[3]) * np.array(colour)[:, None, None] for image in (a, b)]
        assert scores.over[name].psnr == pytest.approx(peak_signal_noise_ratio(pictures[1], pictures[0], data_range=1.0), abs=1e-3)


def test_matte_scores_of_equal_images_and_values_out_of_range():
    image = premultiplied(0)
    scores = matte_scores(ImageMetrics(), image, image)
    assert scores.psnr_rgba == PSNR_CAP_DB and scores.matte_mse == scores.matte_sad == 0
    opaque = torch.ones(4, 20, 24)
    assert matte_scores(ImageMetrics(), opaque + 3.0, opaque) == matte_scores(ImageMetrics(), opaque, opaque)


def test_matte_scores_ignore_the_margin():
    image = premultiplied(0)
    other = image.clone()
    other[:, :2] = other[:, -2:] = 1.0
    other[..., :2] = other[..., -2:] = 0.0
    assert matte_scores(ImageMetrics(image_margin=2), other, image).matte_sad == 0
    assert matte_scores(ImageMetrics(), other, image).matte_sad > 0


def test_composite_over_an_example():
    image = torch.zeros(4, 2, 2)
    image[:, 0] = 1.0
    image[3, 1, 0] = 0.25
    over = composite_over(image, (0.2, 0.4, 0.8))
    assert (over[:, 0] == 1).all() and over[:, 1, 1].tolist() == pytest.approx([0.2, 0.4, 0.8])
    assert over[:, 1, 0].tolist() == pytest.approx([0.15, 0.3, 0.6])
    assert math.isclose(float(composite_over(image[None], (1.0, 1.0, 1.0))[0, 0, 1, 0]), 0.75)


def test_colour_correction_undoes_affine_changes_of_colour_and_nothing_else():
    metrics, generator = ImageMetrics(), torch.Generator().manual_seed(0)
    target = 0.2 + 0.6 * torch.rand(3, 20, 24, generator=generator)
    mixed = torch.einsum("dc,chw->dhw", torch.tensor([[0.8, 0.1, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.7]]), target) + 0.05
    assert colour_corrected_psnr(metrics, mixed, target) > 80
    noisy = (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    plain = float(-10 * torch.log10((noisy - target).square().mean()))
    assert plain <= colour_corrected_psnr(metrics, noisy, target) < plain + 1.5
    assert 5 < colour_corrected_psnr(metrics, torch.full_like(target, 0.5), target) < 20  # one colour
    mixed[:, 0] = 1.0  # a border that does not count
    assert colour_corrected_psnr(metrics, mixed, target) < 30 and colour_corrected_psnr(ImageMetrics(image_margin=1), mixed, target) > 80
