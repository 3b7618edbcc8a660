"""A scene before training: points per view, camera poses, colour consistency of points and photos, and diagnostics of them.

Lengths and depths are in scene units, angles in degrees, fractions in 0..1. Large clouds are sampled.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from scipy.spatial import KDTree
from torch import Tensor

from npbgpp.data import Photo, Scene, Stage, View, read_photo
from npbgpp.data.view_selection import farthest_points
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, PointCloud, ProjectionSettings
from npbgpp.points import visible_points

_SEED = 0
_MAX_POINTS = 200_000  # projected into every view
_MAX_PROJECTIONS = 30_000_000  # in all views together: keeps scenes of thousands of photos below a minute
_CELL = 8  # pixels per cell of the depth buffer; coarse, so that surfaces of a sparse cloud hide the points behind them
_PHOTOS = 8  # compared with points
_NEAR_QUANTILE = 0.001  # of the points of a view may lie before the suggested near plane
_SAME_POSE = 1e-5  # of the scene size
_MIN_PAIRS = 40  # fewer compared pixels are inconclusive
_MIN_CONTRAST = 16.0  # of 255, between the pixels compared
_SHIFT, _SHIFTS_PER_SIDE = 8, 64  # pixels between compared pixels: 8, in large photos a 64th of the short side


@dataclass(frozen=True)
class ViewReport:
    """What one view sees of the cloud. Counts are extrapolated from the sample, except for ``covered_cells``.

    Attributes:
        name: name of the view.
        stage: split of the view; None if it is in no split.
        in_image: points inside the image at positive depth.
        beyond_near: those of them beyond the near plane.
        covered_cells: cells of the coarse depth buffer that contain a sampled point beyond the near plane.
        cells: cells of that buffer.
        min_depth: smallest depth in the image; None if there is no point in the image, like the next two.
        near_depth: 0.1 % quantile of the depths in the image.
        median_depth: median depth in the image.
        behind: fraction of the cloud at depth 0 or less.
    """

    name: str
    stage: Stage | None
    in_image: int
    beyond_near: int
    covered_cells: int
    cells: int
    min_depth: float | None
    near_depth: float | None
    median_depth: float | None
    behind: float


@dataclass(frozen=True)
class CameraReport:
    """Positions and orientations of the cameras.

    Attributes:
        low: smallest coordinates of the camera centres.
        high: largest coordinates of the camera centres.
        distance: median distance to the median point of the cloud, without a cloud to the point nearest to the viewing axes; like ``angle``.
        spread: median distance of a camera centre from the median centre.
        depth: median over the views of the median depth; None if no view sees a point.
        angle: median angle between neighbouring cameras, seen from the median point of the cloud; 0 for a single camera, like ``baseline``.
        baseline: median distance between neighbouring cameras.
        field_of_view: smallest and largest horizontal field of view.
        up: mean up direction of the photos, of length 1; None if they have none in common.
        duplicates: pairs of views with the same pose.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    distance: float
    spread: float
    depth: float | None
    angle: float
    baseline: float
    field_of_view: tuple[float, float]
    up: tuple[float, ...] | None
    duplicates: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CloudReport:
    """The point cloud.

    Attributes:
        path: its file.
        from_reconstruction: the points came with the poses, the scene has no other cloud.
        points: number of points.
        sampled: number of points that were projected.
        low: smallest coordinates.
        high: largest coordinates.
        median: median coordinates.
        coloured: the points have more than one colour.
        unseen: fraction of the points outside of every image.
    """

    path: Path
    from_reconstruction: bool
    points: int
    sampled: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    median: tuple[float, ...]
    coloured: bool
    unseen: float


@dataclass(frozen=True)
class PhotoReport:
    """One decoded photo.

    Attributes:
        name: name of its view.
        brightness: mean colour in 0..1, inside the mask if there is one.
        masked: fraction of the pixels inside the mask; None without a mask.
    """

    name: str
    brightness: float
    masked: float | None


