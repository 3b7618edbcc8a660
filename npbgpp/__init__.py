"""npbgpp: novel-view synthesis from photos with point-based methods and radiance fields."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npbgpp.api import TrainedRun, load_cloud, load_run, load_scene
    from npbgpp.data import Scene
    from npbgpp.errors import InputError
    from npbgpp.geometry import Cameras, PointCloud
    from npbgpp.methods.base import Render

__version__ = "0.1.0"

__all__ = ["Cameras", "InputError", "PointCloud", "Render", "Scene", "TrainedRun", "load_cloud", "load_run", "load_scene"]

_HOME = {
    "Cameras": "npbgpp.geometry",
    "InputError": "npbgpp.errors",
    "PointCloud": "npbgpp.geometry",
    "Render": "npbgpp.methods.base",
    "Scene": "npbgpp.data",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that ``import npbgpp`` and command lines do not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'npbgpp' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME.get(name, "npbgpp.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
