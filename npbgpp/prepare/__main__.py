"""``python -m npbgpp.prepare check|cloud scene=<folder> [key=value ...]``: looks at a scene before training, makes point clouds.

``python -m npbgpp.prepare monocular root=<folder> [key=value ...]``: makes of the frames of a video what NSFF needs.
``python -m npbgpp.prepare llff scene=<folder> [key=value ...]``: writes the cameras of a COLMAP model as LLFF has them.

Keys are those of the ``datasets`` group where they mean the same. The dataclasses below are the keys of each command.
"""

import logging
import shlex
import sys
from dataclasses import fields

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from npbgpp.core.config import typed
from npbgpp.errors import InputError, original_message
from npbgpp.prepare.check import CheckSettings, check
from npbgpp.prepare.cloud import CloudSettings, make_cloud
from npbgpp.prepare.llff import LlffSettings, prepare_llff
from npbgpp.prepare.video import VideoSettings, prepare_video

SETTINGS: dict[str, type] = {"check": CheckSettings, "cloud": CloudSettings, "llff": LlffSettings, "monocular": VideoSettings}


def main() -> None:
    """The command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    name, *words = sys.argv[1:] or [""]
    if name not in SETTINGS:
        lines = [f"  {key}: {', '.join(field.name for field in fields(schema))}" for key, schema in SETTINGS.items()]
        usage = "usage: python -m npbgpp.prepare check|cloud|llff scene=<folder> [key=value ...], monocular root=<folder> [key=value ...]"
        sys.exit(f"{usage}\nkeys of\n" + "\n".join(lines))
    try:
        bad = [word for word in words if "=" not in word]
        if bad:
            raise InputError(f"{bad[0]}: expected key=value, such as {'root' if name == 'monocular' else 'scene'}=<folder>")
        given = OmegaConf.from_dotlist(words)
        if name == "check":
            check(typed(CheckSettings, given, name))
        elif name == "monocular":
            prepare_video(typed(VideoSettings, given, name))
        elif name == "llff":
            prepare_llff(typed(LlffSettings, given, name))
        else:
            make_cloud(typed(CloudSettings, given, name), f"python -m npbgpp.prepare {shlex.join([name, *words])}")
    except (InputError, OmegaConfBaseException) as error:
        sys.exit(f"error: {original_message(error)}")


if __name__ == "__main__":
    main()
