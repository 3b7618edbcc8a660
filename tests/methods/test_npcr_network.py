"""The network of NPCR: sizes, paths, shifts, and what it refuses."""

import pytest
import torch
from torch import nn

from npbgpp.errors import InputError
from npbgpp.methods.npcr.network import BlurPool, GatedConv, RGBAUNet

SMALL = {"in_channels": 7, "filters": (4, 5, 6, 7, 8), "alpha_filters": (4, 5, 6)}


def channels(block: nn.Module) -> tuple[int, int]:
    convolutions = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
    return convolutions[0].in_channels, convolutions[-1].out_channels


def test_published_sizes():
    """Channels of every step with the shipped filters: 35 inputs, 24-48-96-384-384, opacity 16-32-64, 144 to 32, 72 to 8, 1."""
    net = RGBAUNet()
    assert [channels(block) for block in net.down] == [(35, 24), (24, 48), (48, 96), (96, 384), (384, 384)]
    assert [channels(block) for block in net.up] == [(768, 96), (192, 48), (96, 24), (48, 24)]
    assert [channels(block) for block in net.alpha_down] == [(38, 16), (16, 32), (32, 64)]
    assert [channels(block) for block in net.alpha_up] == [(144, 32), (72, 8)]
    assert channels(net.colour_point) == channels(net.colour_around) == (24, 3) and channels(net.alpha) == (8, 1)


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (64, 20)])
def test_images_of_any_size(size):
    assert RGBAUNet(**SMALL)(torch.rand(2, 7, *size)).shape == (2, 4, *size)


def test_every_weight_learns():
    net = RGBAUNet(**SMALL)
    net(torch.rand(2, 7, 32, 32)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(p.grad.abs().sum() > 0 for name, p in net.named_parameters() if name.endswith("weight"))


def test_opacity_sees_colour_and_the_features_of_the_colour_path():
    """What changes on the colour path changes the opacity; what changes in the opacity branch leaves the colour."""
    net = RGBAUNet(**SMALL)  # in training mode: fresh running statistics would let nothing through
    x = torch.rand(1, 7, 32, 32)
    before = net(x)
    with torch.no_grad():
        net.alpha.weight.mul_(2)
    other = net(x)
    assert torch.equal(before[:, :3], other[:, :3]) and not torch.equal(before[:, 3], other[:, 3])
    with torch.no_grad():
        net.colour_around.bias.add_(1)
    third = net(x)
    assert not torch.equal(third[:, :3], other[:, :3]) and not torch.equal(third[:, 3], other[:, 3])


def test_gated_convolution_by_hand():
    block = GatedConv(2, 3).eval()
    x = torch.randn(1, 2, 5, 6)
    gated = block.conv_f(x) * (1 / (1 + (-block.conv_m(x)).exp()))
    expected = (gated / (1 + block.norm.eps) ** 0.5).clamp(min=0)  # fresh running statistics are 0 and 1
    torch.testing.assert_close(block(x), expected)


def test_blur_pool_by_hand():
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 2, 2] = 16.0
    # the maximum spreads the pixel to rows and columns 1 and 2; the blur then looks around 0, 2 and 4
    expected = torch.tensor([[1.0, 3.0, 0.0], [3.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(BlurPool()(x)[0, 0], expected)
    assert torch.equal(BlurPool()(torch.full((1, 2, 5, 7), 3.0)), torch.full((1, 2, 3, 4), 3.0))


def test_blur_pool_changes_less_under_shifts_than_plain_pooling():
    """The reason for the blur: a picture moved by one pixel gives nearly the same features."""
    noise = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 70, 70), 3, 1)
    here, moved = noise[..., 1:65, 1:65], noise[..., 1:65, 2:66]

    def change(pool):
        return (pool(here) - pool(moved))[..., 2:-2, 2:-2].abs().mean()

    assert change(BlurPool()) < 0.8 * change(nn.MaxPool2d(2))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"filters": (1, 2, 3)}, "filters: expected 5"),
        ({"alpha_filters": (1, 2, 0)}, "alpha_filters: expected 3"),
        ({"in_channels": 0}, "in_channels"),
    ],
)
def test_wrong_sizes_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        RGBAUNet(**arguments)


def test_wrong_images_are_refused():
    net = RGBAUNet(**SMALL)
    for image in (torch.rand(1, 6, 32, 32), torch.rand(1, 7, 8, 32)):
        with pytest.raises(InputError, match="system.network: expected 7 channels"):
            net(image)
