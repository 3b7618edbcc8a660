"""A run folder from someone else is data: no command runs what its config, checkpoint or descriptors name."""

import os
import pickle
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import npbgpp
from npbgpp.compare.__main__ import main as compare
from npbgpp.core.saved_config import saved_config
from npbgpp.errors import InputError
from npbgpp.export.__main__ import main as export
from npbgpp.refine import main as refine
from npbgpp.render import main as render
from npbgpp.train import main as train

from .conftest import TINY_OVERRIDES
from .helpers.commands import Command
from .run_folders import remember

WORDS = (*TINY_OVERRIDES, "trainer.limit_val_batches=0", "test_after_fit=true")
# nodes of a config that would write the file MARK, with the name that a message must hold
TARGETS = {
    "os.system": {"_target_": "os.system", "command": "touch MARK"},
    "subprocess.check_call": {"_target_": "subprocess.check_call", "_args_": [["touch", "MARK"]]},
    "torch.fx.graph_module._exec_with_source": {
        "_target_": "torch.fx.graph_module._exec_with_source",
        "src": "open('MARK', 'w')",
        "globals": {"a": 1},
    },
    "builtins.eval": {"_target_": "builtins.eval", "_args_": ["open('MARK', 'w')"]},
    "builtins.exec": {"_target_": "builtins.exec", "_args_": ["open('MARK', 'w')"]},
    "functools.partial": {
        "_target_": "functools.partial",
        "_args_": [{"_target_": "hydra.utils.get_method", "path": "os.system"}, "touch MARK"],
    },
    "hydra.utils.get_method": {"_target_": "hydra.utils.get_method", "path": "os.system"},
    "hydra.utils.call": {
        "_target_": "hydra.utils.call",
        "_recursive_": False,
        "config": {"_target_": "os.system", "command": "touch MARK"},
    },
    "pickle.loads": {"_target_": "pickle.loads", "_args_": ["cos\nsystem\n(S'touch MARK'\ntR."]},
    "pathlib.Path.write_text": {"_target_": "pathlib.Path.write_text", "_args_": [{"_target_": "pathlib.Path", "_args_": ["MARK"]}, "x"]},
    "torch.load": {"_target_": "torch.load", "f": "MARK.pt", "weights_only": False},
    "pytorch_lightning.callbacks.ModelCheckpoint": {"_target_": "pytorch_lightning.callbacks.ModelCheckpoint", "dirpath": "MARK"},
    # names that our modules import, functions of ours, and classes of ours that write files
    "npbgpp.core.files.os.system": {"_target_": "npbgpp.core.files.os.system", "command": "touch MARK"},
    "npbgpp.points.descriptor_tables.os.link": {
        "_target_": "npbgpp.points.descriptor_tables.os.link",
        "src": "/etc/hostname",
        "dst": "MARK",
    },
    "npbgpp.nets.unet.partial": {"_target_": "npbgpp.nets.unet.partial", "_args_": [{"_target_": "os.system"}, "touch MARK"]},
    "npbgpp.points.descriptor_tables.Path": {"_target_": "npbgpp.points.descriptor_tables.Path", "_args_": ["MARK"]},
    "npbgpp.methods.nerf.nn.Sequential": {"_target_": "npbgpp.methods.nerf.nn.Sequential"},
    "npbgpp.io.VideoWriter": {"_target_": "npbgpp.io.VideoWriter", "path": {"_target_": "pathlib.Path", "_args_": ["MARK"]}, "fps": 10},
    "npbgpp.engine.run.instantiate": {
        "_target_": "npbgpp.engine.run.instantiate",
        "config": {"_target_": "os.system", "command": "touch MARK"},
    },
    "npbgpp.refine.main": {"_target_": "npbgpp.refine.main"},
    "npbgpp.nets.nothing.Here": {"_target_": "npbgpp.nets.nothing.Here"},
    "${datasets.scene_name}": {"_target_": "${datasets.scene_name}", "command": "touch MARK"},
    "['os.system']": {"_target_": ["os.system"], "command": "touch MARK"},
}
# places of a config: one that is built, one inside of a list of one that is built, one that an own class would have to build, and two that are not built
PLACES: dict[str, Callable[[dict, dict], None]] = {
    "a network": lambda config, node: config["system"].update(refiner=node),
    "an argument": lambda config, node: config["system"]["refiner"].update(filters=[10, 11, {"inner": [node]}]),
    "a further key": lambda config, node: config["system"].update(helper=node),
    "another group": lambda config, node: config["datasets"].update(helper={"deep": [node]}),
    "a new group": lambda config, node: config.update(anything={"here": node}),
}
COMPUTED = {
    "the environment": "${oc.env:SECRET}",
    "inside of a text": "a${oc.env:SECRET}b",
    "a name that is put together": "${${datasets.layout}:SECRET}",
    "nested": "${oc.decode:${oc.env:SECRET}}",
    "escaped": "\\${oc.env:SECRET}",
    "a select": "${oc.select:seed}",
    "Hydra": "${hydra:runtime.cwd}${hydra:job.name}",
}


