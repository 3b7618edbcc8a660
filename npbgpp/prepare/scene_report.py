"""What the examination of a scene found. Lengths and depths are in scene units, angles in degrees, shares in 0..1."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from npbgpp.data import Photo, Scene, Stage, View, read_photo
from npbgpp.data.view_selection import farthest_points
from npbgpp.geometry import Cameras, PixelConvention, PixelGrid, PointCloud
from npbgpp.points import visible_points


@dataclass(frozen=True)
class ViewFindings:
    """What one view sees of the cloud. Numbers of points are estimates when not all were looked at.

    Attributes:
        name: name of the view.
        stage: what the view is for; None for a view in no split.
        in_image: points in its image at positive depth.
        shown: those of them beyond the near plane.
        visible: of the points looked at, those beyond the near plane that are nearest in their cell of the coarse depth buffer.
        cells: cells of that buffer.
        nearest: smallest depth in the image; None when the image shows no point, like the next two.
        early: depth before which a thousandth of the points in the image lies.
        median: median depth in the image.
        behind: share of the cloud at depth 0 or less.
    """

    name: str
    stage: Stage | None
    in_image: int
    shown: int
    visible: int
    cells: int
    nearest: float | None
    early: float | None
    median: float | None
    behind: float


@dataclass(frozen=True)
class CameraFindings:
    """Where the cameras are.

    Attributes:
        low: smallest coordinates of the centres.
        high: largest coordinates of the centres.
        distance: median distance to the middle of the cloud.
        spread: median distance of a centre from the middle of the centres.
        depth: median over the views of the median depth; None when no view shows a point.
        angle: median angle between a camera and the one nearest to it, as seen from the middle of the cloud; 0 for one camera, like ``baseline``.
        baseline: median distance between a camera and the one nearest to it.
        field_of_view: smallest and largest horizontal angle of an image.
        up: mean direction that is up in the photos, of length 1; None when the photos have none in common.
        twins: pairs of views of the same pose.
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
    twins: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CloudFindings:
    """The points.

    Attributes:
        path: their file.
        carried: they came with the poses, the scene has no cloud of its own.
        points: how many there are.
        examined: how many of them were looked at, drawn evenly.
        low: smallest coordinates.
        high: largest coordinates.
        middle: median coordinates.
        coloured: they have more than one colour.
        unseen: share that is in no image.
    """

    path: Path
    carried: bool
    points: int
    examined: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    middle: tuple[float, ...]
    coloured: bool
    unseen: float


@dataclass(frozen=True)
class PhotoFindings:
    """One decoded photo.

    Attributes:
        name: name of its view.
        brightness: mean colour in 0..1, on the object where a mask says what that is.
        masked: share of its pixels on the object, None without a mask.
    """

    name: str
    brightness: float
    masked: float | None


@dataclass(frozen=True)
class ColourAgreement:
    """How colours of visible points differ from the photos where the photos change nearby.

    Attributes:
        at: mean absolute difference (0..1) from the pixel that a point falls into.
        beside: the same from the pixels beside it.
        pairs: how many pixels beside were compared.
        step: how far beside, pixels; the largest of the photos.
    """

    at: float
    beside: float
    pairs: int
    step: int

    @property
    def ratio(self) -> float:
        """Below 1 where points fit the photos, 1 where they fit them no better than anywhere near."""
        return self.at / self.beside if self.beside > 0 else 1.0


