"""From point indices per pixel to the descriptors that a step needs: those of the winning points, once each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.systems.descriptors import ResidentScene, unique_rows


@dataclass(frozen=True)
class Visible:
    """What b views see.

    Attributes:
        descriptors: leaf tensor with the descriptors of the m points that won a pixel; gradients stop here.
        rows: per level, the row of ``descriptors`` that every cell shows, -1 where it is empty.
        parts: per scene, its name, the rows of its cloud, and where they lie in ``descriptors``.
    """

    descriptors: Float[Tensor, "m c"]
    rows: tuple[Int[Tensor, "b _ _"], ...]
    parts: tuple[tuple[str, Int[Tensor, " _"], slice], ...]


def gather_visible(
    maps: Sequence[Int[Tensor, "b _ _"]], scenes: Sequence[str], residents: Mapping[str, ResidentScene], learn: bool
) -> Visible:
    """Collects the descriptors of the winning points, for learning those of a point once, however many views and levels see it.

    Args:
        maps: per level, index of the point that each cell of each view shows, -1 where it is empty.
        scenes: scene of each view.
        residents: the scenes.
        learn: let gradients reach ``Visible.descriptors``.
    """
    sizes = [level[0].numel() for level in maps]
    # all levels of a view side by side: (b, cells)
    index = torch.cat([level.flatten(1) for level in maps], 1)
    rows = torch.full_like(index, -1)
    parts, tables, start = [], [], 0
    for name in dict.fromkeys(scenes):
        scene = residents[name]
        views = [k for k, other in enumerate(scenes) if other == name]
        for_all = len(views) == len(scenes)
        cells = index.view(-1) if for_all else index[views].view(-1)
        hit = (cells >= 0).nonzero()[:, 0]
        winners = cells.index_select(0, hit)
        # without gradients to sum up, looking a descriptor up twice is cheaper than finding out that it is the same
        seen, position = unique_rows(winners, scene.slot) if learn else (winners, torch.arange(len(winners), device=winners.device))
        found = torch.full_like(cells, -1).index_copy_(0, hit, position.add_(start))
        if for_all:
            rows = found.view_as(rows)
        else:
            rows[views] = found.view(len(views), -1)
        tables.append(scene.table.values.index_select(0, seen))
        parts.append((name, seen, slice(start, start + len(seen))))
        start += len(seen)
    levels = [flat.reshape(level.shape) for flat, level in zip(rows.split(sizes, 1), maps, strict=True)]
    return Visible(torch.cat(tables).requires_grad_(learn), tuple(levels), tuple(parts))
