"""Photos are decoded once, in 8 bits, within a budget, and worker processes share them."""

import multiprocessing
import os
import pickle
from dataclasses import replace

import torch

from npbgpp.data import images as photo_cache
from npbgpp.data.dataset import SceneDataset
from npbgpp.data.images import PhotoCache, read_photo
from npbgpp.data.scene import Batch

PHOTO = 4 * 48 * 64  # bytes of one of the drawn photos with its mask, whole pages


def counted(monkeypatch):
    decoded = []
    monkeypatch.setattr(photo_cache, "read_photo", lambda view: decoded.append(view.name) or read_photo(view))
    return decoded


def test_photos_are_decoded_once(dots, monkeypatch):
    views, decoded = dots.parse().views, counted(monkeypatch)
    cache = PhotoCache(views, 1 << 20)
    for _ in range(2):
        for k, view in enumerate(views):
            kept, expected = cache.read(k), read_photo(view)
            assert torch.equal(kept.image, expected.image) and torch.equal(kept.mask, expected.mask)
    assert decoded == [view.name for view in views] and cache.kept == 8


def test_photos_beyond_the_budget_are_decoded_every_time(dots, monkeypatch):
    views, decoded = dots.parse().views, counted(monkeypatch)
    cache = PhotoCache(views, 3 * PHOTO + 8)
    for _ in range(2):
        for k, view in enumerate(views):
            assert torch.equal(cache.read(k).image, read_photo(view).image)
    assert cache.kept == 3 and cache.size <= 3 * PHOTO + 8 and len(decoded) == 3 + 2 * 5


def test_no_budget_keeps_nothing(dots):
    cache = PhotoCache(dots.parse().views, 0)
    assert cache.kept == cache.size == 0 and cache.read(7).image.shape == (3, 48, 64)


def test_photos_without_mask(dots):
    view = replace(dots.parse().views[0], alpha_is_mask=False)
    cache = PhotoCache([view], 1 << 20)
    for _ in range(2):
        assert cache.read(0).mask is None and torch.equal(cache.read(0).image, read_photo(view).image)


def test_forked_processes_fill_the_same_memory(dots, monkeypatch):
    views = dots.parse().views
    cache = PhotoCache(views, 1 << 20)
    worker = multiprocessing.get_context("fork").Process(target=lambda: [cache.read(k) for k in range(len(views))])
    worker.start()
    worker.join(60)
    decoded = counted(monkeypatch)
    assert worker.exitcode == 0
    assert all(torch.equal(cache.read(k).image, read_photo(view).image) for k, view in enumerate(views)) and decoded == []


def test_a_copy_in_another_process_starts_empty(dots):
    views = dots.parse().views
    cache = PhotoCache(views, 1 << 20)
    cache.read(0)
    copy = pickle.loads(pickle.dumps(cache))
    assert len(pickle.dumps(cache)) < 20_000 and torch.equal(copy.read(0).image, cache.read(0).image)


def test_memory_is_taken_as_photos_come(dots):
    """A budget far beyond what is used costs nothing."""
    view = dots.parse().views[0]
    before = resident()
    cache = PhotoCache([view] * 20_000, 1 << 28)
    cache.read(0)
    assert cache.size > 200 << 20 and resident() - before < 50 << 20


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_items_of_workers_equal_those_of_the_process_itself(dots):
    scene = dots.parse()
    dataset = SceneDataset("d", scene, (0, 1, 2), photos=PhotoCache(scene.views, 1 << 20))
    loader = torch.utils.data.DataLoader(dataset, 1, collate_fn=Batch.collate, num_workers=2)
    plain = SceneDataset("d", scene, (0, 1, 2))
    for k, batch in enumerate(loader):
        assert torch.equal(batch.target.image, plain[k].target.image)
    assert k == 2
