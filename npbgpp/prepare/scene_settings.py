"""Keys shared by the commands that read a scene."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from npbgpp.core.paths import conf_folder
from npbgpp.data import CloudFile, Scene, ViewChoice
from npbgpp.errors import InputError
from npbgpp.parsers import locate_scene, read_scene, recognise

_H3DS = "datasets/_h3ds.yaml"  # the published views of each H3DS scene


@dataclass(frozen=True)
class SceneSettings:
    """The scene of a command; the keys mean the same as in the ``datasets`` group.

    Attributes:
        scene: folder of the scene; with ``paths_file`` its name there.
        layout: name of the layout on disk; auto recognises it.
        pc_name: file of the cloud, below the folder.
        downscale: factor by which photos are reduced.
        white_bg: composite photos on white outside of their masks.
        val_indices, holdout_indices: validation and test views.
        paths_file: NPBG's yaml file of scenes.
    """

    scene: str
    layout: str = "auto"
    pc_name: str = "mvs_pc.ply"
    downscale: float = 1.0
    white_bg: bool = True
    val_indices: ViewChoice | None = None
    holdout_indices: ViewChoice | None = None
    paths_file: Path | None = None

    def folder(self) -> Path:
        """Absolute path of the scene. Raises InputError if the folder does not exist."""
        folder = locate_scene(self.layout, self.scene, self._options()) or Path(self.scene).expanduser()
        if not folder.is_dir():
            raise InputError(f"scene={self.scene}: expected the folder of a scene, {folder.absolute()} does not exist; correct the path")
        return folder.resolve()

    def read(self) -> Scene:
        """Parses the scene, with the splits of a training. Raises InputError for a scene that cannot be read."""
        folder, options = self.folder(), self._options()
        name = self.scene if self.paths_file is not None else folder.name
        if self.layout == "h3ds" or (self.layout == "auto" and recognise(folder)[:1] == ("h3ds",)):
            fragment = OmegaConf.to_container(OmegaConf.load(conf_folder() / _H3DS))
            assert isinstance(fragment, dict)
            options["published_views"] = fragment["published_views"]
        scene = read_scene(self.layout, folder, folder, name, CloudFile(folder / self.pc_name), options)
        return scene.with_splits(self.val_indices, self.holdout_indices)

    def _options(self) -> dict[str, Any]:
        paths_file = None if self.paths_file is None else str(self.paths_file)
        return {"white_bg": self.white_bg, "downscale": self.downscale, "paths_file": paths_file}
