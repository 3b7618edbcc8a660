"""Conversion of config values, and composition of conf/: every choice, and the command lines of the original code."""

import copy
import dataclasses
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from npbgpp.cli.config_tree import ConfigTree, config_loader, flattened, plain
from npbgpp.cli.config_tree import choices as documented_choices
from npbgpp.core.config import as_typed, literals, typed
from npbgpp.data.settings import DataloaderSettings, DatasetSettings
from npbgpp.engine.run import method_of
from npbgpp.engine.trainer import trainer_plan
from npbgpp.errors import InputError
from npbgpp.methods.nerf import NerfSettings
from npbgpp.methods.npbg import NPBGSettings
from npbgpp.methods.npbgpp import NPBGPlusPlusSettings
from npbgpp.methods.npcr.system import NPCRSettings
from npbgpp.parsers import layout_keys

CONF = Path(__file__).resolve().parents[2] / "conf"


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    count: int
    inner: Inner = Inner(size=1)
    share: int | float = 1.0
    rate: float = 0.5
    maybe: int | None = None
    pair: tuple[float, float] | None = None
    side: int | tuple[int, int] | None = None
    flag: bool = False
    either: bool | int = False
    label: str = ""
    place: Path = Path()
    factors: dict[str, float] = field(default_factory=dict)
    warn: bool | Literal["warn"] = False
    rows: list[int] = field(default_factory=list)
    anything: Any = None


ACCEPTED = [
    ("count", 6e6, 6_000_000),
    ("count", 3, 3),
    ("count", -2.0, -2),
    ("share", 1.0, 1.0),
    ("share", 1, 1),
    ("share", 0.5, 0.5),
    ("rate", 2, 2.0),
    ("rate", 1e-4, 1e-4),
    ("maybe", None, None),
    ("maybe", 4.0, 4),
    ("pair", [0.5, 2], (0.5, 2.0)),
    ("pair", None, None),
    ("side", 512, 512),
    ("side", [48, 64.0], (48, 64)),
    ("flag", True, True),
    ("either", True, True),
    ("either", 3, 3),
    ("label", "ball", "ball"),
    ("label", 24, "24"),
    ("place", "a/b", Path("a/b")),
    ("factors", {"l1": 1, "vgg": 0.5}, {"l1": 1.0, "vgg": 0.5}),
    ("warn", "warn", "warn"),
    ("rows", [1, 2.0], [1, 2]),
    ("inner", {"size": 2.0, "names": ["a", "b"]}, Inner(size=2, names=("a", "b"))),
    ("anything", [1, {"a": None}], [1, {"a": None}]),
]


@pytest.mark.parametrize("as_node", [False, True])
def test_values_are_converted_to_the_type_of_their_field(as_node):
    for key, value, expected in ACCEPTED:
        values = {"count": 1} | {key: value}
        result = getattr(typed(Outer, OmegaConf.create(values) if as_node else values, "group"), key)
        assert result == expected and type(result) is type(expected), key
    assert typed(Outer, {"count": 1}, "group") == Outer(1)


