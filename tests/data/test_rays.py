"""Batches of rays: they see what the photos show, every pixel comes once per epoch, and nothing of the size of all rays is kept."""

import tracemalloc
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from npbgpp.data import images as photo_cache
from npbgpp.data.images import read_photo
from npbgpp.data.normalisation import SceneNormalisation, scene_normalisation
from npbgpp.data.point_files import CloudFile
from npbgpp.data.sampling import BatchEpochs, Shard
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.methods.nerf import PixelOrder, RayBatch, RayDataset, RaySampling
from npbgpp.parsers import read_scene

from ..helpers.layouts import dtu, llff, nerf_synthetic
from ..helpers.scenes import BACKDROP, COLOURS, POINTS, RADIUS, save_picture

SIZE, PIXELS = (48, 64), 48 * 64
BUDGET = 1 << 24
WRITERS: dict[str, Callable[..., None]] = {"nerf_synthetic": nerf_synthetic.write, "llff": llff.write, "dtu": dtu.write}


def read(layout: str, folder: Path) -> Scene:
    return read_scene(layout, folder, folder, layout, CloudFile(folder / "mvs_pc.ply"), {})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    """Eight views around the balls in three layouts, and ``arc``: eight neighbours of LLFF."""
    root = tmp_path_factory.mktemp("rays")
    for name, write in WRITERS.items():
        write(root / name, 8, SIZE)
    llff.write(root / "arc", 48, SIZE)
    arc = read("llff", root / "arc")
    return {**{name: read(name, root / name) for name in WRITERS}, "arc": replace(arc, views=arc.views[:8])}


def dataset(scene: Scene, indices: tuple[int, ...] = (0, 2, 5), kind: str = "plain", budget: int = BUDGET, **choices) -> RayDataset:
    return RayDataset(scene, indices, scene_normalisation(scene, kind), RaySampling(**choices), budget)


def pixels_of(scene: Scene, batch: RayBatch) -> torch.Tensor:
    """(n, 3): view, row and column that the rays of a plain frame go through."""
    uv = torch.zeros(len(batch), 2)
    for k in batch.view.unique().tolist():
        mine = batch.view == k
        uv[mine] = scene.views[k].camera.project(batch.origins[mine] + 3 * batch.directions[mine])[0][0]
    assert (uv % 1 - 0.5).abs().max() < 0.01
    return torch.stack([batch.view, uv[:, 1].long(), uv[:, 0].long()], 1)


def equal(one: RayBatch, other: RayBatch) -> bool:
    return all(torch.equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(RayBatch))


# ------------------------------------------------------------------ what rays see
def euclidean(frame: SceneNormalisation, batch: RayBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """(origins, unit directions) of rays before NDC: two points of each ray are brought back."""
    if frame.ndc is None:
        return batch.origins.double(), batch.directions.double()
    ends = []
    for t in (0.0, 0.7):
        x, y, z = (batch.origins + t * batch.directions).double().unbind(1)
        depth = 2 / (z - 1)
        scale = (-2 * frame.ndc.focal / SIZE[1], -2 * frame.ndc.focal / SIZE[0])
        ends.append(torch.stack([x * depth / scale[0], y * depth / scale[1], depth], 1))
    return ends[0], torch.nn.functional.normalize(ends[1] - ends[0], dim=1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("nerf_synthetic", "plain"), ("llff", "plain"), ("llff", "inward"), ("arc", "forward"), ("arc", "inward"), ("dtu", "plain")],
)
def test_rays_have_the_colour_of_the_ball_that_they_hit(scenes, name, kind):
    scene = scenes[name]
    frame = scene_normalisation(scene, kind)
    batch = RayDataset(scene, (0, 1, 4), frame, RaySampling(rays_per_batch=3 * PIXELS), BUDGET)[0]
    origins, directions = euclidean(frame, batch)
    torch.testing.assert_close(directions.float(), batch.view_directions, rtol=0, atol=1e-4)
    balls = frame.scale * (torch.from_numpy(POINTS) - frame.centre) @ frame.rotation
    offset = balls - origins[:, None]
    along = (offset * directions[:, None]).sum(2)
    gap = (offset.square().sum(2) - along.square()).clamp(min=0).sqrt() / frame.scale - RADIUS
    clear = (gap.abs() > 1e-3).all(1)  # pixels at the very border of a ball may be on either side
    hit = (gap < 0).any(1)
    background = (255, 255, 255) if batch.alpha is not None else BACKDROP
    first = torch.where(gap < 0, along, torch.inf).argmin(1)
    expected = torch.where(hit[:, None], torch.from_numpy(COLOURS)[first].int(), torch.tensor(background).int())
    assert clear.float().mean() > 0.99 and 300 < hit.sum() < 3 * PIXELS / 2
    assert (255 * batch.rgb - expected)[clear].abs().max() < 1.5
    if batch.alpha is not None:
        assert torch.equal(batch.alpha[clear], hit[clear].float())


