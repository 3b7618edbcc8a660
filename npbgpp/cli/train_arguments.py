"""The command line of training: its help, and what is wrong with it before anything slow is imported."""

import re
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from npbgpp.cli.command import KeyHelp, columns, hint, nearest, paragraph, section
from npbgpp.cli.config_tree import ConfigTree, choices, config_loader, first_sentence, flattened, plain
from npbgpp.core.config import as_typed, typed_value
from npbgpp.core.plugins import LAYOUTS, METHODS, plugins
from npbgpp.errors import InputError

_LAUNCHER = "hydra/launcher"
# what packages register decides about the values of these keys
_REGISTERED: Mapping[str, Callable[[], tuple[str, ...]]] = {
    "datasets.layout": lambda: ("auto", *sorted(plugins(LAYOUTS))),
    "system.system_class": lambda: tuple(sorted(plugins(METHODS))),
}
_EXAMPLE = "experiment=npbg_quick datasets=colmap_one_scene datasets.data_root=data datasets.scene_name=my_scene"
_SEE_HELP = "npbgpp train --help lists the choices"


def read_train_arguments(arguments: Sequence[str]) -> str | None:
    """Checks the command line of training.

    Args:
        arguments: words behind the name of the command, in Hydra's grammar.

    Returns:
        The help text if the words ask for it.

    Raises:
        InputError: unknown options, groups, choices or keys, or missing groups.
    """
    options = _parser().parse_intermixed_args(list(arguments))
    if any((options.hydra_help, options.info, options.shell_completion)):
        return None
    if options.experimental_rerun:
        raise InputError(
            f"--experimental-rerun={options.experimental_rerun}: expected a command line, got a pickle, which could run code; the words of an earlier run are in "
            "its .hydra/overrides.yaml"
        )
    if any((options.config_path, options.config_name, options.config_dir)):
        return None  # other configs than ours
    overrides = _parsed(options.overrides)
    with config_loader() as loader:
        tree = ConfigTree(loader, [path for o in overrides if o.key_or_group == "hydra.searchpath" for path in _values(o)])
        chosen = _check_choices(tree, overrides)
        if options.help:
            changes = [str(o.input_line) for o in overrides if not o.is_sweep_override() and o.key_or_group not in chosen]
            return train_help(tree, chosen, changes)
        sweeps = [o.input_line for o in overrides if o.is_sweep_override()]
        if sweeps and not options.multirun and "hydra.mode=MULTIRUN" not in options.overrides:
            raise InputError(f"{sweeps[0]}: expected one value, got a sweep over several; add -m, or put a list into brackets: key=[a,b]")
        _check_keys(tree, overrides, chosen)
    return None


def hydra_arguments(arguments: Sequence[str]) -> list[str]:
    """The same words with Hydra's options before the others, since its parser takes no words on both sides of an option.

    Names that look like numbers are quoted, see ``as_typed``.
    """
    overrides = _parser().parse_intermixed_args(list(arguments)).overrides
    options = list(arguments)
    for word in overrides:
        options.remove(word)
    return [*options, *map(as_typed, overrides)]


def _parser() -> ArgumentParser:
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    return parser


def _refuse(message: str) -> NoReturn:
    raise InputError(f"{message}; {_SEE_HELP}, npbgpp train --hydra-help the options of Hydra")


