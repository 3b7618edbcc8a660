"""Photos and masks as other programs store them: 16 bits, floating point, masks of 0 and 1, labels, alpha, other sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data import View, read_mask, read_photo
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras

SIZE = (8, 12)  # height, width
OBJECT = np.zeros(SIZE, bool)
OBJECT[2:6, 3:9] = True
GRADIENT = np.linspace(0, 65535, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE)


def view_of(path: Path, mask: Path | None = None, size: tuple[int, int] = SIZE) -> View:
    camera = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.ones(1, 2), torch.ones(1, 2), size)
    return View(path.stem, path, camera, mask=mask)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_grey_of_16_bits_keeps_its_upper_8_bits(tmp_path, suffix):
    path = tmp_path / f"deep{suffix}"
    Image.fromarray(GRADIENT).save(path)
    image = read_photo(view_of(path)).image.numpy()
    assert np.array_equal(image, np.repeat((GRADIENT >> 8)[None], 3, 0)) and abs(image.mean() - 127.5) < 1


def test_floating_point_is_scaled_from_0_to_1(tmp_path):
    path = tmp_path / "float.tiff"
    values = (GRADIENT / 65535).astype(np.float32)
    Image.fromarray(values).save(path)
    assert np.abs(read_photo(view_of(path)).image.numpy() - values * 255).max() <= 0.5001


@pytest.mark.parametrize("values", [np.full(SIZE, 120.0, np.float32), np.full(SIZE, np.nan, np.float32), np.full(SIZE, 70000, np.int32)])
def test_other_numbers_are_refused(tmp_path, values):
    path = tmp_path / "numbers.tiff"
    Image.fromarray(values).save(path)
    with pytest.raises(InputError, match=r"numbers\.tiff: expected 8 or 16 bits per channel, or floating point from 0 to 1.*convert"):
        read_photo(view_of(path))


def masks() -> dict[str, Image.Image]:
    values = OBJECT.astype(np.uint8)
    clear = np.zeros((*SIZE, 4), np.uint8)
    clear[..., 3] = values * 255
    both = np.repeat(values[..., None] * 255, 4, 2)
    both[..., 3] = 255
    labels = Image.fromarray(values * 3)
    labels.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 90, 20, 10])
    grey = Image.fromarray(values)
    grey.putpalette([0, 0, 0, 255, 255, 255])
    return {
        "0 and 255": Image.fromarray(values * 255),
        "0 and 1": Image.fromarray(values),
        "0 and 1 in colour": Image.fromarray(np.repeat(values[..., None], 3, 2)),
        "16 bits": Image.fromarray(values.astype(np.uint16) * 65535),
        "one bit": Image.fromarray(OBJECT),
        "alpha of black": Image.fromarray(clear),
        "alpha of white": Image.fromarray(np.where(np.arange(4) == 3, clear, 255).astype(np.uint8)),
        "opaque alpha": Image.fromarray(both),
        "labels with a palette": labels,
        "grey palette": grey,
    }


@pytest.mark.parametrize("kind", masks())
def test_masks_of_every_kind_show_the_object(tmp_path, kind):
    Image.fromarray(np.full((*SIZE, 3), 9, np.uint8)).save(tmp_path / "photo.png")
    path = tmp_path / "mask.png"
    masks()[kind].save(path)
    found = read_photo(view_of(tmp_path / "photo.png", path)).mask
    assert found is not None and np.array_equal(found[0].numpy(), OBJECT * 255)


def test_noise_of_compression_is_no_mask_of_0_and_1(tmp_path):
    Image.fromarray(np.full((16, 16), 1, np.uint8)).save(tmp_path / "mask.jpg")
    assert read_mask(tmp_path / "mask.jpg").max() <= 2


@pytest.mark.parametrize("factor", [2, 0.5])
def test_masks_of_another_size_are_resampled(tmp_path, factor):
    Image.fromarray(np.full((*SIZE, 3), 9, np.uint8)).save(tmp_path / "photo.png")
    size = (int(SIZE[1] * factor), int(SIZE[0] * factor))
    Image.fromarray(OBJECT.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST).save(tmp_path / "mask.png")
    found = read_photo(view_of(tmp_path / "photo.png", tmp_path / "mask.png")).mask
    assert found is not None and abs((found[0] >= 128).numpy() ^ OBJECT).mean() < 0.15
    Image.new("L", (12, 12)).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=r"mask\.png: expected 12x8 pixels.*got 12x12"):
        read_photo(view_of(tmp_path / "photo.png", tmp_path / "mask.png"))


def test_transparent_pixels_need_a_background_or_a_mask(tmp_path):
    pixels = np.full((*SIZE, 4), 50, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    with pytest.raises(InputError, match=r"photo\.png: expected an opaque photo, got transparent pixels"):
        read_photo(view_of(tmp_path / "photo.png"))
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    assert (read_photo(view_of(tmp_path / "photo.png")).image == 50).all()
