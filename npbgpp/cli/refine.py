"""``npbgpp refine``: temporal finetuning of a run of NPCR along a camera path, against flicker.

The result is the folder of a run, which can be rendered and exported like any other; ``refine.json`` in it has the flicker before and after.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from npbgpp.cli.settings import RefineSettings
from npbgpp.cli.trajectory import trajectory_frames
from npbgpp.core.files import save_tensors, write_atomically
from npbgpp.data import write_poses
from npbgpp.engine.run import Run, build_run, evaluation_of, run_config, trainer_of
from npbgpp.errors import InputError

log = logging.getLogger("npbgpp.refine")


def refine_run(settings: RefineSettings, overrides: Sequence[str]) -> Path:
    """Refines a run; returns the folder of the refined one.

    Args:
        settings: what to refine along.
        overrides: ``key=value`` words for the config of the run.

    Raises:
        InputError: anything the user supplied that cannot be used.
    """
    run = settings.folder()
    config, search_paths = run_config(run, settings.trust_config)
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
    write_poses(out / "cameras.json", cameras, parts.data.scenes[scene].offset)
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
    system.save_scene_files(scene, out)
    system.on_save_checkpoint(checkpoint)  # refers to these files
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
        content = (run / ".hydra" / "hydra.yaml").read_bytes()
        write_atomically(out / ".hydra" / "hydra.yaml", lambda file: file.write(content))
