"""``npbgpp <command> ...``, the same as ``python -m npbgpp.<command> ...``; ``npbgpp <command> --help`` explains the arguments of a command."""

import difflib
import os
import runpy
import select
import signal
import sys

from npbgpp import __version__

COMMANDS = {
    "auto": "make new views from photos or a video: poses, cloud, training, film, report",
    "demo": "run NPBG++, NPBG and gaussians on the example scene, and compare them",
    "train": "train or evaluate a system",
    "render": "render images and a video of a trained run along a camera path",
    "view": "show trained runs in the browser",
    "export": "write weights, point clouds, meshes, volumes or cameras of a trained run",
    "prepare": "make a scene from photos, check it, make its point cloud, prepare videos",
    "compare": "compare evaluated runs in tables and images",
    "refine": "finetune a run of NPCR along a camera path, against flicker",
}


def usage() -> str:
    """The list of the commands."""
    lines = [f"  {name:<9}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: npbgpp <command> [arguments]",
            "",
            "Novel-view synthesis from photos: NPBG, NPBG++, NPCR, NeRF, NSFF and gaussians.",
            "",
            "commands:",
            *lines,
            "",
            "npbgpp <command> --help explains the arguments of a command. python -m npbgpp.<command> is the same.",
            "npbgpp --version prints the version.",
        ]
    )


def main() -> None:
    """Runs a command as ``python -m npbgpp.<command>`` does, so that processes that it starts run the same module."""
    name, *arguments = sys.argv[1:] or [""]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"npbgpp {__version__}")
    elif not name:
        sys.exit(usage())
    elif name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"commands: {', '.join(COMMANDS)}"
        sys.exit(f"error: {name}: unknown command; {hint}")
    else:
        sys.argv = [name, *arguments]
        try:
            runpy.run_module(f"npbgpp.{name}", run_name="__main__", alter_sys=True)
        except KeyboardInterrupt:  # while it starts
            print("interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            if not _reader_has_ended():
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when Python ends
            sys.exit(128 + signal.SIGPIPE)


def _reader_has_ended() -> bool:
    """Whether the program that reads the output has ended, as in ``npbgpp train --help | head``."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


if __name__ == "__main__":
    main()
