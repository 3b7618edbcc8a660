"""Written PNG files, depth maps and videos, read back by other libraries."""

import cv2
import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.errors import InputError
from npbgpp.io import DEPTH_FORMATS, depth_colormap, depth_range, open_video, write_depth, write_png


def test_colours_are_clamped_and_rounded(tmp_path):
    write_png(tmp_path / "new" / "a.png", torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 2.0]).expand(3, 2, 4))
    assert np.asarray(Image.open(tmp_path / "new" / "a.png"))[0, :, 0].tolist() == [0, 0, 1, 255]
    write_png(tmp_path / "b.png", Image.new("L", (5, 4), 7))
    assert Image.open(tmp_path / "b.png").size == (5, 4)


@pytest.mark.parametrize("suffix", DEPTH_FORMATS)
def test_depth_maps_keep_their_values(tmp_path, suffix):
    depth, path = torch.rand(3, 5) * 100, tmp_path / f"depth.{suffix}"
    write_depth(path, depth)
    if suffix == "npy":
        found = np.load(path)
    elif suffix == "pfm":
        found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    else:
        found = np.fromfile(path, dtype="<f4").reshape(3, 5)
    assert found.dtype == np.float32 and np.array_equal(found, depth.numpy())


def test_depth_colormap():
    colours = depth_colormap(torch.tensor([1.0, 0.5, 1.3, 2.0, 9.0, 0.0]), 1.0, 2.0)
    assert torch.equal(colours[:, 0], colours[:, 1]) and torch.equal(colours[:, 3], colours[:, 4])
    (red, _, blue), (far_red, _, far_blue) = colours[:, 0].tolist(), colours[:, 3].tolist()
    assert red > 2 * blue and far_blue > far_red and colours[:, 5].tolist() == [0, 0, 0]
    assert depth_colormap(torch.zeros(2, 0), 1.0, 2.0).shape == (3, 2, 0)
    assert torch.isfinite(depth_colormap(torch.full((2, 2), 3.0), 3.0, 3.0)).all()


def test_depth_range_ignores_outliers():
    depth = torch.cat([torch.linspace(1, 2, 1001), torch.tensor([0.0, torch.inf, torch.nan])])
    assert depth_range(depth) == pytest.approx((1.01, 1.99), abs=2e-3)
    assert depth_range(torch.zeros(2, 3)) == (0.0, 1.0)


@pytest.mark.parametrize(("name", "size"), [("a.mp4", (34, 46)), ("a.gif", (33, 45))])
def test_videos(tmp_path, name, size):
    """H.264 needs even sides."""
    with open_video(tmp_path / name, 10.0) as writer:
        for k in range(4):
            writer.append(torch.full((3, 33, 45), k / 4))
        assert not (tmp_path / name).exists()
    frames = imageio.imread(tmp_path / name)
    assert frames.shape == (4, *size, 3)
    assert np.abs(frames.mean((1, 2, 3)) - np.array([0, 64, 128, 191])).max() < 8


def test_failed_videos_leave_no_file(tmp_path):
    with pytest.raises(RuntimeError), open_video(tmp_path / "a.gif", 10.0) as writer:
        writer.append(torch.zeros(3, 8, 8))
        raise RuntimeError
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        open_video(tmp_path / "file" / "a.gif", 10.0).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
