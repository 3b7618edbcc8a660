"""Imports point one way, from what runs to what is reused. Checked on the source, so that no import needs to succeed."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted((ROOT / "npbgpp").rglob("*.py"))}
MODULES = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}

# The layers from the lowest to the highest; modules of one line do not import one another.
ORDER = (
    ("errors", "__version__"),
    ("core", "geometry"),
    ("kernels",),
    ("volume", "nets"),
    ("points", "losses"),
    ("data", "metrics"),
    ("parsers", "io"),
    ("methods",),
    ("viewer",),
    ("callbacks", "prepare", "compare"),
    ("engine",),
    ("api", "export"),
    ("cli",),
    ("render", "view", "refine", "train", "demo", "auto", "__main__"),
)
HEIGHT = {layer: height for height, layers in enumerate(ORDER) for layer in layers}
# commands of a package: they sit above the layer of their package
COMMANDS = {"prepare.__main__", "compare.__main__", "export.__main__"}
REPLACED = {"pytorch3d", "torch_scatter"}
NEED_VISER = {f"npbgpp.viewer.{name}" for name in ("panel", "path_panel", "server", "static")}  # an extra


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


def height(inner: str) -> int:
    """Height of the layer of a module, given without ``npbgpp.``."""
    if inner in COMMANDS:
        return HEIGHT["__main__"]
    layer = inner.split(".")[0]
    assert layer in HEIGHT, f"npbgpp.{inner}: say in this test where the layer {layer} belongs"
    return HEIGHT[layer]


def wrong_imports(name: str, source: str, is_package: bool = False) -> list[str]:
    """Imports of a module from its own height (other than its own layer) or from above."""
    if name == "npbgpp":
        return [m for m in imports_of(name, source, True) if m.startswith("hydra")]
    inner = name.removeprefix("npbgpp.")
    own, layer, wrong = height(inner), inner.split(".")[0], []
    for module in imports_of(name, source, is_package):
        top, _, rest = module.partition(".")
        if top == "train_net" or (top == "npbgpp" and rest and rest.split(".")[0] != layer and height(rest) >= own):
            wrong.append(module)
    return wrong


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    path = MODULES[name]
    assert wrong_imports(name, path.read_text(encoding="utf-8"), path.name == "__init__.py") == []


def test_modules_import_each_other_in_one_direction():
    """No circle between modules, inside a layer either."""
    from graphlib import TopologicalSorter

    graph = {
        name: {m for m in imports_of(name, path.read_text(encoding="utf-8"), path.name == "__init__.py") if m in MODULES and m != name}
        for name, path in MODULES.items()
        if name != "npbgpp"  # its names are loaded when they are first used
    }
    assert list(TopologicalSorter(graph).static_order())


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
    modules = [name for name in MODULES if not name.endswith("__main__") and (find_spec("viser") or name not in NEED_VISER)]
    script = IMPORT_EVERYTHING.format(refused=REPLACED, few_need={"timm", "wandb", "cv2", "pycolmap", "skimage"}, modules=modules)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
