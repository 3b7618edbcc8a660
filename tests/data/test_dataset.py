"""Items of a scene: crops, zooms and margins in which picture, camera, mask and validity agree.

uv: pixel position (column, row) with the centre of the first pixel at (0.5, 0.5).
"""

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data import Batch, CloudFile, PhotoCache, Scene, View, Views, read_photo
from npbgpp.data.dataset import Augmentation, SceneDataset, as_size
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras

from ..helpers.scenes import COLOURS, POINTS, RADIUS

EVERY = (0, 1, 2, 3)


@pytest.fixture
def scene(balls) -> Scene:
    return balls


def seen_centre(views: Views, colour: np.ndarray) -> torch.Tensor | None:
    """uv of a ball by its colour, weighted by how much of a pixel has it; None where it is cut or not there."""
    likeness = 1 - (views.image[0] - torch.from_numpy(colour).float()[:, None, None] / 255).abs().amax(0)
    weight = likeness.clamp(min=0.75) - 0.75
    border = torch.cat([weight[0], weight[-1], weight[:, 0], weight[:, -1]])
    if weight.sum() < 2 or border.sum() > 0:
        return None
    rows, columns = torch.meshgrid(torch.arange(weight.shape[0]) + 0.5, torch.arange(weight.shape[1]) + 0.5, indexing="ij")
    return torch.stack([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


@pytest.mark.parametrize(
    "augmentation",
    [
        pytest.param(Augmentation(), id="whole"),
        pytest.param(Augmentation((30, 41)), id="centre"),
        pytest.param(Augmentation((31, 40), random_shift=True), id="shift"),
        pytest.param(Augmentation(None, random_zoom=(0.6, 1.4)), id="zoom"),
        pytest.param(Augmentation((33, 37), True, (0.5, 2.0)), id="shift and zoom"),
    ],
)
def test_points_stay_where_their_picture_is(scene, augmentation):
    """Balls found in the item by their colour lie where its camera puts their centres."""
    dataset = SceneDataset("d", scene, EVERY, augmentation=augmentation, num_samples=32)
    found = 0
    for k in range(32):
        views = dataset[k].target
        uv, depth = views.cameras.project(torch.from_numpy(POINTS).float())
        overlap = torch.cdist(uv[0], uv[0]) < 2.2 * RADIUS * views.cameras.focal_length.max() / depth.min()
        for j, colour in enumerate(COLOURS):
            centre = seen_centre(views, colour)
            if centre is not None and overlap[j].sum() == 1:
                found += 1
                assert (centre - uv[0, j]).abs().max() < 0.6, (k, j)
    assert found >= 12


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (16, 24), (47, 64), (48, 20)])
def test_a_crop_is_an_exact_part_of_the_photo(scene, size, shift):
    """Picture, mask and camera are those of the sub-image at one place; without shift the place is the centre."""
    dataset = SceneDataset("d", scene, EVERY, augmentation=Augmentation(size, shift), num_samples=8)
    corners = set()
    for k in range(8):
        view, views = scene.views[k % 4], dataset[k].target
        photo = read_photo(view)
        offset = view.camera.principal_point - views.cameras.principal_point
        left, top = (int(v) for v in offset[0])
        corners.add((top, left))
        assert torch.equal(offset, torch.tensor([[left, top]], dtype=torch.float32)) and left >= 0 and top >= 0
        part = photo.image[:, top : top + size[0], left : left + size[1]]
        assert part.shape == (3, *size) and torch.equal(views.image[0], part.float() / 255)
        assert torch.equal(views.mask[0, 0], photo.mask[0, top : top + size[0], left : left + size[1]].float() / 255)
        assert views.cameras.image_size == size and torch.equal(views.cameras.focal_length, view.camera.focal_length)
        assert views.valid.all()
    if not shift:
        assert corners == {((48 - size[0]) // 2, (64 - size[1]) // 2)}
    elif size[0] < 47:
        assert len(corners) > 1


def test_the_whole_image_is_exact(scene):
    views = SceneDataset("d", scene, EVERY)[2].target
    assert torch.equal(views.image[0], read_photo(scene.views[2]).image.float() / 255)
    assert views.cameras is scene.views[2].camera and views.names == ("train-r_2",)


def test_a_zoom_by_one_changes_nothing(scene):
    plain = SceneDataset("d", scene, EVERY)[1].target
    zoomed = SceneDataset("d", scene, EVERY, augmentation=Augmentation(random_zoom=(1.0, 1.0)))[1].target
    assert torch.allclose(plain.image, zoomed.image, atol=1e-5) and torch.equal(plain.valid, zoomed.valid)
    assert torch.allclose(plain.cameras.focal_length, zoomed.cameras.focal_length)


def test_zoom_factors_fill_their_interval(scene):
    dataset = SceneDataset("d", scene, EVERY, augmentation=Augmentation(random_zoom=(0.5, 2.0)), num_samples=60)
    factors = torch.stack([dataset[k].target.cameras.focal_length[0] / scene.views[k % 4].camera.focal_length[0] for k in range(60)])
    assert torch.allclose(factors[:, 0], factors[:, 1])
    assert 0.5 <= factors.min() < 0.65 and 1.8 < factors.max() <= 2.0


def test_what_zooming_out_uncovers_is_not_valid(scene):
    views = SceneDataset("d", scene, EVERY, augmentation=Augmentation(random_zoom=(0.5, 0.5)))[0].target
    inner = torch.zeros(48, 64, dtype=torch.bool)
    inner[12:36, 16:48] = True
    assert torch.equal(views.valid[0, 0], inner) and (views.image[0, :, :11] == 0).all()


def opaque_scene(tmp_path, mask: np.ndarray | None, size: tuple[int, int] = (40, 56)) -> Scene:
    """One view of noise, with this (h, w) mask of 0 and 255."""
    colours = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels = colours if mask is None else np.concatenate([colours, mask[..., None].astype(np.uint8)], -1)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    camera = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.full((1, 2), 50.0), torch.tensor([[size[1] / 2, size[0] / 2]]), size)
    view = View("photo", tmp_path / "photo.png", camera, mask is not None)
    return Scene("noise", (view,), {"train": (0,), "val": (), "test": ()}, CloudFile(tmp_path / "cloud.ply"))


@pytest.mark.parametrize("margin", [0, 1, 7, 19])
def test_the_margin_does_not_count(tmp_path, margin):
    views = SceneDataset("d", opaque_scene(tmp_path, None), (0,), image_margin=margin)[0].target
    expected = torch.zeros(40, 56, dtype=torch.bool)
    expected[margin : 40 - margin, margin : 56 - margin] = True
    assert torch.equal(views.valid[0, 0], expected) and views.mask is None


def test_the_margin_belongs_to_the_photo_not_to_the_crop(tmp_path):
    """A crop in the middle touches no border, so all of it counts."""
    scene = opaque_scene(tmp_path, None)
    assert SceneDataset("d", scene, (0,), augmentation=Augmentation((20, 20)), image_margin=8)[0].target.valid.all()
    assert not SceneDataset("d", scene, (0,), augmentation=Augmentation((30, 20)), image_margin=8)[0].target.valid.all()


def test_the_object_counts_also_in_the_margin(tmp_path):
    mask = np.zeros((40, 56))
    mask[:3, 10:20] = 255
    mask[20, 0] = 127
    views = SceneDataset("d", opaque_scene(tmp_path, mask), (0,), image_margin=5)[0].target
    expected = torch.zeros(40, 56, dtype=torch.bool)
    expected[5:35, 5:51] = True
    expected[:3, 10:20] = True
    assert torch.equal(views.valid[0, 0], expected)


def test_shifted_crops_are_centred_on_the_object_or_lie_in_a_corner(tmp_path):
    mask = np.zeros((40, 56))
    mask[14:26, 20:40] = 255
    scene = opaque_scene(tmp_path, mask)
    dataset = SceneDataset("d", scene, (0,), augmentation=Augmentation((10, 12), True), num_samples=200)
    allowed = {(row - 5, column - 6) for row in (16, 24) for column in (24, 32)} | {(r, c) for r in (0, 30) for c in (0, 44)}
    chosen = set()
    for k in range(200):
        left, top = (scene.views[0].camera.principal_point - dataset[k].target.cameras.principal_point)[0].tolist()
        chosen.add((int(top), int(left)))
    assert chosen == allowed


def test_without_a_mask_crops_reach_everywhere(tmp_path):
    scene = opaque_scene(tmp_path, None)
    dataset = SceneDataset("d", scene, (0,), augmentation=Augmentation((16, 16), True), num_samples=200)
    covered = torch.zeros(40, 56, dtype=torch.bool)
    for k in range(200):
        left, top = (int(v) for v in (scene.views[0].camera.principal_point - dataset[k].target.cameras.principal_point)[0])
        covered[top : top + 16, left : left + 16] = True
    assert covered.all()


@pytest.mark.parametrize(("samples", "length"), [(None, 3), (2, 2), (3, 3), (8, 8)])
def test_the_number_of_samples_wraps_around(scene, samples, length):
    dataset = SceneDataset("balls_train", scene, (1, 3, 7), num_samples=samples)
    assert len(dataset) == length
    names = [dataset[k].target.names[0] for k in range(length)]
    assert names == [("train-r_1", "train-r_3", "test-r_0")[k % 3] for k in range(length)]
    assert dataset[0].dataset == ("balls_train",) and dataset[0].scene == ("balls",) and len(dataset[0]) == 1


ALL = Augmentation((20, 30), True, (0.8, 1.2))


def same(first: Batch, second: Batch) -> bool:
    a, b = first.target, second.target
    pairs = [(a.image, b.image), (a.valid, b.valid), (a.mask, b.mask)]
    pairs += [(getattr(a.cameras, n), getattr(b.cameras, n)) for n in ("R", "T", "focal_length", "principal_point")]
    return a.names == b.names and all(torch.equal(x, y) for x, y in pairs)


def test_items_follow_the_seed(scene):
    dataset = SceneDataset("d", scene, EVERY, augmentation=ALL, num_samples=6)
    torch.manual_seed(7)
    first = [dataset[k] for k in range(6)]
    torch.manual_seed(7)
    assert all(same(dataset[k], item) for k, item in enumerate(first))
    assert not all(same(dataset[k], item) for k, item in enumerate(first))


def test_cached_photos_give_the_same_items_and_are_decoded_once(scene, monkeypatch):
    plain = SceneDataset("d", scene, EVERY, augmentation=ALL, num_samples=9)
    torch.manual_seed(7)
    expected = [plain[k] for k in range(9)]
    decoded = []
    monkeypatch.setattr("npbgpp.data.images.read_photo", lambda view: decoded.append(view.name) or read_photo(view))
    cached = SceneDataset("d", scene, EVERY, augmentation=ALL, num_samples=9, photos=PhotoCache(scene.views, 1 << 20))
    torch.manual_seed(7)
    assert all(same(cached[k], item) for k, item in enumerate(expected))
    assert sorted(decoded) == [f"train-r_{k}" for k in range(4)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"augmentation": Augmentation((49, 64))}, ["datasets.train_image_size", "48x64", "49x64", "balls"]),
        ({"augmentation": Augmentation((48, 65))}, ["datasets.train_image_size", "48x65"]),
        ({"augmentation": Augmentation((0, 8))}, ["datasets.train_image_size", "0x8"]),
        ({"augmentation": Augmentation(None, True)}, ["datasets.train_random_shift", "48x64"]),
        ({"augmentation": Augmentation((48, 64), True)}, ["datasets.train_random_shift", "48x64"]),
        ({"augmentation": Augmentation(random_zoom=(2.0, 0.5))}, ["datasets.train_random_zoom", "[2.0, 0.5]"]),
        ({"augmentation": Augmentation(random_zoom=(0.0, 1.0))}, ["datasets.train_random_zoom"]),
        ({"augmentation": Augmentation(random_zoom=(1.0, float("nan")))}, ["datasets.train_random_zoom"]),
        ({"image_margin": 24}, ["datasets.image_margin", "24"]),
        ({"image_margin": -1}, ["datasets.image_margin", "-1"]),
        ({"num_samples": 0}, ["datasets.train_num_samples", "0"]),
    ],
)
def test_impossible_settings_are_refused(scene, options, words):
    with pytest.raises(InputError) as caught:
        SceneDataset("d", scene, EVERY, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_dataset_without_views_is_refused(scene):
    with pytest.raises(InputError, match=r"balls_val.*at least one view"):
        SceneDataset("balls_val", scene, ())


def test_batches_join_items_in_order(scene):
    dataset = SceneDataset("d", scene, EVERY)
    batch = Batch.collate([dataset[k] for k in (2, 0, 1)])
    assert len(batch) == 3 and batch.target.names == ("train-r_2", "train-r_0", "train-r_1") and batch.dataset == ("d",) * 3
    for k, view in enumerate((2, 0, 1)):
        assert torch.equal(batch.target.image[k], dataset[view].target.image[0])
        assert torch.equal(batch.target.cameras.T[k], dataset[view].target.cameras.T[0])
        assert torch.equal(batch.target.mask[k], dataset[view].target.mask[0])
    assert torch.equal(batch.to("cpu").target.image, batch.target.image)


def test_a_batch_has_masks_only_when_all_of_its_views_have(scene, tmp_path):
    masked = SceneDataset("a", scene, EVERY)[0]
    bare = SceneDataset("b", opaque_scene(tmp_path, None, (48, 64)), (0,))[0]
    batch = Batch.collate([masked, bare])
    assert batch.target.mask is None and batch.scene == ("balls", "noise")


def test_views_of_different_sizes_cannot_share_a_batch(scene, tmp_path):
    first = SceneDataset("a", scene, EVERY)[0]
    second = SceneDataset("b", opaque_scene(tmp_path, None), (0,))[0]
    with pytest.raises(InputError, match=r"\(40, 56\), \(48, 64\).*datasets\.train_image_size.*total_batch_size"):
        Batch.collate([first, second])


@pytest.mark.parametrize(("value", "size"), [(None, None), (256, (256, 256)), ((3, 4), (3, 4))])
def test_one_number_is_a_square(value, size):
    assert as_size(value) == size
