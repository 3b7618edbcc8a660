"""Thinned clouds: means of voxels, draws with a fixed seed, what is refused."""

import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.geometry.point_cloud import PointCloud
from npbgpp.prepare.depth_fusion import decimate


@pytest.fixture
def cloud() -> PointCloud:
    return PointCloud(torch.rand(500, 3) * 2 - 1, torch.randint(0, 256, (500, 3), dtype=torch.uint8))


def test_points_of_a_voxel_become_their_mean():
    xyz = torch.tensor([[0.1, 0.1, 0.1], [0.3, 0.1, 0.4], [-0.1, 0.1, 0.1], [0.6, 0.1, 0.1]])
    rgb = torch.tensor([[10, 0, 0], [21, 0, 0], [0, 7, 0], [0, 0, 9]], dtype=torch.uint8)
    thin = decimate(PointCloud(xyz, rgb), 0.5, None)
    torch.testing.assert_close(thin.xyz, torch.tensor([[-0.1, 0.1, 0.1], [0.2, 0.1, 0.25], [0.6, 0.1, 0.1]]))
    assert thin.rgb.tolist() == [[0, 7, 0], [16, 0, 0], [0, 0, 9]]


def test_every_point_has_one_of_its_voxel_near(cloud):
    thin = decimate(cloud, 0.25, None)
    assert len(thin) < len(cloud)
    assert torch.cdist(cloud.xyz, thin.xyz).amin(1).max() <= 0.25 * 3**0.5
    assert len((thin.xyz / 0.25).floor().unique(dim=0)) == len(thin)


def test_order_of_the_points_does_not_matter(cloud):
    shuffled = torch.randperm(500)
    first, second = decimate(cloud, 0.3, None), decimate(PointCloud(cloud.xyz[shuffled], cloud.rgb[shuffled]), 0.3, None)
    torch.testing.assert_close(first.xyz, second.xyz)
    assert torch.equal(first.rgb, second.rgb)


def test_a_draw_takes_points_as_they_are_in_their_order_and_again(cloud):
    thin = decimate(cloud, None, 100)
    rows = (cloud.xyz[None] == thin.xyz[:, None]).all(2).nonzero()[:, 1]
    assert len(rows) == 100 and torch.equal(rows, rows.sort().values)
    assert torch.equal(thin.rgb, cloud.rgb[rows])
    torch.manual_seed(99)
    assert torch.equal(decimate(cloud, None, 100).xyz, thin.xyz)
    assert not torch.equal(rows, torch.arange(100))


def test_voxels_come_before_the_draw(cloud):
    coarse = decimate(cloud, 0.5, None)
    thin = decimate(cloud, 0.5, 20)
    assert len(thin) == 20 and torch.cdist(thin.xyz, coarse.xyz).amin(1).max() == 0


def test_few_points_and_no_colours_stay(cloud):
    assert torch.equal(decimate(cloud, None, 500).xyz, cloud.xyz)
    assert torch.equal(decimate(cloud, None, None).xyz, cloud.xyz)
    assert decimate(PointCloud(cloud.xyz), 0.5, 10).rgb is None


@pytest.mark.parametrize(
    ("voxel", "count", "words"),
    [(0.0, None, "voxel: expected a positive"), (float("nan"), None, "voxel"), (float("inf"), None, "voxel"), (None, 0, "count: expected")],
)
def test_choices_out_of_range_are_refused(cloud, voxel, count, words):
    with pytest.raises(InputError, match=words):
        decimate(cloud, voxel, count)
