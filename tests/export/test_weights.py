"""Weights in the safetensors format: they load like the checkpoint that they come from; refusals."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from npbgpp.core.paths import SearchPaths
from npbgpp.engine.checkpoint import AtomicCheckpointIO, load_weights
from npbgpp.errors import InputError
from npbgpp.export.weights import export_weights
from npbgpp.methods.base import CHECKPOINT_FORMAT, RunContext, System, SystemSettings
from npbgpp.metrics import ImageMetrics


class Tiny(System):
    """A system with one small layer."""

    def __init__(self) -> None:
        paths = SearchPaths(Path(), Path(), Path())
        super().__init__(
            SystemSettings(system_class="Tiny", save_rendered_eval_images=False, lpips_weights=None, postprocessing_transform=None),
            RunContext({}, paths, ImageMetrics()),
        )
        self.refiner = nn.Linear(2, 3)


class Other(Tiny):
    """A system with the same parameter names."""


def save_checkpoint(path: Path, state: dict, **more: object) -> Path:
    torch.save({"state_dict": state, "optimizer_states": [{"state": torch.ones(1000)}], **more}, path)
    return path


@pytest.fixture
def exported(tmp_path) -> Path:
    """Weights of a checkpoint of ``Tiny``."""
    origin = {"format": CHECKPOINT_FORMAT, "system": "Tiny"}
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", Tiny().state_dict(), npbgpp=origin)
    assert export_weights(checkpoint, tmp_path / "new" / "tiny.safetensors") == 2
    return tmp_path / "new" / "tiny.safetensors"


def test_exported_weights_load_like_the_checkpoint(exported, tmp_path):
    first, second = Tiny(), Tiny()
    load_weights(first, tmp_path / "last.ckpt", strict=True)
    report = load_weights(second, exported, strict=True)
    assert report.missing == report.unexpected == () and torch.equal(first.refiner.weight, second.refiner.weight)
    assert exported.stat().st_size < 1000  # no optimizer states
    export_weights(exported, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == exported.read_bytes()


def test_weights_of_another_system(exported, tmp_path):
    with pytest.raises(InputError, match="system Tiny, not of Other"):
        load_weights(Other(), exported, strict=True)
    assert len(load_weights(Other(), exported, strict=False).loaded) == 2
    export_weights(save_checkpoint(tmp_path / "released.ckpt", Tiny().state_dict()), tmp_path / "released.safetensors")
    assert len(load_weights(Other(), tmp_path / "released.safetensors", strict=True).loaded) == 2  # the authors' files name no system


def test_tensors_with_shared_memory(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    state = {"a": whole, "b": whole, "c": whole.T, "d": whole[1:2], "cells": torch.ones(2, dtype=torch.bool), "steps": torch.tensor(3)}
    export_weights(save_checkpoint(tmp_path / "last.ckpt", state), tmp_path / "all.safetensors")
    found = load_file(tmp_path / "all.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in state.items())


@pytest.mark.parametrize(
    "metadata",
    [{"format": CHECKPOINT_FORMAT + 1, "system": "Tiny"}, {"format": "new", "system": "Tiny"}, {"format": 1, "system": ["Tiny"]}, "{"],
    ids=["newer format", "no number", "no name", "no JSON"],
)
@pytest.mark.parametrize("strict", [True, False])
def test_unusable_metadata_is_refused(tmp_path, metadata, strict):
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file(Tiny().state_dict(), tmp_path / "tiny.safetensors", {"npbgpp": text})
    with pytest.raises(InputError, match="tiny.safetensors"):
        load_weights(Tiny(), tmp_path / "tiny.safetensors", strict)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}", b"\xff" * 50, None], ids=["empty", "header", "noise", "truncated"])
def test_damaged_files_are_refused(exported, content):
    exported.write_bytes(exported.read_bytes()[:-5] if content is None else content)
    with pytest.raises(InputError, match="tiny.safetensors.* damaged"):
        load_weights(Tiny(), exported, strict=True)


def test_other_uses_are_refused(tmp_path):
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="state_dict"):
        export_weights(tmp_path / "other.ckpt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(InputError, match="weights_path="):  # a training cannot resume without optimizer states
        AtomicCheckpointIO().load_checkpoint(tmp_path / "tiny.safetensors")
