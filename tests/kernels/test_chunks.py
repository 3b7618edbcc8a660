"""Blocks of a cloud: complete, compact, in no need of order."""

import pytest
import torch

from npbgpp.kernels.chunks import ChunkedCloud


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_every_point_is_in_its_box_and_none_is_lost(count):
    points = torch.randn(count, 3)
    cloud = ChunkedCloud.build(points, block=8)
    assert len(cloud) == count
    assert set(cloud.index.flatten().tolist()) == set(range(count))
    assert torch.equal(cloud.xyz_world.flatten(1).T, points[cloud.index.flatten()])
    xyz = cloud.xyz_world.permute(1, 2, 0)
    corners = cloud.corners.permute(2, 1, 0)
    assert (xyz >= corners.amin(1)[:, None]).all() and (xyz <= corners.amax(1)[:, None]).all()
    assert all(len(set(map(tuple, box.tolist()))) in (1, 2, 4, 8) for box in corners)  # each once, unless the box is flat


def test_blocks_are_compact():
    """64 blocks of a unit cube have boxes far smaller than the cube."""
    cloud = ChunkedCloud.build(torch.rand(64 * 256, 3), block=256)
    volumes = (cloud.corners.amax(1) - cloud.corners.amin(1)).prod(0)
    assert volumes.median() < 3 / 64


def test_degenerate_clouds():
    same = ChunkedCloud.build(torch.ones(20, 3), block=8)
    assert (same.corners == 1).all()
