"""Comments of yaml files as documentation of their keys."""

import pytest

from npbgpp.cli.config_tree import choices, first_sentence, header, key_comments

TEXT = """\
# @package _global_
# What the file is for: a sentence.
# And another one.
first: 1 # behind the key
# above
# in two lines
second: a # and behind # with a hash
plain: "a # no comment"

block: # of the block
  inner: [1, 2] # of a list
  nothing: null
  flow: {a: 1, b: {c: 2}} # of a mapping
  items: # of a sequence
    - x # of an item
    - y
last:
  deep: {a: 1,
    b: 2} # behind two lines
"""


def test_comments_belong_to_the_key_before_or_below_them():
    assert key_comments(TEXT) == {
        "first": "behind the key",
        "second": "above in two lines and behind # with a hash",
        "block": "of the block",
        "block.inner": "of a list",
        "block.flow": "of a mapping",
        "block.items": "of a sequence",
        "last.deep": "behind two lines",
    }


@pytest.mark.parametrize("text", ["", "# only a comment\n", "[1, 2] # no mapping\n", "a: 1", "# header\n\n\na: 1\n"])
def test_files_without_documented_keys(text):
    assert key_comments(text) == {}


def test_the_first_comment_is_of_the_file():
    assert header(TEXT) == "What the file is for: a sentence. And another one."
    assert header("a: 1 # x") == header("") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One thing. And another.", "One thing"),
        ("One thing (a=... b=...) of views 5, 15, ... each. Two", "One thing (a=... b=...) of views 5, 15, ... each"),
        ("No end", "No end"),
        ("An end.", "An end"),
        ("", ""),
    ],
)
def test_first_sentences(text, expected):
    assert first_sentence(text) == expected


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("format of the video. One of mp4, gif, null.", ("mp4", "gif", "null")),
        ("One of a, b or c", ("a", "b", "c")),
        ("One of common (any scene in a batch), each (its own scenes). Others are refused.", ("common", "each")),
        ("one of many, or few", ()),
        ("", ()),
    ],
)
def test_choices_are_listed_in_a_sentence(comment, expected):
    assert choices(comment) == expected
