"""Weights on disk: what is written, what is read, and what every refusal says."""

import argparse
import datetime
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import AnyNode, DictConfig, ListConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import parsing
from torch import Tensor, nn

from npbgpp.core.files import load_tensors, save_tensors, write_atomically
from npbgpp.core.paths import SearchPaths
from npbgpp.engine.checkpoint import AtomicCheckpointIO, find_weights, load_weights
from npbgpp.errors import InputError
from npbgpp.methods.base import CHECKPOINT_FORMAT, Render, RunContext, System, SystemSettings
from npbgpp.metrics import ImageMetrics

from .methods.recorded import build_system

QUIET = ("trainer.limit_val_batches=0", "datasets.scenes.test=[]")


class Tiny(System):
    """A system of two small layers."""

    def __init__(self) -> None:
        settings = SystemSettings(system_class="Tiny", save_rendered_eval_images=False, lpips_weights=None, postprocessing_transform=None)
        super().__init__(settings, RunContext({}, SearchPaths(Path(), Path(), Path()), ImageMetrics()))
        self.refiner, self.converter = nn.Linear(2, 3), nn.Linear(3, 2)

    def render(self, cameras, scene, raster=False) -> Render:
        raise NotImplementedError


class Other(Tiny):
    """A system with the same names."""


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return write(tmp_path / "tiny.ckpt", Tiny().state_dict())


def write(path: Path, weights: object, **more: object) -> Path:
    content = {"state_dict": weights, **({"npbgpp": {"format": CHECKPOINT_FORMAT, "system": "Tiny"}} | more)}
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


def equal(system: nn.Module, weights: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in system.state_dict().items() if name in weights)


def test_everything_is_loaded_and_reported(checkpoint, caplog):
    caplog.set_level(logging.INFO)
    system = Tiny()
    report = load_weights(system, checkpoint, strict=True)
    assert set(report.loaded) == set(system.state_dict()) and report.missing == report.unexpected == ()
    assert equal(system, torch.load(checkpoint, weights_only=True)["state_dict"])
    assert f"weights {checkpoint}: loaded 4, missing 0, unexpected 0" in caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_what_did_not_match_is_named(tmp_path, caplog):
    weights = Tiny().state_dict()
    weights["extractor.weight"] = weights.pop("converter.weight")
    system = Tiny()
    own = system.converter.weight.detach().clone()
    report = load_weights(system, write(tmp_path / "part.ckpt", weights), strict=True)
    assert report.missing == ("converter.weight",) and report.unexpected == ("extractor.weight",) and len(report.loaded) == 3
    assert torch.equal(system.converter.weight, own)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "converter.weight" in warning and "extractor.weight" in warning


def test_other_system_is_refused_by_name(checkpoint):
    with pytest.raises(InputError, match="weights of system Tiny, not of Other") as caught:
        load_weights(Other(), checkpoint, strict=True)
    assert str(checkpoint) in str(caught.value) and "weights_strict=false" in str(caught.value)
    assert len(load_weights(Other(), checkpoint, strict=False).loaded) == 4


def test_relatives_are_accepted(checkpoint, monkeypatch):
    monkeypatch.setattr(Other, "accepts_checkpoints_of", ("Tiny",))
    assert len(load_weights(Other(), checkpoint, strict=True).loaded) == 4


def test_files_of_the_authors_carry_no_name(tmp_path):
    path = write(tmp_path / "released.ckpt", Tiny().state_dict(), npbgpp=None)
    assert len(load_weights(Tiny(), path, strict=True).loaded) == 4


@pytest.mark.parametrize("strict", [True, False])
def test_newer_format_is_refused(tmp_path, strict):
    path = write(tmp_path / "new.ckpt", Tiny().state_dict(), npbgpp={"format": CHECKPOINT_FORMAT + 1, "system": "Tiny"})
    with pytest.raises(InputError, match=f"format {CHECKPOINT_FORMAT + 1} is newer") as caught:
        load_weights(Tiny(), path, strict)
    assert str(path) in str(caught.value)


