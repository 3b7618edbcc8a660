"""``npbgpp view <run> [<run> ...] [key=value ...]``, the same as ``python -m npbgpp.view``: trained runs in the browser."""

import sys

from npbgpp.cli.command import Command, read_arguments, user_errors
from npbgpp.cli.settings import ViewSettings

COMMAND = Command(
    "view",
    "Shows trained runs of one scene in the browser: any view of them, their photos and errors, camera paths and films.",
    ViewSettings,
    positional=("runs",),
    config_keys=True,
    example="experiments/demo/gaussians experiments/demo/npbg",
    notes=("Needs the extra viewer (viser), except for screenshot=.",),
)


def main() -> None:
    """The command."""
    settings, overrides = read_arguments(COMMAND, sys.argv[1:])
    # torch is imported once the arguments are accepted
    from npbgpp.cli.view import view
    from npbgpp.core.cpu_share import CpuShare
    from npbgpp.engine.run import configure_logging

    configure_logging()
    with user_errors(), CpuShare():
        view(settings, overrides)


if __name__ == "__main__":
    main()
