"""Which views of a scene validate or are held out: by index, every n-th, a share, or a file."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from npbgpp.errors import InputError

Stage = Literal["train", "val", "test"]
ViewChoice = tuple[int, ...] | float | str
_FORMS = "a list of indices, every:<n>, every:<n>+<first>, a share such as 0.1, or a file with names or indices, one per line"


def rule_splits(count: int, holdout: str, val: str) -> dict[Stage, tuple[int, ...]]:
    """Splits of layouts without published ones: ``holdout`` and ``val`` are rules, test views are taken first, and one view at least is left to train.

    Every view may train, ``Scene.with_splits`` takes the others out.
    """
    names = [str(k) for k in range(count)]
    test = choose_views(holdout, names, "holdout", "the scene")
    validation = tuple(i for i in choose_views(val, names, "val", "the scene") if i not in test)
    return {"train": tuple(range(count)), "val": validation if len(test) + len(validation) < count else (), "test": test}


def choose_views(choice: ViewChoice, names: Sequence[str], key: str, where: str) -> tuple[int, ...]:
    """Indices of the chosen views, ascending unless they are listed.

    ``every:8+4`` takes views 4, 12, 20, ..., and the last view of a scene that has not so many; a share takes views at even distances, one at least. Neither
    takes all views of a scene.

    Args:
        choice: indices, a rule, or the path of a file.
        names: names of the views of the scene, in order.
        key: the setting, for messages.
        where: the scene, for messages.

    Raises:
        InputError: a choice of another form, an unknown view, a missing or unreadable file.
    """
    count = len(names)
    if isinstance(choice, float):
        if not 0 < choice < 1:
            raise InputError(f"{key}: expected {_FORMS}, got {choice}; a share lies between 0 and 1")
        return _spread(count, choice)
    if isinstance(choice, str):
        rule = re.fullmatch(r"every:([0-9]{1,9})(?:\+([0-9]{1,9}))?", choice)
        if rule is not None and int(rule[1]) > 1:
            found = tuple(range(min(int(rule[2] or 0), count - 1), count, int(rule[1])))
            return found if len(found) < count else ()
        if rule is not None or choice.startswith("every:"):
            raise InputError(f"{key}: expected {_FORMS}, got {choice}; n is at least 2")
        return _listed(Path(choice), names, key, where)
    bad = [i for i in choice if not 0 <= i < count]
    if bad:
        raise InputError(
            f"{key}: {where} has {count} views (indices 0 to {count - 1}), got {bad}; indices count train, then validation, then test views"
        )
    return tuple(choice)


def _spread(count: int, share: float) -> tuple[int, ...]:
    chosen = min(max(1, round(share * count)), count - 1)
    return tuple(((np.arange(chosen) + 0.5) * count / chosen).astype(int).tolist()) if chosen > 0 else ()


def _listed(path: Path, names: Sequence[str], key: str, where: str) -> tuple[int, ...]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise InputError(f"{key}: expected {_FORMS}, got {path}, which is no such file; correct it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: {path}: expected a text with one view per line, got an unreadable file ({error}); correct it") from error
    index = {name: k for k, name in enumerate(names)} | {str(k): k for k in range(len(names)) if str(k) not in names}
    entries = [line for line in lines if line and not line.startswith("#")]
    unknown = [entry for entry in entries if entry not in index]
    if unknown:
        raise InputError(f"{key}: {path}: {where} has no view {', '.join(unknown[:5])}; its views are {', '.join(names[:5])} and so on")
    return tuple(dict.fromkeys(index[entry] for entry in entries))
