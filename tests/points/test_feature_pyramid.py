"""Feature images from winning points: the look-up against the plain definition, values and gradients."""

import pytest
import torch
from jaxtyping import TypeCheckError

from npbgpp.points.feature_pyramid import feature_table, splat, splat_reference


def parts(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and mask."""
    return image[:, :-1], image[:, -1:]


def example(seed: int = 0, points: int = 30, empty: float = 0.4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of a 2 x 8 x 12 raster with empty cells (a whole 4x4 corner among them), descriptors and background that take gradients."""
    generator = torch.Generator().manual_seed(seed)
    row = torch.randint(points, (2, 8, 12), generator=generator)
    row[torch.rand(row.shape, generator=generator) < empty] = -1
    row[:, :4, :4] = -1
    row[row == 3] = 4  # point 3 wins nowhere
    descriptors = torch.randn(points, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    background = torch.randn(1, 5, 1, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    return row, descriptors, background


@pytest.mark.parametrize("supersampling", [1, 2, 4])
@pytest.mark.parametrize("empty", [0.0, 0.4, 1.0])
def test_equals_reference_in_values_and_gradients(supersampling, empty):
    row, descriptors, background = example(empty=empty)
    found, expected = (
        parts(splat(row, feature_table(descriptors, background), supersampling)),
        parts(splat_reference(row, descriptors, background, supersampling)),
    )
    assert found[0].shape == (2, 5, 8 // supersampling, 12 // supersampling)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(found[1], expected[1])
    cotangent = torch.randn(found[0].shape, dtype=torch.float64)
    for a, b in zip(
        *(torch.autograd.grad((f[0] * cotangent).sum(), [descriptors, background], materialize_grads=True) for f in (found, expected)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("supersampling", [1, 2])
def test_gradient_reaches_exactly_the_winners(supersampling):
    row, descriptors, background = example()
    image, covered = parts(splat(row, feature_table(descriptors, background), supersampling))
    gradient, of_background = torch.autograd.grad(image.sum(), [descriptors, background])
    winners = torch.zeros(len(descriptors), dtype=torch.bool)
    winners[row[row >= 0]] = True
    assert not winners[3] and winners.sum() > 20
    assert (gradient[winners] > 0).all() and not gradient[~winners].any()
    torch.testing.assert_close(of_background.flatten(), (1 - covered).sum().expand(5))


def test_memory_layout_suits_the_refiner():
    row, descriptors, background = example()
    assert splat(row, feature_table(descriptors, background)).is_contiguous(memory_format=torch.channels_last)


def test_no_points_at_all():
    background = torch.randn(1, 5, 1, 1)
    image, covered = parts(splat(torch.full((1, 4, 6), -1), feature_table(torch.zeros(0, 5), background)))
    assert torch.equal(image, background.expand(1, 5, 4, 6)) and not covered.any()


def test_shapes_are_checked_while_tests_run():
    """By what ``conftest.py`` installs, here for one function of all: it could cease unnoticed."""
    with pytest.raises(TypeCheckError):
        feature_table(torch.zeros(3), torch.zeros(1, 4, 1, 1))
