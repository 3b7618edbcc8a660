"""Chunks of a cloud are complete and compact."""

import pytest
import torch

from npbgpp.kernels.rasterization import ChunkedCloud


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_chunks_hold_every_point_in_its_bounding_box(count):
    points = torch.randn(count, 3)
    cloud = ChunkedCloud.build(points, chunk_size=8)
    assert len(cloud) == count
    assert set(cloud.index.flatten().tolist()) == set(range(count))
    assert torch.equal(cloud.xyz_world.flatten(1).T, points[cloud.index.flatten()])
    xyz = cloud.xyz_world.permute(1, 2, 0)
    corners = cloud.corners.permute(2, 1, 0)
    assert (xyz >= corners.amin(1)[:, None]).all() and (xyz <= corners.amax(1)[:, None]).all()
    assert all(len(set(map(tuple, box.tolist()))) in (1, 2, 4, 8) for box in corners)  # each once, unless the box is flat


def test_chunks_are_compact():
    """Boxes of 64 chunks of a unit cube are far smaller than the cube."""
    cloud = ChunkedCloud.build(torch.rand(64 * 256, 3), chunk_size=256)
    volumes = (cloud.corners.amax(1) - cloud.corners.amin(1)).prod(0)
    assert volumes.median() < 3 / 64


def test_degenerate_clouds():
    same = ChunkedCloud.build(torch.ones(20, 3), chunk_size=8)
    assert (same.corners == 1).all()