@dataclass(frozen=True)
class ColourConsistency:
    """Mean absolute difference (0..1) between colours of visible points and of pixels, where photos have local contrast.

    Attributes:
        at: at the pixel that a point projects to.
        beside: at pixels ``shift`` beside it.
        pairs: number of compared pixels.
        shift: pixels; the largest over the photos.
    """

    at: float
    beside: float
    pairs: int
    shift: int

    @property
    def ratio(self) -> float:
        """Below 1 if points fit the pixels that they project to better than the pixels around them."""
        return self.at / self.beside if self.beside > 0 else 1.0


@dataclass(frozen=True)
class SceneReport:
    """Statistics of a scene.

    Attributes:
        scene: name of the scene.
        layout: name of the layout that was read.
        views: one entry per view, in the order of the scene.
        sizes: (height, width) of the images, each with the number of views.
        masks: number of views with a mask.
        lenses: camera models of distorted photos, each with the number of views.
        resized: number of views whose photo is resampled when it is read.
        notes: notes of the parser.
        cameras: positions and orientations.
        cloud: the point cloud; None for a scene without one.
        near: the near plane of the counts.
        suggested_near: a near plane that clips almost no points; None if no view sees a point.
        drawn: indices of the views for the contact sheet.
        photos: the decoded photos.
        colours: None for a cloud without colours, or if too few points lie where photos have contrast.
        leaked: test views that the cloud was made from.
        unreadable: messages about photos that cannot be decoded.
    """

    scene: str
    layout: str
    views: tuple[ViewReport, ...]
    sizes: tuple[tuple[tuple[int, int], int], ...]
    masks: int
    lenses: tuple[tuple[str, int], ...]
    resized: int
    notes: tuple[str, ...]
    cameras: CameraReport
    cloud: CloudReport | None
    near: float
    suggested_near: float | None
    drawn: tuple[int, ...]
    photos: tuple[PhotoReport, ...]
    colours: ColourConsistency | None
    leaked: tuple[str, ...]
    unreadable: tuple[str, ...] = ()

    def count(self, stage: Stage | None) -> int:
        """Number of views in a split, or in no split for None."""
        return sum(view.stage == stage for view in self.views)

    @property
    def clipped(self) -> float:
        """Fraction of the points in the images at or before the near plane; 0 if there are no points in the images."""
        total = sum(view.in_image for view in self.views)
        return 1 - sum(view.beyond_near for view in self.views) / total if total else 0.0


