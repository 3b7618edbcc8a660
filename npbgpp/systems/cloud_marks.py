"""Which clouds a run has read, so that training does not go on with other ones."""

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from npbgpp.data.cloud_file import cloud_checksum
from npbgpp.errors import InputError


class CloudMarks:
    """Checksums of clouds.

    Attributes:
        of: by scene; those of a checkpoint that training goes on from, and of every cloud read since.
    """

    def __init__(self) -> None:
        self.of: dict[str, str] = {}

    def note(self, scene: str, path: Path, xyz_world: Float[Tensor, "n 3"]) -> None:
        """Keeps the checksum of a cloud that was read. Raises InputError when the scene had another cloud before."""
        checksum = cloud_checksum(xyz_world)
        expected = self.of.setdefault(scene, checksum)
        if expected != checksum:
            raise InputError(
                f"point cloud {path} of scene {scene}: expected the cloud that training began with (checksum {expected}), got another one ({checksum}, "
                f"{len(xyz_world)} points); use the file, datasets.n_point and datasets.noise_sigma of the interrupted run, or begin anew with "
                "weights_path=<checkpoint> in place of resume"
            )

    def expect(self, clouds: Any) -> None:
        """Takes over what a checkpoint says; files without it say nothing."""
        if isinstance(clouds, dict):
            self.of |= {str(scene): checksum for scene, checksum in clouds.items() if isinstance(checksum, str)}
