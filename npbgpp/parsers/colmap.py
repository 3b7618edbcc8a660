"""Scenes reconstructed by COLMAP: a sparse model, and photos in ``images`` or, downscaled, in ``images_8``.

Of several sub-models the largest is used. Each photo has the size and the lens of its camera, and is undistorted when it is read. Masks lie in ``masks``
(``masks_8`` for ``images_8``); ``npbgpp.parsers.masks`` has their names. Views are in natural order of their names.

Splits: test views 10, 20, ..., validation views 5, 15, ..., as the NPBG++ authors have for 100 views.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jaxtyping import Float
from torch import Tensor

from npbgpp.data import (
    IMAGE_SUFFIXES,
    CloudFile,
    ColmapModel,
    Layout,
    Lens,
    ModelImage,
    Scene,
    View,
    find_models,
    fitted,
    image_size,
    images_folder,
    model_file,
    natural,
    pinhole,
    rule_splits,
)
from npbgpp.errors import InputError, listing
from npbgpp.geometry import Cameras
from npbgpp.parsers.masks import files_in, find_masks, with_alpha, with_mask, without_suffix
from npbgpp.parsers.posed_photos import files_by_last_parts

_HELD_OUT, _VALIDATION = "every:10+10", "every:10+5"


def parse_colmap(root: Path, images_root: Path, name: str, cloud: CloudFile, downscale: float = 1.0, white_bg: bool = True) -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with the model in ``sparse``, in a folder below it, or in the folder itself.
        images_root: folder with ``images`` and ``masks``, usually the same.
        name: name of the scene.
        cloud: its point cloud.
        downscale: factor between the size of the cameras and of the views; photos are not enlarged.
        white_bg: white outside the masks, if there are masks, and where photos are transparent; otherwise as photographed.

    Raises:
        InputError: no model, a damaged one, fewer than two of its photos, a photo of another aspect ratio than its camera, a mask of another size than its
            photo.
    """
    model, notes = _largest_model(root)
    photos, photo_notes = _find_photos(images_root, downscale, model)
    places = dict.fromkeys((images_root / photos.folder.name.replace("images", "masks", 1), images_root / "masks"))
    both = [(image.name, path.relative_to(photos.folder).as_posix()) for image, path in zip(photos.images, photos.files, strict=True)]
    masks, mask_notes = max((find_masks(folder, both, white_bg) for folder in places), key=lambda found: len(found[0]))
    names = _view_names([image.name for image in photos.images])
    pinholes = _pinholes(model, {image.camera for image in photos.images})
    views = []
    for k, (image, path) in enumerate(zip(photos.images, photos.files, strict=True)):
        lens, (focal_length, principal_point) = model.lenses[image.camera], pinholes[image.camera]
        check_ratio(path, lens)
        camera = Cameras.from_opencv(image.world_to_cam.float()[None], focal_length, principal_point, lens.image_size)
        view = View(names[k], path, camera, lens=lens if lens.distorts else None)
        if masks:
            view = with_mask(view, masks[k], white_bg)
        views.append(fitted(view, downscale))
    found, alpha_notes = with_alpha(views, white_bg)
    return Scene(
        name,
        found,
        rule_splits(len(views), _HELD_OUT, _VALIDATION),
        cloud,
        carried_points=model.cloud_file(),
        notes=(*notes, *photo_notes, *mask_notes, *alpha_notes),
    ).reduced_by(model.offset)


def _pinholes(model: ColmapModel, numbers: set[int]) -> dict[int, tuple[Float[Tensor, "1 2"], Float[Tensor, "1 2"]]]:
    """(focal length, principal point) of undistorted photos, by camera."""
    try:
        return {number: pinhole(model.lenses[number]) for number in sorted(numbers)}
    except InputError as error:
        raise InputError(f"{model_file(model.folder, 'cameras')}: {error}") from error


def _largest_model(root: Path) -> tuple[ColmapModel, tuple[str, ...]]:
    found = find_models(root)
    if not found:
        raise InputError(
            f"{root}: expected a COLMAP model (cameras and images, .bin or .txt) in sparse, in a folder below it or in the folder itself, got none; "
            "reconstruct the scene with COLMAP, or correct datasets.data_root and datasets.scene_name"
        )
    largest, *others = (f"{folder.relative_to(root)} ({count} photos)" for folder, count in found)
    notes = (f"there are {len(found)} models, {largest} is used and {', '.join(others)} ignored",) if others else ()
    return ColmapModel.read(found[0][0]), notes