@pytest.fixture(scope="module")
def trained(run_in, tiny_root, tmp_path_factory) -> Path:
    launch = tmp_path_factory.mktemp("stranger")
    folder = run_in(launch, *WORDS, name="run")
    remember(folder, launch, *WORDS, f"datasets.data_root={tiny_root}")
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("rendered"))
    return tmp_path / "run"


@pytest.fixture
def commands(request, tmp_path) -> dict[str, Callable[..., str]]:
    """Commands on a run by name; each returns its output."""
    mains = {"render": render, "refine": refine, **{f"export {name}": export for name in ("weights", "cloud", "mesh", "volume", "cameras")}}

    def of(name: str, main: Callable[[], None]) -> Callable[..., str]:
        command, words = Command(main, request, tmp_path), name.split()[1:]
        return lambda run, *rest, refused=True: (command.refused if refused else command)(*words, run, *rest)

    return {name: of(name, main) for name, main in (mains | {"compare": compare}).items()}


def change(run: Path, edit: Callable[[dict], None], tmp_path: Path) -> None:
    """Edits the saved config of a run; MARK becomes the path of a file."""
    path = run / ".hydra" / "config.yaml"
    config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    edit(config)
    OmegaConf.save(OmegaConf.create(config), path)
    path.write_text(path.read_text().replace("MARK", str(tmp_path / "mark")))


