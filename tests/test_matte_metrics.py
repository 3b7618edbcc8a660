"""Scores of renderings with mattes, against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from npbgpp.metrics import BACKGROUNDS, PSNR_CAP_DB, ImageMetrics, composite_over, matte_scores


def premultiplied(seed: int) -> torch.Tensor:
    image = torch.rand(4, 20, 24, generator=torch.Generator().manual_seed(seed))
    return torch.cat([image[:3] * image[3:], image[3:]])


def test_scores_by_hand():
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


def test_equal_pictures_and_values_out_of_range():
    image = premultiplied(0)
    scores = matte_scores(ImageMetrics(), image, image)
    assert scores.psnr_rgba == PSNR_CAP_DB and scores.matte_mse == scores.matte_sad == 0
    opaque = torch.ones(4, 20, 24)
    assert matte_scores(ImageMetrics(), opaque + 3.0, opaque) == matte_scores(ImageMetrics(), opaque, opaque)


def test_pixels_in_the_margin_do_not_count():
    image = premultiplied(0)
    other = image.clone()
    other[:, :2] = other[:, -2:] = 1.0
    other[..., :2] = other[..., -2:] = 0.0
    assert matte_scores(ImageMetrics(image_margin=2), other, image).matte_sad == 0
    assert matte_scores(ImageMetrics(), other, image).matte_sad > 0


def test_a_background_shows_where_the_matte_is_not():
    image = torch.zeros(4, 2, 2)
    image[:, 0] = 1.0
    image[3, 1, 0] = 0.25
    over = composite_over(image, (0.2, 0.4, 0.8))
    assert (over[:, 0] == 1).all() and over[:, 1, 1].tolist() == pytest.approx([0.2, 0.4, 0.8])
    assert over[:, 1, 0].tolist() == pytest.approx([0.15, 0.3, 0.6])
    assert math.isclose(float(composite_over(image[None], (1.0, 1.0, 1.0))[0, 0, 1, 0]), 0.75)
