"""What the examination of a scene found. Lengths and depths are in scene units, angles in degrees, shares in 0..1."""

from dataclasses import dataclass
from pathlib import Path

from npbgpp.data.scene import Stage


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