@pytest.mark.parametrize("place", PLACES)
def test_nothing_that_a_config_names_is_run(run, commands, tmp_path, place):
    """Every name in place of a network, and some in the other places; one by all commands and from Python, the others by a command that builds."""
    path = run / ".hydra" / "config.yaml"
    original = path.read_text()
    names = list(TARGETS) if place == "a network" else list(TARGETS)[:: len(TARGETS) // 3]
    for name in names:
        path.write_text(original)
        change(run, lambda config, name=name: PLACES[place](config, TARGETS[name]), tmp_path)
        for command, start in commands.items() if name == "os.system" else [("render", commands["render"])]:
            message = start(run)
            assert any(named in message for named in (name, "os.system", "pathlib.Path")), (command, message)
            assert "trust_config=true" in message and "config.yaml" in message
        assert not (tmp_path / "mark").exists(), name
    with pytest.raises(InputError, match="trust_config=true"):
        npbgpp.load_run(run)


def test_a_config_that_is_trusted_runs_what_it_names(run, commands, tmp_path):
    """The attacks are attacks: with the key of the command line, which is trusted, one works."""
    change(run, lambda config: config["system"].update(refiner=TARGETS["torch.fx.graph_module._exec_with_source"]), tmp_path)
    with pytest.raises(Exception):  # noqa: B017 - it returns no network
        commands["render"](run, "trust_config=true")
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("value", COMPUTED.values(), ids=COMPUTED)
def test_nothing_is_computed_from_a_config(run, commands, tmp_path, monkeypatch, value):
    """Also where config.yaml holds a value: only resolvers of our own yaml files are replaced by it."""
    monkeypatch.setenv("SECRET", "of the environment")
    change(run, lambda config: config["datasets"].update(pc_name=value), tmp_path)
    for command in ("render", "export cloud", "export weights", "compare", "refine"):
        message = commands[command](run)
        assert "datasets.pc_name=" in message and "trust_config=true" in message and "of the environment" not in message


def test_references_that_add_up_to_a_resolver(run, commands, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "of the environment")
    change(run, lambda config: config.update(one="{oc.env:SECRET}", two="$", three="${two}${one}"), tmp_path)
    assert "three=" in commands["render"](run)
    change(run, lambda config: config.update(three="${nowhere.at_all}"), tmp_path)
    assert "keys that exist" in commands["render"](run)


def test_what_a_run_took_from_the_environment_is_read_from_its_folder(run, commands, tmp_path, monkeypatch):
    """As jobs of SLURM do: their config refers to its variables, and config.yaml holds the values."""
    at_start = OmegaConf.load(run / "config.yaml")
    at_start.trainer.num_nodes = 1
    OmegaConf.save(at_start, run / "config.yaml")
    change(run, lambda config: config["trainer"].update(num_nodes="${oc.decode:${oc.env:SLURM_NNODES,1}}"), tmp_path)
    monkeypatch.setenv("SLURM_NNODES", "${oc.env:HOME}")
    assert saved_config(run, tmp_path, False)["trainer"]["num_nodes"] == 1
    assert "2 frames" in commands["render"](run, "images=false", refused=False)
    (run / "config.yaml").unlink()
    assert "trainer.num_nodes" in commands["export cloud"](run, "overwrite=true")


def test_keys_that_came_later_have_their_defaults(run, tmp_path):
    """Runs of earlier versions lack keys; a key that one of the two copies has was lost, and is an error when it is read."""
    folder = tmp_path / "old"
    shutil.copytree(run, folder)
    whole = saved_config(run, tmp_path, False)
    files = [folder / ".hydra" / "config.yaml", folder / "config.yaml"]
    for file in files:
        config = OmegaConf.load(file)
        del config.system["style_weight"], config.system.learning_rates["refiner"], config.datasets["cache_memory_gb"]
        OmegaConf.save(config, file)
    completed = saved_config(folder, tmp_path, False)
    assert completed["system"]["style_weight"] == whole["system"]["style_weight"] and completed["datasets"]["cache_memory_gb"] == 4
    assert set(completed["system"]["learning_rates"]) == set(whole["system"]["learning_rates"])
    shutil.copy(run / "config.yaml", files[1])
    assert "style_weight" not in saved_config(folder, tmp_path, False)["system"]


def test_a_class_of_an_installed_plugin_is_built(run, commands, tmp_path, monkeypatch):
    """And no name that its modules import from elsewhere."""
    from npbgpp.core import saved_config as module
    from npbgpp.nets.unet import NPBGPlusPlusUNet

    class OwnUNet(NPBGPlusPlusUNet):
        pass

    OwnUNet.__module__ = "npbgpp_strange_nets"
    monkeypatch.setitem(
        sys.modules, "npbgpp_strange_nets", types.SimpleNamespace(OwnUNet=OwnUNet, system=os.system, Popen=__import__("subprocess").Popen)
    )
    change(run, lambda config: config["system"]["refiner"].update(_target_="npbgpp_strange_nets.OwnUNet"), tmp_path)
    assert "npbgpp_strange_nets.OwnUNet" in commands["render"](run)
    point = types.SimpleNamespace(module="npbgpp_strange_nets.method")
    monkeypatch.setattr(module, "plugins", lambda group: {"Strange": types.SimpleNamespace(is_ours=False, entry_point=point)})
    commands["export cameras"](run, refused=False)
    for name in ("system", "Popen"):
        change(run, lambda config, name=name: config["system"]["refiner"].update(_target_=f"npbgpp_strange_nets.{name}"), tmp_path)
        assert f"npbgpp_strange_nets.{name}" in commands["render"](run)


class _Attack:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_pickles_are_not_run(run, commands, run_in, tmp_path, request):
    """Of checkpoints (also as the configs that Lightning 1 kept in them), descriptors, Hydra's pickled config, and by resuming."""
    mark = tmp_path / "mark"
    checkpoint = run / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    for part in ({"hyper_parameters": {"cfg": _Attack(mark)}}, {"npbgpp": content["npbgpp"] | {"training": _Attack(mark)}}):
        torch.save(content | part, checkpoint)
        for command in ("render", "export weights", "export cloud", "refine"):
            assert "code" in commands[command](run)
        for word in ("resume", "weights_path"):
            with pytest.raises(InputError, match="code"):
                run_in(tmp_path, f"{word}={checkpoint}", name="other")
    torch.save(content, checkpoint)
    torch.save(_Attack(mark), run / "descriptors" / "ball.pth")
    assert "descriptors" in commands["export cloud"](run)
    (run / ".hydra" / "config.pickle").write_bytes(pickle.dumps(_Attack(mark)))
    message = Command(train, request, tmp_path).refused("--experimental-rerun", run / ".hydra" / "config.pickle")
    assert "pickle" in message and "overrides.yaml" in message
    assert not mark.exists()
