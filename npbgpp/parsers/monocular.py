"""Monocular videos of dynamic scenes in the layout of nsff_pl, with disparity, optical flow and masks.

* ``images/``: frames, ordered by the number at the end of their names.
* Poses: a COLMAP model of the undistorted frames in ``sparse``, else in ``sparse/0``, matched by file name; else ``poses_bounds.npy``, a row per frame.
* ``disps/``: disparity of each frame (16-bit PNG or .npy), in order.
* ``flow_fw/``: optical flow (.flo) of each frame but the last to the next one; ``flow_bw/``: of each frame but the first to the previous one. By the names of the
  frames; else in natural order, as programs number the files differently.
* ``masks/``: bright (255) where the scene is static, ``<frame>.png`` (00003.png.png) or 00003.png; else ``motion_masks/`` of NSFF, bright where it moves.
* ``novel/``: photos of other cameras at the times of frames, for evaluation: ``images/00003.png`` or ``images/00003_<suffix>.png``, ``cameras.json`` (see
  ``npbgpp.data.pose_files``) with a camera per photo, in order of their names and in the world of the poses, ``masks/`` as above, ``depths/``: 16-bit PNG
  in thousandths of a scene unit.

Splits: all frames train, the middle one validates, test views are the photos in ``novel/``, or all frames without. Frames chosen with val_indices or
test_indices do not train.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from npbgpp.data import (
    CloudFile,
    ColmapModel,
    DepthMap,
    Layout,
    ModelImage,
    MotionMaps,
    Scene,
    VideoSampling,
    View,
    check_flow,
    common_size,
    find_models,
    fitted,
    image_size,
    list_images,
    model_file,
    natural,
    numbered_images,
    pinhole,
    read_poses,
)
from npbgpp.errors import InputError, listing
from npbgpp.geometry import Cameras, Offset
from npbgpp.parsers.colmap import check_ratio
from npbgpp.parsers.llff import read_rows, row_view, without_offset

_FEWEST = 3  # frames, so that one has flow in both directions
_LARGEST_DISPLACEMENT = 1.0  # pixels: negligible distortion
_DEPTH_UNIT = 1e-3  # scene units
_PREPARE = "npbgpp prepare monocular root={root}"


def parse_monocular(
    root: Path,
    images_root: Path,
    name: str,
    cloud: CloudFile,
    start_end: tuple[int, int] | None = None,
    img_wh: tuple[int, int] | None = None,
    downscale: float = 1.0,
) -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with its poses.
        images_root: folder with ``images`` and the motion maps, usually the same.
        name: name of the scene.
        cloud: its point cloud.
        start_end: first frame and the one after the last; None uses all.
        img_wh: (width, height) of the views, of any aspect ratio.
        downscale: factor between the size of frames and of views, in place of ``img_wh``.

    Raises:
        InputError: fewer than three frames, frames without pose, of different sizes or another aspect ratio than their camera, a distorting lens, maps that
            do not match the frames in number or aspect ratio, or photos in ``novel`` without a frame.
    """
    if img_wh is not None and downscale != 1:
        raise InputError(f"datasets.img_wh and datasets.downscale: expected one of them, got {list(img_wh)} and {downscale:g}; remove one")
    files = list(numbered_images(images_root / "images").values())
    if len(files) < _FEWEST:
        raise InputError(
            f"{images_root / 'images'}: expected at least {_FEWEST} frames of a video, got {len(files)}; restore what is missing"
        )
    common_size(files)
    chosen = _chosen(start_end, len(files))
    maps = _motion_maps(images_root, files)
    posed, points, notes, offset = _posed(root, files, chosen)
    views = [
        _sized(replace(view, time_step=k, motion=maps[i]), img_wh, downscale) for k, (i, view) in enumerate(zip(chosen, posed, strict=True))
    ]
    views[0] = replace(views[0], motion=replace(maps[chosen[0]], flow_backward=None))
    last = views[-1].motion
    assert last is not None
    views[-1] = replace(views[-1], motion=replace(last, flow_forward=None))
    for view in views:
        assert view.motion is not None
        for flow in (view.motion.flow_forward, view.motion.flow_backward):
            if flow is not None:
                check_flow(flow, view)
    novel = _novel(
        images_root / "novel", [files[i].stem for i in chosen], [file.stem for file in files], views[0], img_wh, downscale, offset
    )
    frames = tuple(range(len(views)))
    return Scene(
        name,
        (*views, *novel),
        {"train": frames, "val": (len(views) // 2,), "test": tuple(range(len(views), len(views) + len(novel))) if novel else frames},
        cloud,
        carried_points=points,
        notes=(*notes, *_missing(images_root, maps)),
        holds_out=False,
    ).reduced_by(offset)


def _chosen(start_end: tuple[int, int] | None, count: int) -> range:
    if start_end is None:
        return range(count)
    start, end = start_end
    chosen = range(count)[start:end] if 0 <= start < end else range(0)
    if len(chosen) < _FEWEST:
        raise InputError(
            f"datasets.start_end: expected the first frame and the one after the last, at least {_FEWEST} of {count} frames, got {list(start_end)}"
        )
    return chosen


def _sized(view: View, img_wh: tuple[int, int] | None, downscale: float) -> View:
    if img_wh is None:
        return fitted(view, downscale)
    if min(img_wh) < 1:
        raise InputError(f"datasets.img_wh: expected a positive width and height, got {list(img_wh)}")
    size = (img_wh[1], img_wh[0])
    return replace(view, camera=view.camera.resize(size), resized=size != image_size(view.image))


def _posed(root: Path, files: Sequence[Path], chosen: range) -> tuple[list[View], Path | None, tuple[str, ...], Offset | None]:
    """Views of the chosen frames, the file of their sparse points, notes, and the offset of their coordinates."""
    model = undistorted_model(root)
    if model is None:
        path = root / "poses_bounds.npy"
        if not path.is_file():
            raise InputError(
                f"{root}: expected poses of the frames, a COLMAP model in sparse or poses_bounds.npy, got neither; compute them with "
                f"{_PREPARE.format(root=root)} stages=[poses]"
            )
        rows, offset = without_offset(read_rows(path, len(files)))
        return [row_view(files[i], rows[i], f"{path}: row {i}") for i in chosen], None, (), offset
    images = match_frames(model, [files[i] for i in chosen])
    distorted = [lens for lens in (model.lenses[image.camera] for image in images) if lens.distorts]
    moved = max((lens.displacement() for lens in distorted), default=0.0)
    if not moved < _LARGEST_DISPLACEMENT:
        raise InputError(
            f"{model_file(model.folder, 'cameras')}: expected the camera of undistorted frames, got {distorted[0].model} with a distortion "
            f"of up to {moved:.1f} pixels; compute undistorted frames, flow, disparity and masks from the folder frames with "
            f"{_PREPARE.format(root=root)}"
        )
    notes = [f"poses of {model.folder.relative_to(root)}, matched by file names"]
    if moved:
        notes.append(f"the distortion of the camera, at most {moved:.2g} pixels, is ignored")
    views = []
    for i, image in zip(chosen, images, strict=True):
        lens = model.lenses[image.camera]
        check_ratio(files[i], lens)
        focal_length, principal_point = pinhole(replace(lens, model="PINHOLE", params=(*lens.focal_length, *lens.principal_point)))
        camera = Cameras.from_opencv(image.world_to_cam.float()[None], focal_length, principal_point, lens.image_size)
        views.append(View(files[i].stem, files[i], camera))
    return views, model.points_file(), tuple(notes), model.offset


def undistorted_model(root: Path) -> ColmapModel | None:
    """The model in ``sparse``, where COLMAP writes undistorted ones, else the largest one below it; None if there is none.

    Raises:
        InputError: a damaged model.
    """
    found = [folder for folder, _ in find_models(root)]
    if not found:
        return None
    return ColmapModel.read(root / "sparse" if root / "sparse" in found else found[0])


def match_frames(model: ColmapModel, files: Sequence[Path]) -> list[ModelImage]:
    """The photo of each frame in the model, by file name, else without suffix. Raises InputError for frames without one."""
    by_name = {PurePosixPath(image.name).name: image for image in model.images}
    by_stem = {PurePosixPath(image.name).stem: image for image in model.images}
    found = [by_name.get(file.name) or by_stem.get(file.stem) or by_name.get(file.stem) for file in files]
    without = [file.name for file, image in zip(files, found, strict=True) if image is None]
    if without:
        raise InputError(
            f"{model.folder}: expected a pose for each of the {len(files)} frames, got none for {len(without)} that are not registered: {listing(without)}; "
            "choose other frames with datasets.start_end, remove them, or reconstruct the video with better masks"
        )
    return [image for image in found if image is not None]


def _motion_maps(root: Path, files: Sequence[Path]) -> list[MotionMaps]:
    count = len(files)
    disparity = _counted(root / "disps", (".png", ".npy"), files, "disparity of every frame")
    forward = _counted(root / "flow_fw", (".flo",), files[:-1], "flow of every frame but the last")
    backward = _counted(root / "flow_bw", (".flo",), files[1:], "flow of every frame but the first")
    masks, inverted = _masks(root / "masks", files), False
    if masks is None:
        masks, inverted = _masks(root / "motion_masks", files), True
    missing = [None] * count
    columns = zip(
        disparity or missing,
        [*forward, None] if forward else missing,
        [None, *backward] if backward else missing,
        masks or missing,
        strict=True,
    )
    return [MotionMaps(*row, inverted=inverted and masks is not None) for row in columns]


def _counted(folder: Path, suffixes: tuple[str, ...], frames: Sequence[Path], what: str) -> list[Path] | None:
    """Files of the first suffix with any: those with the names of the frames, else in natural order; None without the folder."""
    if not folder.is_dir():
        return None
    files = [[p for p in folder.iterdir() if p.suffix.lower() == suffix and not p.name.startswith(".")] for suffix in suffixes]
    found = sorted(next((matches for matches in files if matches), []), key=lambda path: natural(path.name))
    by_stem = {path.stem: path for path in found}
    if len(found) == len(frames) and all(frame.stem in by_stem for frame in frames):
        found = [by_stem[frame.stem] for frame in frames]
    if len(found) != len(frames):
        raise InputError(
            f"{folder}: expected {len(frames)} files ({', '.join(suffixes)}), the {what}, got {len(found)}; remove other files or compute them again"
        )
    return found


def _masks(folder: Path, files: Sequence[Path]) -> list[Path] | None:
    """One mask per photo; None without the folder. Raises InputError for photos without mask."""
    if not folder.is_dir():
        return None
    found = [next((p for p in (folder / f"{file.name}.png", folder / f"{file.stem}.png") if p.is_file()), None) for file in files]
    without = [file.name for file, mask in zip(files, found, strict=True) if mask is None]
    if without:
        raise InputError(
            f"{folder}: expected a mask <name>.png.png or <name>.png for each of {len(files)} frames, got none for {listing(without)}; add them, or "
            "remove the folder to use no masks"
        )
    return [mask for mask in found if mask is not None]


def _missing(root: Path, maps: Sequence[MotionMaps]) -> tuple[str, ...]:
    folders = {"disps": maps[0].disparity, "flow_fw": maps[0].flow_forward, "flow_bw": maps[-1].flow_backward}
    absent = [folder for folder, file in folders.items() if file is None]
    notes = []
    if absent:
        notes.append(f"there is no {', no '.join(absent)}, which NSFF needs; compute them with {_PREPARE.format(root=root)}")
    if maps[0].static_mask is None:
        notes.append("there are no masks: all pixels count as static")
    return tuple(notes)


def _novel(
    folder: Path,
    stems: Sequence[str],
    known: Sequence[str],
    like: View,
    img_wh: tuple[int, int] | None,
    downscale: float,
    offset: Offset | None,
) -> tuple[View, ...]:
    """Photos of other cameras at the times of the frames in use."""
    if not folder.is_dir():
        return ()
    photos = folder / "images"
    files = sorted(list_images(photos), key=lambda path: natural(path.name))
    cameras = read_poses(folder / "cameras.json", like.camera, offset)
    if len(cameras) != len(files):
        raise InputError(
            f"{folder / 'cameras.json'}: expected a camera for each of {len(files)} photos in {photos}, got {len(cameras)}; correct the file"
        )
    masks, depths = _masks(folder / "masks", files), folder / "depths"
    views = []
    for k, (file, camera) in enumerate(zip(files, cameras, strict=True)):
        frame = next((stem for stem in known if file.stem == stem or file.stem.startswith(f"{stem}_")), None)
        if frame is None:
            raise InputError(
                f"image {file}: expected the name of a frame, such as {known[0]} or {known[0]}_<suffix>, got {file.stem}; rename it"
            )
        if frame not in stems:
            continue  # its frame is not in use
        if image_size(file) != camera.image_size:
            (height, width), found = camera.image_size, image_size(file)
            raise InputError(
                f"image {file}: expected {width}x{height} pixels as its camera has, got {found[1]}x{found[0]}; correct cameras.json"
            )
        motion = None if masks is None else MotionMaps(static_mask=masks[k])
        depth = DepthMap(depths / f"{file.stem}.png", camera, _DEPTH_UNIT) if (depths / f"{file.stem}.png").is_file() else None
        view = View(f"novel_{file.stem}", file, camera, depth=depth, time_step=stems.index(frame), motion=motion)
        views.append(_sized(view, img_wh, downscale))
    return tuple(views)


LAYOUT = Layout(
    parse_monocular, (("images/*",), ("disps/*",), ("flow_fw/*.flo",), ("flow_bw/*.flo",)), precedence=80, sampling=VideoSampling
)
