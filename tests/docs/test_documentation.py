"""The commands, keys, paths and links of README.md and docs/: commands run in order, on small data and with a small budget.

Symbols: an *override* is ``key=value`` or ``group=choice`` of a command line; a *span* is inline code.
"""

import functools
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from npbgpp.__main__ import COMMANDS
from npbgpp.__main__ import main as npbgpp_main
from npbgpp.errors import InputError

from ..helpers.layouts import textured_colmap
from ..helpers.programs import run_program
from ..helpers.scenes import write_dtu
from ..run_folders import REPOSITORY, remember

# pages with commands first, in the order in which a reader needs them: later ones use the runs of earlier ones
RUN_ORDER = ("README.md", "docs/recipes.md", "docs/datasets.md", "docs/methods/npbg.md", "docs/methods/npbgpp.md", "docs/methods/nerf.md")
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
NAMES = [path.relative_to(REPOSITORY).as_posix() for path in PAGES]
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in zip(NAMES, PAGES, strict=True)}
# their commands, keys and choices are those of the example package in tests/plugin
PLUGIN_PAGES = ("docs/add_a_method.md", "docs/add_a_dataset.md")
OWN = [name for name in NAMES if name not in PLUGIN_PAGES]
TRAIN = ("npbgpp train ", "python train_net.py ")
METHOD_PAGES = {"npbg": "npbg", "npbgpp": "npbgpp_sphere", "npcr": "npcr", "nerf": "nerf", "nsff": "nsff", "gaussians": "gaussians"}

# overrides that make any training command take seconds, appended to those of the page
SMALL = """
    datasets.train_num_samples=2 datasets.train_image_size=32 datasets.train_random_shift=false trainer.max_epochs=1 trainer.accelerator=cpu
    dataloader.train_total_batch_size=1 dataloader.train.num_workers=0 system.refiner.filters=[10,11,12,13,14] loggers=none
""".split()
SMALL_GAUSSIANS = """
    datasets.train_num_samples=2 trainer.max_epochs=1 trainer.accelerator=cpu loggers=none system.gaussians=300 trainer.check_val_every_n_epoch=1
""".split()
SMALL_NPBGPP = "system.feature_extractor.pretrained_encoder=false system.feature_extractor.decoder_channels=[8,8,8,8,8] datasets.selection_count=2".split()
SMALL_NERF = """
    trainer.max_epochs=1 trainer.limit_train_batches=2 trainer.accelerator=cpu loggers=none system.field.width=16 system.grid_resolution=8
    datasets.downscale=1 system.field.sampling.marched=16
""".split()
SMALL_NSFF = """
    trainer.max_epochs=1 trainer.accelerator=cpu loggers=none datasets.batches_per_epoch=2 system.rays_per_batch=64 system.field.width=16
    system.field.sampling.samples=8
""".split()
SMALL_NPCR = """
    datasets.train_num_samples=2 datasets.downscale=4 trainer.max_epochs=1 trainer.accelerator=cpu loggers=none system.layers=1
    system.network.filters=[8,9,10,11,12] system.network.alpha_filters=[6,7,8]
""".split()
SMALL_VIDEO = ["--frames", "9", "--size", "24", "16", "--samples", "1"]
# run folders of experiments in which they differ from experiments/<name of the experiment>
EXPERIMENT_FOLDERS = {
    "demo_npbgpp": "experiments/demo/npbgpp",
    "demo_npbg": "experiments/demo/npbg",
    "npbgpp_small": "experiments/npbgpp_small_lego",
    "coefficients_small": "experiments/coefficients_small_lego",
    "npbg_small": "experiments/npbg_small_lego",
    "nsff_quick": "experiments/nsff_hop",
    "gaussians_quick": "experiments/gaussians_still_life",
    "npcr_quick": "experiments/npcr_hair",
    "npbg_quick": "experiments/npbg_my_scene",
}


def blocks(name: str, language: str) -> list[str]:
    """Fenced code blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", TEXTS[name], re.DOTALL)


def commands(names: list[str]) -> list[str]:
    """Lines of the bash blocks of pages, in order, each once, without comments."""
    lines = [line.strip() for name in names for block in blocks(name, "bash") for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def spans(text: str) -> list[str]:
    """Inline code outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def small(overrides: list[str]) -> list[str]:
    """Overrides that make a training command a small job."""
    if "experiment=nerf_lego" in overrides:
        return SMALL_NERF
    if "experiment=gaussians_quick" in overrides:
        return SMALL_GAUSSIANS
    if "experiment=nsff_quick" in overrides:
        return SMALL_NSFF
    if "experiment=npcr_quick" in overrides:
        return SMALL_NPCR
    added = list(SMALL)
    if "resume=auto" in overrides:
        added = [word for word in added if not word.startswith("trainer.max_epochs")] + ["trainer.max_epochs=2"]
    if "trainer.devices=2" in overrides:
        added = [word for word in added if "total_batch_size" not in word] + ["dataloader.train_total_batch_size=2"]
    if any(word.startswith("experiment=") and word.endswith(("_small", "=demo_npbg", "=demo_npbgpp")) for word in overrides):
        return [word for word in added if not word.startswith("system.refiner")]  # of the size of the shipped weights
    if any("npbgpp_" in word and word.startswith(("system=", "experiment=")) for word in overrides):
        added += SMALL_NPBGPP
    return added


