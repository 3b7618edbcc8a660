"""H3DS scenes: cameras that agree with the pictures, scale, published views, the split, both versions of the data, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from npbgpp.data.images import read_photo
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.parsers import LAYOUTS

from ..helpers.scenes import COLOURS, POINTS, alternating_intrinsics, centroid, write_h3ds

HELD_OUT = {
    "5ae021f2805c0854": [8, 17, 27, 38, 52, 63],
    "7dd427509fe84baa": [15, 25, 34, 45, 56, 66],
}


LISTS = OmegaConf.to_container(OmegaConf.load(Path(__file__).resolve().parents[2] / "conf" / "datasets" / "_h3ds.yaml").published_views)


def parse(folder: Path, **options) -> Scene:
    lists = {name: tuple(numbers) for name, numbers in LISTS.items()}
    return LAYOUTS["h3ds"].parse(folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), published_views=lists, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos 0 to 68 under the name of a published scene. Never write into it: copy it."""
    folder = tmp_path_factory.mktemp("h3ds") / "5ae021f2805c0854"
    write_h3ds(folder)
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Nine photos of a scene of another name, that may be spoilt."""
    folder = tmp_path / "someone"
    write_h3ds(folder, numbers=range(2, 29, 3), size=(40, 48))
    return folder


@pytest.mark.parametrize("version", ["0.1", "0.2"])
def test_points_project_to_where_they_are_drawn(tmp_path, version):
    """In both versions, of which the first keeps its matrices in a world of another size."""
    write_h3ds(tmp_path / "someone", numbers=range(0, 60, 3), version=version)
    errors = []
    for view in parse(tmp_path / "someone", intrinsics="exact").views:
        uv, depth = view.camera.project(torch.from_numpy(POINTS).float())
        assert ((depth > 2) & (depth < 4)).all() and view.mask.suffix == {"0.1": ".jpg", "0.2": ".png"}[version]
        errors += [centroid(read_photo(view).image, colour) - uv[0, k] for k, colour in enumerate(COLOURS)]
    error = torch.stack(errors)
    assert error.abs().max() < 0.6 and (error.mean(0).abs() < 0.1).all()


def test_all_views_share_the_mean_of_the_intrinsics_by_default(small):
    expected = np.mean([alternating_intrinsics((40, 48), k) for k in range(9)], axis=0)
    for view in parse(small).views:
        np.testing.assert_allclose(view.camera.focal_length[0], expected.diagonal()[:2], rtol=1e-4)
        np.testing.assert_allclose(view.camera.principal_point[0], expected[:2, 2] + 0.5, rtol=1e-4)
        assert view.camera.image_size == (40, 48), "the size is that of the photos"


def test_published_views_and_splits(whole):
    scene = parse(whole)
    names = [view.name for view in scene.views]
    assert names[:4] == ["0001", "0003", "0004", "0006"] and len(names) == 32
    assert [view.image.name for view in scene.views] == [f"img_{name}.jpg" for name in names]
    assert scene.splits["val"] == (7, 14, 21, 28) and scene.splits["test"] == (5, 10, 15, 20, 25, 30)
    train = scene.with_splits(None, None).splits["train"]
    assert sorted({*train, *scene.splits["val"], *scene.splits["test"]}) == list(range(32)) and len(train) == 22


def test_lists_of_the_data_set():
    """Ten scenes of 32 different photos each, in ascending order; what is held out of the two that the NPBG++ authors test on."""
    assert len(LISTS) == 10
    for name, numbers in LISTS.items():
        assert len(set(numbers)) == 32 and numbers == sorted(numbers) and numbers[-1] <= 68, name
    assert {name: LISTS[name][5:31:5] for name in HELD_OUT} == HELD_OUT


def test_other_scenes_have_all_their_photos(small):
    scene = parse(small)
    assert [view.name for view in scene.views] == ["0002", "0005", "0008", "0011", "0014", "0017", "0020", "0023", "0026"]
    assert scene.with_splits(None, None).splits == {"train": (0, 1, 2, 3, 4, 6, 8), "val": (7,), "test": (5,)}


def test_views_can_be_chosen(whole):
    assert [view.name for view in parse(whole, views=(60, 2, 5)).views] == ["0060", "0002", "0005"]


def test_published_views_without_photo_are_left_out_and_told(tmp_path):
    folder = tmp_path / "7dd427509fe84baa"
    write_h3ds(folder, numbers=range(20), size=(40, 48))
    scene = parse(folder)
    assert [int(view.name) for view in scene.views] == [1, 4, 10, 12, 14, 15, 17, 18]
    assert scene.notes == ("24 of its 32 published views have no photo and are left out",)


VERSIONS = {
    "0.1": 'scenes = ["someone"]\n[views]\n  [views.someone]\n  3 = [2, 5, 8]\n  32 = [11, 2, 26]\n',
    "0.2": "version = 0.2\n[scenes]\n  [scenes.someone]\n  views = 9\n    [scenes.someone.default_views_configs]\n    3 = [2]\n    32 = [11, 2, 26]\n",
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("place", ["someone", "."])
def test_the_lists_of_the_data_set_are_read_where_they_are(small, version, place):
    (small.parent / place / "config.toml").write_text(VERSIONS[version])
    scene = parse(small)
    assert [view.name for view in scene.views] == ["0011", "0002", "0026"] and scene.notes == ()
    assert [view.name for view in parse(small, views=(5, 8)).views] == ["0005", "0008"], "a choice goes before them"


def test_the_lists_of_the_data_set_replace_those_of_the_package(tmp_path):
    """A view that is listed twice, as two scenes of version 0.2 have, is used once."""
    write_h3ds(tmp_path / "7dd427509fe84baa", numbers=range(6), size=(40, 48))
    (tmp_path / "config.toml").write_text("[scenes.7dd427509fe84baa.default_views_configs]\n32 = [3, 0, 9, 3]\n")
    scene = parse(tmp_path / "7dd427509fe84baa")
    assert [view.name for view in scene.views] == ["0003", "0000"]
    assert scene.notes == ("config.toml lists views twice, they are used once", "1 of its 3 published views have no photo and are left out")


@pytest.mark.parametrize("text", ["", "scenes = 3", '[scenes.other]\n32 = "x"', "[scenes]\nsomeone = 1", "[views.other]\n32 = [2]"])
def test_scenes_that_the_lists_do_not_have_are_as_without_them(small, text):
    (small / "config.toml").write_text(text)
    assert len(parse(small).views) == 9


@pytest.mark.parametrize(
    "text", ["[views.someone]\n32 = []", "[views.someone]\n32 = 2", "[views.someone]\n32 = [2, true]", "[views.someone]\n32 = [-2]"]
)
def test_other_lists_are_refused(small, text):
    (small / "config.toml").write_text(text)
    with pytest.raises(InputError, match=r"config\.toml: expected numbers of photos as the 32 views of scene someone"):
        parse(small)


@pytest.mark.parametrize("content", [b"[views", b"\xff\xfe"])
def test_damaged_lists_are_refused(small, content):
    (small / "config.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.toml: expected the configuration of the data set"):
        parse(small)


def test_photos_are_white_outside_the_masks(small):
    on_white, as_stored = read_photo(parse(small).views[1]), read_photo(parse(small, white_bg=False).views[1])
    outside = on_white.mask[0] < 128
    assert (on_white.image[:, outside] == 255).all() and torch.equal(on_white.image[:, ~outside], as_stored.image[:, ~outside])
    assert (as_stored.image[:, outside].float().mean(1) < 120).all()


def write_json(content) -> Callable[[Path], None]:
    return lambda folder: (folder / "normalization_transform.json").write_text(content if isinstance(content, str) else json.dumps(content))


def entry(value: float) -> dict[str, str]:
    return {"row": "0", "column": "0", "element": str(value)}


SPOILT = {
    "no json": (write_json("{"), {}, ["normalization_transform.json"]),
    "other json": (write_json([1]), {}, ["normalization_transform.json"]),
    "no transform": (write_json({"dimension": "3"}), {}, ["normalization_transform.json", "transform"]),
    "word for a number": (write_json({"transform": [entry(1) | {"element": "x"}]}), {}, ["normalization_transform.json", "'x'"]),
    "row too far": (write_json({"transform": [entry(1) | {"row": "4"}]}), {}, ["normalization_transform.json", "4"]),
    "singular": (write_json({"transform": [entry(0)]}), {}, ["normalization_transform.json", "Singular"]),
    "not finite": (write_json({"transform": [entry(float("nan"))]}), {}, ["normalization_transform.json", "finite"]),
    "row without end": (write_json({"transform": [entry(1) | {"row": float("inf")}]}), {}, ["normalization_transform.json", "infinity"]),
    "scale beyond use": (write_json({"transform": [entry(1e-30)]}), {}, ["normalization_transform.json", "invertible"]),
    "no photo": (lambda folder: (folder / "image" / "img_0005.jpg").unlink(), {"views": (2, 5)}, ["photo", "none for 5"]),
    "no mask": (lambda folder: (folder / "mask" / "mask_0005.jpg").unlink(), {}, ["mask", "none for 5"]),
    "no view": (lambda folder: None, {"views": ()}, ["datasets.views", "[]"]),
    "view twice": (lambda folder: None, {"views": (2, 5, 2)}, ["datasets.views", "[2, 5, 2]"]),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_scene_ends_in_one_message(small, case):
    spoil, options, words = SPOILT[case]
    spoil(small)
    with pytest.raises(InputError) as caught:
        parse(small, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_matrices_are_needed_for_the_views_only(small):
    with np.load(small / "cameras.npz") as file:
        matrices = {key: file[key] for key in file.files if key != "world_mat_5"}
    np.savez(small / "cameras.npz", **matrices)
    with pytest.raises(InputError, match=r"matrix in cameras\.npz.*none for 5"):
        parse(small)
    assert len(parse(small, views=(2, 8)).views) == 2


def test_a_published_scene_without_any_of_its_photos_is_refused(tmp_path):
    write_h3ds(tmp_path / "5ae021f2805c0854", numbers=[0, 2, 5], size=(40, 48))
    with pytest.raises(InputError, match=r"5ae021f2805c0854.*none of its published views.*datasets\.views"):
        parse(tmp_path / "5ae021f2805c0854")
