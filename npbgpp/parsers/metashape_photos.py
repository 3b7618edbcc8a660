"""Scenes of Agisoft Metashape: its exported cameras (``cameras.xml``) beside the photos, without the ``scene.yaml`` of NPBG.

Photos in ``images_undistorted`` have the focal length of their sensor and a central principal point; other photos are undistorted when they are read.
"""

from functools import partial
from pathlib import Path

import torch

from npbgpp.data import CloudFile, Layout, Lens, Scene
from npbgpp.errors import InputError, listing
from npbgpp.parsers.metashape import MetashapeFile, Sensor, is_metashape
from npbgpp.parsers.posed_photos import PosedPhoto, photo_folder, posed_scene

_UNDISTORTED = "images_undistorted"
_OPENGL_FROM_OPENCV = (1.0, -1.0, -1.0, 1.0)  # signs of the columns of a camera-to-world matrix


def parse_metashape(root: Path, images_root: Path, name: str, cloud: CloudFile, white_bg: bool = True) -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with ``cameras.xml`` or one other file of Metashape.
        images_root: folder with the photos, in ``images_undistorted``, ``images`` or not; usually the same.
        name: name of the scene.
        cloud: its point cloud, in the coordinates of the cameras.
        white_bg: white where photos are transparent; otherwise keep the stored colours.

    Raises:
        InputError: a missing or damaged file, several of them, an invalid camera, a lens without equivalent, fewer than two photos.
    """
    files = _files(root)
    if len(files) != 1:
        got = listing(path.name for path in files) if files else "none"
        raise InputError(
            f"{root}: expected one file of cameras, such as cameras.xml, got {got}; export the cameras, and move other files away"
        )
    path, undistorted = files[0], (images_root / _UNDISTORTED).is_dir()
    file = MetashapeFile.read(path)
    signs = torch.tensor(_OPENGL_FROM_OPENCV, dtype=torch.float64)

    def lens_of(sensor: Sensor, size: tuple[int, int]) -> Lens:
        height, width = sensor.image_size
        if abs(size[1] / width - size[0] / height) > 1 / width + 1 / height:
            raise InputError(f"expected a photo of {width}x{height} pixels, or of this ratio, got {size[1]}x{size[0]}; restore the photo")
        f = sensor.focal_length
        return (Lens("PINHOLE", (f, f, width / 2, height / 2), sensor.image_size) if undistorted else sensor.lens()).resized(size)

    photos = [PosedPhoto(camera.label, camera.cam_to_world * signs, partial(lens_of, camera.sensor)) for camera in file.cameras]
    if not photos:
        raise InputError(f"{path}: expected the poses of cameras, got none of {len(file.unaligned)}; align the photos again")
    notes = []
    if file.ignored:
        notes.append(f"{path.name}: {listing(file.ignored)} have coordinates of their own and are left out")
    if file.transforms:
        notes.append(f"{path.name}: the transform of {listing(file.transforms)} is ignored, as the cloud is expected in camera coordinates")
    if file.unaligned:
        notes.append(f"{len(file.unaligned)} cameras have no pose and are left out: {listing(file.unaligned)}")
    folder = images_root / _UNDISTORTED if undistorted else photo_folder(images_root)
    return posed_scene(name, path, folder, photos, cloud, white_bg, notes=notes)


def _files(root: Path) -> list[Path]:
    """``cameras.xml``, else all files of Metashape."""
    usual = root / "cameras.xml"
    if usual.is_file() and is_metashape(usual):
        return [usual]
    return [path for path in sorted(root.glob("*.xml")) if not path.name.startswith(".") and is_metashape(path)]


LAYOUT = Layout(parse_metashape, (("*.xml",),), precedence=9, accepts=lambda folder: bool(_files(folder)))
