"""Imports point one way: from what runs to what is reused. Checked on the source, so that no import needs to succeed."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted((ROOT / "npbgpp").rglob("*.py"))}
MODULES = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}

# layer -> layers or modules that it may import, without npbgpp; what is below a name is meant too
BASE = ("errors", "files", "paths", "config", "optim", "pretrained", "log", "distributed", "huge_pages")
SYSTEMS = (
    *BASE,
    "geometry",
    "render",
    "models",
    "losses",
    "space_time_losses",
    "metrics",
    "matte_metrics",
    "data.scene",
    "data.images",
    "data.color_jitter",
    "data.rays",
    "data.ray_frames",
    "data.cloud_file",
    "data.video_frame",
    "data.video_rays",
    "data.pixel_weights",
    "data.motion_maps",
    "systems",
)
ALLOWED = {
    "errors": (),
    **{name: ("errors",) for name in BASE[1:]},
    "geometry": ("errors", "geometry"),
    "render": ("errors", "geometry", "render"),
    "models": ("errors", "pretrained", "geometry", "render", "models"),
    "losses": ("errors", "pretrained"),
    "space_time_losses": (),
    "metrics": ("errors", "losses", "pretrained"),
    "matte_metrics": ("metrics",),
    "data": (
        "__version__",
        "errors",
        "files",
        "paths",
        "geometry",
        "render.blocks",
        "render.rasterize",
        "render.visibility",
        "render.ray_sampling",
        "data",
    ),
    "systems": SYSTEMS,
    "export": ("errors", "files", "checkpoint", "geometry", "render", "models", "data", "systems", "export"),
    "prepare": ("errors", "files", "geometry", "render", "data", "callbacks.pictures", "callbacks.tile_sheet", "prepare"),
    "film_paths": ("errors", "geometry", "data.pose_files", "data.scene", "systems.nsff_films", "systems.nsff_views"),
    "checkpoint": ("errors", "files", "paths", "systems.base"),
    "callbacks": ("errors", "files", "distributed", "costs", "memory", "metrics", "matte_metrics", "systems.base", "callbacks"),
    "resume": ("errors", "files", "paths", "checkpoint"),
    "trainer": ("errors",),
    "costs": (),
    "memory": (),
    "loggers": (),
    "record": ("files", "paths"),
    "compare": ("errors", "files", "costs", "callbacks.pictures", "callbacks.tile_sheet", "compare"),
}
ENTRIES = (
    "run",
    "run_folder",
    "finished_run",
    "sweep",
)  # these may import everything, hydra too; so may modules that are run with python -m
REPLACED = {"pytorch3d", "torch_scatter"}


def is_within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def imports_of(name: str, source: str, is_package: bool = False) -> list[str]:
    """Full names of what a module imports, relative imports resolved; ``from a import b`` counts as a.b where that is a module."""
    package = name.split(".") if is_package else name.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            found += [
                f"{origin}.{alias.name}" if f"{origin}.{alias.name}" in MODULES or origin == "npbgpp" else origin for alias in node.names
            ]
    return found


def is_command(source: str) -> bool:
    return bool(re.search(r"^if __name__ == .__main__.:", source, re.MULTILINE))


def wrong_imports(name: str, source: str, is_package: bool = False) -> list[str]:
    """Imports of a module that its layer does not allow."""
    if name == "npbgpp":
        return [m for m in imports_of(name, source, True) if m.startswith(("npbgpp", "hydra"))]
    inner = name.removeprefix("npbgpp.")
    layer = inner.split(".")[0]
    entry = inner in ENTRIES or is_command(source) or inner.endswith("__main__")
    assert entry or layer in ALLOWED, f"{name}: say in this test what the layer {layer} may import"
    wrong = []
    for module in imports_of(name, source, is_package):
        top = module.split(".")[0]
        ours = top == "npbgpp" and not is_within(module.removeprefix("npbgpp."), ALLOWED.get(layer, ()))
        if top == "train_net" or (not entry and (ours or top == "hydra")):
            wrong.append(module)
    return wrong


def test_there_is_something_to_check():
    assert len(MODULES) > 30 and "npbgpp.data.scene" in MODULES and "npbgpp.render" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    path = MODULES[name]
    assert wrong_imports(name, path.read_text(encoding="utf-8"), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("name", "source", "wrong"),
    [
        ("npbgpp.geometry.fake", "from npbgpp.points.feature_pyramid import splat", ["npbgpp.points.feature_pyramid"]),
        ("npbgpp.geometry.fake", "from npbgpp.geometry.cameras import Cameras", []),
        ("npbgpp.render.fake", "import npbgpp.nets.blocks as b", ["npbgpp.nets.blocks"]),
        ("npbgpp.render.fake", "def f():\n    from npbgpp.data import scene", ["npbgpp.data.scene"]),
        ("npbgpp.models.fake", "from ..data.scene import View", ["npbgpp.data.scene"]),
        ("npbgpp.models.fake", "from .. import data", ["npbgpp.data"]),
        ("npbgpp.models.fake", "from . import blocks", []),
        ("npbgpp.data.fake", "from npbgpp.methods.base import System", ["npbgpp.methods.base"]),
        ("npbgpp.data.fake", "from npbgpp.kernels.rasterize import rasterize", []),
        ("npbgpp.data.fake", "from npbgpp.points.feature_pyramid import splat", ["npbgpp.points.feature_pyramid"]),
        ("npbgpp.methods.fake", "from npbgpp.data.datamodule import DataModule", ["npbgpp.data.datamodule"]),
        ("npbgpp.methods.fake", "from npbgpp.data.scene import Batch\nfrom npbgpp.engine.run import run", ["npbgpp.engine.run"]),
        ("npbgpp.callbacks.fake", "from npbgpp.methods.npbg import NPBG", ["npbgpp.methods.npbg"]),
        ("npbgpp.errors", "from npbgpp.core.files import load_tensors", ["npbgpp.core.files"]),
        ("npbgpp.engine.trainer", "import hydra.utils", ["hydra.utils"]),
        ("npbgpp.engine.trainer", "import train_net", ["train_net"]),
        ("npbgpp.engine.run", "from hydra.utils import instantiate", []),
        ("npbgpp.export", "import hydra\nif __name__ == '__main__':\n    pass\n", []),
        ("npbgpp", "from npbgpp.engine.run import run", ["npbgpp.engine.run"]),
    ],
)
def test_the_check_itself_finds_what_is_wrong(name, source, wrong):
    assert wrong_imports(name, source, name == "npbgpp") == wrong


def test_a_layer_nobody_described_is_noticed():
    with pytest.raises(AssertionError, match="say in this test"):
        wrong_imports("npbgpp.utils", "import torch")


@pytest.mark.parametrize("name", MODULES)
def test_modules_say_what_they_are_and_stay_short(name):
    source = MODULES[name].read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), f"{name} has no docstring"
    lines = len(source.splitlines())
    assert lines <= 400, f"{name} has {lines} lines; split it"


IMPORT_EVERYTHING = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused!r}:
            raise ImportError(name + " must not be needed")

sys.meta_path.insert(0, Refuse())
import importlib
importlib.import_module("npbgpp.engine.run")
assert not {few_need!r} & set(sys.modules), "takes seconds to import, and few runs need it"
for name in {modules!r}:
    importlib.import_module(name)
assert not {refused!r} & set(sys.modules)
"""


def test_nothing_that_was_replaced_is_needed():
    """All modules import where PyTorch3D and torch_scatter are refused, and a run starts without what few runs need."""
    modules = [name for name in MODULES if not name.endswith("__main__")]
    script = IMPORT_EVERYTHING.format(refused=REPLACED, few_need={"timm", "wandb", "cv2", "pycolmap", "skimage"}, modules=modules)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
