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
    """Collects the descriptors of the winning points, those of a scene once however many views and levels see them.

    Args:
        maps: per level, index of the point that each cell of each view shows, -1 where it is empty.
        scenes: scene of each view.
        residents: the scenes.
        learn: let gradients reach ``Visible.descriptors``.
    """
    rows = [torch.full_like(level, -1) for level in maps]
    parts, tables, start = [], [], 0
    for name in dict.fromkeys(scenes):
        scene = residents[name]
        views = torch.tensor([k for k, other in enumerate(scenes) if other == name], device=maps[0].device)
        cells = [level[views] for level in maps]
        hits = [level >= 0 for level in cells]
        seen, position = unique_rows(torch.cat([level[hit] for level, hit in zip(cells, hits, strict=True)]), scene.slot)
        per_level = (position + start).split([int(hit.sum()) for hit in hits])
        for level, cell, hit, row in zip(rows, cells, hits, per_level, strict=True):
            level[views] = torch.full_like(cell, -1).masked_scatter(hit, row)
        tables.append(scene.table.values[seen])
        parts.append((name, seen, slice(start, start + len(seen))))
        start += len(seen)
    return Visible(torch.cat(tables).requires_grad_(learn), tuple(rows), tuple(parts))
