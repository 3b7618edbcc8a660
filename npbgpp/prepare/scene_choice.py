"""The scene that a command of ``npbgpp.prepare`` reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from npbgpp.core.paths import conf_folder
from npbgpp.data import CloudFile, Scene, ViewChoice
from npbgpp.errors import InputError
from npbgpp.parsers import read_scene, recognise
from npbgpp.parsers.npbg import scene_folder

# lists that training takes from the config as well
_H3DS = "datasets/_h3ds.yaml"


@dataclass(frozen=True)
class SceneChoice:
    """The scene that a command looks at.

    Attributes:
        scene: its folder; with ``paths_file`` its name there.
        layout: how it lies on disk; auto goes by its files.
        pc_name: its cloud, below the folder.
        downscale: photos are reduced by this factor.
        white_bg: white outside the masks.
        val_indices, holdout_indices: views that validate and that are held out, as for training: neither is used for a cloud.
        paths_file: NPBG's yaml of scenes.
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
        """The folder of the scene. Raises InputError when there is none."""
        folder = Path(self.scene).expanduser() if self.paths_file is None else scene_folder(self.paths_file, self.scene)
        if not folder.is_dir():
            raise InputError(f"scene={self.scene}: expected the folder of a scene, there is none at {folder.absolute()}; correct the path")
        return folder.resolve()

    def read(self) -> Scene:
        """The scene with the splits that training would use."""
        folder = self.folder()
        name = self.scene if self.paths_file is not None else folder.name
        choices: dict[str, Any] = {"white_bg": self.white_bg, "downscale": self.downscale, "paths_file": self.paths_file}
        if self.layout == "h3ds" or (self.layout == "auto" and recognise(folder)[:1] == ("h3ds",)):
            listed = OmegaConf.to_container(OmegaConf.load(conf_folder() / _H3DS))
            assert isinstance(listed, dict)
            choices["published_views"] = {name: tuple(numbers) for name, numbers in listed["published_views"].items()}
        scene = read_scene(self.layout, folder, folder, name, CloudFile(folder / self.pc_name), choices)
        return scene.with_splits(self.val_indices, self.holdout_indices)
