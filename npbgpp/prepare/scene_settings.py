"""Keys shared by the commands that read a scene."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from npbgpp.core.paths import conf_folder
from npbgpp.data import CloudFile, Scene, ViewChoice
from npbgpp.errors import InputError
from npbgpp.parsers import read_scene, recognise
from npbgpp.parsers.npbg import scene_folder

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
        folder = Path(self.scene).expanduser() if self.paths_file is None else scene_folder(self.paths_file, self.scene)
        if not folder.is_dir():
            raise InputError(f"scene={self.scene}: expected the folder of a scene, {folder.absolute()} does not exist; correct the path")
        return folder.resolve()

    def read(self) -> Scene:
        """Parses the scene, with the splits of a training. Raises InputError for a scene that cannot be read."""
        folder = self.folder()
        name = self.scene if self.paths_file is not None else folder.name
        choices: dict[str, Any] = {"white_bg": self.white_bg, "downscale": self.downscale, "paths_file": self.paths_file}
        if self.layout == "h3ds" or (self.layout == "auto" and recognise(folder)[:1] == ("h3ds",)):
            fragment = OmegaConf.to_container(OmegaConf.load(conf_folder() / _H3DS))
            assert isinstance(fragment, dict)
            choices["published_views"] = {scene: tuple(views) for scene, views in fragment["published_views"].items()}
        scene = read_scene(self.layout, folder, folder, name, CloudFile(folder / self.pc_name), choices)
        return scene.with_splits(self.val_indices, self.holdout_indices)