@dataclass(frozen=True)
class Findings:
    """All that was found.

    Attributes:
        scene: name of the scene.
        layout: name of the layout that the folder was read as.
        views: one entry per view, in the order of the scene.
        sizes: (height, width) of the images, each with the number of views.
        masks: views with a mask.
        lenses: camera models of photos from which distortion is taken out, each with the number of views; empty when there is none.
        resized: views whose photo is resampled when it is read.
        notes: what the parser says of the folder.
        cameras: where they are.
        cloud: the points.
        near: the near plane that was asked about.
        suggested_near: one that drops next to no point; None when no view shows a point.
        pictured: indices of the views to be drawn.
        photos: those that were decoded.
        colours: None for a cloud without colours, or when too few points lie where the photos change.
        leaked: test views that the cloud was made from.
    """

    scene: str
    layout: str
    views: tuple[ViewFindings, ...]
    sizes: tuple[tuple[tuple[int, int], int], ...]
    masks: int
    lenses: tuple[tuple[str, int], ...]
    resized: int
    notes: tuple[str, ...]
    cameras: CameraFindings
    cloud: CloudFindings
    near: float
    suggested_near: float | None
    pictured: tuple[int, ...]
    photos: tuple[PhotoFindings, ...]
    colours: ColourAgreement | None
    leaked: tuple[str, ...]

    def count(self, stage: Stage | None) -> int:
        """Number of views for a purpose; those in no split for None."""
        return sum(view.stage == stage for view in self.views)

    @property
    def before_near(self) -> float:
        """Share of the points in the images that lie at or before the near plane; 0 when the images show none."""
        total = sum(view.in_image for view in self.views)
        return 1 - sum(view.shown for view in self.views) / total if total else 0.0


# ----------------------------------------------------------------------
# Looks at a scene before anything is trained on it: do cloud, cameras and photos belong together, and what will go wrong.


_SEED = 0
_MOST_POINTS = 200_000  # looked at in every view
_PROJECTIONS = 30_000_000  # in all views together, so that scenes of thousands of photos take a minute too
_CELL = 8  # pixels: coarse cells close the holes of a sparse cloud, so that surfaces hide what is behind them
_PHOTOS = 8  # decoded
_EARLY = 0.001  # share of the points that a suggested near plane may drop in a view, at most
_TWIN = 1e-5  # poses that differ by less are one and the same
_ROWS_AT_ONCE = 512  # of a table of distances
_PAIRS = 40  # fewer pixels say nothing about colours
_CONTRAST = 16.0  # of 255: pixels that differ by less cannot tell where a point belongs
_STEP, _STEPS_PER_SIDE = 8, 64  # pixels beside a point: 8, in large photos a 64th of the short side