def inspect_scene(scene: Scene, near: float, drawn: int = 4, cloud_views: Sequence[str] = ()) -> SceneReport:
    """Projects the cloud, or a sample of it, into every view, and decodes every photo.

    Args:
        scene: the scene; without the file of its cloud only views, cameras and photos are reported.
        near: near plane, scene units; points at or before it are clipped.
        drawn: number of views for the contact sheet, at most; they are spread over the scene.
        cloud_views: names of the views that the cloud was made from, if known.

    Raises:
        InputError: the cloud cannot be read, or none of the photos.
    """
    cloud = scene.cloud.read() if scene.cloud.path.exists() else None
    points = None if cloud is None else _sample(cloud, min(_MAX_POINTS, max(1, _MAX_PROJECTIONS // len(scene.views))))
    stages = _stages(scene)
    views, seen = [], None
    for k, view in enumerate(scene.views):
        if cloud is None or points is None:
            views.append(_view_without_points(view, stages.get(k)))
            continue
        report, in_image = _view_report(view, stages.get(k), points.xyz, near, len(cloud) / len(points))
        views.append(report)
        seen = in_image if seen is None else seen | in_image
    centre = _nearest_to_axes(scene.views) if points is None else points.xyz.median(0).values
    photos, unreadable = _decoded(scene.views, _spread_views(scene.views, max(drawn, _PHOTOS)))
    spread = tuple(photos)
    coloured = (
        cloud is not None and cloud.rgb_u8 is not None and bool((cloud.rgb_u8 != cloud.rgb_u8[0]).any())
    )  # some tools write one colour for all
    cloud_view_names = set(cloud_views)
    near_depths = [view.near_depth for view in views if view.near_depth is not None]
    cameras, shown = [scene.views[k].camera for k in spread], list(photos.values())
    return SceneReport(
        scene=scene.name,
        layout=scene.layout,
        views=tuple(views),
        sizes=tuple(sorted(Counter(view.camera.image_size for view in scene.views).items())),
        masks=sum(view.alpha_is_mask or view.mask is not None for view in scene.views),
        lenses=tuple(sorted(Counter(view.lens.model for view in scene.views if view.lens is not None).items())),
        resized=sum(view.resized for view in scene.views),
        notes=scene.notes,
        cameras=_camera_report(scene.views, views, centre),
        cloud=None if cloud is None or points is None else _cloud_report(scene, cloud, points, coloured, seen),
        near=near,
        suggested_near=float(f"{0.5 * min(near_depths):.2g}") if near_depths else None,
        drawn=tuple(sorted(spread[:drawn])),
        photos=tuple(_photo_report(scene.views[k].name, photo) for k, photo in photos.items()),
        colours=_colour_consistency(cameras, shown, points, near) if coloured and points is not None else None,
        leaked=tuple(view.name for k, view in enumerate(scene.views) if stages.get(k) == "test" and view.name in cloud_view_names),
        unreadable=unreadable,
    )


def _decoded(views: Sequence[View], spread: Sequence[int]) -> tuple[dict[int, Photo], tuple[str, ...]]:
    """The readable photos of the chosen views, and messages about all unreadable ones. Raises InputError if none can be read."""
    photos, messages = {}, {}
    for k in dict.fromkeys((*spread, *range(len(views)))):
        try:
            photo = read_photo(views[k])
        except InputError as error:
            messages[k] = error
            continue
        if k in spread:
            photos[k] = photo
    if not photos and messages:
        raise messages[min(messages)]
    return photos, tuple(str(messages[k]) for k in sorted(messages))


def _cloud_report(scene: Scene, cloud: PointCloud, points: PointCloud, coloured: bool, seen: Bool[Tensor, " n"] | None) -> CloudReport:
    return CloudReport(
        path=scene.cloud.path,
        from_reconstruction=scene.cloud.path == scene.carried_points,
        points=len(cloud),
        sampled=len(points),
        low=tuple(cloud.xyz.amin(0).tolist()),
        high=tuple(cloud.xyz.amax(0).tolist()),
        median=tuple(points.xyz.median(0).values.tolist()),
        coloured=coloured,
        unseen=0.0 if seen is None else 1 - seen.double().mean().item(),
    )


def _nearest_to_axes(views: Sequence[View]) -> Float[Tensor, " 3"]:
    """The point with the smallest squared distances to the viewing axes; that of parallel axes is nearest to the origin."""
    centres = torch.cat([view.camera.centers() for view in views]).double()
    axes = torch.cat([view.camera.R[:, :, 2] for view in views]).double()
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None]
    return (torch.linalg.pinv(across.sum(0)) @ (across @ centres[:, :, None]).sum(0))[:, 0].float()


def _view_without_points(view: View, stage: Stage | None) -> ViewReport:
    size = ProjectionSettings(1.0).grid(view.camera.image_size)
    cells = math.prod(size.level_size(coarse_scale(size.image_size)))
    return ViewReport(view.name, stage, 0, 0, 0, cells, None, None, None, 0.0)


def coarse_scale(image_size: tuple[int, int]) -> float:
    """Scale of the depth buffer that decides which points are visible; 1 for images smaller than one of its cells."""
    return 1 / _CELL if min(image_size) >= _CELL else 1.0


def format_number(number: float) -> str:
    """Three significant digits, without an exponent up to a million."""
    return f"{float(f'{number:.3g}') + 0.0:g}"


def nearest_axis(direction: Sequence[float]) -> str:
    """The coordinate axis nearest to a direction, with its sign."""
    k = max(range(3), key=lambda axis: abs(direction[axis]))
    return ("-" if direction[k] < 0 else "+") + "xyz"[k]


def _sample(cloud: PointCloud, limit: int) -> PointCloud:
    if len(cloud) <= limit:
        return cloud
    keep = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(_SEED))[:limit]
    return PointCloud(cloud.xyz[keep], None if cloud.rgb_u8 is None else cloud.rgb_u8[keep])


def _stages(scene: Scene) -> dict[int, Stage]:
    """Split of each view. Layouts may list validation and test views as training views, too; training leaves them out."""
    order: tuple[Stage, ...] = ("train", "val", "test")
    return {k: stage for stage in order for k in scene.splits[stage]}


def _view_report(
    view: View, stage: Stage | None, xyz_world: Float[Tensor, "n 3"], near: float, weight: float
) -> tuple[ViewReport, Bool[Tensor, " n"]]:
    """The report of a view, and which points are inside its image at positive depth. Each sampled point counts ``weight`` times."""
    projection = ProjectionSettings(near)
    grid = projection.grid(view.camera.image_size)
    x, y, depth = grid.normalise(view.camera, xyz_world)[0].unbind(-1)
    in_image = grid.inside(x, y) & (depth > 0)
    depths = depth[in_image].sort().values
    scale = coarse_scale(grid.image_size)
    visible = visible_points(xyz_world, view.camera, scale, projection)
    report = ViewReport(
        name=view.name,
        stage=stage,
        in_image=round(len(depths) * weight),
        beyond_near=round(int((depths > near).sum()) * weight),
        covered_cells=int(visible.sum()),
        cells=math.prod(grid.level_size(scale)),
        min_depth=depths[0].item() if len(depths) else None,
        near_depth=depths[int(_NEAR_QUANTILE * len(depths))].item() if len(depths) else None,
        median_depth=depths[len(depths) // 2].item() if len(depths) else None,
        behind=(depth <= 0).double().mean().item(),
    )
    return report, in_image


def _camera_report(views: Sequence[View], reports: Sequence[ViewReport], median_point: Float[Tensor, " 3"]) -> CameraReport:
    cameras = [view.camera for view in views]
    centres = torch.cat([camera.centers() for camera in cameras]).double()
    rotations = torch.cat([camera.R for camera in cameras]).double()
    offset = centres - median_point
    distance = offset.norm(dim=1).median().item()
    median_depths = [report.median_depth for report in reports if report.median_depth is not None]
    depth = torch.tensor(median_depths).median().item() if median_depths else None
    chord, _ = _nearest_neighbours(torch.nn.functional.normalize(offset, dim=1))
    baseline, _ = _nearest_neighbours(centres)
    pose_distance, twin = _nearest_neighbours(torch.cat([centres / (max(distance, depth or 0.0) or 1.0), rotations.flatten(1)], 1))
    duplicates = {tuple(sorted((k, int(twin[k])))) for k in range(len(views)) if pose_distance[k] < _SAME_POSE}
    up = rotations[:, :, 1].mean(0)
    fields_of_view = torch.cat([_horizontal_field_of_view(camera) for camera in cameras])
    return CameraReport(
        low=tuple(centres.amin(0).tolist()),
        high=tuple(centres.amax(0).tolist()),
        distance=distance,
        spread=(centres - centres.median(0).values).norm(dim=1).median().item(),
        depth=depth,
        angle=math.degrees(2 * math.asin(min(1.0, chord.median().item() / 2))) if len(views) > 1 else 0.0,
        baseline=baseline.median().item() if len(views) > 1 else 0.0,
        field_of_view=(fields_of_view.min().item(), fields_of_view.max().item()),
        up=tuple((up / up.norm()).tolist()) if up.norm() > 0.5 else None,
        duplicates=tuple((views[a].name, views[b].name) for a, b in sorted(duplicates)),
    )


def _horizontal_field_of_view(camera: Cameras) -> Float[Tensor, " b"]:
    left, focal = camera.principal_point[:, 0].double(), camera.focal_length[:, 0].double()
    return torch.rad2deg(torch.atan2(left, focal) + torch.atan2(camera.image_size[1] - left, focal))


def _nearest_neighbours(vectors: Float[Tensor, "b d"]) -> tuple[Float[Tensor, " b"], Int64[Tensor, " b"]]:
    """Distance of each vector to its nearest neighbour, and the index of that; inf and b for a single vector."""
    distance, index = (torch.from_numpy(values) for values in KDTree(vectors.numpy()).query(vectors.numpy(), k=2))
    itself_second = index[:, 1] == torch.arange(len(vectors))  # of equal vectors
    return distance[:, 1], torch.where(itself_second, index[:, 0], index[:, 1])


def _spread_views(views: Sequence[View], limit: int) -> tuple[int, ...]:
    """Indices of views far from each other; any first part of them is, too."""
    centres = torch.cat([view.camera.centers() for view in views])
    return tuple(farthest_points(centres, min(limit, len(views)), 0).tolist())


def _photo_report(name: str, photo: Photo) -> PhotoReport:
    inside = None if photo.mask is None else photo.mask[0] >= 128
    pixels = photo.image.flatten(1) if inside is None or not inside.any() else photo.image[:, inside]
    return PhotoReport(name, pixels.double().mean().item() / 255, None if inside is None else inside.double().mean().item())


def _colour_consistency(cameras: Sequence[Cameras], photos: Sequence[Photo], points: PointCloud, near: float) -> ColourConsistency | None:
    """Compares each visible point with the pixel that it projects to and with four pixels around, if those differ from it.

    With correct poses the first difference is the smaller one. Pixels without contrast fit at any pose, and are left out.
    """
    assert points.rgb_u8 is not None
    total = torch.zeros(3, dtype=torch.float64)
    largest_shift = 0
    for camera, photo in zip(cameras, photos, strict=True):
        visible = visible_points(points.xyz, camera, coarse_scale(camera.image_size), ProjectionSettings(near))[0]
        uv_px = camera.project(points.xyz[visible])[0][0]
        colour = points.rgb_u8[visible].double()
        pixel, _ = _pixels(photo.image, uv_px)
        shift = max(_SHIFT, min(camera.image_size) // _SHIFTS_PER_SIDE)
        largest_shift = max(largest_shift, shift)
        for offset in ((shift, 0), (-shift, 0), (0, shift), (0, -shift)):
            other, inside = _pixels(photo.image, uv_px + uv_px.new_tensor(offset))
            compared = inside & ((pixel - other).abs().mean(1) > _MIN_CONTRAST)
            differences = [(colour - shown).abs().mean(1)[compared].sum() / 255 for shown in (pixel, other)]
            total += torch.stack([*differences, compared.sum()])
    at, beside, pairs = total.tolist()
    return ColourConsistency(at / pairs, beside / pairs, int(pairs), largest_shift) if pairs >= _MIN_PAIRS else None


def _pixels(image: UInt8[Tensor, "3 h w"], uv_px: Float[Tensor, "v 2"]) -> tuple[Float[Tensor, "v 3"], Bool[Tensor, " v"]]:
    """Colours, 0..255, at positions clamped to the image, and which positions are inside of it."""
    height, width = image.shape[1:]
    u, v = uv_px.unbind(1)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return image[:, v.long().clamp(0, height - 1), u.long().clamp(0, width - 1)].T.double(), inside


# ----------------------------------------------------------------------
# Diagnostics: each message gives a number and advice


_MIN_POINTS = 100  # in an image
_MAX_CLIPPED = 0.05  # fraction of the points in the images
# measured on six scenes: 0.30 to 0.71 with correct cameras, 0.86 and more with mirrored, rotated and permuted ones
_MAX_COLOUR_RATIO = 0.8
_MIN_SPREAD = 1e-3  # of the distance to the points
_MAX_BEHIND = 0.9  # fraction of the cloud; cameras inside a room have half of it behind them
_MIN_TRAIN_VIEWS = 3
_DARK, _BRIGHT = 0.02, 0.98  # mean colour
# a cloud is sparse if its points cover few cells of a view (fraction, or of those inside its mask) and lie singly in these
_MIN_COVERED, _MIN_DENSITY = 0.3, 3.0
_MAX_UNSEEN = 0.5  # fraction of the cloud


def diagnose(report: SceneReport) -> dict[str, str]:
    """A message per kind of problem, the gravest first; empty for a good scene."""
    messages = {kind: check(report) for kind, check in _CHECKS.items()}
    return {kind: message for kind, message in messages.items() if message is not None}


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _reversed_cameras(r: SceneReport) -> str | None:
    count = sum(view.behind > _MAX_BEHIND for view in r.views)
    if 2 * count <= len(r.views):
        return None
    return (
        f"The cloud lies behind {count} of {len(r.views)} cameras: their viewing direction is probably reversed. Check the axes of the poses (OpenGL cameras "
        "look along -z, OpenCV cameras along +z), and that poses and cloud are from the same reconstruction."
    )


def _unreadable_photos(r: SceneReport) -> str | None:
    if not r.unreadable:
        return None
    count = len(r.unreadable)
    return f"{counted(count, 'photo')} of {len(r.views)} cannot be decoded, such as: {r.unreadable[0]}"


def counted(count: int, name: str) -> str:
    """A number of things, which are one or several."""
    return f"{count} {name}" + ("" if count == 1 else "s")


def _sparse_cloud(r: SceneReport) -> str | None:
    if r.cloud is None or _reversed_cameras(r) is not None:
        return None
    seen = [view for view in r.views if view.covered_cells]
    masked = [photo.masked for photo in r.photos if photo.masked]
    shares = sorted(view.covered_cells / view.cells for view in seen)
    densities = sorted(view.beyond_near / view.covered_cells for view in seen)
    share = shares[len(seen) // 2] / (sum(masked) / len(masked) if masked else 1.0) if seen else 1.0
    if share >= _MIN_COVERED or densities[len(seen) // 2] >= _MIN_DENSITY:
        return None
    return (
        f"The cloud is too sparse for NPBG and NPBG++: points cover {100 * share:.0f} % of the cells of 8x8 pixels in the median view, and are single there. "
        "Make a dense cloud (npbgpp prepare dense; npbgpp prepare cloud fuses depth maps or masks; Metashape: Build Dense Cloud), or use "
        "system=gaussians or system=nerf."
    )


def _empty_views(r: SceneReport) -> str | None:
    if r.cloud is None:
        return None
    explained = _reversed_cameras(r) is not None
    few = [view for view in r.views if view.in_image < _MIN_POINTS and not (explained and view.behind > _MAX_BEHIND)]
    if not few:
        return None
    empty = sum(view.in_image == 0 for view in few)
    return (
        f"{len(few)} of {len(r.views)} views {'has' if len(few) == 1 else 'have'} fewer than {_MIN_POINTS} points in their image, {empty} of them none "
        f"({_list_names([view.name for view in few])}). Remove these views, use a denser cloud, or check that poses and cloud are from the same reconstruction."
    )


def _near_plane(r: SceneReport) -> str | None:
    emptied = [view.name for view in r.views if view.in_image >= _MIN_POINTS > view.beyond_near]
    if r.clipped <= _MAX_CLIPPED and not emptied:
        return None
    keep = f"{counted(len(emptied), 'view')} {'keeps' if len(emptied) == 1 else 'keep'}"
    rest = f"; {keep} fewer than {_MIN_POINTS} points ({_list_names(emptied)})" if emptied else ""
    return (
        f"The near plane {format_number(r.near)} clips {100 * r.clipped:.1f} % of the points in the images{rest}. Set "
        f"system.near={r.suggested_near:g}."
    )


def _colours(r: SceneReport) -> str | None:
    if r.colours is None or r.colours.ratio <= _MAX_COLOUR_RATIO:
        return None
    return (
        f"Colours of points fit the photos hardly better at their projection than {r.colours.shift} pixels beside it (differences {r.colours.at:.3f} and "
        f"{r.colours.beside:.3f}, ratio {r.colours.ratio:.2f}, below {_MAX_COLOUR_RATIO:g} in good scenes): poses, axes, intrinsics or the order of the photos "
        "are probably wrong. Check on the contact sheet whether points lie on the surfaces that they belong to."
    )


def _single_viewpoint(r: SceneReport) -> str | None:
    distance = max(r.cameras.distance, r.cameras.depth or 0.0)
    if len(r.views) < 2 or r.cameras.spread >= _MIN_SPREAD * distance:
        return None
    return (
        f"All cameras are nearly at the same position: their median distance from its centre is {format_number(r.cameras.spread)}, the points are "
        f"{format_number(distance)} away. Rotation alone shows no parallax; take photos from different positions, or check the translations of the poses."
    )


def _train_views(r: SceneReport) -> str | None:
    count = r.count("train")
    if count >= _MIN_TRAIN_VIEWS:
        return None
    return f"The scene has {counted(count, 'training view')}. Provide at least {_MIN_TRAIN_VIEWS}, or shorten the lists of validation and test views."


def _duplicate_poses(r: SceneReport) -> str | None:
    if not r.cameras.duplicates:
        return None
    (first, second), count = r.cameras.duplicates[0], len(r.cameras.duplicates)
    return (
        f"{counted(count, 'pair')} of views {'has' if count == 1 else 'have'} the same pose, such as {first} and {second}. Remove the "
        "duplicates; if one of a pair is a test view, its score says nothing about novel views."
    )


def _dark_photos(r: SceneReport) -> str | None:
    return _exposure(r, "black", [photo.name for photo in r.photos if photo.brightness < _DARK])


def _bright_photos(r: SceneReport) -> str | None:
    return _exposure(r, "white", [photo.name for photo in r.photos if photo.brightness > _BRIGHT])


def _exposure(r: SceneReport, colour: str, names: list[str]) -> str | None:
    if not names:
        return None
    return (
        f"{len(names)} of {counted(len(r.photos), 'decoded photo')} {'is' if len(names) == 1 else 'are'} nearly {colour} "
        f"({_list_names(names)}). Check how they were exported: bits per channel, alpha, exposure."
    )


def _masks(r: SceneReport) -> str | None:
    masked = [photo for photo in r.photos if photo.masked is not None]
    empty = [photo.name for photo in masked if photo.masked == 0]
    if empty:
        return (
            f"{len(empty)} of {counted(len(masked), 'decoded mask')} {'is' if len(empty) == 1 else 'are'} empty "
            f"({_list_names(empty)}). Masks and alpha are bright on the object; check that they are not inverted."
        )
    if masked and all(photo.masked == 1 for photo in masked):
        masks = "The decoded mask covers" if len(masked) == 1 else f"All {len(masked)} decoded masks cover"
        return f"{masks} the whole photo. Check the mask files, or the alpha channels of the photos."
    return None


def _unseen_points(r: SceneReport) -> str | None:
    if r.cloud is None or r.cloud.unseen <= _MAX_UNSEEN or _reversed_cameras(r) is not None:
        return None
    return (
        f"{100 * r.cloud.unseen:.0f} % of the cloud is outside of every image and is never trained. Crop the cloud to the photographed part, and check that "
        "poses and cloud are from the same reconstruction."
    )


def _leaked_test_views(r: SceneReport) -> str | None:
    if not r.leaked:
        return None
    return (
        f"The cloud was made with {len(r.leaked)} of {counted(r.count('test'), 'test view')} ({_list_names(r.leaked)}): their scores are better than those of novel "
        "views. Make the cloud from the training views."
    )


_CHECKS: dict[str, Callable[[SceneReport], str | None]] = {
    "unreadable photos": _unreadable_photos,
    "reversed cameras": _reversed_cameras,
    "sparse cloud": _sparse_cloud,
    "empty views": _empty_views,
    "near plane": _near_plane,
    "colours": _colours,
    "single viewpoint": _single_viewpoint,
    "training views": _train_views,
    "duplicate poses": _duplicate_poses,
    "dark photos": _dark_photos,
    "bright photos": _bright_photos,
    "masks": _masks,
    "unseen points": _unseen_points,
    "leaked test views": _leaked_test_views,
}