def run_folder(overrides: list[str]) -> list[str]:
    """The override of ``hydra.run.dir`` of an experiment, unless the command has one."""
    if any(word.startswith("hydra.run.dir=") for word in overrides):
        return []
    (name,) = (word.partition("=")[2] for word in overrides if word.startswith("experiment="))
    return [f"hydra.run.dir={EXPERIMENT_FOLDERS.get(name, f'experiments/{name}')}"]


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs ``npbgpp <command> ...`` in this process, in the current folder."""
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    try:
        npbgpp_main()
    except SystemExit as ended:
        # a field after two steps has no surface: the command exits with the range of densities
        is_untrained_mesh = "export mesh" in command and "sigma_threshold" in str(ended.code)
        found_problems = "prepare check" in command and ended.code == 2  # the tiny scene has some
        assert not ended.code or is_untrained_mesh or found_problems, f"{command}\n{ended.code}"


def test_commands_run_in_order(tiny_root, tmp_path, run_line, monkeypatch):
    """Most commands run in this process; the first training, sweeps and several devices run as processes of their own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    for name in ("chair", "drums", "lego", "materials", "ship"):
        shutil.copytree(tiny_root / "ball", tmp_path / "data" / "nerf_synthetic" / name)
    shutil.copytree(tiny_root / "ball", tmp_path / "example" / "still_life")
    shutil.copytree(REPOSITORY / "example" / "hair", tmp_path / "example" / "hair")
    write_dtu(tmp_path / "data" / "DTU_masked" / "scan65", views=49, size=(32, 48))
    textured_colmap.write(tmp_path / "data" / "my_scene")
    written = commands([*RUN_ORDER, *(name for name in OWN if name not in RUN_ORDER)])
    written = [c for c in written if c.startswith(("npbgpp ", "python train_net.py", "python example/")) and c != "npbgpp demo"]
    if find_spec("viser") is None:  # an extra
        written = [c for c in written if not c.startswith("npbgpp export page")]
    demo = ["npbgpp train experiment=demo_npbgpp", "npbgpp train experiment=demo_npbg"]
    recipes = demo + [command for command in written if command not in demo]
    assert len(recipes) >= 30
    for number, command in enumerate(recipes):
        if command.startswith("python example/"):
            script, *arguments = shlex.split(command)[1:]
            assert run_program(REPOSITORY / script, [*arguments, *SMALL_VIDEO], tmp_path).returncode == 0
            continue
        if not command.startswith(TRAIN):
            command = re.sub(r"\bn_grid=\d+", "n_grid=16", command)
            command = re.sub(r"\bframes=60\b", "frames=4", command)
            # without its server
            run_command(f"{command} screenshot=view.png" if command.startswith("npbgpp view ") else command, monkeypatch)
            continue
        given = shlex.split(command)[2:]
        overrides = [*given, *small(given)]
        if number == 0 or "-m" in given or "trainer.devices=2" in given:
            done = run_program("npbgpp", ["train", *overrides], tmp_path)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        elif "experiments/npbg_lego_published" in command:
            with pytest.raises(InputError, match="vgg19-d01eb7cb.pth"):  # these weights are not shipped
                run_line(tmp_path, *overrides)
        else:
            folder = run_line(tmp_path, *overrides, *run_folder(overrides))
            remember(folder, tmp_path, *overrides)
        weights = tmp_path / "checkpoints" / "npbgpp_dtu_nm_mvs_ft_epoch35.ckpt"
        trained = tmp_path / "experiments" / "npbgpp_lego" / "checkpoints" / "last.ckpt"
        if trained.exists() and not weights.exists():  # released weights are not shipped: those just trained replace them
            weights.parent.mkdir()
            shutil.copy(trained, weights)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


def test_commands_that_need_a_cluster_compose():
    """Training commands in indented blocks, which are not run; of sweeps the first choices."""
    indented = [line.strip().removeprefix("srun ") for text in TEXTS.values() for line in text.splitlines() if line.startswith("    ")]
    lines = [line for line in indented if line.startswith(TRAIN) and " ..." not in line]
    assert lines
    for line in lines:
        words = [re.sub(r"=([^\[{,]+),.*", r"=\1", word) for word in shlex.split(line)[2:] if word != "-m"]
        assert composed(*words).system.system_class, line


