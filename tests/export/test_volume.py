"""Voxel files decoded by hand."""

import numpy as np
import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.export.mesh import Box
from npbgpp.export.volume import mean_colours, write_volume

from ..helpers.fields import DirectionField, densities, ellipsoid

BOX = Box((-0.5, -1.0, 0.0), (1.5, 2.0, 4.0), 9)
CPU = torch.device("cpu")


def position_colours(xyz: torch.Tensor) -> torch.Tensor:
    return (xyz - torch.tensor(BOX.low)) / (torch.tensor(BOX.high) - torch.tensor(BOX.low))


def test_vol_file(tmp_path):
    values = densities(ellipsoid((0.5, 0.5, 1.0), (0.6, 1.2, 0.9))).on_grid(BOX) / 30
    count = write_volume(tmp_path / "new" / "scene.vol", values, BOX, position_colours, CPU)
    index, colours = np.frombuffer((tmp_path / "new" / "scene.vol").read_bytes(), dtype="<u4").reshape(-1, 2).T
    y, x, z = index // 81, index // 9 % 9, index % 9
    assert count == len(index) == np.count_nonzero(values) > 50 and (np.diff(index.astype(int)) > 0).all()
    assert (values[x, y, z] > 0).all()
    alpha = 1 - np.exp(-2.0 / 9 * values[x, y, z].astype(float))  # 2 is the width in x
    assert len(np.unique(colours & 255)) > 5 and np.abs((colours & 255) - np.floor(255 * alpha)).max() <= 1
    for shift, node in ((24, x), (16, y), (8, z)):
        assert np.abs((colours >> shift & 255) - np.floor(255 * node / 8)).max() <= 1


def test_white_and_opaque_set_all_bits(tmp_path):
    write_volume(tmp_path / "scene.vol", np.full((9, 9, 9), 1e9, dtype=np.float32), BOX, torch.ones_like, CPU)
    pairs = np.fromfile(tmp_path / "scene.vol", dtype="<u4").reshape(-1, 2)
    assert np.array_equal(pairs[:, 0], np.arange(729)) and (pairs[:, 1] == 0xFFFFFFFF).all()


def test_npy_file(tmp_path):
    values = densities(ellipsoid((0.5, 0.5, 1.0), (0.6, 1.2, 0.9))).on_grid(BOX)
    assert write_volume(tmp_path / "scene.npy", values, BOX, position_colours, CPU) == np.count_nonzero(values)
    found = np.load(tmp_path / "scene.npy", allow_pickle=False)
    assert found.dtype == np.float32 and np.array_equal(found, values)


@pytest.mark.parametrize("name", ["scene.vol", "scene.npy"])
def test_empty_fields_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="x -0.5 to 1.5, y -1 to 2, z 0 to 4"):
        write_volume(tmp_path / name, np.zeros((9, 9, 9), dtype=np.float32), BOX, position_colours, CPU)
    assert list(tmp_path.iterdir()) == []


def test_colours_are_averaged_over_directions():
    assert torch.allclose(mean_colours(DirectionField(1.0), torch.rand(5, 3)), torch.full((5, 3), 0.5))
