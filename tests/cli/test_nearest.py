"""Hints for misspelt words."""

import pytest

from npbgpp.cli.command import hint, nearest

KNOWN = ("seed", "system.near", "system.learning_rates.near_field", "datasets.scene_name", "datasets.scenes.train", "trainer.max_epochs")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("sed", "seed"),
        ("near", "system.near"),
        ("system.nea", "system.near"),
        ("sytem.near", "system.near"),
        ("datasets.scene_nmae", "datasets.scene_name"),
        ("trainer.max_epoch", "trainer.max_epochs"),
        ("trainer.near", "system.near"),
        ("zzz", None),
        ("system.zzz", None),
    ],
)
def test_the_known_word_that_was_meant(word, expected):
    assert nearest(word, KNOWN) == expected


def test_without_a_similar_word_all_are_named():
    assert hint("zzz", ["mp4", "gif"]) == "expected one of mp4, gif" and hint("mp", ["mp4", "gif"]) == "did you mean mp4?"
