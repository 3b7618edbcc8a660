"""``npbgpp refine <run> [key=value ...]``, the same as ``python -m npbgpp.refine``: temporal finetuning of a run of NPCR along a camera path."""

import sys

from npbgpp.cli.command import Command, read_arguments, user_errors
from npbgpp.cli.settings import RefineSettings

COMMAND = Command(
    "refine",
    "Finetunes a run of NPCR along a camera path, so that its video flickers less.",
    RefineSettings,
    positional=("run",),
    config_keys=True,
    example="experiments/npcr_hair path=straight views=[img_0001] reach=[-0.2,0.2] frames=12",
    notes=(
        "The result is the folder of a run, which can be rendered and exported like any other; refine.json in it has the flicker before and after.",
    ),
)


def main() -> None:
    """The command."""
    settings, overrides = read_arguments(COMMAND, sys.argv[1:])
    # torch is imported once the arguments are accepted
    from npbgpp.cli.refine import refine_run
    from npbgpp.core.cpu_share import CpuShare
    from npbgpp.engine.run import configure_logging

    configure_logging()
    with user_errors(), CpuShare():
        refine_run(settings, overrides)


if __name__ == "__main__":
    main()
