"""Decoding of photos: compositing, masks, sizes; and the cache of decoded photos."""

import multiprocessing
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data import Batch, PhotoCache, View, image_size, images, read_photo
from npbgpp.data.dataset import SceneDataset
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras


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


# ------------------------------------------------------------------ cache
PHOTO = 4 * 48 * 64  # bytes of one of the drawn photos with its mask, whole pages


def counted(monkeypatch):
    decoded = []
    monkeypatch.setattr(images, "read_photo", lambda view: decoded.append(view.name) or read_photo(view))
    return decoded


def test_photos_are_decoded_once(balls, monkeypatch):
    views, decoded = balls.views, counted(monkeypatch)
    cache = PhotoCache(views, 1 << 20)
    for _ in range(2):
        for k, view in enumerate(views):
            kept, expected = cache.read(k), read_photo(view)
            assert torch.equal(kept.image, expected.image) and torch.equal(kept.mask, expected.mask)
    assert decoded == [view.name for view in views] and cache.kept == 8


def test_photos_beyond_the_budget_are_decoded_every_time(balls, monkeypatch):
    views, decoded = balls.views, counted(monkeypatch)
    cache = PhotoCache(views, 3 * PHOTO + 8)
    for _ in range(2):
        for k, view in enumerate(views):
            assert torch.equal(cache.read(k).image, read_photo(view).image)
    assert cache.kept == 3 and cache.size <= 3 * PHOTO + 8 and len(decoded) == 3 + 2 * 5


def test_no_budget_keeps_nothing(balls):
    cache = PhotoCache(balls.views, 0)
    assert cache.kept == cache.size == 0 and cache.read(7).image.shape == (3, 48, 64)


def test_photos_without_mask(balls):
    view = replace(balls.views[0], alpha_is_mask=False)
    cache = PhotoCache([view], 1 << 20)
    for _ in range(2):
        assert cache.read(0).mask is None and torch.equal(cache.read(0).image, read_photo(view).image)


def test_forked_processes_fill_the_same_memory(balls, monkeypatch):
    views = balls.views
    cache = PhotoCache(views, 1 << 20)
    worker = multiprocessing.get_context("fork").Process(target=lambda: [cache.read(k) for k in range(len(views))])
    worker.start()
    worker.join(60)
    decoded = counted(monkeypatch)
    assert worker.exitcode == 0
    assert all(torch.equal(cache.read(k).image, read_photo(view).image) for k, view in enumerate(views)) and decoded == []


def test_a_copy_in_another_process_starts_empty(balls):
    views = balls.views
    cache = PhotoCache(views, 1 << 20)
    cache.read(0)
    copy = pickle.loads(pickle.dumps(cache))
    assert len(pickle.dumps(cache)) < 20_000 and torch.equal(copy.read(0).image, cache.read(0).image)


def test_memory_is_taken_as_photos_come(balls):
    """A budget far beyond what is used costs nothing."""
    view = balls.views[0]
    before = resident()
    cache = PhotoCache([view] * 20_000, 1 << 28)
    cache.read(0)
    assert cache.size > 200 << 20 and resident() - before < 50 << 20


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_items_of_workers_equal_those_of_the_process_itself(balls):
    scene = balls
    dataset = SceneDataset("d", scene, (0, 1, 2), photos=PhotoCache(scene.views, 1 << 20))
    loader = torch.utils.data.DataLoader(dataset, 1, collate_fn=Batch.collate, num_workers=2)
    plain = SceneDataset("d", scene, (0, 1, 2))
    for k, batch in enumerate(loader):
        assert torch.equal(batch.target.image, plain[k].target.image)
    assert k == 2
