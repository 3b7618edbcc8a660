"""Views are chosen by index, rule, share or file, from two views up."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npbgpp.data.scene import choose_views
from npbgpp.errors import InputError

NAMES = [f"photo{k}" for k in range(20)]


def choose(choice, names=NAMES):
    return choose_views(choice, names, "datasets.holdout_indices", "scene kitchen")


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
    names = NAMES[:1] * count
    for choice in (f"every:{step}+{first}", share):
        chosen = choose_views(choice, names, "key", "scene")
        assert 1 <= len(set(chosen)) == len(chosen) < count and list(chosen) == sorted(chosen) and set(chosen) <= set(range(count))


@pytest.mark.parametrize("choice", ["every:8", "every:2+3", 0.5])
def test_a_single_view_is_not_taken_by_a_rule(choice):
    assert choose(choice, ["only"]) == ()


def test_a_file_lists_names_and_indices(tmp_path: Path):
    path = tmp_path / "test.txt"
    path.write_text("# held out\nphoto7\n\n 3 \nphoto7\n")
    assert choose(str(path)) == (7, 3)


def test_names_that_are_numbers_are_names(tmp_path: Path):
    path = tmp_path / "test.txt"
    path.write_text("17\n0\n")
    assert choose(str(path), ["0", "17", "34"]) == (1, 0)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ((20,), ["20 views", "0 to 19", "[20]"]),
        ((-1,), ["[-1]"]),
        ("every:1", ["every:1", "at least 2"]),
        ("every:x", ["every:x"]),
        ("every:8+", ["every:8+"]),
        ("nothing.txt", ["nothing.txt", "no such file"]),
        (0.0, ["share"]),
        (1.0, ["share"]),
        (float("nan"), ["share"]),
    ],
)
def test_other_choices_are_refused(choice, words):
    with pytest.raises(InputError) as caught:
        choose(choice)
    assert all(word in str(caught.value) for word in ["datasets.holdout_indices", *words]), str(caught.value)


@pytest.mark.parametrize(("content", "words"), [(b"photo1\nphoto99\n", ["photo99", "photo0"]), (b"\xff\xfe\x00", ["unreadable"])])
def test_files_with_something_else(tmp_path: Path, content, words):
    path = tmp_path / "test.txt"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        choose(str(path))
    assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)
