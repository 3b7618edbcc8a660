"""``npbgpp demo [out=<folder>] [key=value ...]``: four methods on the example scene, their comparison and a video."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from npbgpp.cli.command import Command, wants_help
from npbgpp.cli.train_arguments import read_train_arguments
from npbgpp.core.config import key
from npbgpp.core.paths import project_folder
from npbgpp.errors import InputError


@dataclass(frozen=True)
class DemoSettings:
    """Arguments of the command, beside those of ``npbgpp train``."""

    out: Path = key(Path("experiments/demo"), help="folder of the runs, of their comparison and of the video")


COMMAND = Command(
    "demo",
    "Describes the example scene with the pretrained NPBG++ in one pass, finetunes its coefficients, trains NPBG from its refiner and gaussians, four minutes on "
    "two CPU cores in all, compares their held-out views and renders a video.",
    DemoSettings,
    example="out=experiments/short trainer.max_epochs=1 datasets.train_num_samples=20",
    notes=("All other keys are those of npbgpp train, for all runs: npbgpp train --help experiment=demo_npbg lists them.",),
)
RUNS = ("npbgpp", "coefficients", "npbg", "gaussians")  # of the experiments demo_<run>
_FILMED = "gaussians"
_SCENE = "example/still_life"


def demo_commands(arguments: Sequence[str]) -> tuple[Path, list[list[str]]]:
    """The folder, and arguments of ``npbgpp`` for trainings, comparison and video. Raises InputError for mistakes in those of the demo."""
    own = [word for word in arguments if word.startswith("out=")]
    settings, _ = COMMAND.read(own)
    runs = {name: settings.out / name for name in RUNS}
    overrides = [word for word in arguments if word not in own]
    trainings = [[f"experiment=demo_{name}", f"hydra.run.dir={folder}", *overrides] for name, folder in runs.items()]
    trainings[RUNS.index("coefficients")].append(f"system.descriptors_pretrained_dir={runs['npbgpp'] / 'descriptors'}")
    for words in trainings:
        read_train_arguments(words)
    compare = ["compare", *map(str, runs.values()), f"out={settings.out}"]
    video = [
        "render",
        f"run={runs[_FILMED]}",
        "path=circle",
        "frames=60",
        "images=false",
        f"out={settings.out / 'video'}",
        "overwrite=true",
    ]
    return settings.out, [*(["train", *words] for words in trainings), compare, video]


def main() -> None:
    """The command. Ends with the exit code of the first of its commands that fails."""
    if wants_help(sys.argv[1:]):
        print(COMMAND.help())
        return
    try:
        if not (project_folder() / _SCENE).is_dir():
            raise InputError(
                f"{_SCENE}: expected the example scene in {project_folder()}, got none; reinstall the package, or use a checkout"
            )
        out, commands = demo_commands(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
    # the command that runs has the same terminal: it ends by itself, and saves a training before
    signal.signal(signal.SIGINT, lambda *_: None)
    for arguments in commands:
        print(f"npbgpp {shlex.join(arguments)}", flush=True)
        done = subprocess.run([sys.executable, "-m", "npbgpp", *arguments])
        if done.returncode:
            sys.exit(done.returncode)
    print(f"Open {out / 'compare.html'} (held-out views side by side) and {out / 'video' / 'film.mp4'} (a circle around the scene).")


if __name__ == "__main__":
    main()
