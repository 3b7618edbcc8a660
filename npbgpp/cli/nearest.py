"""Hints for misspelt words."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant; None where all are too different.

    Of dotted names, those with the same last part come first, then those in the same place.
    """
    known = list(known)
    place, _, last = word.rpartition(".")
    same_end = [name for name in known if name.rpartition(".")[2] == last]
    if same_end:
        return difflib.get_close_matches(word, same_end, n=1, cutoff=0.0)[0]
    beside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == place}
    for close in difflib.get_close_matches(last, beside, n=1, cutoff=0.6):
        return beside[close]
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.8)), None)


def hint(word: str, known: Iterable[str]) -> str:
    """``did you mean ...?``, or the known words."""
    known = list(known)
    close = nearest(word, known)
    return f"did you mean {close}?" if close is not None else f"expected one of {', '.join(known)}"
