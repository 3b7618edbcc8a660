"""Cloud and cameras of a scene from above and from the side, drawn without perspective.

Symbols: a basis (3, 3) holds, row by row, the world directions to the right, upwards and towards the observer; rut are coordinates along them. Drawings are
squares of ``side`` pixels; uv_px are pixels from their top-left corner.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from npbgpp.data.scene import Scene, Stage
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pointcloud import PointCloud
from npbgpp.prepare.findings import Findings
from npbgpp.prepare.words import axis_name, short

COLOURS: dict[Stage | None, tuple[int, int, int]] = {
    None: (150, 150, 150),
    "train": (30, 90, 200),
    "val": (230, 130, 0),
    "test": (200, 30, 60),
}
_WORDS: dict[Stage | None, str] = {None: "in no split", "train": "training", "val": "validation", "test": "test"}
_PAPER, _INK, _CLOUD = (250, 250, 248), (30, 30, 34), (140, 140, 140)
_GAP, _LINE = 8, 24
_MOST_POINTS = 100_000  # drawn; more would cover each other
_LONG, _SHORT, _MANY = 0.07, 0.035, 40  # length of a camera as a share of the drawing, and from how many views on it is the short one
_MARGIN = 0.1  # around cameras and cloud, as a share of them
_STRAY = 0.01  # share of the points that may lie beyond the drawing on every side


def plans(scene: Scene, findings: Findings, cloud: PointCloud, width: int) -> Image.Image:
    """Both drawings side by side with a legend."""
    side = (width - 3 * _GAP) // 2
    image = Image.new("RGB", (width, side + 2 * _LINE + _GAP), _PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    centres = torch.cat([view.camera.centers() for view in scene.views])
    step = -(-len(cloud) // _MOST_POINTS)
    points = PointCloud(cloud.xyz[::step], None if cloud.rgb is None else cloud.rgb[::step])
    low, high = _box(points.xyz, centres)
    top, level = bases(findings, high - low)
    for k, (title, basis) in enumerate((("from above", top), ("from the side", level))):
        plan = Plan(basis, (low + high) / 2, (high - low).max().item() / 2 * (1 + _MARGIN), side)
        left = _GAP + k * (side + _GAP)
        image.paste(plan.draw(scene, findings, points), (left, _LINE))
        words = (
            f"{title}: {axis_name(basis[0].tolist())} to the right, {axis_name(basis[1].tolist())} upwards, {short(2 * plan.reach)} wide"
        )
        pen.text((left, 4), words, fill=_INK, font=font)
    left = _GAP
    for stage in COLOURS:
        count = findings.count(stage)
        if count:
            words = f"{count} {_WORDS[stage]}"
            pen.rectangle((left, side + _LINE + 9, left + 10, side + _LINE + 19), fill=COLOURS[stage])
            pen.text((left + 16, side + _LINE + 5), words, fill=_INK, font=font)
            left += 16 + round(pen.textlength(words, font=font)) + 24
    return image


def _box(xyz_world: Float[Tensor, "n 3"], centres: Float[Tensor, "b 3"]) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
    """Corners of what is drawn: all cameras, and the cloud but for stray points."""
    ordered = xyz_world.sort(0).values
    low, high = ordered[int(_STRAY * (len(ordered) - 1))], ordered[-1 - int(_STRAY * (len(ordered) - 1))]
    return torch.minimum(low, centres.amin(0)), torch.maximum(high, centres.amax(0))


def bases(findings: Findings, extent: Float[Tensor, " 3"]) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "3 3"]]:
    """Of the drawings from above and from the side: the axis nearest to the photos' up is up, +z if there is none; the longer one of the others lies across."""
    photos_up = torch.tensor((0.0, 0.0, 1.0) if findings.cameras.up is None else findings.cameras.up)
    vertical = int(photos_up.abs().argmax())
    across = max((axis for axis in range(3) if axis != vertical), key=lambda axis: extent[axis].item())
    up, right = torch.eye(3)[vertical] * photos_up[vertical].sign(), torch.eye(3)[across]
    return torch.stack([right, torch.linalg.cross(up, right), up]), torch.stack([right, up, torch.linalg.cross(right, up)])


@dataclass(frozen=True)
class Plan:
    """One drawing.

    Attributes:
        basis: see the module docstring.
        middle: world point in its middle.
        reach: from the middle to the border, scene units.
        side: its size.
    """

    basis: Float[Tensor, "3 3"]
    middle: Float[Tensor, " 3"]
    reach: float
    side: int

    def place(self, xyz_world: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """uv_px of world points."""
        rut = (xyz_world - self.middle) @ self.basis.T / (self.reach or 1.0)
        return (rut[:, :2] * rut.new_tensor([1.0, -1.0]) + 1) * (self.side / 2)

    def draw(self, scene: Scene, findings: Findings, points: PointCloud) -> Image.Image:
        """The points, what is nearer to the observer over what is behind, and over them the cameras; test views on top."""
        canvas = torch.tensor(_PAPER, dtype=torch.uint8).repeat(self.side, self.side, 1)
        uv_px = self.place(points.xyz)
        order = (points.xyz @ self.basis[2]).argsort()
        order = order[((uv_px >= 0) & (uv_px < self.side)).all(1)[order]]
        u, v = uv_px[order].long().unbind(1)
        # numpy writes in order, so that the last one stays
        canvas.numpy()[v.numpy(), u.numpy()] = _CLOUD if points.rgb is None else points.rgb[order].numpy()
        image = Image.fromarray(canvas.numpy())
        pen = ImageDraw.Draw(image)
        length = 2 * self.reach * (_LONG if len(scene.views) <= _MANY else _SHORT)
        for stage in COLOURS:
            for view, found in zip(scene.views, findings.views, strict=True):
                if found.stage == stage:
                    self._camera(pen, view.camera, length, COLOURS[stage])
        pen.rectangle((0, 0, self.side - 1, self.side - 1), outline=(200, 200, 200))
        return image

    def _camera(self, pen: ImageDraw.ImageDraw, camera: Cameras, length: float, colour: tuple[int, int, int]) -> None:
        """The pyramid between the centre of a camera and its image, ``length`` high."""
        height, width = camera.image_size
        corners = camera.R.new_tensor([[0, 0], [width, 0], [width, height], [0, height]])
        xy = (camera.principal_point - corners) / camera.focal_length * length
        xyz_cam = torch.cat([xy, torch.full((4, 1), length)], 1).to(camera.R)
        xyz_world = torch.linalg.solve(camera.R[0].T, (xyz_cam - camera.T).T).T
        apex, *base = [tuple(place) for place in self.place(torch.cat([camera.centers(), xyz_world])).tolist()]
        for k, corner in enumerate(base):
            pen.line([apex, corner], fill=colour)
            pen.line([corner, base[k - 1]], fill=colour)
        pen.ellipse((apex[0] - 2, apex[1] - 2, apex[0] + 2, apex[1] + 2), fill=colour)
