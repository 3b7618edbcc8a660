"""Methods and layouts of other distributions: the example in tests/plugin through every command, broken registrations, and no special case for any method."""

import ast
import functools
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.core import plugins as registry
from npbgpp.core.plugins import LAYOUTS, METHODS, load_plugin, warn_of_shared_configs
from npbgpp.data import CloudFile, Layout
from npbgpp.engine.run import method_of
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, read_ply
from npbgpp.methods.base import System
from npbgpp.parsers import find_layout, layouts, read_scene

from .conftest import TINY_OVERRIDES
from .run_folders import REPOSITORY

DISTRIBUTION = REPOSITORY / "tests" / "plugin"
PACKAGE = "npbgpp_nearest_photo"
VERSION = "npbgpp-nearest-photo 0.1.0"

# runs commands one after another in one process, as npbgpp.__main__ does for each; exit codes and outputs go to files
DRIVER = """
import json, os, sys, traceback
from pathlib import Path
from npbgpp.__main__ import main

commands, out = json.loads(sys.argv[1]), Path(sys.argv[2])
for name, words in commands.items():
    sys.stdout.flush(), sys.stderr.flush()
    file = os.open(out / f"{name}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1), os.dup2(file, 2)
    sys.argv, code = ["npbgpp", *words], 0
    try:
        main()
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            print(code)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 2
    (out / f"{name}.code").write_text(str(code or 0))
"""


