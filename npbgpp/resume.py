"""Which checkpoint a run goes on from, and whether it was made by the same training."""

import json
import logging
from pathlib import Path
from typing import Any

from npbgpp.checkpoint import AtomicCheckpointIO, find_weights
from npbgpp.errors import InputError
from npbgpp.paths import Bases

log = logging.getLogger(__name__)

_LISTED = 6  # keys that a message names
# where things lie, how fast they come, how long a run lasts and what it shows change nothing that is learnt
_TRAINER_KEYS = ("precision", "limit_train_batches", "overfit_batches", "accumulate_grad_batches", "gradient_clip_val", "fast_dev_run")
_DATASET_PLACES = ("data_root", "scene_subroot", "images_subroot", "paths_file", "cache_images", "cache_memory_gb", "motion_cache")
_SYSTEM_LOOKS = (
    *("save_rendered_eval_images", "lpips_weights", "vgg_weights", "postprocessing_transform", "chunk", "overwrite_descriptors"),
    *("background", "colour_threshold", "history_weights", "refine_weights", "empty_where_unseen"),
)
_SYSTEM_PLACES = ("descriptors_save_dir", "descriptors_pretrained_dir", "max_points", "state_device", "points_per_pass")


def training_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Keys of a config that decide what is learnt, by their full names."""
    kept = {
        "seed": config["seed"],
        "datasets": {k: v for k, v in config["datasets"].items() if k not in _DATASET_PLACES},
        "system": {k: v for k, v in config["system"].items() if k not in (*_SYSTEM_LOOKS, *_SYSTEM_PLACES)},
        "dataloader": {k: config["dataloader"].get(k) for k in ("train_total_batch_size", "train_data_mode")},
        "trainer": {k: config["trainer"].get(k) for k in _TRAINER_KEYS},
    }
    return _flat(kept, "")


def _flat(node: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix.removesuffix("."): json.loads(json.dumps(node, default=str))}
    return {name: value for key, part in node.items() for name, value in _flat(part, f"{prefix}{key}.").items()}


def find_checkpoint(word: str, bases: Bases, checkpoints: AtomicCheckpointIO) -> Path | None:
    """The checkpoint that ``resume`` means.

    Args:
        word: ``auto``, the newest readable one of the run folder, if there is any; or the folder of a run; or a checkpoint.
        bases: what relative paths refer to.
        checkpoints: reads those of a folder, to see which can be read; see ``read_ahead``.

    Raises:
        InputError: no such file, or no readable checkpoint in a folder that was named.
    """
    folder = bases.run if word == "auto" else bases.output(word)
    if not folder.is_dir():
        return None if word == "auto" else find_weights(word, bases)
    files = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in files:
        try:
            checkpoints.read_ahead(path)
            return path
        except InputError as error:
            log.warning("resume=%s: %s; trying an earlier checkpoint", word, error)
    if word != "auto" or files:
        raise InputError(
            f"resume={word}: expected a checkpoint in {folder / 'checkpoints'}, got {'only damaged ones' if files else 'none'}; begin anew in another "
            "hydra.run.dir, or name a checkpoint"
        )
    return None


def check_same_training(checkpoint: Path, content: dict[str, Any], keys: dict[str, Any], strict: bool) -> None:
    """Compares the config that a checkpoint was trained with to that of this run.

    Args:
        checkpoint: its path, for messages.
        content: of it. Checkpoints of earlier versions do not say; they are accepted.
        keys: as ``training_keys`` gives them.
        strict: refuse differences, rather than say them.

    Raises:
        InputError: keys that differ.
    """
    mark = content.get("npbgpp")
    told = mark.get("training") if isinstance(mark, dict) else None
    if not isinstance(told, str):
        return
    before = json.loads(told)
    differing = [key for key in sorted(before.keys() | keys.keys()) if before.get(key) != keys.get(key)]
    if not differing:
        return
    named = "; ".join(f"{key}: {before.get(key)} then, {keys.get(key)} now" for key in differing[:_LISTED])
    named += f"; and {len(differing) - _LISTED} more" if len(differing) > _LISTED else ""
    if strict:
        raise InputError(
            f"checkpoint {checkpoint}: it was trained with other settings ({named}); resume with the same ones, go on with these ones all the same "
            f"(resume_strict=false), or begin anew from its weights: weights_path={checkpoint}"
        )
    log.warning("checkpoint %s: going on with other settings (%s)", checkpoint, named)
