"""NeRF-Synthetic ("Blender") scenes: ``transforms_{train,val,test}.json`` beside RGBA renderings (Mildenhall et al., NeRF, 2020), also as exported by
BlenderNeRF and instant-ngp, see ``npbgpp.parsers.transforms_file``.

Views are ordered train, validation, test. ``transforms_val.json`` may be missing. Renderings without alpha are photos without mask.

Splits: all train frames, every tenth validation frame from the first, all test frames.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from npbgpp.data import WHITE, CloudFile, Layout, Scene, Stage, View, has_alpha, image_size
from npbgpp.errors import InputError
from npbgpp.parsers.transforms_file import TransformsFile, check_names, frame_camera, view_name

_FILES: tuple[Stage, ...] = ("train", "val", "test")
_VALIDATION_STEP = 10
_MISSING = (
    "a NeRF-Synthetic scene has transforms_train.json, transforms_test.json and usually transforms_val.json: restore it, or correct "
    "datasets.data_root or datasets.scene_name"
)


def parse_nerf_synthetic(
    root: Path, images_root: Path, name: str, cloud: CloudFile, white_bg: bool = True, compositing: Literal["authors", "exact"] = "authors"
) -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with the json files.
        images_root: folder that image names are relative to, usually the same.
        name: name of the scene.
        cloud: its point cloud.
        white_bg: composite on white; otherwise keep the stored colours.
        compositing: "authors" truncates composited colours to 8 bits, "exact" rounds them.

    Raises:
        InputError: a missing or unreadable json file, an invalid pose or lens, a missing image, images of different sizes whose intrinsics are fields of
            view, alpha in some of the images, duplicate views.
    """
    views: list[View] = []
    splits: dict[Stage, tuple[int, ...]] = {}
    notes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    for stage in _FILES:
        path = root / f"transforms_{stage}.json"
        if stage == "val" and not path.exists():
            splits[stage] = ()
            notes = (f"there is no {path.name}: no view validates, unless datasets.val_indices chooses some",)
            continue
        file = TransformsFile.read(path, _MISSING)
        first = len(views)
        for k, frame in enumerate(file.frames):
            image = file.image(k, images_root)
            found = image_size(image)
            size = found if size is None else size
            if found != size and not file.states_size(k):
                raise InputError(
                    f"image {image}: expected {size[1]}x{size[0]} pixels as the first image of the scene, got {found[1]}x{found[0]}; resize the image"
                )
            lens = file.lens(k, image, found)
            view = View(
                view_name(frame["file_path"]),
                image,
                frame_camera(file.pose(k), lens),
                alpha_is_mask=has_alpha(image),
                truncates=compositing == "authors",
                lens=lens if lens.distorts else None,
            )
            views.append(view)
        indices = range(first, len(views))
        splits[stage] = tuple(indices[::_VALIDATION_STEP] if stage == "val" else indices)
    if not splits["train"]:
        raise InputError(f"{root / 'transforms_train.json'}: expected at least one training frame, got none; add frames")
    check_names(root, views)
    opaque = [view for view in views if not view.alpha_is_mask]
    if opaque and len(opaque) < len(views):
        raise InputError(
            f"image {opaque[0].image}: expected an alpha channel (the mask of the object) as {len(views) - len(opaque)} of {len(views)} images have, got none; "
            "export all images with alpha (RGBA), or all without"
        )
    if opaque:
        notes = (*notes, "the images have no alpha channel: they are photos without mask")
    elif white_bg:
        views = [replace(view, background=WHITE) for view in views]
    return Scene(name, tuple(views), splits, cloud, notes=notes)


LAYOUT = Layout(parse_nerf_synthetic, (("transforms_train.json",),), precedence=90)
