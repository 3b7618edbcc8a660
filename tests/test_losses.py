"""Losses: limits, examples, and the VGG losses against a reference with random weights."""

import math
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from npbgpp.errors import InputError
from npbgpp.losses import VGGLoss, dice_loss, dice_score, downscaled_l1, ssim, ssim_loss

VGG19_PLAN = [64, 64, "pool", 128, 128, "pool", 256, 256, 256, 256, "pool", 512, 512, 512, 512, "pool", 512, 512, 512, 512]
CONTENT_LAYERS = [1, 3, 6, 8, 11, 13, 15, 17, 20, 22, 24, 26, 29]
STYLE_LAYERS = [3, 8, 17, 26, 35]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def vgg19_state() -> dict[str, Tensor]:
    """Random VGG-19 convolutions in half precision, scaled to keep the magnitude of activations."""
    generator = torch.Generator().manual_seed(3)
    state, channels, index = {}, 3, 0
    for entry in VGG19_PLAN:
        if isinstance(entry, int):
            state[f"features.{index}.weight"] = (
                torch.randn(entry, channels, 3, 3, generator=generator).mul(math.sqrt(2 / (9 * channels))).half()
            )
            state[f"features.{index}.bias"] = torch.randn(entry, generator=generator).half()
            channels = entry
        index += 2 if isinstance(entry, int) else 1
    return state


@pytest.fixture(scope="module")
def vgg_loss(vgg19_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> VGGLoss:
    path = tmp_path_factory.mktemp("weights") / "vgg19.pth"
    torch.save(vgg19_state, path)
    return VGGLoss(path)


def plain_activations(state: dict[str, Tensor], image: Tensor) -> dict[int, Tensor]:
    """All activations of the network for one image, in float64."""
    mean = torch.tensor([103.939, 116.779, 123.680], dtype=torch.float64)
    x = 255 * image.double() - mean[:, None, None]
    outputs: dict[int, Tensor] = {}
    for entry in VGG19_PLAN:
        index = len(outputs)
        if entry == "pool":
            height, width = x.shape[1] // 2, x.shape[2] // 2
            x = x[:, : 2 * height, : 2 * width].reshape(-1, height, 2, width, 2).mean(dim=(2, 4))
            outputs[index] = x
        else:
            outputs[index] = F.conv2d(x, state[f"features.{index}.weight"].double(), state[f"features.{index}.bias"].double(), padding=1)
            x = outputs[index + 1] = outputs[index].clamp(min=0)
    return outputs


def plain_gram(features: Tensor, mask: Tensor | None = None) -> Tensor:
    channels = features.shape[0]
    pixels = features.reshape(channels, -1)
    if mask is not None:
        small = F.interpolate(mask[None].double(), size=features.shape[1:], mode="bilinear", align_corners=False)
        pixels = pixels[:, small.flatten() > 0.5]
    if pixels.shape[1] == 0:
        return torch.zeros(channels, channels, dtype=torch.float64)
    return sum(torch.outer(pixel, pixel) for pixel in pixels.T) / (channels * pixels.shape[1])


# --- L1 -----------------------------------------------------------------------------------------------------------------------------------


def test_l1_of_factor_1_is_plain_l1() -> None:
    a, b = images(2, 3, 7, 9), images(2, 3, 7, 9, seed=1)
    torch.testing.assert_close(downscaled_l1(a, b, 1), (a - b).abs().mean())


@pytest.mark.parametrize("factor", [2, 4])
def test_l1_of_even_factors_samples_cell_centres(factor: int) -> None:
    a, b = images(2, 3, 8, 16), images(2, 3, 8, 16, seed=1)
    middle = slice(factor // 2 - 1, factor // 2 + 1)
    cells = (a - b).reshape(2, 3, 8 // factor, factor, 16 // factor, factor)[:, :, :, middle, :, middle]
    torch.testing.assert_close(downscaled_l1(a, b, factor), cells.mean(dim=(3, 5)).abs().mean())


def test_l1_of_sizes_that_the_factor_does_not_divide() -> None:
    ramp = torch.arange(7.0).expand(1, 3, 7, 7)
    # 7 columns in 3 cells of 7/3: the centres are at 7/6, 21/6, 35/6 in edge coordinates, 0.5 less as pixel indices
    assert downscaled_l1(ramp, torch.zeros_like(ramp), 2).item() == pytest.approx((7 / 6 + 21 / 6 + 35 / 6) / 3 - 0.5)


def test_l1_is_symmetric_with_finite_gradients() -> None:
    a, b = images(1, 3, 12, 12).requires_grad_(), images(1, 3, 12, 12, seed=1)
    assert downscaled_l1(a, a, 4) == 0
    assert downscaled_l1(a, b, 4) == downscaled_l1(b, a, 4)
    torch.testing.assert_close(downscaled_l1(3 * a, 3 * b, 4), 3 * downscaled_l1(a, b, 4))
    (gradient,) = torch.autograd.grad(downscaled_l1(a, b, 4), a)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("factor", [0, -1, 9])
def test_l1_refuses_invalid_factors(factor: int) -> None:
    with pytest.raises(InputError, match=rf"from 1 to 8 for 8x10 images, got {factor}"):
        downscaled_l1(images(1, 3, 8, 10), images(1, 3, 8, 10), factor)


# --- SSIM ---------------------------------------------------------------------------------------------------------------------------------


def test_ssim_of_equal_images_is_1_and_symmetric_and_batched() -> None:
    a, b = images(3, 3, 20, 13), images(3, 3, 20, 13, seed=1)
    torch.testing.assert_close(ssim(a, a), torch.ones(3))
    assert ssim_loss(a, a).item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(ssim(a, b), ssim(b, a))
    torch.testing.assert_close(ssim(a, b), torch.cat([ssim(a[i : i + 1], b[i : i + 1]) for i in range(3)]))
    torch.testing.assert_close(ssim_loss(a, b), 1 - ssim(a, b).mean())


@pytest.mark.parametrize("size", [(32, 48), (11, 7), (6, 6)])
def test_ssim_equals_torchmetrics(size) -> None:
    """Values per image and gradients."""
    a, b = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True), torch.rand(2, 3, *size, dtype=torch.float64)
    found, expected = ssim(a, b), structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), a)[0], torch.autograd.grad(expected.sum(), a)[0], rtol=1e-6, atol=1e-9)


