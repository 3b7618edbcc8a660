"""Keys of cells and sums over voxels, against plain Python."""

from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from npbgpp.errors import InputError
from npbgpp.geometry.point_cloud import PointCloud
from npbgpp.prepare.depth_fusion import LARGEST_CELL, VoxelSums, pack, unpack

NUMBERS = st.integers(-LARGEST_CELL, LARGEST_CELL - 1)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=20))
def test_keys_are_cells_and_sort_like_them(cells):
    key = pack(torch.tensor(cells))
    assert torch.equal(unpack(key), torch.tensor(cells))
    assert [tuple(cell) for cell in unpack(key.sort().values).tolist()] == sorted(cells)


def batch(seed: int) -> PointCloud:
    generator = torch.Generator().manual_seed(seed)
    return PointCloud(torch.randn(200, 3, generator=generator), torch.randint(0, 256, (200, 3), generator=generator, dtype=torch.uint8))


def test_sums_of_batches_are_those_of_a_loop():
    clouds, side = [batch(0), batch(1), batch(2)], 0.7
    voxels = defaultdict(list)
    for k, cloud in enumerate(clouds):
        for xyz, rgb in zip(cloud.xyz.double().tolist(), cloud.rgb.tolist(), strict=True):
            voxels[tuple(int(x // side) for x in xyz)].append((k, xyz, rgb))
    sums = VoxelSums.merged([VoxelSums.merged([VoxelSums.of(c, side) for c in clouds[:2]]), VoxelSums.of(clouds[2], side)])
    for hits in (1, 2, 3):
        held = [points for _, points in sorted(voxels.items()) if len({k for k, _, _ in points}) >= hits]
        found = sums.means(hits)
        torch.testing.assert_close(found.xyz, torch.tensor([torch.tensor([p[1] for p in points]).mean(0).tolist() for points in held]))
        mean = torch.tensor([torch.tensor([p[2] for p in points]).double().mean(0).tolist() for points in held])
        assert (found.rgb.double() - mean).abs().max() <= 0.5 + 1e-4
    assert 0 < len(held) < len(voxels)


def test_places_far_from_the_origin_keep_their_digits():
    xyz = torch.tensor([[60_000.0, 0.0, -60_000.0]]) + torch.tensor([[0.0, 0.0, 0.0], [0.125, 0.0, 0.0]])
    assert torch.equal(VoxelSums.of(PointCloud(xyz), 0.25).means().xyz, torch.tensor([[60_000.0625, 0.0, -60_000.0]]))


@pytest.mark.parametrize("side", [1e-9, 1e-300])
def test_voxels_beyond_counting_are_refused(side):
    with pytest.raises(InputError, match="use larger voxels"):
        VoxelSums.of(batch(0), side)