def examine(scene: Scene, layout: str, near: float, pictures: int = 4, cloud_used: tuple[str, ...] = ()) -> Findings:
    """Looks at all cameras, at the cloud or an even sample of it, and at a few photos.

    Args:
        scene: the scene, with a cloud that is there.
        layout: name of the layout that it was read as.
        near: near plane that training would use, scene units; points at or before it are dropped.
        pictures: how many views are to be drawn at most; they are spread over the scene, and a few more are decoded.
        cloud_used: names of the views that the cloud was made from, where that is known.

    Raises:
        InputError: the cloud or one of these photos cannot be read.
    """
    cloud = scene.cloud.read()
    budget = min(_MOST_POINTS, max(1, _PROJECTIONS // len(scene.views)))
    points = _sample(cloud, budget)
    stages = _stages(scene)
    in_any = torch.zeros(len(points), dtype=torch.bool)
    views = []
    for k, view in enumerate(scene.views):
        found, in_image = _look(view, stages.get(k), points.xyz, near, len(cloud) / len(points))
        views.append(found)
        in_any |= in_image
    middle = points.xyz.median(0).values
    spread = _spread(scene.views, max(pictures, _PHOTOS))
    photos = [read_photo(scene.views[k]) for k in spread]
    early = [view.early for view in views if view.early is not None]
    return Findings(
        scene=scene.name,
        layout=layout,
        views=tuple(views),
        sizes=tuple(sorted(Counter(view.camera.image_size for view in scene.views).items())),
        masks=sum(view.alpha_is_mask or view.mask is not None for view in scene.views),
        lenses=tuple(sorted(Counter(view.lens.model for view in scene.views if view.lens is not None).items())),
        resized=sum(view.resized for view in scene.views),
        notes=scene.notes,
        cameras=_cameras(scene.views, views, middle),
        cloud=CloudFindings(
            path=scene.cloud.path,
            carried=scene.cloud.path == scene.carried_points,
            points=len(cloud),
            examined=len(points),
            low=tuple(cloud.xyz.amin(0).tolist()),
            high=tuple(cloud.xyz.amax(0).tolist()),
            middle=tuple(middle.tolist()),
            coloured=_coloured(cloud),
            unseen=1 - in_any.double().mean().item(),
        ),
        near=near,
        suggested_near=float(f"{0.5 * min(early):.2g}") if early else None,
        pictured=tuple(sorted(spread[:pictures])),
        photos=tuple(_photo(scene.views[k].name, photo) for k, photo in zip(spread, photos, strict=True)),
        colours=_colours([scene.views[k].camera for k in spread], photos, points, near) if _coloured(cloud) else None,
        leaked=tuple(view.name for k, view in enumerate(scene.views) if stages.get(k) == "test" and view.name in set(cloud_used)),
    )


def _sample(cloud: PointCloud, most: int) -> PointCloud:
    if len(cloud) <= most:
        return cloud
    keep = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(_SEED))[:most]
    return PointCloud(cloud.xyz[keep], None if cloud.rgb is None else cloud.rgb[keep])


def _coloured(cloud: PointCloud) -> bool:
    """Whether there are colours; some tools write one and the same for all points."""
    return cloud.rgb is not None and bool((cloud.rgb != cloud.rgb[0]).any())


def _stages(scene: Scene) -> dict[int, Stage]:
    """What views are for. Layouts may list validation and test views as training views too; training leaves them out."""
    order: tuple[Stage, ...] = ("train", "val", "test")
    return {k: stage for stage in order for k in scene.splits[stage]}


def coarse_scale(image_size: tuple[int, int]) -> float:
    """Scale of the depth buffer that decides what is visible; images smaller than a cell get one of their own size."""
    return 1 / _CELL if min(image_size) >= _CELL else 1.0


def _look(
    view: View, stage: Stage | None, xyz_world: Float[Tensor, "n 3"], near: float, weight: float
) -> tuple[ViewFindings, Bool[Tensor, " n"]]:
    """Findings of one view, and which points are in its image at positive depth; every point stands for ``weight`` of them."""
    grid = PixelGrid(PixelConvention.EXACT, view.camera.image_size)
    x, y, depth = grid.normalise(view.camera, xyz_world)[0].unbind(-1)
    in_image = grid.inside(x, y) & (depth > 0)
    depths = depth[in_image].sort().values
    scale = coarse_scale(grid.image_size)
    visible = visible_points(xyz_world, view.camera, scale, near, grid.convention)
    found = ViewFindings(
        name=view.name,
        stage=stage,
        in_image=round(len(depths) * weight),
        shown=round(int((depths > near).sum()) * weight),
        visible=int(visible.sum()),
        cells=math.prod(grid.level_size(scale)),
        nearest=depths[0].item() if len(depths) else None,
        early=depths[int(_EARLY * len(depths))].item() if len(depths) else None,
        median=depths[len(depths) // 2].item() if len(depths) else None,
        behind=(depth <= 0).double().mean().item(),
    )
    return found, in_image


def _cameras(views: Sequence[View], found: Sequence[ViewFindings], middle: Float[Tensor, " 3"]) -> CameraFindings:
    centres = torch.cat([view.camera.centers() for view in views]).double()
    offset = centres - middle
    distance = offset.norm(dim=1).median().item()
    rotations = torch.cat([view.camera.R for view in views]).double()
    medians = [view.median for view in found if view.median is not None]
    depth = torch.tensor(medians).median().item() if medians else None
    chord = _to_nearest(torch.nn.functional.normalize(offset, dim=1))[0]
    baseline = _to_nearest(centres)[0]
    size = max(distance, depth or 0.0)
    apart, twin = _to_nearest(torch.cat([centres / (size or 1.0), rotations.flatten(1)], 1))
    same = [(k, int(twin[k])) for k in range(len(views)) if apart[k] < _TWIN]
    up = rotations[:, :, 1].mean(0)
    left, right = (torch.cat([_half_angle(view.camera, side) for view in views]) for side in (0, 1))
    return CameraFindings(
        low=tuple(centres.amin(0).tolist()),
        high=tuple(centres.amax(0).tolist()),
        distance=distance,
        spread=(centres - centres.median(0).values).norm(dim=1).median().item(),
        depth=depth,
        angle=math.degrees(2 * math.asin(min(1.0, chord.median().item() / 2))) if len(views) > 1 else 0.0,
        baseline=baseline.median().item() if len(views) > 1 else 0.0,
        field_of_view=((left + right).min().item(), (left + right).max().item()),
        up=tuple((up / up.norm()).tolist()) if up.norm() > 0.5 else None,
        twins=tuple((views[a].name, views[b].name) for a, b in sorted({(min(pair), max(pair)) for pair in same})),
    )


def _half_angle(camera: Cameras, side: int) -> Float[Tensor, " b"]:
    """Degrees between the axis of a camera and the left (0) or right (1) border of its image."""
    centre = camera.principal_point[:, 0]
    return torch.rad2deg(torch.atan2(centre if side == 0 else camera.image_size[1] - centre, camera.focal_length[:, 0])).double()


def _to_nearest(vectors: Float[Tensor, "b d"]) -> tuple[Float[Tensor, " b"], Tensor]:
    """Distance of every vector to the nearest other one, and which that is; inf for a vector alone."""
    best = []
    for first, rows in zip(range(0, len(vectors), _ROWS_AT_ONCE), vectors.split(_ROWS_AT_ONCE), strict=True):
        table = torch.cdist(rows, vectors, compute_mode="donot_use_mm_for_euclid_dist")  # the other way loses small distances
        table[torch.arange(len(rows)), torch.arange(first, first + len(rows))] = torch.inf
        best.append(table.min(1))
    return torch.cat([values for values, _ in best]), torch.cat([indices for _, indices in best])


def _spread(views: Sequence[View], most: int) -> tuple[int, ...]:
    """Indices of views that are far from each other; the first ones are so among themselves."""
    centres = torch.cat([view.camera.centers() for view in views])
    return tuple(farthest_points(centres, min(most, len(views)), 0).tolist())


def _photo(name: str, photo: Photo) -> PhotoFindings:
    on_object = None if photo.mask is None else photo.mask[0] >= 128
    pixels = photo.image.flatten(1) if on_object is None or not on_object.any() else photo.image[:, on_object]
    return PhotoFindings(name, pixels.double().mean().item() / 255, None if on_object is None else on_object.double().mean().item())


def _colours(cameras: Sequence[Cameras], photos: Sequence[Photo], points: PointCloud, near: float) -> ColourAgreement | None:
    """Points that belong to the photos have the colour of the pixel that they fall into rather than that of pixels beside it.

    Only pixels that differ from those beside them are asked: walls of one colour fit everywhere.
    """
    assert points.rgb is not None
    total = torch.zeros(3, dtype=torch.float64)
    largest = 0
    for camera, photo in zip(cameras, photos, strict=True):
        seen = visible_points(points.xyz, camera, coarse_scale(camera.image_size), near, PixelConvention.EXACT)[0]
        uv_px = camera.project(points.xyz[seen])[0][0]
        colour = points.rgb[seen].double()
        pixel, _ = _pixels(photo.image, uv_px)
        step = max(_STEP, min(camera.image_size) // _STEPS_PER_SIDE)
        largest = max(largest, step)
        for shift in ((step, 0), (-step, 0), (0, step), (0, -step)):
            other, inside = _pixels(photo.image, uv_px + uv_px.new_tensor(shift))
            tells = inside & ((pixel - other).abs().mean(1) > _CONTRAST)
            differences = [(colour - shown).abs().mean(1)[tells].sum() / 255 for shown in (pixel, other)]
            total += torch.stack([*differences, tells.sum()])
    at, beside, pairs = total.tolist()
    return ColourAgreement(at / pairs, beside / pairs, int(pairs), largest) if pairs >= _PAIRS else None


def _pixels(image: UInt8[Tensor, "3 h w"], uv_px: Float[Tensor, "v 2"]) -> tuple[Float[Tensor, "v 3"], Bool[Tensor, " v"]]:
    """Colours in 0..255 of the pixels that positions fall into, of the nearest pixels for positions outside; and which are inside."""
    height, width = image.shape[1:]
    u, v = uv_px.unbind(1)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return image[:, v.long().clamp(0, height - 1), u.long().clamp(0, width - 1)].T.double(), inside


def short(number: float) -> str:
    """Three digits, without exponent as far as a million."""
    return f"{float(f'{number:.3g}') + 0.0:g}"


def axis_name(direction: Sequence[float]) -> str:
    """The axis that a direction is nearest to, with its sign."""
    k = max(range(3), key=lambda axis: abs(direction[axis]))
    return ("-" if direction[k] < 0 else "+") + "xyz"[k]
