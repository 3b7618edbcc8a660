"""The one exception for what a user supplied: files, keys, numbers. Everything else is our own fault and keeps its traceback."""


class InputError(Exception):
    """Something the user supplied cannot be used.

    The message names the file or key, says what was expected and what was found, and what to do. Command lines print it alone and exit with code 1.
    """


def original_message(error: Exception) -> str:
    """The message as it was raised: data loaders wrap errors of their worker processes in a printed traceback."""
    text = str(error)
    marker = f"{InputError.__name__}: "
    return text.rsplit(marker, 1)[-1].strip() if text.startswith("Caught ") and marker in text else text