@pytest.mark.parametrize(
    ("values", "name", "expected", "got"),
    [
        ({"count": 0.5}, "group.count", "an integer", "0.5"),
        ({"count": "many"}, "group.count", "an integer", "'many'"),
        ({"count": True}, "group.count", "an integer", "True"),
        ({"count": None}, "group.count", "an integer", "None"),
        ({"count": float("inf")}, "group.count", "an integer", "inf"),
        ({"count": float("nan")}, "group.count", "an integer", "nan"),
        ({"count": [1]}, "group.count", "an integer", "[1]"),
        ({"count": ...}, "group.count", "an integer", "nothing"),
        ({"count": "???"}, "group.count", "an integer", "nothing"),
        ({"rate": "fast"}, "group.rate", "a number", "'fast'"),
        ({"rate": 10**400}, "group.rate", "a number", "1000"),
        ({"maybe": "x"}, "group.maybe", "an integer or null", "'x'"),
        ({"pair": [1.0]}, "group.pair", "2 values", "[1.0]"),
        ({"pair": [1.0, 2.0, 3.0]}, "group.pair", "2 values", "[1.0, 2.0, 3.0]"),
        ({"pair": 1.0}, "group.pair", "a list", "1.0"),
        ({"side": [1, 2, 3]}, "group.side", "an integer or a list", "[1, 2, 3]"),
        ({"flag": "yes"}, "group.flag", "true or false", "'yes'"),
        ({"flag": 1}, "group.flag", "true or false", "1"),
        ({"label": None}, "group.label", "a string", "None"),
        ({"place": 3}, "group.place", "a path", "3"),
        ({"factors": [1.0]}, "group.factors", "a mapping", "[1.0]"),
        ({"factors": {"l1": "x"}}, "group.factors.l1", "a number", "'x'"),
        ({"warn": "often"}, "group.warn", "warn", "'often'"),
        ({"rows": ["x"]}, "group.rows", "an integer", "'x'"),
        ({"inner": 3}, "group.inner", "size, names", "3"),
        ({"inner": {}}, "group.inner.size", "an integer", "nothing"),
        ({"inner": {"size": "x"}}, "group.inner.size", "an integer", "'x'"),
        ({"inner": {"size": 1, "names": "abc"}}, "group.inner.names", "a string", "'abc'"),
        ({"cuont": 2}, "group.cuont", "unknown key", "group.count?"),
        ({"zzz": 2}, "group.zzz", "unknown key", "anything, count, either"),
        ({"inner": {"size": 1, "nmaes": []}}, "group.inner.nmaes", "unknown key", "group.inner.names?"),
        ({7: 2}, "group.7", "unknown key", ""),
    ],
)
def test_other_values_and_unknown_keys_are_refused_by_name(values, name, expected, got):
    values = {key: value for key, value in ({"count": 1} | values).items() if value is not ...}
    with pytest.raises(InputError) as caught:
        typed(Outer, values, "group")
    message = str(caught.value)
    assert message.startswith(f"{name}: ") and expected in message and got in message, message


def composed(*overrides: str, datasets: str = "nerf_blender_one_scene", system: str = "npbg", full: bool = False) -> DictConfig:
    """Composes the config of a command line; ``full``: the overrides choose datasets and system."""
    chosen = [] if full else [f"datasets={datasets}", f"system={system}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["hydra.runtime.output_dir=run", "hydra.runtime.cwd=launch", *chosen, *overrides])


def choices(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml") if not p.stem.startswith("_"))


def settings_of(config: DictConfig) -> tuple:
    """Typed settings of every group, as a run reads them."""
    system = {k: v for k, v in OmegaConf.to_container(config.system, resolve=True).items() if not (isinstance(v, dict) and "_target_" in v)}
    return (
        DatasetSettings.from_config(OmegaConf.to_container(config.datasets, resolve=True), layout_keys()),
        typed(DataloaderSettings, config.dataloader, "dataloader"),
        typed(method_of(config).settings_class, system, "system"),
        trainer_plan(OmegaConf.to_container(config.trainer, resolve=True)),
    )


PARTS = ("aggregator", "feature_extractor", "loss_factors", "refiner")
GROUPS = (
    "callbacks",
    "dataloader",
    "datasets",
    "experiment",
    "hydra/launcher",
    "loggers",
    "system",
    *(f"system/{part}" for part in PARTS),
    "trainer",
)


def test_every_group_is_checked():
    """New folders of conf/ must be added above."""
    folders = {str(p.parent.relative_to(CONF)) for p in CONF.rglob("*.yaml")} - {"."}
    assert folders == set(GROUPS) and all(choices(group) for group in GROUPS)


# choices that need the name of a scene
SCENES_TO_NAME = {
    "auto_one_scene": ("datasets.scene_name=a",),
    "colmap_one_scene": ("datasets.scene_name=a",),
    "nerfstudio_one_scene": ("datasets.scene_name=a",),
    "bundler_one_scene": ("datasets.scene_name=a",),
    "metashape_one_scene": ("datasets.scene_name=a",),
    "reality_capture_one_scene": ("datasets.scene_name=a",),
    "npbg_scenes": ("datasets.names=[a,b]",),
    "npbg_quick": ("datasets=llff_one_scene",),
    "nerf_quick": ("datasets=llff_one_scene",),
    "npbgpp_quick": ("datasets=llff_one_scene",),
    "npbg_small": ("datasets=llff_one_scene",),
    "npbgpp_small": ("datasets=llff_one_scene",),
    "coefficients_small": ("datasets=llff_one_scene",),
    "gaussians_quick": ("datasets=llff_one_scene",),
    "gaussians_published": ("datasets=llff_one_scene",),
}


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g in GROUPS for c in choices(g)])
def test_every_choice_composes_into_valid_settings(group, choice):
    if group == "experiment":
        config = composed(f"experiment={choice}", *SCENES_TO_NAME.get(choice, ()), full=True)
    elif group in ("datasets", "system"):
        config = composed(*SCENES_TO_NAME.get(choice, ()), **{group: choice})
    elif group == "loggers":
        config = composed(f"loggers=[{choice}]")
    elif group.startswith("system/"):
        config = composed(f"{group}={choice}", system="npbgpp_sphere")
    else:
        config = composed(f"{group}={choice}")
    datasets, dataloader, system, _ = settings_of(config)
    assert datasets.scenes.train and dataloader.train.total_batch_size >= 1 and system.system_class