# ------------------------------------------------------------ the example
@dataclass(frozen=True)
class Session:
    """Results of the commands: the folder that they ran in, exit codes and outputs by name."""

    folder: Path
    codes: dict[str, int]
    outputs: dict[str, str]
    changed: set[Path]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the installed example, built from a copy of its sources without network."""
    folder = tmp_path_factory.mktemp("plugin")
    target, source = folder / "site", folder / "source"
    shutil.copytree(DISTRIBUTION, source, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(target), str(source)]
    uv = Path(sys.executable).with_name("uv")
    if uv.is_file():
        command = [str(uv), "pip", "install", "--quiet", "--offline", "--python", sys.executable, *options]
    elif importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options]
    else:
        pytest.skip("needs pip or uv beside the interpreter")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def project_files() -> set[Path]:
    """Files of the project and of the example, without byte code."""
    files = (path for name in ("npbgpp", "conf", "tests/plugin") for path in (REPOSITORY / name).rglob("*") if path.is_file())
    return {path for path in files if path.suffix != ".pyc"}


def write_cameras_json(source: Path, folder: Path) -> None:
    """A tiny scene in the layout of 3D Gaussian Splatting, from its own files."""
    (folder / "images").mkdir(parents=True)
    shutil.copy(source / "mvs_pc.ply", folder)
    entries = []
    for view in read_scene("nerf_synthetic", source, source, "tiny", CloudFile(source / "mvs_pc.ply"), {}).views:
        pose = torch.linalg.inv(view.camera.to_opencv())[0]
        (height, width), (fx, fy) = view.camera.image_size, view.camera.focal_length[0].tolist()
        entries.append(
            {"id": len(entries), "img_name": view.name, "width": width, "height": height, "fx": fx, "fy": fy}
            | {"position": pose[:3, 3].tolist(), "rotation": pose[:3, :3].tolist()}
        )
        with Image.open(view.image) as photo:
            photo.convert("RGB").save(folder / "images" / f"{view.name}.png")
    (folder / "cameras.json").write_text(json.dumps(entries))


@pytest.fixture(scope="module")
def session(installed: Path, tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """All commands on tiny scenes."""
    folder = tmp_path_factory.mktemp("session")
    write_cameras_json(tiny_root / "globe", folder / "scenes" / "globe")
    tiny = [word for word in TINY_OVERRIDES if not word.startswith("system")] + [f"datasets.data_root={tiny_root}", "test_video=null"]
    npbg = ["train", *TINY_OVERRIDES, f"datasets.data_root={tiny_root}", "test_after_fit=true", "test_video=null"]
    train = ["train", *tiny, "system=nearest_photo", "trainer.limit_val_batches=0"]
    own = [word for word in train if not word.startswith(("datasets=", "datasets.scene_name", "datasets.data_root"))]
    own += ["datasets=cameras_json", "datasets.scene_name=globe", f"datasets.data_root={folder / 'scenes'}"]
    commands = {
        "help": ["train", "--help"],
        "keys": ["train", "--help", "system=nearest_photo", "datasets=cameras_json"],
        "whole": [*train, "trainer.max_epochs=2", "hydra.run.dir=whole", "test_after_fit=true"],
        "half": [*train, "hydra.run.dir=half"],
        "resume": [*train, "trainer.max_epochs=2", "hydra.run.dir=half", "resume=auto", "system.keep_photos=false"],
        "other": [*train, "trainer.max_epochs=2", "hydra.run.dir=half", "resume=auto", "system.lr=0.5"],
        "evaluate": [*train, "hydra.run.dir=evaluated", "eval_only=true", "weights_path=whole/checkpoints/last.ckpt"],
        "video": ["render", "run=whole", "path=turn", "frames=3", "depth=[npy]", "video=gif", "out=video"],
        "cloud": ["export", "cloud", "run=whole", "out=cloud.ply"],
        "npbg": [*npbg, "hydra.run.dir=npbg", "trainer.limit_val_batches=0"],
        "compare": ["compare", "whole", "npbg", "--out", "comparison"],
        "sweep": [*own, "-m", "hydra.sweep.dir=sweep", "system.lr=0.01,0.02", "test_after_fit=true"],
        "unknown_key": [*train, "system.speed=3"],
        "added_key": [*train, "+system.speed=3", "hydra.run.dir=refused"],
        "bad_value": [*train, "system.lr=-1", "hydra.run.dir=refused"],
        "unknown_method": [*train, "system.system_class=Nothing", "hydra.run.dir=refused"],
        "unknown_layout": [*train, "datasets.layout=nothing", "hydra.run.dir=refused"],
    }
    before = project_files()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(installed), str(REPOSITORY))), "COLUMNS": "140"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands), str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    after = project_files()
    return Session(
        folder,
        {name: int((folder / f"{name}.code").read_text()) for name in commands},
        {name: (folder / f"{name}.txt").read_text() for name in commands},
        before ^ after,
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=False)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["help", "keys", "whole", "half", "resume", "evaluate", "video", "cloud", "npbg", "compare", "sweep"])
def test_a_command_succeeds(session, name):
    assert session.codes[name] == 0, session.outputs[name]


@pytest.mark.slow
def test_no_file_is_added_to_the_project(session):
    assert session.changed == set()


@pytest.mark.slow
def test_help_lists_the_method_and_its_keys(session):
    assert "nearest_photo" in session.outputs["help"] and "cameras_json" in session.outputs["help"]
    assert "system.distance_weight=1.0" in session.outputs["keys"] and "datasets.image_folder=images" in session.outputs["keys"]


@pytest.mark.slow
def test_training_changes_the_weights_and_resumes_exactly(session):
    """A run of two epochs and one that is resumed after the first end with the same weights."""
    whole, resumed = weights(session.folder / "whole"), weights(session.folder / "half")
    assert set(whole) == {"depth_scale", "colour"}
    assert (whole["colour"] - torch.eye(3, 4)).abs().max() > 1e-3 and whole["depth_scale"] != 1
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
def test_resuming_with_another_learning_rate_is_refused(session):
    assert session.codes["other"] == 1 and "system.lr" in session.outputs["other"]


@pytest.mark.slow
def test_an_evaluation_repeats_the_scores(session):
    trained, evaluated = (
        json.loads((session.folder / run / "metrics.json").read_text())["datasets"]["ball_holdout"] for run in ("whole", "evaluated")
    )
    assert evaluated["psnr"] == pytest.approx(trained["psnr"], abs=1e-4)
    assert 0 < evaluated["photo_distance"] < 6  # the cameras are on a ring of radius 3


@pytest.mark.slow
def test_a_video_and_its_depth(session):
    frames = sorted((session.folder / "video").glob("0*.png"))
    depths = [np.load(path) for path in sorted((session.folder / "video").glob("depth_*.npy"))]
    assert len(frames) == len(depths) == 3 and (session.folder / "video" / "film.gif").stat().st_size > 0
    assert all(np.ptp(depth) == 0 and depth.min() > 0 for depth in depths)


@pytest.mark.slow
def test_the_exported_cloud_has_the_colours_of_the_photos(session, tiny_root):
    exported, truth = read_ply(session.folder / "cloud.ply"), read_ply(tiny_root / "ball" / "mvs_pc.ply")
    distance, index = torch.cdist(exported.xyz, truth.xyz, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert len(exported) > 200 and distance.max() < 1e-5
    assert exported.rgb_u8 is not None and truth.rgb_u8 is not None
    error = (exported.rgb_u8.float() - truth.rgb_u8[index].float()).abs().mean()
    shuffled = (exported.rgb_u8.float() - truth.rgb_u8[index].flip(0).float()).abs().mean()
    assert error < 0.7 * shuffled


@pytest.mark.slow
def test_comparisons_name_runs_of_both_methods(session):
    table = (session.folder / "comparison" / "compare.md").read_text()
    assert [line.split(" | ")[1] for line in table.splitlines()[2:]] == ["whole", "npbg"]
    sweep = (session.folder / "sweep" / "compare.md").read_text()
    assert [line.split(" | ")[2] for line in sweep.splitlines()[2:]] == ["0.01", "0.02"] and "globe_holdout" in sweep


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("unknown_key", ("system.speed", "unknown key")),
        ("added_key", ("system.speed", "unknown key")),
        ("bad_value", ("system.lr", "-1")),
        ("unknown_method", ("system.system_class", "Nothing", f"NearestPhoto ({VERSION})", "NPBG (npbgpp ")),
        ("unknown_layout", ("datasets.layout", "nothing", f"cameras_json ({VERSION})", "colmap (npbgpp ")),
    ],
)
def test_bad_input_is_refused_by_name(session, name, parts):
    output = session.outputs[name]
    assert session.codes[name] == 1 and "Traceback" not in output
    assert all(part in output for part in parts), output


# ----------------------------------------------------- the example's layout
@pytest.fixture
def layout(monkeypatch) -> Layout:
    monkeypatch.syspath_prepend(str(DISTRIBUTION))
    module = importlib.import_module(f"{PACKAGE}.layout")
    return module.LAYOUT


def test_the_layout_reads_the_same_cameras(layout, tiny_root, tmp_path):
    write_cameras_json(tiny_root / "ball", tmp_path / "ball")
    cloud = CloudFile(tmp_path / "ball" / "mvs_pc.ply")
    scene = layout.parse(tmp_path / "ball", tmp_path / "ball", "ball", cloud)
    truth = read_scene("nerf_synthetic", tiny_root / "ball", tiny_root / "ball", "ball", cloud, {})
    assert layout.fits(tmp_path / "ball") and [view.name for view in scene.views] == [view.name for view in truth.views]
    found, expected = (Cameras.cat([view.camera for view in some.views]) for some in (scene, truth))
    assert found.image_size == expected.image_size
    for attribute in ("R", "T", "focal_length", "principal_point"):
        assert torch.allclose(getattr(found, attribute).double(), getattr(expected, attribute).double(), atol=1e-5)
    assert scene.splits["test"] == (0, 8, 16) and scene.splits["val"] == (4, 12)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda entries: entries[3].pop("fx"), ("[3]", "fx")),
        (lambda entries: entries[0].update(width="wide"), ("[0].width", "wide")),
        (lambda entries: entries[1].update(rotation=[[2, 0, 0], [0, 1, 0], [0, 0, 1]]), ("[1]", "orthonormal")),
        (lambda entries: entries[2].update(img_name="missing"), ("missing", "datasets.image_folder")),
        (lambda entries: entries[2].update(img_name=entries[1]["img_name"]), ("train-r_1",)),
        (lambda entries: entries.clear(), ("cameras.json", "at least 2")),
    ],
)
def test_the_layout_refuses_damaged_files(layout, tiny_root, tmp_path, change, parts):
    write_cameras_json(tiny_root / "ball", tmp_path / "ball")
    path = tmp_path / "ball" / "cameras.json"
    entries = json.loads(path.read_text())
    change(entries)
    path.write_text(json.dumps(entries))
    with pytest.raises(InputError) as caught:
        layout.parse(tmp_path / "ball", tmp_path / "ball", "ball", CloudFile(tmp_path / "ball" / "mvs_pc.ply"))
    assert all(part in str(caught.value) for part in parts), caught.value


# ---------------------------------------------------- broken registrations
Register = Callable[..., None]


@pytest.fixture
def register(tmp_path: Path, monkeypatch) -> "Register":
    """Writes a distribution by hand, with the entry points ``group: {name: object}``, and puts it on the path of this process."""
    caches = (registry.plugins, registry.load_all)
    for cache in caches:
        cache.cache_clear()
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def go(distribution: str, source: str = "", **groups: dict[str, str]) -> None:
        info = site / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        sections = {"methods": METHODS, "layouts": LAYOUTS}
        (info / "entry_points.txt").write_text(
            "\n".join(f"[{sections[group]}]\n" + "\n".join(f"{k} = {v}" for k, v in points.items()) for group, points in groups.items())
        )
        (site / f"{distribution}.py").write_text(source)
        importlib.invalidate_caches()

    yield go
    for cache in caches:
        cache.cache_clear()


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_plugin_that_cannot_be_imported_is_left_out(register, caplog, run_here):
    """Training with another method works, and the warning names the distribution and the error."""
    register(
        "snapped", "raise RuntimeError('no such device')", methods={"Snapped": "snapped:Snapped"}, layouts={"snapped": "snapped:LAYOUT"}
    )
    run = run_here("trainer.limit_val_batches=0", "trainer.limit_train_batches=1")
    assert (run / "checkpoints" / "last.ckpt").is_file()
    warned = [text for text in warnings_of(caplog) if "snapped 1.0" in text]
    assert len(warned) == 2 and all("no such device" in text for text in warned)
    assert "snapped" not in layouts() and "colmap" in layouts()
    with pytest.raises(InputError, match=r"snapped 1\.0.*no such device"):
        load_plugin(METHODS, System, "Snapped", "system.system_class")


def test_of_two_plugins_with_one_name_one_is_used(register, caplog):
    """Ours wins over others, and among others the alphabet decides."""
    source = "from npbgpp.parsers.colmap import LAYOUT"
    for distribution in ("twin_b", "twin_a"):
        register(distribution, source, layouts={"twin": f"{distribution}:LAYOUT", "colmap": f"{distribution}:LAYOUT"})
    known = registry.plugins(LAYOUTS)
    assert str(known["twin"]) == "twin (twin_a 1.0)" and known["colmap"].is_ours
    warned = warnings_of(caplog)
    assert len(warned) == 3
    assert any("twin_a 1.0" in text and "twin_b 1.0" in text and "twin;" in text for text in warned)
    assert set(layouts()) > {"twin", "colmap", "llff"}


@pytest.mark.parametrize("source", ["LAYOUT = {}", "from npbgpp.data import Layout as LAYOUT_CLASS\nLAYOUT = None"])
def test_an_object_of_another_type_is_left_out(register, caplog, source):
    register("sideways", source, layouts={"sideways": "sideways:LAYOUT"}, methods={"Sideways": "sideways:LAYOUT"})
    assert "sideways" not in layouts() and "colmap" in layouts()
    assert any("sideways 1.0" in text and "Layout" in text for text in warnings_of(caplog))
    with pytest.raises(InputError, match=r"sideways 1\.0.*System"):
        load_plugin(METHODS, System, "Sideways", "system.system_class")


def test_unknown_names_list_the_known_ones_with_their_distributions(register):
    register("third", "from npbgpp.parsers.colmap import LAYOUT", layouts={"third": "third:LAYOUT"}, methods={"Third": "third:Third"})
    with pytest.raises(InputError, match=r"datasets\.layout.*colmap \(npbgpp .*third \(third 1\.0\).*got lost"):
        find_layout("lost")
    from omegaconf import OmegaConf

    with pytest.raises(InputError, match=r"system\.system_class.*NPBG \(npbgpp .*Third \(third 1\.0\).*got Lost"):
        method_of(OmegaConf.create({"system": {"system_class": "Lost"}}))


def test_config_folders_are_found_without_an_import(register, tmp_path):
    """A package that cannot be imported has its configs listed all the same, ours are not listed twice."""
    register("folder_only", layouts={"x": "with_configs.layout:LAYOUT"})
    package = tmp_path / "site" / "with_configs"
    (package / "conf").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError")
    assert registry.config_folders() == (("folder_only 1.0", package / "conf"),)


# ------------------------------------------------------ no special cases
METHODS_FOLDER = REPOSITORY / "npbgpp" / "methods"
SHARED = {METHODS_FOLDER / name for name in ("__init__.py", "base.py", "points.py", "radiance.py")}
CONCRETE = sorted({*METHODS_FOLDER.rglob("*.py")} - SHARED)
GENERIC = sorted({*(REPOSITORY / "npbgpp").rglob("*.py")} - {*CONCRETE})
OPEN_MODULES = {f"npbgpp.methods.{path.stem}" for path in SHARED}


@functools.cache
def method_classes() -> frozenset[str]:
    """Names of the methods of this package and of their settings."""
    found = {point.value.rpartition(":")[2] for point in (plugin.entry_point for plugin in registry.plugins(METHODS).values())}
    for path in CONCRETE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(isinstance(base, ast.Name) and base.id.endswith("Settings") for base in node.bases):
                found.add(node.name)
    return frozenset(found)


def method_names_in(source: str) -> list[str]:
    """Classes of methods that a module mentions as identifiers, and modules of methods that it imports. Texts do not count."""
    found = []
    for node in ast.walk(ast.parse(source)):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            modules = [node.module] if node.module != "npbgpp.methods" else [f"npbgpp.methods.{alias.name}" for alias in node.names]
            found += [alias.name for alias in node.names if alias.name in method_classes()]
        elif isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            found += [name] if name in method_classes() else []
        found += [module for module in modules if module.startswith("npbgpp.methods.") and module not in OPEN_MODULES]
    return found


def test_the_classes_of_methods_are_known():
    assert method_classes() >= {"NPBG", "NPBGPlusPlus", "NPCR", "NeRF", "NSFF", "NPCRSettings", "NsffSettings"}
    assert method_names_in("from npbgpp.methods.npbg import NPBG") == ["NPBG", "npbgpp.methods.npbg"]
    assert method_names_in("def f(system):\n    return isinstance(system, NSFF)") == ["NSFF"]
    assert method_names_in("from npbgpp.methods.base import System\nmessage = 'system=npcr'") == []


@pytest.mark.parametrize("path", GENERIC, ids=lambda path: str(path.relative_to(REPOSITORY / "npbgpp")))
def test_generic_modules_know_no_method(path):
    assert method_names_in(path.read_text(encoding="utf-8")) == []


# ------------------------------------------------------- documentation
DOCS = [REPOSITORY / "docs" / name for name in ("add_a_method.md", "add_a_dataset.md")]
CODE = [
    (doc.stem, language, code) for doc in DOCS for language, code in re.findall(r"```(python|yaml|toml)\n(.*?)```", doc.read_text(), re.S)
]


@pytest.mark.parametrize(("doc", "language", "code"), CODE, ids=[f"{doc}-{code.split()[0]}-{k}" for k, (doc, _, code) in enumerate(CODE)])
def test_code_in_the_documentation_is_that_of_the_example(doc, language, code):
    suffix = {"python": ".py", "yaml": ".yaml", "toml": ".toml"}[language]
    assert any(code in path.read_text() for path in DISTRIBUTION.rglob(f"*{suffix}")), code


def test_the_hooks_in_the_documentation_exist():
    """The first column of the table of optional parts."""
    rows = re.search(r"\| override \|.*?\n\n", DOCS[0].read_text(), re.S)[0].splitlines()[2:]
    names = [name for row in rows if row for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert len(names) > 10 and [name for name in names if not hasattr(System, name)] == []


def test_configs_of_one_name_are_reported(tmp_path, monkeypatch, caplog):
    """With the distributions that have them: Hydra takes the first."""
    for name in ("one", "two"):
        (tmp_path / name / "datasets").mkdir(parents=True)
        (tmp_path / name / "datasets" / "mine.yaml").write_text("layout: mine\n")
    (tmp_path / "two" / "system").mkdir()
    (tmp_path / "two" / "system" / "npbg.yaml").write_text("lr: 1\n")
    monkeypatch.setattr("npbgpp.core.plugins.config_folders", lambda: (("first 1.0", tmp_path / "one"), ("second 2.0", tmp_path / "two")))
    warn_of_shared_configs()
    assert "config datasets/mine.yaml: first 1.0 and second 2.0 both have it; that of first 1.0 is used" in caplog.text
    assert "config system/npbg.yaml: npbgpp and second 2.0 both have it; that of npbgpp is used" in caplog.text
    assert len(caplog.records) == 2
