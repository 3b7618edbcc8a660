"""``python -m npbgpp.refine run=<run folder> path=<path> [key=value ...]``: fits a run of NPCR to a path of cameras, so that its film does not flicker.

Keys are the fields of ``RefineSettings``; keys with a dot change the config of the run, as for ``python -m npbgpp.render``. What it writes is the folder of
a run, from which films and exports are made like from any other; ``refine.json`` in it says how much the film flickered before and after.
"""

import json
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from npbgpp.cli.trajectory import PathSettings, trajectory_frames
from npbgpp.core.config import typed
from npbgpp.core.files import save_tensors, write_atomically
from npbgpp.data import write_poses
from npbgpp.engine.run import Run, build_run
from npbgpp.engine.trained_run import configure_logging, evaluation_of, parse_args, run_config, trainer_of
from npbgpp.errors import InputError, original_message

log = logging.getLogger("npbgpp.refine")


@dataclass(frozen=True, kw_only=True)
class RefineSettings(PathSettings):
    """Keys of the command, beside those of the path.

    Attributes:
        run: folder of the run.
        scene: which scene; needed when the run has several.
        passes: how many times along the path; each makes one step.
        lr: learning rate. With a large one pictures lose their content, which steadies them, too: see ``change`` in ``refine.json``.
        out: folder of the refined run; None is ``<run>/refined/<scene>_<path>``.
        overwrite: replace a refined run in ``out``.
        checkpoint: name of a file in the checkpoints of the run.
    """

    run: Path
    path: str = "interpolate"
    scene: str | None = None
    passes: int = 10
    lr: float = 5e-5
    out: Path | None = None
    overwrite: bool = False
    checkpoint: str = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.passes < 1:
            raise InputError(f"passes: expected at least 1, got {self.passes}")
        if not 0 < self.lr < float("inf"):
            raise InputError(f"lr: expected a positive number, got {self.lr:g}")


def refine_run(settings: RefineSettings, overrides: Sequence[str]) -> Path:
    """Refines a run; returns the folder of the refined one.

    Args:
        settings: what to refine along.
        overrides: ``key=value`` words for the config of the run.

    Raises:
        InputError: anything the user supplied that cannot be used.
    """
    run = settings.run.expanduser().resolve()
    config, search_paths = run_config(run)
    as_trained = config.copy()
    scene = evaluation_of(config, run, settings.checkpoint, settings.scene, overrides)
    out = (settings.out or run / "refined" / f"{scene}_{settings.path}").expanduser().absolute()
    if (out / "refine.json").exists() and not settings.overwrite:
        raise InputError(f"out={out}: there is a refined run already; choose another folder, or overwrite=true")
    parts = build_run(config, search_paths, needs_test_views=False)
    system = parts.system
    cameras = [frame.camera for frame in trajectory_frames(settings, parts.data.scenes[scene])]
    trainer = trainer_of(parts)
    trainer.precision_plugin.convert_module(system)
    system.to(trainer.strategy.root_device).eval()
    stability = system.stabilise(scene, cameras, settings.passes, settings.lr, trainer.precision_plugin)
    _write(out, run, as_trained, parts, scene)
    write_poses(out / "cameras.json", cameras)
    figures = {
        "what": "mean absolute differences of colours, 0 to 255: flicker between consecutive frames after reprojection, change from before to after",
        "flicker_before": stability.flicker_before,
        "flicker_after": stability.flicker_after,
        "change": stability.change,
        "frames": len(cameras),
        "losses": stability.losses,
    }
    write_atomically(out / "refine.json", lambda file: file.write(json.dumps(figures, indent=2).encode()))
    log.info(
        "%d frames, %d passes: flicker %.3f before, %.3f after, pictures changed by %.3f, all of 255; the refined run: %s",
        len(cameras),
        len(stability.losses),
        figures["flicker_before"],
        figures["flicker_after"],
        figures["change"],
        out,
    )
    return out


def _write(out: Path, run: Path, config: DictConfig, parts: Run, scene: str) -> None:
    """A folder like that of a run: config, checkpoint, descriptors."""
    system = parts.system
    checkpoint: dict[str, object] = {"state_dict": {name: value.cpu() for name, value in system.state_dict().items()}}
    system.on_save_checkpoint(checkpoint)
    system.save_scene_files(scene, out)
    save_tensors(out / "checkpoints" / "last.ckpt", checkpoint)
    # descriptors are those beside the config now; paths relative to the folder of the run are not
    for key in ("descriptors_save_dir", "descriptors_pretrained_dir"):
        if key in config.system:
            config.system[key] = None
    config.datasets.scenes = {"train": [scene], "val": [scene], "test": [scene]}
    if config.datasets.get("names") is not None:
        config.datasets.names = [scene]
    config.datasets.data_root, config.datasets.scene_subroot = str(parts.scenes.root), None
    if config.datasets.get("images_subroot") is not None:
        config.datasets.images_subroot = str(parts.scenes.images_root)
    write_atomically(out / ".hydra" / "config.yaml", lambda file: file.write(OmegaConf.to_yaml(config).encode()))
    if (run / ".hydra" / "hydra.yaml").is_file():
        shutil.copyfile(run / ".hydra" / "hydra.yaml", out / ".hydra" / "hydra.yaml")


def main() -> None:
    """The command."""
    configure_logging()
    words = sys.argv[1:]
    if not words:
        keys = ", ".join(field.name for field in fields(RefineSettings))
        sys.exit(
            f"usage: python -m npbgpp.refine run=<run folder> path=<path> [key=value ...]\nkeys: {keys}, and those of the config of the run"
        )
    try:
        given, overrides = parse_args(words)
        refine_run(typed(RefineSettings, given, "refine"), overrides)
    except (InputError, OmegaConfBaseException) as error:
        sys.exit(f"error: {' '.join(original_message(error).split())}")


if __name__ == "__main__":
    main()
