"""NeRF-Synthetic scenes: cameras that agree with the pictures, the order of views, and their split."""

import json

import numpy as np
import pytest
import torch

from npbgpp.data.images import read_photo
from npbgpp.data.point_files import CloudFile
from npbgpp.errors import InputError
from npbgpp.parsers import LAYOUTS


def centroid(image: torch.Tensor, colour: np.ndarray) -> torch.Tensor:
    """(u, v) of the pixels (3, h, w) that have exactly this colour."""
    match = (image == torch.from_numpy(colour)[:, None, None]).all(0)
    assert match.sum() >= 5, "the ball is not in the picture"
    return match.nonzero().double().mean(0).flip(0) + 0.5


def test_points_project_to_where_they_are_drawn(dots):
    scene = dots.parse()
    for view in scene.views:
        uv, depth = view.camera.project(torch.from_numpy(dots.points).float())
        image = read_photo(view).image
        for k, colour in enumerate(dots.colours):
            assert (centroid(image, colour) - uv[0, k]).abs().max() < 0.5, (view.name, k)
        assert (depth > 2).all() and view.camera.image_size == (48, 64)


def test_views_count_train_then_val_then_test(dots):
    scene = dots.parse()
    names = [f"train-r_{k}" for k in range(4)] + ["val-r_0", "val-r_1", "test-r_0", "test-r_1"]
    assert [view.name for view in scene.views] == names
    assert scene.splits == {"train": (0, 1, 2, 3), "val": (4,), "test": (6, 7)}
    assert scene.name == "dots" and scene.cloud.path.name == "mvs_pc.ply"


def test_published_split_of_the_data_set(numbered_scene):
    splits = numbered_scene(100, 100, 200).splits
    assert splits["train"] == tuple(range(100))
    assert splits["val"] == tuple(range(100, 200, 10))
    assert splits["test"] == tuple(range(200, 400))


@pytest.mark.parametrize(("count", "chosen"), [(0, 0), (1, 1), (9, 1), (10, 1), (11, 2), (25, 3)])
def test_every_tenth_validation_frame_but_at_least_one(numbered_scene, count, chosen):
    assert len(numbered_scene(2, count, 1).splits["val"]) == chosen


def test_a_name_with_a_suffix_is_taken_as_it_is(numbered_scene, tmp_path):
    numbered_scene(1, 1, 1)
    file = tmp_path / "numbered" / "transforms_train.json"
    content = json.loads(file.read_text())
    content["frames"][0]["file_path"] = "train/r_0.png"
    file.write_text(json.dumps(content))
    view = LAYOUTS["nerf_synthetic"].parse(file.parent, file.parent, "numbered", CloudFile(file)).views[0]
    assert view.image == file.parent / "train" / "r_0.png" and view.name == "train-r_0"


def test_val_and_holdout_indices_replace_the_natural_split(dots):
    scene = dots.parse()
    both = scene.with_splits((1, 6), (2,))
    assert both.splits == {"train": (0, 3), "val": (1, 6), "test": (2,)}
    only_val = scene.with_splits((6,), None)
    assert only_val.splits == {"train": (0, 1, 2, 3), "val": (6,), "test": (7,)}
    only_test = scene.with_splits(None, (4, 0))
    assert only_test.splits == {"train": (1, 2, 3), "val": (), "test": (4, 0)}
    assert scene.with_splits(None, None) == scene
    assert scene.with_splits((), None).splits["val"] == ()


@pytest.mark.parametrize(
    ("val", "test", "words"),
    [
        ((8,), None, ["datasets.val_indices", "dots", "[8]", "0 to 7"]),
        ((-1,), None, ["datasets.val_indices", "[-1]"]),
        (None, (5, 99), ["datasets.holdout_indices", "[99]"]),
        ((1, 2), (2, 3), ["datasets.val_indices", "datasets.holdout_indices", "[2]"]),
        ((0, 1), (2, 3), ["dots", "no training view left"]),
    ],
)
def test_wrong_indices_are_refused(dots, val, test, words):
    with pytest.raises(InputError) as caught:
        dots.parse().with_splits(val, test)
    assert all(word in str(caught.value) for word in words), str(caught.value)
