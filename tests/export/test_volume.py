"""Voxels: the pairs of a ``.vol`` file mean what its description says."""

import numpy as np
import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.export.mesh import Box
from npbgpp.export.volume import all_round_colours, write_volume

from .fields import ball, densities, facing

BOX = Box((-0.5, -1.0, 0.0), (1.5, 2.0, 4.0), 9)
CPU = torch.device("cpu")


def by_place(xyz: torch.Tensor) -> torch.Tensor:
    return (xyz - torch.tensor(BOX.low)) / (torch.tensor(BOX.high) - torch.tensor(BOX.low))


def test_pairs_decode(tmp_path):
    values = densities(ball((0.5, 0.5, 1.0), (0.6, 1.2, 0.9))).inside(BOX) / 30
    count = write_volume(tmp_path / "new" / "scene.vol", values, BOX, by_place, CPU)
    places, colours = np.frombuffer((tmp_path / "new" / "scene.vol").read_bytes(), dtype="<u4").reshape(-1, 2).T
    y, x, z = places // 81, places // 9 % 9, places % 9
    assert count == len(places) == np.count_nonzero(values) > 50 and (np.diff(places.astype(int)) > 0).all()
    assert (values[x, y, z] > 0).all()
    alpha = 1 - np.exp(-2.0 / 9 * values[x, y, z].astype(float))  # 2 is the width in x
    assert len(np.unique(colours & 255)) > 5 and np.abs((colours & 255) - np.floor(255 * alpha)).max() <= 1
    for shift, index in ((24, x), (16, y), (8, z)):
        assert np.abs((colours >> shift & 255) - np.floor(255 * index / 8)).max() <= 1


def test_white_and_opaque_fill_all_bits(tmp_path):
    write_volume(tmp_path / "scene.vol", np.full((9, 9, 9), 1e9, dtype=np.float32), BOX, torch.ones_like, CPU)
    pairs = np.fromfile(tmp_path / "scene.vol", dtype="<u4").reshape(-1, 2)
    assert np.array_equal(pairs[:, 0], np.arange(729)) and (pairs[:, 1] == 0xFFFFFFFF).all()


def test_an_array(tmp_path):
    values = densities(ball((0.5, 0.5, 1.0), (0.6, 1.2, 0.9))).inside(BOX)
    assert write_volume(tmp_path / "scene.npy", values, BOX, by_place, CPU) == np.count_nonzero(values)
    found = np.load(tmp_path / "scene.npy", allow_pickle=False)
    assert found.dtype == np.float32 and np.array_equal(found, values)


@pytest.mark.parametrize("name", ["scene.vol", "scene.npy"])
def test_nothing_leaves_no_file(tmp_path, name):
    with pytest.raises(InputError, match="expected something dense in x -0.5 to 1.5, y -1 to 2, z 0 to 4"):
        write_volume(tmp_path / name, np.zeros((9, 9, 9), dtype=np.float32), BOX, by_place, CPU)
    assert list(tmp_path.iterdir()) == []


def test_a_voxel_is_seen_from_all_sides():
    assert torch.allclose(all_round_colours(facing(1.0).final, torch.rand(5, 3)), torch.full((5, 3), 0.5))