@functools.cache
def keys_of(*overrides: str) -> frozenset[str]:
    """Dotted keys of a composed configuration, inner nodes included."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield f"{prefix}{key}"
                yield from walk(value, f"{prefix}{key}.")

    return frozenset(walk(OmegaConf.to_container(composed(*overrides), resolve=False), ""))


@functools.cache
def all_keys() -> frozenset[str]:
    systems = ("npbg", "npbgpp_sphere", "coefficients_ft", "npcr", "nerf", "nsff", "gaussians")
    return frozenset().union(
        keys_of("datasets=monocular", "system=npbg", "callbacks=viewer"),
        *(keys_of("datasets=monocular", f"system={name}", "loggers=[tensorboard,csv]") for name in systems),
    )


@pytest.mark.parametrize("name", OWN)
def test_config_keys_exist(name: str):
    """Every span that begins with a config key, such as ``datasets.n_point=1e6``."""
    words = [word for span in spans(TEXTS[name]) for word in span.split()]
    keys = [word.partition("=")[0] for word in words]
    keys = [key for key in keys if re.fullmatch(r"(datasets|system|trainer|dataloader|callbacks)\.[a-z_.]+", key)]
    assert [key for key in keys if key not in all_keys()] == []


@pytest.mark.parametrize("page", METHOD_PAGES)
def test_key_tables_list_keys_of_the_system(page: str):
    """First column of the table ``key of `system` ``, or ``key`` with full keys."""
    known = keys_of("datasets=monocular", f"system={METHOD_PAGES[page]}") | (
        keys_of("datasets=monocular", "system=coefficients_ft") if page == "npbgpp" else frozenset()
    )
    text = TEXTS[f"docs/methods/{page}.md"]
    (head, rows) = re.search(r"^\| (key(?: of `system`)?) \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE).groups()
    found = [span for row in rows.splitlines() for span in spans(row.split("|")[1])]
    prefix = "system." if "system" in head else ""
    assert found and [key for key in found if prefix + key not in known and "/" not in key] == []


@pytest.mark.parametrize("name", OWN)
def test_group_choices_exist(name: str):
    """Spans such as ``system=npbg`` and ``experiment=demo_npbg``."""
    words = [word for span in spans(TEXTS[name]) for word in span.split()]
    found = [
        re.fullmatch(r"(datasets|system|experiment|trainer|loggers|system/loss_factors|hydra/launcher)=([a-z_0-9]+)", word)
        for word in words
    ]
    folders = [REPOSITORY / "conf", *(REPOSITORY / "tests" / "plugin").glob("*/conf")]
    missing = [f"{m[1]}={m[2]}" for m in found if m and not any((folder / m[1] / f"{m[2]}.yaml").is_file() for folder in folders)]
    assert missing == []


@pytest.mark.parametrize("name", NAMES)
def test_paths_exist(name: str):
    """Spans that are paths in the repository."""
    folders = "npbgpp|conf|tests|docs|example|benchmarks|checkpoints|.ci"
    found = [span for span in spans(TEXTS[name]) if re.fullmatch(rf"({folders})/[\w./]*", span)]
    assert [path for path in found if not (REPOSITORY / path).exists() and not path.startswith(("checkpoints/", "example/hair_"))] == []


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str):
    """``npbgpp <command>`` in spans and blocks, ``make <target>`` and ``python <script>``."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    code = [*spans(TEXTS[name]), *commands([name])]
    for line in code:
        words = line.split()
        if words[0] == "npbgpp" and len(words) > 1 and words[1] not in ("<command>", "--help"):
            assert words[1] in COMMANDS, line
        if words[0] == "make":
            targets = [word for word in words[1 : words.index("#") if "#" in words else None] if "=" not in word]
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), line
        if words[0] == "python" and words[1].endswith(".py") and words[1] != "train_net.py":
            assert (REPOSITORY / words[1]).is_file(), line


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as GitHub and MkDocs make them; a heading repeated on the page has none that is the same in both."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    slugs = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"\s", "-", slug) for slug in slugs if slugs.count(slug) == 1 and not re.search(r"\s\s|-\s|\s-", slug)}


@pytest.mark.parametrize("name", [*NAMES, "checkpoints/README.md", "CHANGELOG.md"])
def test_links_resolve(name: str):
    page = REPOSITORY / name
    text = page.read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith(("http://", "https://"))]
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


def test_every_page_is_in_the_navigation():
    navigation = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    def files(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        else:
            for inner in node.values() if isinstance(node, dict) else node:
                yield from files(inner)

    assert sorted(f"docs/{file}" for file in files(navigation)) == [name for name in NAMES if name != "README.md"]
