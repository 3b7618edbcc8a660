"""Weights in the safetensors format: they load as the checkpoint they came from, and say what is wrong with them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from npbgpp.engine.checkpoint import AtomicCheckpointIO, load_weights
from npbgpp.errors import InputError
from npbgpp.export.weights import export_weights
from npbgpp.methods.base import CHECKPOINT_FORMAT, System
from npbgpp.metrics import ImageMetrics


class Tiny(System):
    """A system of one small layer."""

    def __init__(self) -> None:
        super().__init__({}, ImageMetrics())
        self.refiner = nn.Linear(2, 3)


class Other(Tiny):
    """A system with the same names."""


def checkpoint(path: Path, state: dict, **more: object) -> Path:
    torch.save({"state_dict": state, "optimizer_states": [{"state": torch.ones(1000)}], **more}, path)
    return path


def marked(path: Path) -> Path:
    return checkpoint(path, Tiny().state_dict(), npbgpp={"format": CHECKPOINT_FORMAT, "system": "Tiny"})


def test_they_load_as_their_checkpoint(tmp_path):
    source, out = marked(tmp_path / "last.ckpt"), tmp_path / "new" / "tiny.safetensors"
    assert export_weights(source, out) == 2
    first, second = Tiny(), Tiny()
    load_weights(first, source, strict=True)
    report = load_weights(second, out, strict=True)
    assert report.missing == report.unexpected == () and torch.equal(first.refiner.weight, second.refiner.weight)
    assert out.stat().st_size < 1000  # without the optimiser


def test_they_know_their_system(tmp_path):
    export_weights(marked(tmp_path / "last.ckpt"), tmp_path / "tiny.safetensors")
    with pytest.raises(InputError, match="weights of system Tiny, not of Other"):
        load_weights(Other(), tmp_path / "tiny.safetensors", strict=True)
    assert len(load_weights(Other(), tmp_path / "tiny.safetensors", strict=False).loaded) == 2


def test_files_of_the_authors_carry_no_name(tmp_path):
    export_weights(checkpoint(tmp_path / "released.ckpt", Tiny().state_dict()), tmp_path / "released.safetensors")
    assert len(load_weights(Other(), tmp_path / "released.safetensors", strict=True).loaded) == 2


def test_again(tmp_path):
    """What was exported can be exported."""
    export_weights(marked(tmp_path / "last.ckpt"), tmp_path / "once.safetensors")
    export_weights(tmp_path / "once.safetensors", tmp_path / "twice.safetensors")
    assert (tmp_path / "twice.safetensors").read_bytes() == (tmp_path / "once.safetensors").read_bytes()


def test_tensors_that_share_memory_and_parts_of_tensors(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    state = {"a": whole, "b": whole, "c": whole.T, "d": whole[1:2], "cells": torch.ones(2, dtype=torch.bool), "steps": torch.tensor(3)}
    export_weights(checkpoint(tmp_path / "last.ckpt", state), tmp_path / "all.safetensors")
    found = load_file(tmp_path / "all.safetensors")
    assert found.keys() == state.keys() and all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in state.items()
    )


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"format": CHECKPOINT_FORMAT + 1, "system": "Tiny"}, "is newer than this program"),
        ({"format": "new", "system": "Tiny"}, "expected the number of its format"),
        ({"format": 1, "system": ["Tiny"]}, "expected the number of its format"),
        ("{", "expected a file in the safetensors format"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_marks_that_cannot_be_used(tmp_path, metadata, words, strict):
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file(Tiny().state_dict(), tmp_path / "tiny.safetensors", {"npbgpp": text})
    with pytest.raises(InputError, match=words) as caught:
        load_weights(Tiny(), tmp_path / "tiny.safetensors", strict)
    assert "tiny.safetensors" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}", b"\xff" * 50])
def test_damaged_files(tmp_path, content):
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="safetensors format, got a damaged one"):
        load_weights(Tiny(), path, strict=True)


def test_truncated(tmp_path):
    export_weights(marked(tmp_path / "last.ckpt"), tmp_path / "tiny.safetensors")
    content = (tmp_path / "tiny.safetensors").read_bytes()
    (tmp_path / "tiny.safetensors").write_bytes(content[:-5])
    with pytest.raises(InputError, match="damaged one"):
        load_weights(Tiny(), tmp_path / "tiny.safetensors", strict=True)


def test_no_checkpoint_is_no_export(tmp_path):
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="expected a mapping 'state_dict'"):
        export_weights(tmp_path / "other.ckpt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_training_does_not_go_on_from_weights_alone(tmp_path):
    with pytest.raises(InputError, match="weights_path="):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "tiny.safetensors")