def test_other_shapes_are_refused_or_skipped(tmp_path):
    weights = Tiny().state_dict() | {"converter.weight": torch.zeros(2, 7)}
    path, system = write(tmp_path / "shape.ckpt", weights), Tiny()
    before = {name: value.clone() for name, value in system.state_dict().items()}
    with pytest.raises(InputError, match=r"converter.weight: \(2, 7\) in the file, \(2, 3\) in the system") as caught:
        load_weights(system, path, strict=True)
    assert "weights_strict=false" in str(caught.value)
    assert equal(system, before)  # refused as a whole
    report = load_weights(system, path, strict=False)
    assert report.missing == ("converter.weight",) and len(report.loaded) == 3
    assert torch.equal(system.converter.weight, before["converter.weight"]) and torch.equal(
        system.refiner.weight, weights["refiner.weight"]
    )


@pytest.mark.parametrize("strict", [True, False])
def test_nothing_matches(tmp_path, strict):
    path = write(tmp_path / "else.ckpt", {"backbone.weight": torch.zeros(2)})
    with pytest.raises(InputError, match="none of its 1 weights belongs to system Tiny") as caught:
        load_weights(Tiny(), path, strict)
    assert "backbone.weight" in str(caught.value) and str(path) in str(caught.value)


class Foreign:
    """Anything that unpickling would have to build."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Foreign(), "holds other Python objects"),
        ({"state_dict": Foreign()}, "holds other Python objects"),
        (torch.zeros(3), "expected a mapping 'state_dict'"),
        ({"weights": {}}, "expected a mapping 'state_dict'"),
        ({"state_dict": {"a": 1}}, "expected a mapping 'state_dict'"),
    ],
)
def test_foreign_files(tmp_path, content, message):
    path = tmp_path / "foreign.ckpt"
    torch.save(content, path)
    with pytest.raises(InputError, match=message) as caught:
        load_weights(Tiny(), path, strict=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 10, 1000, -1])
def test_truncated_files(checkpoint, kept):
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(InputError, match="damaged") as caught:
        load_weights(Tiny(), checkpoint, strict=True)
    assert str(checkpoint) in str(caught.value)


def test_a_lightning_file_with_config_objects_is_not_unpickled(shared):
    with pytest.raises(InputError, match="files that would run code are not read"):
        load_tensors(shared / "parity" / "h_ckpt_lightning148_style_rgb.ckpt", "checkpoint")


def forbid_config_objects(monkeypatch) -> None:
    """From here on putting an object of a config together fails."""

    def touched(*arguments: object) -> None:
        raise AssertionError("a config object was built")

    for kind in (DictConfig, ListConfig, AnyNode):
        monkeypatch.setattr(kind, "__setstate__", touched, raising=False)


def test_weights_of_an_old_lightning_file(parity, shared, tmp_path, monkeypatch):
    system = build_system("npbgpp_rgb", {}, tmp_path)
    path = shared / "parity" / "h_ckpt_lightning148_style_rgb.ckpt"
    forbid_config_objects(monkeypatch)
    with pytest.raises(AssertionError, match="a config object was built"):
        torch.load(path, weights_only=False)
    report = load_weights(system, path, strict=True)
    expected = parity("h_ckpt_npbgpp_rgb.pt")["state_dict"]
    assert set(report.loaded) == set(expected) and report.missing == report.unexpected == ()
    assert equal(system, expected)


def old_lightning_file(path: Path, **more: object) -> Path:
    """A config that filled its cache of resolved values, the class of a callback, and a path."""
    OmegaConf.register_new_resolver("once", lambda value: value, use_cache=True, replace=True)
    config = OmegaConf.create({"a": [1, 2.5, None, "x"], "b": "${once:7}", "folder": Path("somewhere")})
    assert config.b == 7
    callbacks = {ModelCheckpoint: {"best_model_path": "x", "best_model_score": torch.ones(())}}
    return write(path, Tiny().state_dict(), npbgpp=None, hyper_parameters=config, callbacks=callbacks, kind=type(config), **more)


def test_everything_that_old_lightning_wrote_is_passed_over(tmp_path, monkeypatch):
    path = old_lightning_file(tmp_path / "old.ckpt")
    forbid_config_objects(monkeypatch)
    assert len(load_weights(Tiny(), path, strict=True).loaded) == 4


def mapping_type(monkeypatch, name: str) -> type:
    """A type of mappings of Lightning's, as ``save_hyperparameters`` kept them."""
    kind = type(name, (dict,), {"__module__": parsing.__name__})
    monkeypatch.setattr(parsing, name, kind, raising=False)
    return kind


