"""Configs in run folders, read as data.

A run folder may come from someone else. Its config may name classes of this project and of installed plug-ins as ``_target_``, and may refer to its own keys
(``${system.descriptor_dim}``). Everything else that Hydra and OmegaConf would run is refused: other callables, and resolvers such as ``${oc.env:HOME}``.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from npbgpp.core.paths import conf_folder
from npbgpp.core.plugins import LAYOUTS, METHODS, config_folders, plugins
from npbgpp.errors import InputError

_TARGET = "_target_"
# packages with the networks and samplers that the ``system`` group names; the rest of the project has classes that write files
_OURS = ("npbgpp.methods.", "npbgpp.nets.", "npbgpp.points.", "npbgpp.volume.")
# groups of a training, which no command on a finished run builds: their names are compared with these, and nothing is imported
_TRAINING_GROUPS = ("callbacks", "loggers")
_TRAINING_CLASSES = re.compile(r"pytorch_lightning\.(callbacks|loggers)\.[A-Z]\w*|npbgpp(\.[a-z_]+)+\.[A-Z]\w*")
_COMPLETED_GROUPS = ("system", "datasets", "dataloader", "trainer")
_NAME = re.compile(r"\w[\w.-]*")  # of a config file
_REFERENCE = re.compile(r"\$\{[\w.\[\]-]+\}")
_ADVICE = "a saved config is data, not code: correct it, or add trust_config=true if you trust whoever made this folder as you would trust a program"

# classes by the names that earlier saved configs have
_EARLIER_CLASSES = {
    "npbgpp.callbacks.training_strip.TrainingStrip": "npbgpp.callbacks.evaluation.TrainingStrip",
    "npbgpp.methods.nerf.model.Nerf": "npbgpp.methods.nerf.Nerf",
    "npbgpp.methods.nerf.model.NerfSampling": "npbgpp.methods.nerf.NerfSampling",
    "npbgpp.models.aggregation.Mean": "npbgpp.nets.aggregation.MeanAggregator",
    "npbgpp.models.aggregation.Sphere": "npbgpp.nets.aggregation.SphereAggregator",
    "npbgpp.models.feature_extractor.IdentityExtractor": "npbgpp.nets.feature_extractor.IdentityExtractor",
    "npbgpp.models.feature_extractor.UNet": "npbgpp.nets.feature_extractor.FeatureExtractor",
    "npbgpp.models.nerf.Nerf": "npbgpp.methods.nerf.Nerf",
    "npbgpp.models.nerf.NerfSampling": "npbgpp.methods.nerf.NerfSampling",
    "npbgpp.models.nsff.Nsff": "npbgpp.methods.nsff.model.Nsff",
    "npbgpp.models.nsff.NsffSampling": "npbgpp.methods.nsff.model.NsffSampling",
    "npbgpp.models.rasterizer.NearestScatterRasterizer": "npbgpp.points.feature_pyramid.FeaturePyramid",
    "npbgpp.models.refiner.IdentityRefiner": "npbgpp.nets.unet.IdentityRefiner",
    "npbgpp.models.refiner.RefinerUnetV2": "npbgpp.nets.unet.NPBGPlusPlusUNet",
    "npbgpp.models.rgba_unet.RGBAUNet": "npbgpp.methods.npcr.network.RGBAUNet",
}


def with_current_classes(value: Any) -> Any:
    """A saved config with the present names of classes."""
    if isinstance(value, dict):
        return {key: with_current_classes(part) for key, part in value.items()}
    if isinstance(value, list):
        return [with_current_classes(part) for part in value]
    return _EARLIER_CLASSES.get(value, value) if isinstance(value, str) else value


def launch_folder(run: Path) -> Path:
    """The folder that a run was started from, if it still exists, else the current one. Raises InputError for an unreadable ``.hydra/hydra.yaml``."""
    file = run / ".hydra" / "hydra.yaml"
    found: Any = _read(file, run) if file.is_file() else {}
    for key in ("hydra", "runtime", "cwd"):
        found = found.get(key) if isinstance(found, dict) else None
    return Path(found) if isinstance(found, str) and Path(found).is_dir() else Path.cwd()


def saved_config(run: Path, launch: Path, trusted: bool) -> dict[str, Any]:
    """The config of a run as it was composed, with references between its keys unresolved. Keys that came after it have the values of today's yaml files.

    Hydra's paths are replaced by ``run`` and ``launch``: Hydra resolves them only in programs that it starts. Where our own yaml files use another resolver
    (``trainer=slurm`` reads variables of SLURM), the value is that of ``config.yaml`` in the folder, which was computed when the run started.

    Args:
        run: folder of the run.
        launch: folder that it was started from.
        trusted: accept any ``_target_`` and any resolver, which then run.

    Raises:
        InputError: no readable config, or one that would run something else than classes of this project and of installed plug-ins.
    """
    file = run / ".hydra" / "config.yaml"
    paths = {"${hydra:run.dir}": run, "${hydra:runtime.output_dir}": run, "${hydra:runtime.cwd}": launch}
    config = with_current_classes(_with_paths(_read(file, run), paths))
    copy = run / "config.yaml"
    at_start = _read(copy, run) if copy.is_file() else {}
    config = _with_later_keys(config, at_start, _choices(run))
    if not trusted:
        config = _settled(config, at_start)
        check_saved_config(config, file)
    assert isinstance(config, dict)
    return config


def _choices(run: Path) -> dict[str, str]:
    """The files that the groups of a run were composed from; empty where the folder does not say."""
    file = run / ".hydra" / "hydra.yaml"
    found: Any = _read(file, run) if file.is_file() else {}
    for key in ("hydra", "runtime", "choices"):
        found = found.get(key) if isinstance(found, dict) else None
    return {group: name for group, name in found.items() if isinstance(name, str)} if isinstance(found, dict) else {}


def _with_later_keys(config: dict[str, Any], copy: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, Any]:
    """A config with the missing keys of its groups, as in the yaml files of today.

    Only keys that the other copy of the config lacks, too: others were lost. Values that would be computed stay missing.
    """
    completed = dict(config)
    for group in _COMPLETED_GROUPS:
        if isinstance(completed.get(group), dict) and isinstance(copy.get(group), dict) and group in choices:
            completed[group] = _filled(completed[group], _without(_defaults(group, choices[group]), copy[group]))
    return completed


def _without(defaults: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that are not known."""
    left = {}
    for key, value in defaults.items():
        if key not in known:
            left[key] = value
        elif isinstance(value, dict) and isinstance(known[key], dict):
            left[key] = _without(value, known[key])
    return left