def test_rays_are_those_of_the_whole_photo(scenes):
    scene = scenes["nerf_synthetic"]
    batch = dataset(scene, (3,), rays_per_batch=PIXELS)[0]
    _, row, column = pixels_of(scene, batch).unbind(1)
    origins, directions = scene.views[3].camera.rays()
    torch.testing.assert_close(batch.origins, origins[0, row, column])
    torch.testing.assert_close(batch.directions, directions[0, row, column])
    assert torch.equal(batch.directions, batch.view_directions) and batch.directions.norm(dim=1).sub(1).abs().max() < 1e-6
    assert (batch.near == 2).all() and (batch.far == 6).all() and (batch.view == 3).all()
    photo = read_photo(replace(scene.views[3], background=(1.0, 1.0, 1.0)))
    torch.testing.assert_close(batch.rgb, photo.image[:, row, column].T / 255)
    torch.testing.assert_close(batch.alpha, photo.mask[0, row, column] / 255)


def test_views_of_different_sizes(scenes):
    scene = scenes["llff"]
    small = replace(scene.views[2], camera=scene.views[2].camera.resize((12, 20)), resized=True)
    scene = replace(scene, views=(*scene.views[:2], small, *scene.views[3:]))
    rays = dataset(scene, rays_per_batch=500)
    seen = torch.cat([pixels_of(scene, rays[k]) for k in range(len(rays))])
    assert len(seen) == len(seen.unique(dim=0)) == 2 * PIXELS + 240
    assert (seen[:, 0] == 2).sum() == 240 and seen[seen[:, 0] == 2].amax(0).tolist() == [2, 11, 19]


# ------------------------------------------------------------------ order
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4), st.integers(1, 200), st.booleans())
def test_pixel_order_is_a_permutation(sizes, count, mixed):
    """Of any sizes: each pixel once per epoch, in batches of nearly equal size, views in ascending order."""
    sizes = np.array(sizes)
    order, again = (PixelOrder(np.full_like(sizes, 3), sizes, count, mixed, 5) for _ in range(2))
    batches = [np.stack(order.pixels(len(order) * 2 + k), 1) for k in range(len(order))]
    expected = [(k, 3 + row, 3 + column) for k, size in enumerate(sizes) for row, column in np.ndindex(*size)]
    assert sorted(map(tuple, np.concatenate(batches).tolist())) == expected
    assert max(map(len, batches)) <= count and all((np.diff(batch[:, 0]) >= 0).all() for batch in batches)
    k = len(order) // 2
    np.testing.assert_array_equal(np.stack(again.pixels(len(order) * 2 + k), 1), batches[k])  # whatever was drawn before


