"""From point indices per pixel to the descriptors that a step needs: those of the winning points, once each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.geometry.cameras import Cameras
from npbgpp.models.aggregation import Aggregator
from npbgpp.models.direction_basis import Looked
from npbgpp.systems.descriptors import ResidentScene, unique_rows


@dataclass(frozen=True)
class Part:
    """Rows of one scene's table within ``Gathered.values``.

    Attributes:
        scene: its name.
        points: rows of its table.
        where: where they lie in ``Gathered.values``.
        view: the view that sees them, None when several views of the scene share the part.
    """

    scene: str
    points: Int[Tensor, " _"]
    where: slice
    view: int | None


@dataclass(frozen=True)
class Gathered:
    """Table rows of what b views see.

    Attributes:
        values: rows of the tables of the m points that won a pixel; for learning a leaf, where gradients stop.
        rows: per level, the row of ``values`` that every cell shows, -1 where it is empty.
        parts: where the rows come from.
    """

    values: Float[Tensor, "m q"]
    rows: tuple[Int[Tensor, "b _ _"], ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Visible:
    """What b views see.

    Attributes:
        descriptors: of the m points that won a pixel.
        rows: per level, the row of ``descriptors`` that every cell shows, -1 where it is empty.
        gathered: the table rows that the descriptors were made of, where they come from tables.
    """

    descriptors: Float[Tensor, "m c"]
    rows: tuple[Int[Tensor, "b _ _"], ...]
    gathered: Gathered | None = None


def gather_visible(
    maps: Sequence[Int[Tensor, "b _ _"]], scenes: Sequence[str], residents: Mapping[str, ResidentScene], learn: bool, by_view: bool = False
) -> Gathered:
    """Collects the table rows of the winning points, for learning those of a point once, however many views and levels see it.

    Args:
        maps: per level, index of the point that each cell of each view shows, -1 where it is empty.
        scenes: scene of each view.
        residents: the scenes. Their tables may be on another device than the maps.
        learn: let gradients reach ``Gathered.values``.
        by_view: a part per view, because what is made of a row depends on who looks.
    """
    sizes = [level[0].numel() for level in maps]
    # all levels of a view side by side: (b, cells)
    index = torch.cat([level.flatten(1) for level in maps], 1)
    rows = torch.full_like(index, -1)
    parts, values, start = [], [], 0
    groups = [[k] for k in range(len(scenes))] if by_view else [[k for k, s in enumerate(scenes) if s == n] for n in dict.fromkeys(scenes)]
    for views in groups:
        name = scenes[views[0]]
        scene = residents[name]
        for_all = len(views) == len(scenes)
        cells = index.view(-1) if for_all else index[views].view(-1)
        hit = (cells >= 0).nonzero()[:, 0]
        winners = cells.index_select(0, hit)
        # without gradients to sum up, looking a descriptor up twice is cheaper than finding out that it is the same
        if learn or by_view:
            seen, position = unique_rows(winners, scene.slot)
        else:
            seen, position = winners, torch.arange(len(winners), device=winners.device)
        found = torch.full_like(cells, -1).scatter_(0, hit, position.add_(start))
        if for_all:
            rows = found.view_as(rows)
        else:
            rows[views] = found.view(len(views), -1)
        table = scene.table.values
        values.append(table.index_select(0, seen.to(table.device)).to(index.device))
        parts.append(Part(name, seen, slice(start, start + len(seen)), views[0] if by_view else None))
        start += len(seen)
    levels = [flat.reshape(level.shape) for flat, level in zip(rows.split(sizes, 1), maps, strict=True)]
    rows_of_tables = values[0] if len(values) == 1 else torch.cat(values)
    return Gathered(rows_of_tables.requires_grad_(learn), tuple(levels), tuple(parts))


def describe(gathered: Gathered, residents: Mapping[str, ResidentScene], aggregator: Aggregator, cameras: Cameras) -> Visible:
    """Evaluates coefficients, gathered by view, for the views that look at them."""
    descriptors = []
    for part in gathered.parts:
        assert part.view is not None
        xyz_world = residents[part.scene].xyz_world
        assert xyz_world is not None
        looked = looked_from(xyz_world.index_select(0, part.points), cameras[part.view])
        descriptors.append(aggregator.describe(gathered.values[part.where], looked))
    return Visible(torch.cat(descriptors), gathered.rows, gathered)


def looked_from(xyz_world: Float[Tensor, "v 3"], camera: Cameras) -> Looked:
    """Points as one camera looks at them."""
    return Looked(xyz_world - camera.centers(), camera.R[:, :, 2])