CHOSEN_TOGETHER = max(len(choices(group)) for group in GROUPS)


def together(number: int) -> dict[str, str]:
    """One choice of every group but experiments, so that some compositions cover all files."""
    parts = [group for group in GROUPS if group.startswith("system/")]
    chosen = {group: choices(group)[number % len(choices(group))] for group in GROUPS if group not in (*parts, "experiment")}
    if chosen["system"] == "npbgpp_sphere":
        chosen |= {part: choices(part)[number % len(choices(part))] for part in parts}
    return chosen


def documentation(chosen: dict[str, str]) -> tuple[DictConfig, dict[str, str]]:
    """The config of some choices, and the comments on its keys."""
    overrides = [f"{group}={choice}" for group, choice in chosen.items()]
    with config_loader() as loader:
        tree = ConfigTree(loader)
        return tree.compose(["hydra.runtime.output_dir=run", "hydra.runtime.cwd=launch", *overrides]), tree.comments(overrides)


@pytest.mark.parametrize("number", range(CHOSEN_TOGETHER))
def test_every_key_has_a_comment(number):
    """Its own, or that of the mapping that it is in."""
    config, comments = documentation(together(number))
    keys = [key for key in flattened(plain(config)) if not key.startswith("hydra.") or key.startswith("hydra.launcher.")]
    keys = [key for key in keys if key not in GROUPS and not any(part.startswith("_") for part in key.split("."))]  # loggers=none is empty
    assert len(keys) > 100
    assert [key for key in keys if key not in comments and key.rpartition(".")[0] not in comments] == []


@pytest.mark.parametrize("system", ["nerf", "npbg", "npbgpp_sphere", "npcr", "nsff"])
def test_documented_choices_are_those_of_the_code(system):
    """They are accepted, and they are complete where the code has a list of them."""
    config, comments = documentation({"datasets": "monocular" if system == "nsff" else "auto_one_scene", "system": system})
    config = OmegaConf.create({key: value for key, value in plain(config).items() if key != "hydra"})
    config.datasets.scene_name = "a"
    listed = {key: documented_choices(comment) for key, comment in comments.items() if documented_choices(comment)}
    assert {"test_video", "datasets.train_on", "dataloader.train_data_mode", "system.lr_schedule", "trainer.deterministic"} <= set(listed)
    for key, values in listed.items():
        for value in values:
            changed = copy.deepcopy(config)
            OmegaConf.update(changed, key, yaml.safe_load(value))
            settings_of(changed)
            network = OmegaConf.select(changed, ".".join(key.split(".")[:2]))
            if isinstance(network, DictConfig) and "_target_" in network and value != "spherical":  # has another number of functions
                if "encoder" in network:
                    network.encoder, network.pretrained_encoder = "test_efficientnet", False
                instantiate(network)
    for group, schema in (("datasets", DatasetSettings), ("dataloader", DataloaderSettings), ("system", method_of(config).settings_class)):
        for name, hint in get_type_hints(schema).items():
            if literals(hint) and f"{group}.{name}" in comments:
                assert set(listed[f"{group}.{name}"]) == set(literals(hint)), f"{group}.{name}"


