"""The exception for user errors in files, keys and numbers, which print one line; all others are bugs and keep their traceback."""

import re
from collections.abc import Iterable


class InputError(Exception):
    """A user error.

    The message names the file or key, the expected and the found value, and the remedy. Commands print it without traceback and exit with code 1.
    """


def original_message(error: Exception) -> str:
    """The message as raised: data loaders wrap the errors of worker processes in a printed traceback. Of OmegaConf, one line that begins with the key."""
    text = str(error)
    key = getattr(error, "full_key", None)
    if key:
        reference = re.match(r"Interpolation key '(.+)' not found", text)
        reason = f"expected a reference to a key that exists, got ${{{reference[1]}}}; correct it" if reference else text.splitlines()[0]
        return f"{key}: {reason}"
    marker = f"{InputError.__name__}: "
    return text.rsplit(marker, 1)[-1].strip() if text.startswith("Caught ") and marker in text else text


def listing(items: Iterable[object], most: int = 5) -> str:
    """The first items for a message, "none" for an empty list; bytes of file names that are not UTF-8 are escaped."""
    names = [str(item) for item in items]
    shown = ", ".join(names[:most]).encode(errors="backslashreplace").decode()
    return f"{shown} and others" if len(names) > most else shown or "none"
