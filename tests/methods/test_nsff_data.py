"""Batches of rays of a video: what they see, which frames and pixels they are of, and what they depend on."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from npbgpp.data.motion_maps import VideoSampling, read_disparity, read_flow, read_static, write_flow
from npbgpp.data.point_files import CloudFile
from npbgpp.data.sampling import BatchEpochs, Shard
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.methods.nsff import data as frame_table
from npbgpp.methods.nsff.data import FrameOrder, PixelWeights, VideoBatch, VideoDataset
from npbgpp.methods.nsff.normalisation import video_normalisation
from npbgpp.parsers import read_scene

FRAMES, SIZE = 8, (32, 48)
PLENTY = 1 << 30


def read(root: Path, **choices) -> Scene:
    return read_scene("monocular", root, root, "hop", CloudFile(root / "none.ply"), choices)


@pytest.fixture(scope="module")
def scene(moving_root: Path) -> Scene:
    return read(moving_root / "hop")


def rays_of(scene: Scene, indices=None, budget=PLENTY, margin=0, cache=None, **sampling) -> VideoDataset:
    indices = scene.splits["train"] if indices is None else indices
    drawn = {"rays_per_batch": 64, "seed": 3}
    drawn |= {key: sampling.pop(key) for key in tuple(sampling) if key in drawn}
    settings = VideoSampling(**{"batches_per_epoch": 40} | sampling)
    return VideoDataset(scene, indices, video_normalisation(scene), settings, budget, margin, cache, **drawn)


def same(one: VideoBatch, other: VideoBatch) -> bool:
    return all(torch.equal(a.nan_to_num(-9), b.nan_to_num(-9)) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


# ------------------------------------------------------------------ what is seen
def test_rays_go_through_the_pixels_that_they_have_the_colours_of(scene, moving_root):
    data = rays_of(scene, exclusion_window=0)
    frame = video_normalisation(scene)
    for item in range(6):
        batch = data[item]
        (time_step,) = batch.time_step.unique().tolist()
        row, column = batch.pixel // SIZE[1], batch.pixel % SIZE[1]
        uv_px, depth = frame.project(frame.ndc_to_field(batch.origins + 0.5 * batch.directions), time_step)
        torch.testing.assert_close(uv_px, torch.stack([column, row], 1) + 0.5, atol=1e-3, rtol=0)
        assert (depth > 0).all()
        view = scene.views[time_step]
        photo = frame_table.read_photo(view).image
        torch.testing.assert_close(batch.rgb, photo[:, row, column].T / 255)
        torch.testing.assert_close(batch.disparity, read_disparity(view)[row, column])
        assert torch.equal(batch.static, read_static(view)[row, column])
        for uv, folder, file, known in (
            (batch.uv_forward_px, "flow_fw", time_step, time_step < FRAMES - 1),
            (batch.uv_backward_px, "flow_bw", time_step - 1, time_step > 0),
        ):
            if known:
                flow = torch.from_numpy(read_flow(moving_root / "hop" / folder / f"{file + (folder == 'flow_bw'):05d}.flo"))[row, column]
                torch.testing.assert_close(uv, torch.stack([column, row], 1) + 0.5 + flow)
            else:
                assert uv.isnan().all()
        torch.testing.assert_close(batch.view_directions.norm(dim=1), torch.ones(64))


def test_batches_move_and_count_their_rays(scene):
    batch = rays_of(scene)[0]
    moved = batch.to("cpu")
    assert len(batch) == 64 and same(batch, moved) and moved is not batch


def test_held_out_frames_are_not_drawn_and_no_flow_leads_to_them(scene):
    held_out = scene.with_splits(None, (3,))
    assert held_out.splits == {"train": (0, 1, 2, 4, 5, 6, 7), "val": (4,), "test": (3,)}
    data = rays_of(held_out)
    seen = [data[item] for item in range(200)]
    assert {int(batch.time_step[0]) for batch in seen} == {0, 1, 2, 4, 5, 6, 7}
    for batch in seen:
        time_step = int(batch.time_step[0])
        assert batch.uv_forward_px.isnan().any() == (time_step in (2, 7))
        assert batch.uv_backward_px.isnan().any() == (time_step in (0, 4))


def test_flow_of_reduced_frames_is_reduced(scene, moving_root):
    half = read(moving_root / "hop", img_wh=(24, 16))
    assert half.views[0].camera.image_size == (16, 24) and half.views[0].resized
    wide = read(moving_root / "hop", img_wh=(48, 16))
    np.testing.assert_allclose(wide.views[0].camera.focal_length.numpy(), scene.views[0].camera.focal_length.numpy() * [[1, 0.5]])
    for other, scale in ((half, [0.5, 0.5]), (wide, [1.0, 0.5])):
        moved = frame_table.read_uv(other.views[2], True).mean((0, 1))
        torch.testing.assert_close(
            moved, frame_table.read_uv(scene.views[2], True).mean((0, 1)) * torch.tensor(scale), rtol=0.05, atol=0.02
        )
        assert rays_of(other)[0].pixel.max() < 16 * other.views[0].camera.image_size[1]


def test_flow_of_padded_frames_is_cut(tmp_path, moving_root):
    """RAFT pads pictures of 48x30 pixels to 48x32, one row above and one below."""
    root = tmp_path / "hop"
    shutil.copytree(moving_root / "hop", root)
    shutil.rmtree(root / "novel")
    plain = read(root)
    low = replace(plain.views[2], image=tmp_path / "low.png", camera=plain.views[2].camera.crop(1, 0, (30, 48)))
    frame_table.read_photo(plain.views[2])
    from PIL import Image

    Image.fromarray(np.zeros((30, 48, 3), np.uint8)).save(low.image)
    cut = frame_table.read_uv(low, True)
    torch.testing.assert_close(cut, frame_table.read_uv(plain.views[2], True)[1:31])


# ------------------------------------------------------------- frames and pixels
@pytest.mark.parametrize(
    ("count", "window", "left"), [(30, 5, 5), (13, 5, 5), (12, 5, 4), (8, 5, 2), (6, 5, 1), (4, 5, 0), (3, 5, 0), (2, 5, 0)]
)
def test_no_two_batches_in_a_row_are_of_frames_close_to_each_other(count, window, left):
    order = FrameOrder(np.arange(count), 3000, window, seed=1)
    assert order.window == left
    for epoch in (0, 2):
        frames = np.array([order.frame(epoch * 3000 + k) for k in range(3000)])
        assert (np.abs(np.diff(frames)) > left).all()
        share = np.bincount(frames, minlength=count) / len(frames)
        assert share.min() > 0.65 / count and share.max() < 1.35 / count  # 0.70 to 1.20 was seen, of 30 frames


def test_one_frame_follows_itself():
    order = FrameOrder(np.array([4]), 5, 5, seed=0)
    assert order.window == -1 and {order.frame(k) for k in range(10)} == {0}


def test_epochs_are_as_long_as_published(scene):
    for width, height, frames, batches in ((512, 288, 30, 4423), (480, 270, 12, 1555)):
        assert width * height * frames // 1000 == batches
    assert len(rays_of(scene, batches_per_epoch=None)) == 48 * 32 * 8 // 1000
    assert len(rays_of(scene, (0, 1, 2), batches_per_epoch=None)) == 4
    assert len(rays_of(scene, batches_per_epoch=7)) == 7


def test_pixels_are_drawn_evenly_within_the_margin(scene):
    data = rays_of(scene, rays_per_batch=4096, margin=4)
    pixel = torch.cat([data[k].pixel for k in range(20)])
    row, column = pixel // SIZE[1], pixel % SIZE[1]
    assert (row.min(), row.max(), column.min(), column.max()) == (4, 27, 4, 43)
    counts = torch.bincount(pixel, minlength=SIZE[0] * SIZE[1]).view(SIZE)[4:28, 4:44].float()
    assert counts.std() / counts.mean() < 1.2 / counts.mean().sqrt()  # as for independent draws


def test_a_batch_depends_on_its_number_and_the_seed_alone(scene):
    data, again = rays_of(scene), rays_of(scene)
    numbers = [57, 3, 81, 4]
    assert all(same(data[k], again[k]) for k in reversed(numbers))
    assert not same(data[3], data[43]) and not same(data[3], rays_of(scene, seed=4)[3])
    copy = pickle.loads(pickle.dumps(data))
    assert same(copy[57], data[57])
    assert same(rays_of(scene, budget=0)[57], data[57])


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_the_batches_of_the_epoch_in_order(scene, workers):
    data = rays_of(scene, batches_per_epoch=5)
    data.load()
    sampler = BatchEpochs(data)
    sampler.set_epoch(2)
    batches = list(DataLoader(data, batch_size=None, sampler=sampler, num_workers=workers))
    assert len(batches) == 5 and all(same(batch, rays_of(scene, batches_per_epoch=5)[10 + k]) for k, batch in enumerate(batches))


def test_processes_divide_the_rays_of_a_batch(scene):
    alone, parts = rays_of(scene), [rays_of(scene), rays_of(scene)]
    for rank, part in enumerate(parts):
        part.shard = Shard(rank, 2)
    for item in (0, 9, 40):
        for rank, part in enumerate(parts):
            assert torch.equal(part[item].pixel, alone[item].pixel[rank::2]) and torch.equal(part[item].rgb, alone[item].rgb[rank::2])


def test_what_does_not_fit_into_memory_is_read_every_time(scene, monkeypatch):
    one = frame_table.BYTES_PER_PIXEL * SIZE[0] * SIZE[1]
    data = rays_of(scene, budget=3 * one + 5, exclusion_window=0)
    assert (data.kept, data.size) == (3, 3 * one)
    data.load()
    reads, read_table = [], frame_table.read_table
    monkeypatch.setattr(frame_table, "read_table", lambda view, cache: reads.append(view.time_step) or read_table(view, cache))
    for k in range(30):
        data[k]
    assert set(reads) == {3, 4, 5, 6, 7} and len(reads) > 10
    assert sum(t.nbytes for t in vars(read_table(scene.views[0])).values()) == one


# ------------------------------------------------------------------ hard sampling
def test_pixels_are_drawn_by_their_weights(scene):
    data = rays_of(scene, hard_sampling=True, rays_per_batch=2000, batches_per_epoch=60)
    assert data.weights is not None
    wrong = torch.zeros(SIZE)
    wrong[10:20, 5:15], wrong[20:, 30:] = 1.0, 0.25
    data.weights.update(2, wrong)
    drawn = {time_step: torch.cat([b.pixel for b in (data[k] for k in range(60)) if b.time_step[0] == time_step]) for time_step in (2, 6)}
    counts = torch.bincount(drawn[2], minlength=SIZE[0] * SIZE[1]).view(SIZE).float() / len(drawn[2])
    total = 100 + 0.25 * 12 * 18 + 0.001 * (32 * 48 - 100 - 12 * 18)
    assert counts[10:20, 5:15].sum() == pytest.approx(100 / total, rel=0.05)
    assert counts[20:, 30:].sum() == pytest.approx(0.25 * 12 * 18 / total, rel=0.05)
    even = torch.bincount(drawn[6], minlength=SIZE[0] * SIZE[1]).view(SIZE).float() / len(drawn[6])
    assert even[10:20, 5:15].sum() == pytest.approx(100 / (32 * 48), rel=0.2)


def test_workers_see_new_weights(scene):
    """Also those that were forked before."""
    data = rays_of(scene, hard_sampling=True, batches_per_epoch=6)
    sampler = BatchEpochs(data)
    loader = DataLoader(data, batch_size=None, sampler=sampler, num_workers=1, persistent_workers=True)
    assert len(list(loader)) == 6
    corner = torch.zeros(SIZE)
    corner[0, 0] = 1
    for time_step in range(FRAMES):
        data.weights.update(time_step, corner)
    sampler.set_epoch(1)
    share = torch.cat([batch.pixel == 0 for batch in loader]).float().mean()
    assert share == pytest.approx(1 / (1 + 0.001 * (32 * 48 - 1)), abs=0.1)


def test_weights_come_back_from_a_checkpoint_and_draw_the_same(scene):
    one, other = (rays_of(scene, hard_sampling=True) for _ in range(2))
    one.weights.update(3, torch.rand(SIZE))
    k = next(k for k in range(40) if one.order.frame(k) == 3)
    assert not same(one[k], other[k])
    other.weights.load_state_dict(one.weights.state_dict())
    assert same(one[k], other[k])
    assert same(pickle.loads(pickle.dumps(one))[k], one[k])
    with pytest.raises(InputError, match="8 frames of 48x32 pixels, got 8 of 24x16"):
        one.weights.load_state_dict(PixelWeights(range(8), (16, 24)).state_dict())
    with pytest.raises(InputError, match="8 frames of 48x32 pixels, got 5"):
        one.weights.load_state_dict(PixelWeights(range(5), SIZE).state_dict())


def test_a_frame_without_any_error_is_drawn_evenly():
    weights = PixelWeights([0], (4, 4))
    weights.update(0, torch.zeros(4, 4))
    assert (weights.of(0) == 1).all()


# ------------------------------------------------------------------------- cache
def test_the_cache_is_written_read_and_renewed(scene, tmp_path, moving_root, monkeypatch):
    root = tmp_path / "hop"
    shutil.copytree(moving_root / "hop", root)
    cache = tmp_path / "cache"
    first = rays_of(read(root), cache=cache)
    first.load()
    assert len(list(cache.iterdir())) == FRAMES
    opened = []
    monkeypatch.setattr(frame_table, "read_photo", lambda view: opened.append(view.name))
    second = rays_of(read(root), cache=cache)
    second.load()
    assert not opened and all(same(first[k], second[k]) for k in range(10))
    monkeypatch.undo()
    write_flow(root / "flow_fw" / "00003.flo", np.zeros((*SIZE, 2), np.float32))
    third = rays_of(read(root), cache=cache)
    k = next(k for k in range(40) if third.order.frame(k) == 3)
    torch.testing.assert_close(third[k].uv_forward_px, third._centres(third[k].pixel).float())
    assert not same(third[k], first[k])
    path = next(cache.glob("00003-*.pt"))
    for file in cache.glob("00003-*.pt"):
        file.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cached frame .*00003"):
        rays_of(read(root), cache=cache).load()


# ------------------------------------------------------------------ more of what moves
@pytest.mark.parametrize("hard", [False, True])
def test_part_of_the_pixels_is_drawn_where_something_moves(scene, hard):
    data = rays_of(scene, moving_share=0.5, hard_sampling=hard, rays_per_batch=200, margin=2)
    plain = rays_of(scene, hard_sampling=hard, rays_per_batch=100, margin=2)
    for k in range(10):
        batch = data[k]
        assert torch.equal(batch.pixel[:100], plain[k].pixel), "the others as ever"
        row, column = batch.pixel[100:] // SIZE[1], batch.pixel[100:] % SIZE[1]
        assert not batch.static[100:].any() and min(row.min(), column.min()) >= 2 and row.max() < SIZE[0] - 2 and column.max() < SIZE[1] - 2
    time_step = int(data[0].time_step[0])
    drawn = torch.cat([batch.pixel[100:] for batch in (data[k] for k in range(200)) if batch.time_step[0] == time_step]).unique()
    assert len(drawn) > 0.95 * (~read_static(scene.views[time_step])[2:-2, 2:-2]).sum(), "all of them come"


def test_without_masks_pixels_are_drawn_everywhere(tmp_path, moving_root):
    root = tmp_path / "hop"
    shutil.copytree(moving_root / "hop", root)
    shutil.rmtree(root / "masks")
    assert same(rays_of(read(root), moving_share=0.5)[3], rays_of(read(root))[3])


# --------------------------------------------------------------------- bad input
def test_settings_that_make_no_sense_are_refused(scene):
    for wrong, message in (
        ({"batches_per_epoch": 0}, "batches_per_epoch"),
        ({"exclusion_window": -1}, "exclusion_window"),
        ({"moving_share": 1.5}, "datasets.moving_share"),
    ):
        with pytest.raises(InputError, match=message):
            VideoSampling(**wrong)
    with pytest.raises(InputError, match="image_margin: expected 0 or more and less than half of 32"):
        rays_of(scene, margin=16)
    with pytest.raises(InputError, match="at least one frame that trains"):
        rays_of(scene, (8, 9))


@pytest.mark.parametrize(("folder", "what"), [("disps", "in disps"), ("flow_fw", "in flow_fw"), ("flow_bw", "in flow_bw")])
def test_frames_without_maps_cannot_train(tmp_path, moving_root, folder, what):
    root = tmp_path / "hop"
    shutil.copytree(moving_root / "hop", root)
    shutil.rmtree(root / folder)
    scene = read(root)
    assert any(f"there is no {folder}, which NSFF needs" in note for note in scene.notes)
    with pytest.raises(InputError, match=what):
        rays_of(scene)