ACCEPTED_OVERRIDES = [
    ("cache_dir=.cache", ("cache_dir", ".cache")),
    ("eval_only=true", ("eval_only", True)),
    ("weights_path=experiments/a/checkpoints/epoch38.ckpt", ("weights_path", "experiments/a/checkpoints/epoch38.ckpt")),
    ("weights_path='${hydra:runtime.cwd}/a.ckpt'", None),
    ("callbacks.fit=null", ("callbacks.fit", None)),
    ("callbacks.test=null", ("callbacks.test", None)),
    ("dataloader.train_total_batch_size=2", ("dataloader.train.total_batch_size", 2)),
    ("dataloader.train_data_mode=each", ("dataloader.train_data_mode", "each")),
    ("dataloader.train.num_workers=0", ("dataloader.train.num_workers", 0)),
    ("dataloader.train.shuffle=false", ("dataloader.train.shuffle", False)),
    ("dataloader.val.pin_memory=true", ("dataloader.val.pin_memory", True)),
    ("dataloader.test.total_batch_size=1", ("dataloader.test.total_batch_size", 1)),
    ("datasets.data_root=elsewhere", ("datasets.data_root", "elsewhere")),
    ("datasets.scene_name=hotdog", ("datasets.scenes.train", ["hotdog"])),
    ("datasets.val_indices=[100,110]", ("datasets.val_indices", [100, 110])),
    ("datasets.test_indices=[200]", ("datasets.test_indices", [200])),
    ("datasets.pc_name=full.ply", ("datasets.pc_name", "full.ply")),
    ("datasets.noise_sigma=0.01", ("datasets.noise_sigma", 0.01)),
    ("datasets.n_point=6e6", ("datasets.n_point", 6_000_000)),
    ("datasets.cache_images=true", ("datasets.cache_images", True)),
    ("datasets.white_bg=false", ("datasets.white_bg", False)),
    ("datasets.image_margin=20", ("datasets.image_margin", 20)),
    ("datasets.train_num_samples=8", ("datasets.train_num_samples", 8)),
    ("datasets.train_random_zoom=[0.5,2.0]", ("datasets.train_random_zoom", [0.5, 2.0])),
    ("datasets.train_random_shift=false", ("datasets.train_random_shift", False)),
    ("datasets.train_image_size=512", ("datasets.train_image_size", 512)),
    ("datasets.train_image_size=null", ("datasets.train_image_size", None)),
    ("datasets.selection_count=0", ("datasets.selection_count", 0)),
    ("system.save_rendered_eval_images=false", ("system.save_rendered_eval_images", False)),
    ("system.max_scenes_per_train_epoch=1", ("system.max_scenes_per_train_epoch", 1)),
    ("system.max_points=11e6", ("system.max_points", 11_000_000)),
    ("system.descriptors_pretrained_dir=a/descriptors", ("system.descriptors_pretrained_dir", "a/descriptors")),
    ("system.descriptors_save_dir=experiments/a/result/descriptors", ("system.descriptors_save_dir", "experiments/a/result/descriptors")),
    ("system.descriptor_dim=8", ("system.rasterizer.descriptor_dim", 8)),
    ("system.bg_rgb_color=[0,0,0]", ("system.bg_rgb_color", [0, 0, 0])),
    ("system.use_masks=true", ("system.use_masks", True)),
    ("system.freeze_refiner=true", ("system.freeze_refiner", True)),
    ("system.align_during_rendering=true", ("system.align_during_rendering", True)),
    ("system.style_weight=1.0", ("system.style_weight", 1.0)),
    ("system.style_img_path=../../example/style.png", ("system.style_img_path", "../../example/style.png")),
    ("system.loss_factors.vgg_loss=0.5", ("system.loss_factors.vgg_loss", 0.5)),
    ("system.rasterizer.learnable=false", ("system.rasterizer.learnable", False)),
    ("system.rasterizer.cat_mask=false", ("system.rasterizer.cat_mask", False)),
    ("system.rasterizer.scales=[1,0.5]", ("system.rasterizer.scales", [1, 0.5])),
    ("system.rasterizer.ss_scale=[2,1,1,1,1]", ("system.rasterizer.ss_scale", [2, 1, 1, 1, 1])),
    ("system.rasterizer.invert_mask_values=true", ("system.rasterizer.invert_mask_values", True)),
    ("system.refiner.out_channels=4", ("system.refiner.out_channels", 4)),
    ("system.refiner.filters=[8,8,8,8,8]", ("system.refiner.filters", [8] * 5)),
    ("system.refiner.stem_conv_block_name=gated", ("system.refiner.stem_conv_block_name", "gated")),
    ("system.refiner.encoder_conv_block_name=gated", ("system.refiner.encoder_conv_block_name", "gated")),
    ("system.refiner.decoder_conv_block_name=gated", ("system.refiner.decoder_conv_block_name", "gated")),
    ("system.refiner.padding_mode=zeros", ("system.refiner.padding_mode", "zeros")),
    ("system.refiner.use_skip=false", ("system.refiner.use_skip", False)),
    ("system.postprocessing_transform=null", ("system.postprocessing_transform", None)),
    ("loggers=test_tube", ("loggers.tensorboard.name", "tb_logs")),
    ("hydra.run.dir=experiments/npbg_nerf", None),
]