@dataclass(frozen=True)
class _Photos:
    """Photos of a model with a file in a folder, in view order, and the names of other images there."""

    folder: Path
    images: tuple[ModelImage, ...]
    files: tuple[Path, ...]
    others: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, model: ColmapModel) -> "_Photos":
        """Matches photos to files by name, else by name without suffix (.png for .jpg), else by the last parts of their names, if that is unambiguous."""
        names = [image.name for image in model.images]
        files = files_in(folder, names)
        found = {name: files[name] for name in names if name in files}
        spare = {name: path for name, path in files.items() if path.suffix.lower() in IMAGE_SUFFIXES and name not in found}
        by_stem = {without_suffix(name): name for name in sorted(spare, reverse=True)}
        claims = Counter(without_suffix(name) for name in names if name not in found)
        for name in names:
            if name not in found and claims[without_suffix(name)] == 1 and without_suffix(name) in by_stem:
                found[name] = spare.pop(by_stem[without_suffix(name)])
        if len(found) < len(names):
            found |= files_by_last_parts([name for name in names if name not in found], folder, set(found.values()))
        used = set(found.values())
        images = sorted((image for image in model.images if image.name in found), key=lambda image: natural(image.name))
        others = sorted((name for name, path in spare.items() if path not in used), key=natural)
        return cls(folder, tuple(images), tuple(found[image.name] for image in images), tuple(others))


def photos_of_model(images_root: Path, downscale: float, model: ColmapModel) -> dict[Path, ModelImage]:
    """The registered photos by their file, as ``parse_colmap`` finds them. Raises InputError for fewer than two."""
    photos, _ = _find_photos(images_root, downscale, model)
    return dict(zip(photos.files, photos.images, strict=True))


def _find_photos(images_root: Path, downscale: float, model: ColmapModel) -> tuple[_Photos, tuple[str, ...]]:
    """Photos in the folder for this downscale, or in ``images`` if that has more of them; and notes on photos without file or pose."""
    folders = list(dict.fromkeys((images_folder(images_root, downscale), images_root / "images")))
    if "distorted" in model.folder.parts[-3:] and (images_root / "input").is_dir():
        folders = [images_root / "input"]  # of 3D Gaussian Splatting; images are undistorted ones
    photos = max((_Photos.of(folder, model) for folder in folders), key=lambda photos: len(photos.images))
    count, total = len(photos.images), len(model.images)
    if count < 2:
        raise InputError(
            f"{photos.folder}: expected at least 2 photos of the model {model.folder}, got {count} of {total} (one is {model.images[0].name}); "
            "restore the photos, or correct datasets.images_subroot"
        )
    notes = []
    if photos.folder != folders[0]:
        notes.append(f"{folders[0].name} lacks photos of the model, {photos.folder.name} is used")
    found = {image.name for image in photos.images}
    missing = [image.name for image in model.images if image.name not in found]
    if missing:
        notes.append(f"{len(missing)} of {total} registered photos have no file and are left out: {listing(missing)}")
    if photos.others:
        notes.append(
            f"{len(photos.others)} of {count + len(photos.others)} photos are not registered and are left out: {listing(photos.others)}"
        )
    return photos, tuple(notes)


def _view_names(names: Sequence[str]) -> list[str]:
    """Names without suffix, folders joined by '-'; the suffix is kept where photos would share a name: x_jpg and x_png."""
    short = [without_suffix(name).replace("/", "-") for name in names]
    shared = {name for name, count in Counter(short).items() if count > 1}
    views = [
        view + PurePosixPath(name).suffix.replace(".", "_") if view in shared else view for view, name in zip(short, names, strict=True)
    ]
    view, count = Counter(views).most_common(1)[0]
    if count > 1:
        both = ", ".join(name for name, other in zip(names, views, strict=True) if other == view)
        raise InputError(
            f"photos {both}: expected names that differ when folders are joined by '-', got {view} for each; rename one of them"
        )
    return views


def check_ratio(path: Path, lens: Lens) -> None:
    """Raises InputError for a photo of another aspect ratio than its camera, up to rounding to integers: a cropped, rotated or other photo."""
    (height, width), found = lens.image_size, image_size(path)
    if abs(found[1] / width - found[0] / height) > 1 / width + 1 / height:
        raise InputError(
            f"image {path}: expected {width}x{height} pixels as its camera in the model, or the same ratio, got {found[1]}x{found[0]}; "
            "restore the photo that was reconstructed, or reconstruct the scene again"
        )


LAYOUT = Layout(
    parse_colmap,
    (
        (
            *("sparse/cameras.*", "sparse/*/cameras.*", "cameras.bin", "cameras.txt", "sparse_*/cameras.*", "sparse_*/*/cameras.*"),
            *(f"{place}/sparse/{sub}cameras.*" for place in ("colmap", "distorted") for sub in ("", "*/")),
        ),
        ("images", "images_*", "input"),
    ),
    precedence=10,
)
