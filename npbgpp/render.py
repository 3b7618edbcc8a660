"""``npbgpp render <run> [key=value ...]``, the same as ``python -m npbgpp.render``: images and a video of a trained run along a camera path."""

import sys

from npbgpp.cli.command import Command, read_arguments, user_errors
from npbgpp.cli.settings import RenderSettings

COMMAND = Command(
    "render",
    "Renders images and a video of a trained run along a camera path.",
    RenderSettings,
    positional=("run",),
    config_keys=True,
    example="experiments/demo/npbg path=circle frames=60 depth=[picture,npy]",
)


def main() -> None:
    """The command."""
    settings, overrides = read_arguments(COMMAND, sys.argv[1:])
    # torch is imported once the arguments are accepted
    from npbgpp.cli.render import render_video
    from npbgpp.core.cpu_share import CpuShare
    from npbgpp.engine.run import configure_logging

    configure_logging()
    with user_errors(), CpuShare():
        render_video(settings, overrides)


if __name__ == "__main__":
    main()