@pytest.mark.parametrize("entries", [ACCEPTED_OVERRIDES[k::4] for k in range(4)])
def test_keys_of_the_original_code_are_accepted(entries):
    """In four rounds, in which every key occurs once: composition takes most of the time."""
    assert len({override.split("=")[0] for override, _ in entries}) == len(entries)
    config = composed(*(override for override, _ in entries))
    settings_of(config)
    for key, expected in (check for _, check in entries if check is not None):
        value = OmegaConf.select(config, key)
        assert (OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value) == expected, key


def test_a_command_of_the_authors():
    """Finetuning of NPBG on one scene."""
    line = (
        "trainer.gpus=4 hydra.run.dir=experiments/npbg_nerf_hotdog datasets=nerf_blender_one_scene datasets.scene_name=hotdog datasets.train_random_zoom=[0.5,2.0] "
        "datasets.train_image_size=512 datasets.selection_count=0 system=npbg "
        "system.descriptors_save_dir=npbgplusplus/experiments/npbg_nerf_hotdog/result/descriptors "
        "system.max_scenes_per_train_epoch=1 trainer.max_epochs=20 weights_path=experiments/npbg_nerf/result/checkpoints/epoch23.ckpt system.max_points=4e6"
    )
    datasets, _, system, trainer = settings_of(composed(*line.split(), full=True))
    assert datasets.scenes.train == datasets.scenes.val == datasets.scenes.test == ("hotdog",) and datasets.train_on == "split"
    assert datasets.train_random_zoom == (0.5, 2.0) and trainer.arguments["max_epochs"] == 20
    assert system.max_scenes_per_train_epoch == 1 and system.max_points == 4_000_000


@pytest.mark.parametrize(
    ("override", "name"), [("+datasets.scene_nmae=x", "datasets.scene_nmae"), ("+system.max_point=1", "system.max_point")]
)
def test_unknown_keys_added_with_a_plus_are_refused_by_name(override, name):
    with pytest.raises(InputError, match=f"{name}: unknown key; did you mean"):
        settings_of(composed(override))