def test_ssim_of_constant_images_is_the_luminance_term() -> None:
    a, b = torch.full((1, 3, 16, 16), 0.3), torch.full((1, 3, 16, 16), 0.8)
    expected = (2 * 0.3 * 0.8 + 1e-4) / (0.3**2 + 0.8**2 + 1e-4)
    assert ssim(a.double(), b.double()).item() == pytest.approx(expected, abs=1e-6)
    # seen 2.4e-4: the float32 window does not sum to 1 exactly, which leaves a variance of about 3e-7 beside the constant 9e-4
    assert ssim(a, b).item() == pytest.approx(expected, abs=5e-4)


def test_ssim_equals_the_definition_at_a_pixel() -> None:
    a, b = images(1, 3, 11, 11).double(), images(1, 3, 11, 11, seed=1).double()
    a[:, 1:], b[:, 1:] = a[:, :1], b[:, :1]  # three equal channels
    mean = ssim(a, b).item()
    line = torch.exp(-(torch.arange(-5.0, 6.0, dtype=torch.float64) ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    padded_a, padded_b = (F.pad(x[:, :1], (5, 5, 5, 5), mode="reflect")[0, 0] for x in (a, b))
    values = []
    for row in range(11):
        for column in range(11):
            x, y = (p[row : row + 11, column : column + 11] for p in (padded_a, padded_b))
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy, cov = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum(), (window * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert mean == pytest.approx(torch.stack(values).mean().item(), abs=1e-9)


@pytest.mark.parametrize("kind", ["noise", "equal", "constant"])
def test_ssim_gradients_are_finite(kind: str) -> None:
    target = images(1, 3, 12, 12) if kind != "constant" else torch.full((1, 3, 12, 12), 0.5)
    start = images(1, 3, 12, 12, seed=1) if kind == "noise" else target.clone()
    rendering = start.requires_grad_()
    (gradient,) = torch.autograd.grad(ssim_loss(rendering, target), rendering)
    assert gradient.isfinite().all()
    if kind == "noise":
        closer = (rendering - 0.1 * gradient / gradient.abs().max()).detach()
        assert ssim_loss(closer, target) < ssim_loss(rendering, target)


def test_ssim_of_small_images() -> None:
    small = images(1, 3, 6, 6)
    torch.testing.assert_close(ssim(small, small), torch.ones(1))
    with pytest.raises(InputError, match="at least 6x6 pixels, got 5x30"):
        ssim_loss(images(1, 3, 5, 30), images(1, 3, 5, 30))


def test_ssim_ignores_autocast() -> None:
    a = images(1, 3, 16, 16)
    b = (a + 0.05 * images(1, 3, 16, 16, seed=1)).clamp(0, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = ssim(a, b)
    assert torch.equal(mixed, ssim(a, b))


# --- dice ---------------------------------------------------------------------------------------------------------------------------------


def test_dice_limits() -> None:
    full, empty = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    assert dice_score(full, full).item() == pytest.approx(1)
    assert dice_loss(full, full).item() == pytest.approx(0, abs=1e-6)
    for mask, target in ((full, empty), (empty, full), (empty, empty)):
        assert dice_score(mask, target).item() == 0
        assert dice_loss(mask, target).item() == pytest.approx(-math.log(1e-10), rel=1e-5)


def test_dice_of_an_example() -> None:
    mask = torch.tensor([[0.5, 1.0], [0.0, 0.0]]).view(1, 1, 2, 2)
    target = torch.tensor([[1.0, 1.0], [1.0, 0.0]]).view(1, 1, 2, 2)
    assert dice_score(mask, target).item() == pytest.approx(2 * 1.5 / (1.25 + 3))
    both = dice_loss(torch.cat([mask, target]), torch.cat([target, target]))
    assert both.item() == pytest.approx(-math.log(3 / 4.25) / 2, rel=1e-5)


def test_dice_gradient_raises_the_overlap() -> None:
    mask = (0.2 + 0.6 * images(2, 1, 5, 5)).requires_grad_()
    target = (images(2, 1, 5, 5, seed=1) > 0.5).float()
    (gradient,) = torch.autograd.grad(dice_loss(mask, target), mask)
    assert gradient.isfinite().all()
    assert (gradient[target == 0] > 0).all()
    assert dice_loss(mask - 0.1 * gradient, target) < dice_loss(mask, target)


# --- VGG ----------------------------------------------------------------------------------------------------------------------------------


def test_vgg_content_equals_reference(vgg_loss: VGGLoss, vgg19_state: dict[str, Tensor]) -> None:
    a, b = images(2, 3, 19, 16), images(2, 3, 19, 16, seed=1)
    expected = 0.0
    for image_a, image_b in zip(a, b, strict=True):
        ours, wanted = plain_activations(vgg19_state, image_a), plain_activations(vgg19_state, image_b)
        expected += sum((ours[layer] - wanted[layer]).abs().mean().item() for layer in CONTENT_LAYERS) / 2
    assert vgg_loss(a, b).item() == pytest.approx(expected, rel=1e-5)


def test_vgg_layers_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        layers = torchvision.models.vgg19(weights=None).features
    pools = [index for index, layer in enumerate(layers) if isinstance(layer, torch.nn.MaxPool2d)]
    relus = {index for index, layer in enumerate(layers) if isinstance(layer, torch.nn.ReLU)}
    assert pools == [4, 9, 18, 27, 36]
    assert relus.issuperset(CONTENT_LAYERS)
    assert relus.issuperset(STYLE_LAYERS)


def test_vgg_content_properties(vgg_loss: VGGLoss) -> None:
    a, b = images(2, 3, 16, 16).requires_grad_(), images(2, 3, 16, 16, seed=1).requires_grad_()
    assert vgg_loss(a, a) == 0
    torch.testing.assert_close(vgg_loss(a, b), vgg_loss(b, a))
    torch.testing.assert_close(vgg_loss(a, b), torch.stack([vgg_loss(a[i : i + 1], b[i : i + 1]) for i in range(2)]).mean())
    to_rendering, to_target = torch.autograd.grad(vgg_loss(a, b), (a, b), allow_unused=True)
    assert to_rendering.isfinite().all()
    assert to_rendering.abs().amax(dim=(1, 2, 3)).min() > 0
    assert to_target is None


def test_vgg_channel_order_matters(vgg_loss: VGGLoss) -> None:
    a, b = images(1, 3, 16, 16), images(1, 3, 16, 16, seed=1)
    assert vgg_loss(a, b) != vgg_loss(a.flip(1), b.flip(1))


def test_vgg_stops_at_the_deepest_layer_used(vgg_loss: VGGLoss) -> None:
    calls: list[int] = []
    hooks = [layer.register_forward_hook(lambda *_, index=index: calls.append(index)) for index, layer in enumerate(vgg_loss.layers)]
    a, b = images(1, 3, 16, 16), images(1, 3, 16, 16, seed=1)
    vgg_loss(a, b)
    assert sorted(calls) == sorted([*range(30), *range(30)])
    grams = vgg_loss.style_grams(a)
    calls.clear()
    vgg_loss.style_terms(a, b, grams)
    assert sorted(calls) == sorted([*range(36), *range(27)])
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("masked", [False, True])
def test_vgg_style_terms_equal_reference(vgg_loss: VGGLoss, vgg19_state: dict[str, Tensor], masked: bool) -> None:
    rendering, target, style = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1), images(1, 3, 20, 24, seed=2)
    mask = torch.zeros(2, 1, 32, 32)
    mask[0, :, 4:30, :20] = 1  # the second image has no pixel left at any layer
    terms = vgg_loss.style_terms(rendering, target, vgg_loss.style_grams(style), mask if masked else None)
    wanted = plain_activations(vgg19_state, style[0])
    content = expected = 0.0
    for i in range(2):
        ours, goal = plain_activations(vgg19_state, rendering[i]), plain_activations(vgg19_state, target[i])
        content += (ours[26] - goal[26]).square().mean().item() / 2
        for layer in STYLE_LAYERS:
            gram = plain_gram(ours[layer], mask[i] if masked else None)
            expected += (gram - plain_gram(wanted[layer])).square().mean().item() / 2
    assert terms.content.item() == pytest.approx(content, rel=1e-5)
    assert terms.style.item() == pytest.approx(expected, rel=1e-4)


def test_vgg_style_properties(vgg_loss: VGGLoss) -> None:
    image = images(1, 3, 16, 16)
    grams = vgg_loss.style_grams(image)
    assert [tuple(gram.shape) for gram in grams] == [(1, c, c) for c in (64, 128, 256, 512, 512)]
    terms = vgg_loss.style_terms(image, image, grams)
    assert terms.content == 0
    assert terms.style == 0
    mirrored = vgg_loss.style_terms(image, image, grams, mask=torch.ones(1, 1, 16, 16))
    assert mirrored.style.item() == pytest.approx(0, abs=1e-6)
    rendering = images(1, 3, 16, 16, seed=1).requires_grad_()
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    (gradient,) = torch.autograd.grad(vgg_loss.style_terms(rendering, image, grams, mask).style, rendering)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_vgg_is_frozen_reads_state_dicts_and_keeps_the_random_state(vgg_loss: VGGLoss, vgg19_state: dict[str, Tensor]) -> None:
    before = torch.get_rng_state()
    from_dict = VGGLoss(vgg19_state)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(parameter.requires_grad for parameter in from_dict.parameters())
    assert not any(module.training for module in from_dict.layers.modules())
    a, b = images(1, 3, 16, 16), images(1, 3, 16, 16, seed=1)
    assert torch.equal(from_dict(a, b), vgg_loss(a, b))


def test_vgg_refuses_small_images_and_missing_files(vgg_loss: VGGLoss, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 16x16 pixels, got 15x40"):
        vgg_loss(images(1, 3, 15, 40), images(1, 3, 15, 40))
    with pytest.raises(InputError, match=r"absent\.pth"):
        VGGLoss(tmp_path / "absent.pth")
