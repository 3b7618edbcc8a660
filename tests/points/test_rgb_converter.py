"""RGBConverter: range, shapes, names, the recording."""

import pytest
import torch

from npbgpp.points.feature_pyramid import RGBConverter


def test_colours_stay_between_0_and_09_and_leading_axes_are_kept() -> None:
    converter = RGBConverter(8)
    for shape in [(8,), (5, 8), (2, 0, 8), (2, 3, 4, 8)]:
        rgb = converter(1e3 * torch.randn(shape))
        assert rgb.shape == (*shape[:-1], 3)
        assert bool(((rgb >= 0) & (rgb <= 0.9)).all())
        assert converter.reconstruct(rgb).shape == shape


def test_parameters_are_59_for_8_channels_and_all_learn() -> None:
    converter = RGBConverter(8)
    assert sum(p.numel() for p in converter.parameters()) == 59
    x = torch.randn(10, 8)
    (converter.reconstruct(converter(x)) - x).abs().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in converter.parameters())


@pytest.mark.parametrize("case", [0, 1])
def test_recorded_colours(parity, case: int) -> None:
    record = parity("g_rgb_view_selection.pt")["rgb_converter"][case]
    converter = RGBConverter(record["feature_dim"])
    converter.load_state_dict(record["state_dict"], strict=True)
    torch.testing.assert_close(converter(record["x"]), record["rgb"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(converter.reconstruct(record["rgb"]), record["reconstructed"], rtol=1e-5, atol=1e-6)


def test_released_names_load_strictly(parity) -> None:
    state = parity("h_ckpt_npbgpp_sphere.pt")["state_dict"]
    released = {k.removeprefix("rgb_converter."): v for k, v in state.items() if k.startswith("rgb_converter.")}
    converter = RGBConverter(8)
    converter.load_state_dict(released, strict=True)
    assert released and all(torch.equal(v, released[k]) for k, v in converter.state_dict().items())