def _defaults(group: str, name: str) -> dict[str, Any]:
    """Keys of a config file with those of the files of the same group that its ``defaults`` name; empty for a file that is gone."""
    if not _NAME.fullmatch(name):
        return {}
    folders = (conf_folder(), *(folder for _, folder in config_folders()))
    file = next((found for folder in folders if (found := folder / group / f"{name}.yaml").is_file()), None)
    if file is None:
        return {}
    own = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    keys: dict[str, Any] = {}
    for part in [*own.pop("defaults", ()), "_self_"]:
        if part == "_self_":
            keys = _filled(own, keys)
        elif isinstance(part, str):
            keys = _filled(_defaults(group, part), keys)
    return keys


def _filled(values: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``values``, and the keys of ``defaults`` that they lack. Networks, which have a ``_target_``, are left as they are."""
    if _TARGET in values:
        return values
    filled = dict(values)
    for key, default in defaults.items():
        if key not in values and default != "???" and not any(_uses_resolver(leaf) for _, leaf in _leaves({key: default}, "")):
            filled[key] = default
        elif isinstance(values.get(key), dict) and isinstance(default, dict):
            filled[key] = _filled(values[key], default)
    return filled


def check_saved_config(config: Mapping[str, Any], file: Path) -> None:
    """Refuses a saved config that would run something.

    Args:
        config: with references unresolved.
        file: that it was read from, for messages.

    Raises:
        InputError: a ``_target_`` that is no class of this project or of an installed plug-in, a resolver, or a reference to a key that is not there.
    """
    for name, value in _leaves(config, ""):
        if name.rpartition(".")[2] == _TARGET:
            _check_target(name, value, file)
        elif _uses_resolver(value):
            raise InputError(
                f"{file}: {name}={value}: expected a value, or a reference to another key such as ${{seed}}, got one that is computed; {_ADVICE}"
            )
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(dict(config)), resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise InputError(f"{file}: expected references to keys that exist ({' '.join(str(error).split())}); correct it") from error
    for name, value in _leaves(resolved, ""):  # references that add up to a resolver
        if isinstance(value, str) and "${" in value:
            raise InputError(f"{file}: {name}={value}: expected a value, got one that is computed; {_ADVICE}")


def _check_target(name: str, target: Any, file: Path) -> None:
    wanted = "a class of npbgpp for networks, or of an installed plug-in"
    if isinstance(target, str) and name.partition(".")[0] in _TRAINING_GROUPS:
        if _TRAINING_CLASSES.fullmatch(target) or _is_class_of_plugin(target):
            return
        wanted = "a class of npbgpp, Lightning or an installed plug-in"
    elif isinstance(target, str) and (_is_network_of_ours(target) or _is_class_of_plugin(target)):
        return
    raise InputError(f"{file}: {name}={target}: expected {wanted}, got something else; {_ADVICE}")


def _is_network_of_ours(target: str) -> bool:
    """A module, or a dataclass of its settings. Functions and classes that our modules import from elsewhere are none."""
    if not target.startswith(_OURS):
        return False
    from torch import nn  # slow to import

    found = _class(target)
    return (
        found is not None and f"{found.__module__}.".startswith(_OURS) and (issubclass(found, nn.Module) or dataclasses.is_dataclass(found))
    )


def _is_class_of_plugin(target: str) -> bool:
    registered = (plugin for group in (METHODS, LAYOUTS) for plugin in plugins(group).values() if not plugin.is_ours)
    packages = tuple({f"{plugin.entry_point.module.partition('.')[0]}." for plugin in registered})
    if not target.startswith(packages):
        return False
    found = _class(target)
    return found is not None and f"{found.__module__}.".startswith(packages)


def _class(target: str) -> type | None:
    """The class of a name ``package.module.Class``; None for all else. Imports the module."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name, None)
    except Exception:  # of a plug-in, anything
        return None
    return found if isinstance(found, type) else None


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Values by their dotted names; keys of mappings, which could be computed too, count as values."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield f"{name}(key)", key
            if key == _TARGET:
                yield f"{name}{key}", part
            else:
                yield from _leaves(part, f"{name}{key}.")
    elif isinstance(value, list | tuple):
        for k, part in enumerate(value):
            yield from _leaves(part, f"{name}{k}.")
    else:
        yield name.removesuffix("."), value


def _uses_resolver(value: Any) -> bool:
    return isinstance(value, str) and "${" in _REFERENCE.sub("", value)


def _settled(value: Any, at_start: Any) -> Any:
    """Values of the resolvers in our yaml files as they were when the run started."""
    if isinstance(value, dict):
        known = at_start if isinstance(at_start, dict) else {}
        return {key: part if key == _TARGET else _settled(part, known.get(key)) for key, part in value.items()}
    if isinstance(value, list):
        known_list = at_start if isinstance(at_start, list) and len(at_start) == len(value) else [None] * len(value)
        return [_settled(part, known) for part, known in zip(value, known_list, strict=True)]
    if _uses_resolver(value) and _is_in_our_files(value) and isinstance(at_start, str | int | float) and "${" not in str(at_start):
        return at_start
    return value


def _is_in_our_files(value: str) -> bool:
    return any(value in file.read_text(encoding="utf-8") for file in conf_folder().rglob("*.yaml"))


def _with_paths(value: Any, paths: Mapping[str, Path]) -> Any:
    """A config with interpolations, given as keys of ``paths``, replaced in all strings."""
    if isinstance(value, dict):
        return {key: _with_paths(part, paths) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_paths(part, paths) for part in value]
    if isinstance(value, str):
        for interpolation, path in paths.items():
            value = value.replace(interpolation, str(path))
    return value


def _read(path: Path, run: Path) -> dict[Any, Any]:
    try:
        content = OmegaConf.load(path)
        if isinstance(content, DictConfig):
            found = OmegaConf.to_container(content, resolve=False)
            assert isinstance(found, dict)
            return found
    except FileNotFoundError:
        raise InputError(
            f"run={run}: expected the folder of a run, with {path.relative_to(run)}, there is none; correct the path"
        ) from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path}: expected the config of a run, got an unreadable file ({' '.join(str(error).split())})") from error
    raise InputError(f"{path}: expected the config of a run, got a {type(content).__name__}")
