"""The photometric loss against its reference and against the SSIM of ``npbgpp.losses``."""

import pytest
import torch

from npbgpp import losses
from npbgpp.errors import InputError
from npbgpp.kernels import photometric
from npbgpp.kernels.photometric import photometric_loss


def images(height: int, width: int, channels: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rendering, photo, and weights."""
    g = torch.Generator().manual_seed(seed)
    image = torch.rand(channels, height, width, generator=g)
    return image, image + 0.1 * torch.randn(image.shape, generator=g), torch.rand(1, height, width, generator=g)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ssim_weight", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("size", [(6, 6), (7, 9), (16, 33), (40, 23)])
def test_equals_reference(size, ssim_weight, masked):
    image, target, mask = images(*size)
    leaf, leaf64 = image.clone().requires_grad_(), image.double().requires_grad_()
    found = photometric_loss(leaf, target, mask if masked else None, ssim_weight)
    expected = photometric_loss(leaf64, target.double(), mask.double() if masked else None, ssim_weight)
    (3 * found.loss).backward()
    (3 * expected.loss).backward()
    for name in ("loss", "l1", "ssim"):
        assert abs(getattr(found, name).item() - getattr(expected, name).item()) < 2e-6, name
    assert (leaf.grad - leaf64.grad).abs().max() < 1e-5 * leaf64.grad.abs().max()
    assert not found.l1.requires_grad and not found.ssim.requires_grad


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_ssim_is_that_of_the_losses(channels):
    image, target, _ = images(30, 41, channels)
    found = photometric_loss(image, target, None, 1.0)
    # the mean over channels: the function takes three
    expected = losses.ssim_map(*(t[:, None].expand(-1, 3, -1, -1) for t in (image, target))).mean()
    torch.testing.assert_close(found.ssim, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(found.l1, (image - target).abs().mean())


def test_ones_are_no_mask_and_an_empty_mask_is_zero():
    image, target, _ = images(12, 20)
    whole, ones = photometric_loss(image, target, None, 0.2), photometric_loss(image, target, torch.ones(1, 12, 20), 0.2)
    torch.testing.assert_close(whole.loss, ones.loss)
    for dtype in (torch.float32, torch.float64):
        leaf = image.to(dtype, copy=True).requires_grad_()
        empty = photometric_loss(leaf, target.to(dtype), torch.zeros(1, 12, 20, dtype=dtype), 0.2)
        empty.loss.backward()
        assert empty.loss == 0 and empty.ssim == 1 and not leaf.grad.any()


def test_equal_images():
    image = images(20, 20)[0].requires_grad_()
    found = photometric_loss(image, image.detach().clone(), None, 0.2)
    found.loss.backward()
    assert found.l1 == 0 and abs(found.ssim.item() - 1) < 1e-6 and image.grad.abs().max() < 1e-7


def test_independent_of_threads():
    image, target, mask = images(90, 50)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = image.clone().requires_grad_()
            loss = photometric_loss(leaf, target, mask, 0.2).loss
            loss.backward()
            results.append((loss.detach(), leaf.grad))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_small_images_and_errors():
    image, target, _ = images(3, 4)
    assert torch.isclose(photometric_loss(image, target, None, 0.0).loss, (image - target).abs().mean())
    with pytest.raises(InputError, match="6x6"):
        photometric_loss(image, target, None, 0.2)
    assert photometric._MIN_SIDE == losses.SSIM_MIN_SIDE
