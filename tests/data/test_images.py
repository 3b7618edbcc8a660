"""Decoding: compositing to the nearest of 256 values, alpha as mask, sizes."""

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data.images import image_size, read_photo
from npbgpp.data.scene import View
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras


def view_of(path, height, width, background=(1.0, 1.0, 1.0), alpha_is_mask=True) -> View:
    camera = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.ones(1, 2), torch.ones(1, 2), (height, width))
    return View(path.stem, path, camera, alpha_is_mask, background)


@pytest.fixture
def every_pair(tmp_path):
    """256x256 picture: red is the row, green its opposite, blue is constant, alpha is the column."""
    value = np.arange(256, dtype=np.uint8)
    pixels = np.empty((256, 256, 4), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2], pixels[..., 3] = value[:, None], 255 - value[:, None], 7, value[None]
    path = tmp_path / "pairs.png"
    Image.fromarray(pixels).save(path)
    return path, pixels.astype(np.int64)


@pytest.mark.parametrize("background", [(1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.2)])
def test_compositing_rounds_to_the_nearest_value(every_pair, background):
    """All 65,536 pairs of colour and alpha against whole-number arithmetic: (c a + b (255 - a)) / 255, halves cannot occur."""
    path, pixels = every_pair
    photo = read_photo(view_of(path, 256, 256, background))
    alpha = pixels[..., 3:]
    behind = np.array([round(255 * b) for b in background])
    exact = (2 * (pixels[..., :3] * alpha + behind * (255 - alpha)) + 255) // 510
    assert np.array_equal(photo.image.permute(1, 2, 0).numpy(), exact)
    assert np.array_equal(photo.mask[0].numpy(), pixels[..., 3])


def test_without_background_colours_are_kept_as_stored(every_pair):
    path, pixels = every_pair
    photo = read_photo(view_of(path, 256, 256, None))
    assert np.array_equal(photo.image.permute(1, 2, 0).numpy(), pixels[..., :3])
    assert np.array_equal(photo.mask[0].numpy(), pixels[..., 3])


def test_alpha_that_is_no_mask_is_composited_only(every_pair):
    path, pixels = every_pair
    photo = read_photo(view_of(path, 256, 256, alpha_is_mask=False))
    assert photo.mask is None and (photo.image[:, :, 0] == 255).all() and photo.image[0, 9, 255] == pixels[9, 255, 0]


def test_the_parser_asks_for_white_or_for_stored_colours(dots):
    white, stored = dots.parse(white_bg=True).views[0], dots.parse(white_bg=False).views[0]
    on_white, as_stored = read_photo(white), read_photo(stored)
    empty = as_stored.mask[0] == 0
    assert empty.any() and (on_white.image[:, empty] == 255).all() and (as_stored.image[:, empty] == 0).all()
    assert torch.equal(on_white.mask, as_stored.mask) and torch.equal(on_white.image[:, ~empty], as_stored.image[:, ~empty])


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "P"])
def test_a_mask_needs_an_alpha_channel(tmp_path, mode):
    path = tmp_path / "opaque.png"
    Image.new(mode, (6, 4)).save(path)
    with pytest.raises(InputError, match=r"opaque\.png.*alpha channel"):
        read_photo(view_of(path, 4, 6))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_other_ways_to_store_alpha_are_read(tmp_path, mode):
    path = tmp_path / "clear.png"
    options = {"transparency": 0} if mode == "P" else {}
    Image.new(mode, (6, 4)).save(path, **options)
    photo = read_photo(view_of(path, 4, 6))
    assert (photo.mask == 0).all() and (photo.image == 255).all()


def test_pictures_without_alpha_are_read_where_no_mask_is_needed(tmp_path):
    path = tmp_path / "opaque.jpg"
    Image.new("RGB", (6, 4), (200, 200, 200)).save(path)
    photo = read_photo(view_of(path, 4, 6, None, False))
    assert photo.mask is None and (photo.image.int() - 200).abs().max() <= 2
    assert image_size(path) == (4, 6)


def test_another_size_than_the_camera_is_refused(every_pair):
    with pytest.raises(InputError, match=r"pairs\.png.*expected 255x256.*got 256x256"):
        read_photo(view_of(every_pair[0], 256, 255))
