"""``npbgpp prepare photos|check|cloud|dense|resize|llff|monocular <folder> [key=value ...]``, the same as ``python -m npbgpp.prepare``: data before training."""

import logging
import shlex
import sys
from typing import Any

from npbgpp.cli.command import Command, read_subcommand, user_errors
from npbgpp.prepare.settings import CheckSettings, CloudSettings, DenseSettings, LlffSettings, PhotoSettings, ResizeSettings, VideoSettings

COMMANDS: dict[str, Command[Any]] = {
    "photos": Command(
        "prepare photos",
        "Estimates the camera poses of a folder of photos, or of a video, and writes a COLMAP scene, upright and of usual scale.",
        PhotoSettings,
        positional=("photos", "scene"),
        example="holiday/statue data/statue",
        notes=(
            "Photos may have any format, orientation, zoom and size. A call that was interrupted continues. What was found is on report.html in the folder of the "
            "scene, with the photos that were left out and why; photos.json has the change of coordinates.",
        ),
    ),
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
    "dense": Command(
        "prepare dense",
        "Makes a dense point cloud of a scene by multi-view stereo of its training views.",
        DenseSettings,
        positional=("scene",),
        example="data/my_scene size=640",
    ),
    "resize": Command(
        "prepare resize",
        "Writes reduced copies of the images of a folder.",
        ResizeSettings,
        positional=("dir",),
        example="data/my_scene/images factor=0.5",
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
    name, settings, _ = read_subcommand(
        "prepare", "Makes scenes from photos, checks them, makes their point clouds, and prepares videos.", COMMANDS, arguments
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with user_errors(_KEYS):
        # each command imports torch and what it needs itself
        if name == "photos":
            from npbgpp.prepare.photos import prepare_photos

            prepare_photos(settings, f"npbgpp prepare {shlex.join(arguments)}")
            logging.info("next, a dense cloud: npbgpp prepare dense %s", settings.scene)
        elif name == "check":
            from npbgpp.prepare.check import check

            sys.exit(_PROBLEMS if check(settings) else 0)
        elif name == "cloud":
            from npbgpp.core.cpu_share import CpuShare
            from npbgpp.prepare.cloud import make_cloud, name_training

            with CpuShare():
                make_cloud(settings, f"npbgpp prepare {shlex.join(arguments)}")
            name_training(settings)
        elif name == "dense":
            from npbgpp.prepare.cloud import make_dense_cloud, name_training

            make_dense_cloud(settings, f"npbgpp prepare {shlex.join(arguments)}")
            name_training(settings)
        elif name == "resize":
            from npbgpp.prepare.resize import resize_images

            resize_images(settings)
        elif name == "llff":
            from npbgpp.prepare.llff import prepare_llff

            prepare_llff(settings)
        else:
            from npbgpp.prepare.video import prepare_video

            prepare_video(settings)


if __name__ == "__main__":
    main()
