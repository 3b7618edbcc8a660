"""``npbgpp prepare check|cloud|llff|monocular <folder> [key=value ...]``, the same as ``python -m npbgpp.prepare``: scenes and videos before training."""

import logging
import shlex
import sys
from typing import Any

from npbgpp.cli.command import Command, read_subcommand, user_errors
from npbgpp.prepare.settings import CheckSettings, CloudSettings, LlffSettings, VideoSettings

COMMANDS: dict[str, Command[Any]] = {
    "check": Command(
        "prepare check",
        "Reports what a scene contains and what is wrong with it, and draws its point cloud over its photos.",
        CheckSettings,
        positional=("scene",),
        example="data/my_scene",
    ),
    "cloud": Command(
        "prepare cloud",
        "Makes the point cloud of a scene from its training views.",
        CloudSettings,
        positional=("scene",),
        example="data/my_scene method=sparse",
    ),
    "llff": Command(
        "prepare llff",
        "Writes the cameras of a COLMAP model as poses_bounds.npy of LLFF.",
        LlffSettings,
        positional=("scene",),
        example="data/my_scene out=data/my_llff_scene downscale=4",
    ),
    "monocular": Command(
        "prepare monocular",
        "Makes masks, poses, undistorted frames, disparity and optical flow of the frames of a video, for NSFF. Existing results are kept.",
        VideoSettings,
        positional=("root",),
        example="data/monocular/my_video dynamic_classes=[person,dog]",
    ),
}

# keys of a training in messages about scenes, and the keys of these commands
_KEYS = {
    "datasets.data_root and datasets.scene_name": "the folder of the scene",
    "datasets.data_root or datasets.scene_name": "the folder of the scene",
    "datasets.layout": "layout",
    "datasets.pc_name": "pc_name",
    "datasets.scene_name": "scene",
    "datasets.data_root": "scene",
    "with out=, in a training with hydra.run.dir=": "with out=",
}

_PROBLEMS = 2  # exit code of a check that found some


def main() -> None:
    """The command."""
    arguments = sys.argv[1:]
    name, settings, _ = read_subcommand("prepare", "Checks scenes, makes their point clouds, and prepares videos.", COMMANDS, arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with user_errors(_KEYS):
        # each command imports torch and what it needs itself
        if name == "check":
            from npbgpp.prepare.check import check

            sys.exit(_PROBLEMS if check(settings) else 0)
        elif name == "cloud":
            from npbgpp.prepare.cloud import make_cloud

            make_cloud(settings, f"npbgpp prepare {shlex.join(arguments)}")
        elif name == "llff":
            from npbgpp.prepare.llff import prepare_llff

            prepare_llff(settings)
        else:
            from npbgpp.prepare.video import prepare_video

            prepare_video(settings)


if __name__ == "__main__":
    main()
