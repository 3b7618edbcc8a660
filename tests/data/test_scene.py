"""Splits of a scene: views chosen by index, rule, share or file, from two views up."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from npbgpp.data import CloudFile, Scene, View
from npbgpp.data.scene import choose_views
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras

NAMES = [f"photo{k}" for k in range(20)]


def choose(choice, names=NAMES):
    return choose_views(choice, names, "datasets.test_indices", "scene kitchen")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ((3, 1), (3, 1)),
        ((), ()),
        ("every:8", (0, 8, 16)),
        ("every:8+4", (4, 12)),
        ("every:10+10", (10,)),
        ("every:8+50", (19,)),
        (0.1, (5, 15)),
        (0.25, (2, 6, 10, 14, 18)),
        (0.001, (10,)),
    ],
)
def test_rules(choice, expected):
    assert choose(choice) == expected


@given(st.integers(2, 12), st.integers(0, 12), st.integers(2, 30), st.floats(0.01, 0.99))
def test_rules_choose_some_views_and_leave_some(step, first, count, share):
    for choice in (f"every:{step}+{first}", share):
        chosen = choose(choice, NAMES[:1] * count)
        assert 1 <= len(set(chosen)) == len(chosen) < count and list(chosen) == sorted(chosen) and set(chosen) <= set(range(count))
        assert choose(choice, ["only"]) == (), "a single view trains"


def test_a_file_lists_names_and_indices(tmp_path: Path):
    path = tmp_path / "test.txt"
    path.write_text("# held out\nphoto7\n\n 3 \nphoto7\n")
    assert choose(str(path)) == (7, 3)
    path.write_text("17\n0\n")
    assert choose(str(path), ["0", "17", "34"]) == (1, 0), "names that are numbers are names"


@pytest.mark.parametrize(
    ("choice", "values"),
    [
        *(((20,), ["0 to 19", "[20]"]), ((-1,), ["[-1]"]), ("every:1", ["every:1"]), ("every:x", ["every:x"]), ("every:8+", ["every:8+"])),
        *(("nothing.txt", ["nothing.txt"]), (0.0, ["0.0"]), (1.0, ["1.0"]), (float("nan"), ["nan"])),
        *((b"photo1\nphoto99\n", ["list.txt", "photo99"]), (b"\xff\xfe\x00", ["list.txt", "utf-8"])),
    ],
)
def test_invalid_choices_are_refused(tmp_path, choice, values):
    """Also in a file."""
    if isinstance(choice, bytes):
        (tmp_path / "list.txt").write_bytes(choice)
        choice = str(tmp_path / "list.txt")
    with pytest.raises(InputError) as caught:
        choose(choice)
    assert all(value in str(caught.value) for value in ["datasets.test_indices", *values]), str(caught.value)


@pytest.fixture
def scene() -> Scene:
    camera = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.ones(1, 2), torch.ones(1, 2), (4, 4))
    views = tuple(View(f"v{k}", Path(f"{k}.png"), camera) for k in range(8))
    return Scene("dots", views, {"train": (0, 1, 2, 3), "val": (4,), "test": (6, 7)}, CloudFile(Path("a.ply")))


@pytest.mark.parametrize(
    ("val", "test", "expected"),
    [
        (None, None, ((0, 1, 2, 3), (4,), (6, 7))),
        ((1, 6), (2,), ((0, 3), (1, 6), (2,))),
        ((6,), None, ((0, 1, 2, 3), (6,), (7,))),
        (None, (4, 0), ((1, 2, 3), (), (4, 0))),
        ((), None, ((0, 1, 2, 3), (), (6, 7))),
    ],
)
def test_chosen_views_replace_the_split_of_the_layout(scene, val, test, expected):
    assert scene.with_splits(val, test).splits == dict(zip(("train", "val", "test"), expected, strict=True))


@pytest.mark.parametrize(
    ("val", "test", "values"),
    [
        ((8,), None, ["datasets.val_indices", "dots", "[8]", "0 to 7"]),
        (None, (5, 99), ["datasets.test_indices", "[99]"]),
        ((1, 2), (2, 3), ["datasets.val_indices", "datasets.test_indices", "[2]"]),
        ((0, 1), (2, 3), ["dots", "none"]),
    ],
)
def test_impossible_splits_are_refused(scene, val, test, values):
    with pytest.raises(InputError) as caught:
        scene.with_splits(val, test)
    assert all(value in str(caught.value) for value in values), str(caught.value)
