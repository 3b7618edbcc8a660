"""Colour jitter: the recorded numbers of the authors' library, and what each operation leaves alone."""

import colorsys
from dataclasses import replace

import pytest
import torch

from npbgpp.methods.npbgpp import ColorJitter

NEUTRAL = ColorJitter(brightness=0.0, saturation=1.0, hue=0.0)


def colours() -> torch.Tensor:
    """Random colours, greys, black, white and fully saturated ones."""
    special = torch.tensor([[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 1], [0.3, 0.3, 0], [0, 1e-4, 0]]).T
    return torch.cat([torch.rand(3, 33), special], 1).reshape(1, 3, 5, 8)


def test_recorded_jitter(parity):
    recorded = parity("j_third_party_semantics.pt")["color_jitter"]
    names = {0: "brightness", 2: "saturation", 3: "hue"}  # 1 is contrast, whose factor is 1 everywhere
    assert len(recorded["cases"]) == 4
    for case in recorded["cases"]:
        given = case["params"]
        assert given["contrast_factor"].item() == 1
        order = tuple(names[k] for k in given["order"].tolist() if k in names)
        jitter = ColorJitter(given["brightness_factor"].item() - 1, given["saturation_factor"].item(), given["hue_factor"].item(), order)
        assert (jitter.apply(recorded["image"]) - case["out"]).abs().max() < 1e-5


def test_draws_fill_the_recorded_ranges(parity):
    recorded = parity("j_third_party_semantics.pt")["color_jitter"]
    generator = torch.Generator().manual_seed(1)
    draws = [ColorJitter.draw(generator) for _ in range(400)]
    found = torch.tensor([[d.brightness + 1, 1.0, d.saturation, d.hue] for d in draws])
    assert torch.allclose(found.amin(0), recorded["param_min"], atol=0.03)
    assert torch.allclose(found.amax(0), recorded["param_max"], atol=0.03)
    assert len({d.order for d in draws}) == 6


def test_equal_generators_draw_equally():
    first, second = (ColorJitter.draw(torch.Generator().manual_seed(5)) for _ in range(2))
    assert first == second != ColorJitter.draw(torch.Generator().manual_seed(6))


def test_neutral_parameters_change_nothing():
    image = colours()
    assert torch.allclose(NEUTRAL.apply(image), image, atol=1e-6)


def test_full_turn_of_the_hue_changes_nothing():
    image = colours()
    half = replace(NEUTRAL, hue=0.5)
    assert (half.apply(image) - image).abs().max() > 0.5
    assert torch.allclose(half.apply(half.apply(image)), image, atol=1e-5)
    assert torch.allclose(half.apply(image), replace(NEUTRAL, hue=-0.5).apply(image), atol=1e-5)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.5])
def test_saturation_is_that_of_hsv(factor):
    """Against Python's own conversion, colour by colour."""
    image = colours()
    found = replace(NEUTRAL, saturation=factor).apply(image)
    for before, after in zip(image[0].flatten(1).T.tolist(), found[0].flatten(1).T.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb(h, min(1.0, s * factor), v), abs=1e-5)


def test_brightness_is_added_and_clamped():
    image = colours()
    assert torch.allclose(replace(NEUTRAL, brightness=0.1).apply(image), (image + 0.1).clamp(max=1.0), atol=1e-5)


def test_one_draw_treats_all_images_alike_and_stays_in_range():
    images = torch.cat([colours(), colours().flip(2)])
    for seed in range(10):
        jitter = ColorJitter.draw(torch.Generator().manual_seed(seed))
        together = jitter.apply(images)
        assert torch.equal(together[1:], jitter.apply(images[1:]))
        assert together.min() >= 0 and together.max() <= 1


def test_order_matters():
    one, other = (ColorJitter(0.1, 1.5, 0.0, order) for order in (("brightness", "saturation"), ("saturation", "brightness")))
    assert (one.apply(colours()) - other.apply(colours())).abs().max() > 0.01