def _parsed(words: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    found = []
    for word in words:
        try:
            found += parser.parse_overrides([word])
        except OverrideParseException as error:
            if "=" not in word and not word.startswith("~"):
                raise InputError(f"{word}: expected key=value; {_SEE_HELP}") from error
            raise InputError(
                f"{word}: {_flaw(word)}; quote values with spaces, commas, brackets or braces in them: \"key='a, b'\""
            ) from error
    return found


def _flaw(word: str) -> str:
    """What is wrong with a word that Hydra cannot parse."""
    for opening, closing in ("[]", "{}", "()"):
        if word.count(opening) != word.count(closing):
            return f"expected as many {closing} as {opening}, got {word.count(closing)} and {word.count(opening)}"
    return "expected key=value with a value, list or mapping as in YAML, got something else"


def _values(override: Override) -> list[Any]:
    """Values of an override: the elements of a list or a sweep, else the value alone."""
    if override.is_discrete_sweep():
        return list(override.sweep_iterator())
    value = override.value()
    return value if isinstance(value, list) else [value]


def _check_choices(tree: ConfigTree, overrides: Sequence[Override]) -> dict[str, str]:
    """Overrides that choose config files, by group, a sweep as its first value. Raises InputError for unknown groups and choices."""
    chosen = {}
    for override in overrides:
        group = override.key_or_group
        options = tree.options_and_fragments(group) if "." not in group else []
        if not options:
            if "/" in group:
                raise InputError(f"{group}: unknown group; {hint(group, tree.groups)}")
            continue
        if override.is_delete():
            continue
        for value in _values(override):
            if value is not None and str(value) not in options:
                known = tree.options(group)
                close = nearest(str(value), known)
                meant = f" did you mean {close}?" if close is not None else ""
                raise InputError(f"{group}={value}: unknown choice;{meant} expected one of {', '.join(known)}")
        word = override.input_line or ""
        chosen[group] = f"{word.partition('=')[0]}={next(override.sweep_string_iterator())}" if override.is_discrete_sweep() else word
    return chosen


def _check_keys(tree: ConfigTree, overrides: Sequence[Override], chosen: dict[str, str]) -> None:
    """Raises InputError for unknown keys, for values outside of the documented choices, and for missing groups."""
    changed = [o for o in overrides if o.key_or_group not in chosen and not (o.is_add() or o.is_force_add() or o.is_delete())]
    config = plain(_composed(tree, chosen, [o.key_or_group for o in changed]))
    known = list(flattened(config))
    for override in changed:
        key = override.key_or_group
        if key not in known and not any(name.startswith(f"{key}.") for name in known):
            raise InputError(f"{key}: unknown key; {_meant(key, known if '.' in key else [*known, *tree.groups])}")
    texts = {o.key_or_group: [typed_value(v) for v in _values(o) if v is None or isinstance(v, str | bool)] for o in changed}
    comments = tree.comments(list(chosen.values())) if any(texts.values()) else {}
    for key, values in texts.items():
        accepted = _REGISTERED[key]() if key in _REGISTERED else choices(comments.get(key, ""))
        for value in values:
            if accepted and value not in accepted and not value.startswith("${"):
                raise InputError(f"{key}={value}: unknown choice; {_origins(key) if key in _REGISTERED else hint(value, accepted)}")


def _origins(key: str) -> str:
    """The values of a key that packages register, with the distribution of each."""
    known = plugins(LAYOUTS if key == "datasets.layout" else METHODS)
    return f"expected one of {', '.join(str(known[name]) if name in known else name for name in _REGISTERED[key]())}"


def _meant(key: str, known: Sequence[str]) -> str:
    close = nearest(key, known)
    if close is not None:
        return f"did you mean {close}?"
    below = [name for name in known if name.startswith(key.partition(".")[0] + ".")]
    return f"known keys: {', '.join(below)}" if below else _SEE_HELP


def _composed(tree: ConfigTree, chosen: dict[str, str], keys: Sequence[str]) -> DictConfig:
    """The config of the chosen files. Raises InputError for missing groups, or for a key that is a misspelt group."""
    try:
        return tree.compose(list(chosen.values()))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        missing = re.match(r"You must specify '([^']+)'", str(error))
        if missing is None:
            raise InputError(f"{' '.join(str(error).split())}; {_SEE_HELP}") from error
        group = missing[1]
        for key in keys:
            meant = nearest(key, tree.groups)
            if meant is not None and meant not in chosen:
                raise InputError(f"{key}: unknown key; did you mean {meant}?") from error
        if not {"datasets", "system", "experiment"} & set(chosen):
            raise InputError(
                f"datasets, system: expected datasets=<choice> and system=<choice>, or experiment=<choice>, got neither; {_SEE_HELP}"
            ) from error
        raise InputError(f"{group}: expected {group}=<choice>, got nothing; choices: {', '.join(tree.options(group))}") from error


# ------------------------------------------------------------------ help
def train_help(tree: ConfigTree, chosen: dict[str, str], changes: Sequence[str]) -> str:
    """Help text: of all groups without any chosen one, else of the keys of the chosen ones.

    Args:
        tree: the config files.
        chosen: words of the command line that choose files, by group.
        changes: its other words; the values that they set are shown as defaults.
    """
    lines = [
        "usage: npbgpp train datasets=<choice> system=<choice> [key=value ...]",
        "       npbgpp train experiment=<choice> [key=value ...]",
        "",
    ]
    config = plain(tree.compose([*chosen.values(), *changes], may_miss_groups=True))
    comments = tree.comments(list(chosen.values()))
    lines += _keys(tree, chosen, config, comments) if chosen else _overview(tree, config, comments)
    return "\n".join([*lines, "", f"example: npbgpp train {_EXAMPLE}"])


def _overview(tree: ConfigTree, config: dict[str, Any], comments: dict[str, str]) -> list[str]:
    lines = paragraph("Trains a system on scenes, or evaluates it (eval_only=true). python train_net.py is the same command.")
    defaults = config["hydra"]["runtime"]["choices"]
    for group in tree.groups:
        default = next((choice for key, choice in defaults.items() if key.partition("@")[0] == group), None)
        lines += ["", f"{group}=" + ("" if default in (None, "???") else f"   (default: {default})")]
        lines += columns((option, first_sentence(tree.summary(group, option)) or "of Hydra") for option in tree.options(group))
    lines += section("keys of every run", _run_keys(config, comments))
    lines += ["", "keys of a group: npbgpp train --help datasets=<choice> system=<choice>, or trainer=project, and so on"]
    lines += ["options of Hydra, such as -m for sweeps and --cfg job for the composed config: npbgpp train --hydra-help"]
    return lines


def _keys(tree: ConfigTree, chosen: dict[str, str], config: dict[str, Any], comments: dict[str, str]) -> list[str]:
    groups = list(dict.fromkeys(group.partition("/")[0] for group in chosen if not group.startswith("hydra/")))
    if "experiment" in groups:
        groups = [name for name in config if isinstance(config[name], dict) and name != "hydra"]
    lines = []
    for group in ("experiment", *groups):
        if group in chosen:
            (option, *others) = chosen[group].partition("=")[2].strip("[]").split(",")
            if not others:
                lines += paragraph(f"{group}={option}: {tree.summary(group, option)}")
    for group in groups:
        if config.get(group) is not None:
            lines += section(f"keys of {group}", _documented({group: config[group]}, comments))
    if _LAUNCHER in chosen:
        lines += section(f"keys of {_LAUNCHER}", _documented(config["hydra"]["launcher"], comments, "hydra.launcher."))
    lines += section("keys of every run", _run_keys(config, comments))
    return lines


def _run_keys(config: dict[str, Any], comments: dict[str, str]) -> list[KeyHelp]:
    """Keys outside of groups, and those of Hydra that config.yaml documents."""
    own = {key: value for key, value in config.items() if not isinstance(value, dict)}
    hydra = flattened({"hydra": config["hydra"]})
    of_hydra = [k for k in comments if k in hydra and not k.startswith("hydra.launcher.")]
    return _documented(own, comments) + [KeyHelp(k, typed_value(hydra[k]), comments[k]) for k in of_hydra]


def _documented(node: dict[str, Any], comments: dict[str, str], prefix: str = "") -> list[KeyHelp]:
    """Entries of the keys of a config; a mapping is one entry where only the whole is documented."""
    found = []
    for key, value in node.items():
        name = f"{prefix}{key}"
        if str(key).startswith("_") and str(key).endswith("_"):
            continue
        below = any(comment.startswith(f"{name}.") for comment in comments)
        if isinstance(value, dict) and value and (below or name not in comments):
            found += _documented(value, comments, f"{name}.")
        else:
            known = _REGISTERED[name]() if name in _REGISTERED else ()
            found.append(KeyHelp(name, None if value == "???" else typed_value(value), comments.get(name, ""), known))
    return found