@pytest.mark.parametrize(
    "beside",
    [
        np.float32(2),
        np.arange(3.0),
        np.dtype("f8"),
        {"best": (np.float64(1), torch.ones(()))},
        argparse.Namespace(lr=1),
        datetime.timedelta(seconds=3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_of_numpy_and_lightning_beside_the_weights_are_passed_over(tmp_path, monkeypatch, beside):
    attributes = mapping_type(monkeypatch, "AttributeDict")(lr=1, layers=[1, 2])
    path = write(tmp_path / "scores.ckpt", Tiny().state_dict(), npbgpp=None, best=beside, hyper_parameters=attributes)
    assert len(load_weights(Tiny(), path, strict=True).loaded) == 4


def test_messages_do_not_advise_to_run_code(tmp_path, monkeypatch):
    """What torch's reader cannot build is told in other words than torch's."""
    path = write(tmp_path / "odd.ckpt", Tiny().state_dict(), npbgpp=None, best=mapping_type(monkeypatch, "Settings")(lr=1))
    with pytest.raises(InputError, match="files that would run code are not read") as caught:
        load_weights(Tiny(), path, strict=True)
    assert "weights_only" not in str(caught.value) and "safe_globals" not in str(caught.value)


class Runs:
    """Unpickling it makes a file, by a function that calls itself one of some package."""

    def __init__(self, mark: Path, package: str) -> None:
        self.mark, self.package = mark, package

    def __reduce__(self):
        return (sys.modules[self.package].run, (self.mark,))


@pytest.mark.parametrize(("package", "refused"), [("somebody", True), ("omegaconf.tool", False)])
def test_code_beside_the_weights_does_not_run(tmp_path, monkeypatch, package, refused):
    def run(mark: Path) -> None:
        mark.touch()

    run.__module__, run.__qualname__ = package, "run"
    monkeypatch.setitem(sys.modules, package, SimpleNamespace(run=run))
    mark = tmp_path / "was_run"
    path = old_lightning_file(tmp_path / "old.ckpt", extra=Runs(mark, package))
    if refused:
        with pytest.raises(InputError, match=r"holds other Python objects \(somebody\.run\).*keep its tensors alone") as caught:
            load_weights(Tiny(), path, strict=True)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    else:
        load_weights(Tiny(), path, strict=True)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the probe itself does nothing"


def test_old_files_without_a_zip_name_what_they_hold(tmp_path):
    torch.save({"state_dict": Tiny().state_dict(), "extra": Foreign()}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"holds other Python objects \(\S*Foreign\)"):
        load_weights(Tiny(), tmp_path / "old.ckpt", strict=True)


def test_where_weights_are_looked_for(tmp_path, caplog):
    search_paths = SearchPaths(tmp_path, tmp_path / "run", tmp_path)
    path = tmp_path / "experiments" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_weights("experiments/checkpoints/last.ckpt", search_paths) == path and not caplog.records
    assert find_weights(str(path), search_paths) == path
    assert find_weights("experiments/result/checkpoints/last.ckpt", search_paths) == path
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "result/checkpoints/last.ckpt does not exist" in warning and str(path) in warning
    with pytest.raises(InputError, match="did you mean last.ckpt") as caught:
        find_weights("experiments/checkpoints/lst.ckpt", search_paths)
    assert str(path.parent / "lst.ckpt") in str(caught.value)
    with pytest.raises(
        InputError, match=r"expected a checkpoint file.*checkpoints/last\.ckpt, got the folder .*/experiments/checkpoints .*: last\.ckpt"
    ):
        find_weights("experiments/checkpoints", search_paths)


@pytest.mark.parametrize("key", ["weights_path", "trainer.resume_from_checkpoint"])
def test_the_folder_of_a_run_stands_for_its_last_checkpoint(tmp_path, key):
    search_paths = SearchPaths(tmp_path, tmp_path / "run", tmp_path)
    (tmp_path / "made" / "checkpoints").mkdir(parents=True)
    (tmp_path / "made" / "checkpoints" / "first.ckpt").touch()
    with pytest.raises(InputError, match=rf"{key}=made: .*last\.ckpt, got the folder .*/made .*: checkpoints/first\.ckpt"):
        find_weights("made", search_paths, key)
    (tmp_path / "made" / "checkpoints" / "last.ckpt").touch()
    assert find_weights("made", search_paths, key) == tmp_path / "made" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("name", "got"), [("README.md", r"got \.md"), ("scene.splat", r"got \.splat"), ("weights", "got one without a suffix")]
)
def test_files_that_are_no_checkpoints_name_the_kinds_that_are(tmp_path, name, got):
    (tmp_path / name).write_bytes(b"# text")
    with pytest.raises(InputError, match=rf"{name}: expected a file \.ckpt, \.pth, \.pt, \.safetensors, {got}"):
        load_weights(Tiny(), tmp_path / name, strict=True)


@pytest.mark.parametrize("is_archive", [True, False])
def test_checkpoints_may_have_any_suffix(tmp_path, is_archive):
    torch.save({"state_dict": Tiny().state_dict()}, tmp_path / "weights.tar", _use_new_zipfile_serialization=is_archive)
    assert len(load_weights(Tiny(), tmp_path / "weights.tar", strict=True).loaded) == 4


def test_files_are_whole_or_absent(tmp_path):
    path = tmp_path / "new" / "file.bin"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left on device.*the file that was there before is unchanged") as caught:
        write_atomically(path, fail)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["file.bin"]
    with pytest.raises(InputError, match="no file was left behind"):
        write_atomically(path.with_name("second"), fail)
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def interrupt(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupt)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_lightning_writes_and_reads_through_it(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "a.ckpt"
    io.save_checkpoint({"state_dict": {"w": torch.ones(2)}}, path)
    assert io.load_checkpoint(path)["state_dict"]["w"].eq(1).all()
    io.remove_checkpoint(path)
    io.remove_checkpoint(path)
    assert not path.exists()
    save_tensors(path, Foreign())
    with pytest.raises(InputError, match="files that would run code are not read"):
        io.load_checkpoint(path)


RELEASED_PREFIXES = ("rgb_converter.lin1.", "rgb_converter.lin2.", "rasterizer.bg_feature", "refiner.")


def test_our_checkpoints_are_plain_and_named_like_the_released_ones(run_here, parity):
    """The released network sizes, so that every name and shape can be compared with the recorded checkpoint."""
    sizes = ("system.refiner.filters=[16,32,48,64,80]", "datasets.train_num_samples=1")
    folder = run_here(*QUIET, *sizes)
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["npbgpp"].items() >= {"format": CHECKPOINT_FORMAT, "system": "NPBG"}.items()
    assert content["npbgpp"].keys() == {"format", "system", "training", "processes", "clouds", "descriptors"}
    weights = content["state_dict"]
    assert all(name.startswith(RELEASED_PREFIXES) for name in weights)
    recorded = parity("h_ckpt_npbg_without_refiner.pt")["state_dict"]
    refiner = parity("h_ckpt_npbgpp_sphere.pt")["state_dict"]
    recorded |= {name: value for name, value in refiner.items() if name.startswith("refiner.")}
    assert {name: value.shape for name, value in weights.items()} == {name: value.shape for name, value in recorded.items()}
    assert not [name for name in weights if "vgg" in name or "lpips" in name or "cached" in name]