@pytest.mark.parametrize(
    ("schema", "group", "choice"),
    [
        (DatasetSettings, "datasets", "npbg"),
        (DataloaderSettings, "dataloader", "npbg"),
        (NPBGSettings, "system", "coefficients_ft"),
        (NPBGPlusPlusSettings, "system", "npbgpp_sphere"),
        (NerfSettings, "system", "nerf"),
        (NPCRSettings, "system", "npcr"),
    ],
)
def test_every_setting_can_be_reached_without_a_plus(schema, group, choice):
    """A field without a key in conf/ could only be set with +key=value."""
    from_trainer = {"accumulate_grad_batches", "gradient_clip_val"} if group == "system" else {"options"}
    assert {f.name for f in dataclasses.fields(schema)} - set(composed(system=choice)[group]) <= from_trainer


def test_no_two_yaml_files_share_four_lines():
    seen: Counter = Counter()
    for path in CONF.rglob("*.yaml"):
        lines = [re.sub(r"\s*#.*", "", line).strip() for line in path.read_text().splitlines()]
        lines = [line for line in lines if line]
        seen.update({tuple(lines[k : k + 4]) for k in range(len(lines) - 3)})
    assert [run for run, count in seen.items() if count > 1] == []


@pytest.mark.parametrize(
    "name",
    [
        "2024_05_01",
        "695e0514",
        "1e5",
        "0010",
        "24",
        "1.50",
        "nan",
        "true",
        "yes",
        "12:30",
        "0x1F",
        "5.",
        "-3",
        "1_0",
        "chair",
        "2024-05-01",
    ],
)
@pytest.mark.parametrize("key", ["datasets.scene_name", "datasets.pc_name", "datasets.data_root", "weights_path"])
def test_names_that_look_like_numbers_stay_as_typed(key, name):
    """In Hydra's grammar, in dotted lists, and in the saved config."""
    word = as_typed(f"{key}={name}")
    (override,) = OverridesParser.create().parse_overrides([word])
    assert override.value() == name or str(override.value()) == name
    saved = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.from_dotlist([word])))
    assert str(OmegaConf.select(saved, key)) == name and isinstance(OmegaConf.select(saved, key), str)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("datasets.names=[0010,b,1e5]", "datasets.names=['0010',b,'1e5']"),
        ("datasets.scenes.train=[2024_05_01]", "datasets.scenes.train=['2024_05_01']"),
        ("datasets.scene_name=2024_05_01,chair", "datasets.scene_name='2024_05_01',chair"),
        ("+datasets.scene_name=1e5", "+datasets.scene_name='1e5'"),
        ("datasets.scene_name=null", "datasets.scene_name=null"),
        ("datasets.scene_name='1e5'", "datasets.scene_name='1e5'"),
        ("datasets.scene_name=${x}", "datasets.scene_name=${x}"),
        ("datasets.n_point=6e6", "datasets.n_point=6e6"),
        ("trainer.max_epochs=3", "trainer.max_epochs=3"),
        ("datasets=colmap", "datasets=colmap"),
        ("-m", "-m"),
    ],
)
def test_other_words_are_left_alone(word, expected):
    assert as_typed(word) == expected


def test_missing_keys_of_files_are_to_be_added_to_the_file():
    """Layouts read their files with ``typed``, too: the command line has no such key."""

    @dataclasses.dataclass(frozen=True)
    class Entry:
        focal: float

    with pytest.raises(
        InputError, match=r"^/data/garden/cameras\.json: frames\[2\]\.focal: expected a number, got nothing; add it to the file$"
    ):
        typed(Entry, {}, "/data/garden/cameras.json: frames[2]")
    with pytest.raises(InputError, match=r"^system\.focal: expected a number, got nothing; set it on the command line or in the yaml$"):
        typed(Entry, {}, "system")
