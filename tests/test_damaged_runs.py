"""Random damage to a folder of a run: render, export, compare and resume end in one line, or do what they do with the whole folder; nothing in it is run.

Damage of tensors must be noticed. A config with another valid value is another run, whose results may differ.
"""

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf.errors import OmegaConfBaseException

from npbgpp.compare.__main__ import main as compare
from npbgpp.core.files import load_tensors
from npbgpp.errors import InputError
from npbgpp.export.__main__ import main as export
from npbgpp.render import main as render

from .conftest import TINY_OVERRIDES
from .helpers.commands import Command
from .run_folders import remember

CONFIG, CHECKPOINT, DESCRIPTORS, METRICS = ".hydra/config.yaml", "checkpoints/last.ckpt", "descriptors/ball.pth", "metrics.json"
FILES = {
    "render": (CONFIG, ".hydra/hydra.yaml", CHECKPOINT, DESCRIPTORS),
    "export": (CONFIG, CHECKPOINT, DESCRIPTORS),
    "compare": (CONFIG, METRICS, METRICS, "environment.json"),
    "resume": (CHECKPOINT, CHECKPOINT, DESCRIPTORS),
}
WORDS = ("nan", "-1", "0", "1e400", "[]", "{}", "null", "true", "~", "../..", "'", "&a [*a]", "!!python/name:os.system", "${oc.env:HOME}")
ROUNDS = {"render": 8, "export": 8, "compare": 12, "resume": 8}


@pytest.fixture(scope="module")
def trained(run_in, tiny_root, tmp_path_factory) -> Path:
    launch = tmp_path_factory.mktemp("runs")
    words = (*TINY_OVERRIDES, "trainer.limit_val_batches=0", "test_after_fit=true", "test_video=null")
    run = run_in(launch, tiny=words)
    remember(run, launch, *words, f"datasets.data_root={tiny_root}")
    return run


def damage(path: Path, dice: random.Random) -> str:
    """One kind of accident; returns its name."""
    content = bytearray(path.read_bytes())
    kind = dice.choice(("flip", "flip", "cut", "grow", "empty", "remove", "word"))
    if kind == "word" and path.suffix in (".ckpt", ".pth"):
        kind = "flip"
    if kind == "flip":
        for _ in range(dice.randint(1, 4)):
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        del content[dice.randrange(len(content)) :]
    elif kind == "grow":
        content += dice.randbytes(20)
    elif kind == "empty":
        content.clear()
    elif kind == "word":
        words = list(re.finditer(rb"[-+.\w]+", content))
        word = dice.choice(words)
        content[word.start() : word.end()] = dice.choice(WORDS).encode()
    if kind == "remove":
        path.unlink()
    else:
        path.write_bytes(content)
    return kind


def results(folder: Path) -> dict[str, bytes]:
    """Pictures and clouds below a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in (".png", ".ply")}


@pytest.fixture
def commands(request, tmp_path, run_in, trained) -> dict[str, Callable[[Path, Path], dict]]:
    """(run folder, folder for results) -> what is made of a run."""
    calls = {name: Command(main, request, tmp_path) for name, main in (("render", render), ("export", export), ("compare", compare))}

    def written(name: str, *words: str) -> Callable[[Path, Path], dict]:
        def go(run: Path, out: Path) -> dict:
            calls[name](*(word.format(run=run, out=out, whole=trained) for word in words))
            return results(out)

        return go

    def resume(run: Path, out: Path) -> dict:
        shutil.copytree(run, out)
        words = ("trainer.limit_val_batches=0", "test_after_fit=false", "trainer.max_epochs=2", "resume=auto", "overwrite=false")
        run_in(out.parent, *words, "system.overwrite_descriptors=true", name=out.name)
        found = dict(load_tensors(out / CHECKPOINT, "checkpoint")["state_dict"])
        return found | {"descriptors": load_tensors(out / DESCRIPTORS, "descriptors")}

    return {
        "render": written("render", "{run}", "out={out}", "path=circle", "frames=2", "video=none", "size=[32,32]"),
        "export": written("export", "cloud", "{run}", "out={out}/cloud.ply"),
        "compare": written("compare", "{whole}", "{run}", "out={out}"),
        "resume": resume,
    }


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k] for k, v in one.items()
    )


@pytest.mark.parametrize("name", FILES)
def test_random_damage_is_noticed_or_does_no_harm(trained, commands, tmp_path, monkeypatch, name):
    """A folder that is used has given what the whole folder gives, unless its config or its scores have another value."""
    called: list[str] = []
    for function in ("system", "popen", "execv"):
        monkeypatch.setattr(os, function, lambda *a, function=function, **k: called.append(function))
    right = commands[name](Path(shutil.copytree(trained, tmp_path / "whole")), tmp_path / "right")
    assert right
    refused = 0
    for round_ in range(ROUNDS[name]):
        dice = random.Random(f"{name} {round_}")
        run = Path(shutil.copytree(trained, tmp_path / f"run{round_}"))
        place = dice.choice(FILES[name])
        kind = damage(run / place, dice)
        what = f"{name} {round_}: {kind} of {place}"
        try:
            found = commands[name](run, tmp_path / f"out{round_}")
        except SystemExit as ended:
            message = str(ended.code)
            assert message.startswith("error: ") and "\n" not in message.strip(), f"{what}: {message}"
            refused += 1
            continue
        except (InputError, OmegaConfBaseException) as error:
            assert name == "resume" and "\n" not in str(error), f"{what}: {error}"
            refused += 1
            continue
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        if place in (CHECKPOINT, DESCRIPTORS):
            assert same(found, right), what
    assert refused > 0 and called == []