def test_pixels_of_a_batch_are_uniform_and_independent():
    order = PixelOrder(np.zeros((1, 2), np.int64), np.array([[1, 250_000]]), 1000, True, 0)
    drawn = np.stack([order.pixels(k)[2] for k in range(40)])
    offset = drawn % 250 / 250  # within strata of 250 pixels
    assert np.array_equal(drawn // 250, np.tile(np.arange(1000), (40, 1)))
    assert abs(offset.mean() - 0.5) < 0.01 and np.abs(np.histogram(offset, 10, (0, 1))[0] / 4000 - 1).max() < 0.1
    assert np.abs([np.corrcoef(row[1:], row[:-1])[0, 1] for row in offset]).max() < 0.15  # neighbouring strata
    assert abs(np.corrcoef(offset[1:].ravel(), offset[:-1].ravel())[0, 1]) < 0.2  # consecutive batches
    assert not np.array_equal(order.pixels(0)[2], order.pixels(len(order))[2]), "epochs differ"


@pytest.mark.parametrize("sampling", ["all", "image"])
@pytest.mark.parametrize("count", [1000, 5000])
def test_every_pixel_comes_once_per_epoch(scenes, sampling, count):
    scene = scenes["nerf_synthetic"]
    rays = dataset(scene, sampling=sampling, rays_per_batch=count)
    for epoch in (0, 3):
        seen = [pixels_of(scene, rays[epoch * len(rays) + k]) for k in range(len(rays))]
        assert len(torch.cat(seen)) == len(torch.cat(seen).unique(dim=0)) == 3 * PIXELS
        assert len(rays) == -(-3 * PIXELS // count) if sampling == "all" else 3 * -(-PIXELS // count)
        views = [s[:, 0].unique().tolist() for s in seen]
        assert all(v == [0, 2, 5] for v in views) if sampling == "all" else {len(v) for v in views} == {1}


def test_batches_of_single_views_are_mixed(scenes):
    rays = dataset(scenes["nerf_synthetic"], sampling="image", rays_per_batch=100)
    views = [rays[k].view[0].item() for k in range(len(rays))]
    changes = sum(a != b for a, b in zip(views, views[1:], strict=False))
    assert changes > len(views) / 3 and [views.count(k) for k in (0, 2, 5)] == [31, 31, 31]


def test_the_seed_decides(scenes):
    rays = [dataset(scenes["nerf_synthetic"], seed=seed, background="random", rays_per_batch=64) for seed in (1, 1, 2)]
    assert equal(rays[0][5], rays[1][5]) and equal(rays[0][5], rays[0][5])
    assert not torch.equal(rays[0][5].directions, rays[2][5].directions)
    assert not torch.equal(rays[0][5].background, rays[2][5].background)
    assert not torch.equal(rays[0][5].directions, rays[0][5 + len(rays[0])].directions)


def test_epochs_number_their_batches_through(scenes):
    rays = dataset(scenes["llff"], rays_per_batch=4000)
    epochs = BatchEpochs(rays)
    assert len(epochs) == len(rays) == 3 and list(epochs) == [0, 1, 2]
    epochs.set_epoch(4)
    assert list(epochs) == [12, 13, 14]


@pytest.mark.parametrize("count", [2, 3])
def test_processes_divide_the_rays_of_a_batch(scenes, count):
    """Together they have the rays of one process in each step, and as many steps."""
    alone = dataset(scenes["nerf_synthetic"], rays_per_batch=1000, background="random")
    parts = []
    for rank in range(count):
        parts.append(dataset(scenes["nerf_synthetic"], rays_per_batch=1000, background="random"))
        parts[-1].shard = Shard(rank, count)
    assert {len(BatchEpochs(part)) for part in (alone, *parts)} == {len(alone)}
    for item in (0, 7, len(alone) + 1):
        whole = alone[item]
        for rank, part in enumerate(parts):
            for name, values in vars(part[item]).items():
                assert torch.equal(values, vars(whole)[name][rank::count]), name


def test_processes_beyond_the_rays_of_a_batch_share_some():
    assert [Shard(rank, 5).part(3).tolist() for rank in range(5)] == [[0], [1], [2], [0], [1]]


@pytest.mark.parametrize(
    ("fraction", "rows", "columns"), [(0.5, (12, 36), (16, 48)), (0.25, (18, 30), (24, 40)), (0.001, (23, 24), (31, 32))]
)
def test_the_first_batches_are_drawn_from_the_centre(scenes, fraction, rows, columns):
    scene = scenes["nerf_synthetic"]
    rays = dataset(scene, precrop=fraction, precrop_batches=9, rays_per_batch=256)
    first = torch.cat([pixels_of(scene, rays[k]) for k in range(9)]).unique(dim=0)
    assert first[:, 1].min() == rows[0] and first[:, 1].max() == rows[1] - 1
    assert first[:, 2].min() == columns[0] and first[:, 2].max() == columns[1] - 1
    if fraction == 0.5:
        assert len(first) == 3 * 24 * 32  # nine batches are one epoch of the centre
    assert pixels_of(scene, rays[9])[:, 1].min() < rows[0]


# ------------------------------------------------------------------ backgrounds
@pytest.mark.parametrize("name", ["nerf_synthetic", "dtu"])
@pytest.mark.parametrize("background", ["white", "black", "random"])
def test_backgrounds_stand_behind_the_object(scenes, name, background):
    scene = scenes[name]
    batch = dataset(scene, (1, 2), background=background, rays_per_batch=2 * PIXELS)[0]
    empty = batch.alpha == 0
    assert torch.equal(batch.rgb[empty], batch.background[empty]) and 100 < (~empty).sum() < 2000
    colours = torch.from_numpy(COLOURS) / 255
    assert torch.cdist(batch.rgb[~empty], colours).amin(1).max() < 0.01
    if background == "random":
        assert batch.background.min() >= 0 and 0.99 < batch.background.max() <= 1
        torch.testing.assert_close(batch.background.mean(0), torch.full((3,), 0.5), rtol=0, atol=0.02)
    else:
        assert (batch.background == (1.0 if background == "white" else 0.0)).all()


def test_transparent_colours_are_blended(tmp_path, scenes):
    pixels = np.full((48, 64, 4), [200, 100, 0, 51], dtype=np.uint8)
    save_picture(tmp_path / "glass.png", pixels)
    scene = scenes["nerf_synthetic"]
    scene = replace(scene, views=(replace(scene.views[0], image=tmp_path / "glass.png"),))
    for background, value in (("white", 1.0), ("black", 0.0)):
        batch = dataset(scene, (0,), background=background)[0]
        expected = 0.2 * torch.tensor([200, 100, 0]) / 255 + 0.8 * value
        torch.testing.assert_close(batch.rgb, expected.expand(1024, 3))
        assert (batch.alpha == 0.2).all()
    # without a mask the view is opaque, and what is transparent in the file is composited like that too
    opaque = replace(scene, views=(replace(scene.views[0], alpha_is_mask=False, background=None),))
    batch = dataset(opaque, (0,), background="white")[0]
    torch.testing.assert_close(batch.rgb, (0.2 * torch.tensor([200, 100, 0]) / 255 + 0.8).expand(1024, 3), rtol=0, atol=1 / 255)
    assert batch.alpha is None


def test_grey_masks_are_cut_as_in_photos(tmp_path, scenes):
    scene = scenes["dtu"]
    mask = np.repeat(np.array([100, 127, 128, 255], dtype=np.uint8), 16)[None, :, None].repeat(48, 0).repeat(3, 2)
    save_picture(tmp_path / "mask.png", mask)
    scene = replace(scene, views=(replace(scene.views[0], mask=tmp_path / "mask.png"), *scene.views[1:]))
    batch = dataset(scene, (0,), rays_per_batch=PIXELS)[0]
    _, row, column = pixels_of(scene, batch).unbind(1)
    assert torch.equal(batch.alpha, (column >= 32).float())
    torch.testing.assert_close(batch.rgb, read_photo(replace(scene.views[0], background=(1.0, 1.0, 1.0))).image[:, row, column].T / 255)


def test_photos_with_and_without_mask_together(scenes):
    scene = scenes["dtu"]
    scene = replace(scene, views=(replace(scene.views[0], mask=None), *scene.views[1:]))
    batch = dataset(scene, (0, 1), rays_per_batch=2 * PIXELS)[0]
    backdrop = torch.tensor(BACKDROP) / 255
    shown = (batch.rgb - backdrop).abs().amax(1) < 1e-6
    assert batch.alpha is None and shown[batch.view == 0].sum() > PIXELS / 2 and not shown[batch.view == 1].any()


# ------------------------------------------------------------------ workers and memory
def test_workers_give_the_same_batches_from_shared_photos(scenes, monkeypatch):
    rays = dataset(scenes["nerf_synthetic"], background="random", rays_per_batch=2000)
    rays.load()
    # from here on a decoded photo is an error, in workers too
    monkeypatch.setattr(photo_cache, "read_photo", lambda view: pytest.fail(f"{view.name} is decoded again"))
    epochs = BatchEpochs(rays)
    loader = DataLoader(rays, batch_size=None, sampler=epochs, num_workers=2, persistent_workers=True, multiprocessing_context="fork")
    for epoch in (0, 1):
        epochs.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == 5 and all(equal(batch, rays[epoch * 5 + k]) for k, batch in enumerate(batches))


def test_memory_is_that_of_the_photos(scenes):
    assert dataset(scenes["nerf_synthetic"]).photos.size <= 3 * (4 * PIXELS + 4096)
    tracemalloc.start()
    order = PixelOrder(np.zeros((80, 2), np.int64), np.full((80, 2), 800), 1024, True, 0)
    view, row, column = order.pixels(12_345)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(order) == 50_000 and peak < 1 << 20
    assert len(np.unique(view)) == 80 and min(row.min(), column.min()) >= 0 and max(row.max(), column.max()) < 800
    assert len(np.unique((view * 800 + row) * 800 + column)) == 1024


def test_photos_beyond_the_budget(scenes):
    scene = scenes["nerf_synthetic"]
    with pytest.raises(InputError, match=r"cache_memory_gb.*3 training photos.*enough for 2.*sampling=image"):
        dataset(scene, budget=2 * 4 * PIXELS + 4096)
    rays, kept = dataset(scene, sampling="image", budget=0), dataset(scene, sampling="image")
    rays.load()
    assert equal(rays[2], kept[2])


def test_a_batch_moves_as_a_whole(scenes):
    for name in ("nerf_synthetic", "llff"):
        batch = dataset(scenes[name])[0]
        moved = batch.to("meta")
        assert len(moved) == 1024 and (moved.alpha is None) == (name == "llff")
        assert all(getattr(moved, f.name) is None or getattr(moved, f.name).device.type == "meta" for f in fields(RayBatch))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a CUDA device")
def test_a_batch_is_pinned_as_a_whole(scenes):
    batch = dataset(scenes["nerf_synthetic"])[0].pin_memory()
    assert all(getattr(batch, field.name).is_pinned() for field in fields(RayBatch))


# ------------------------------------------------------------------ refused
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rays_per_batch", 0),
        ("precrop_batches", -1),
        ("seed", -1),
        ("sampling", "some"),
        ("precrop", 0.0),
        ("precrop", 1.5),
        ("background", "pink"),
    ],
)
def test_invalid_sampling_is_refused(key, value):
    with pytest.raises(InputError, match=rf"system\.rays\.{key}: .*{value}"):
        RaySampling(**{key: value})


def test_views_that_cannot_be_sampled_are_refused(scenes):
    with pytest.raises(InputError, match=r"system\.rays\.background: .*photo_002"):
        dataset(scenes["llff"], (2, 3), background="random")
    with pytest.raises(InputError, match=r"scene llff: .*none"):
        dataset(scenes["llff"], ())


def test_no_ray_goes_through_the_margin(scenes):
    scene = scenes["dtu"]
    rays = RayDataset(scene, (0, 2), scene_normalisation(scene, "plain"), RaySampling(rays_per_batch=500), BUDGET, margin=5)
    drawn = torch.cat([pixels_of(scene, rays[k]) for k in range(len(rays))])
    height, width = SIZE
    assert len(drawn) == len(drawn.unique(dim=0)) == 2 * (height - 10) * (width - 10)
    assert drawn[:, 1:].min() == 5 and drawn[:, 1].max() == height - 6 and drawn[:, 2].max() == width - 6
    with pytest.raises(InputError, match=r"datasets\.image_margin"):
        RayDataset(scene, (0,), scene_normalisation(scene, "plain"), RaySampling(), BUDGET, margin=min(SIZE) // 2)
