"""The real lego scene, where it is present: its cloud lies where its photos show the object."""

import numpy as np
import pytest
import torch
from torch.nn.functional import max_pool2d

from npbgpp.data.images import read_photo
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.parsers import LAYOUTS


@pytest.fixture(scope="module")
def lego(shared) -> Scene:
    folder = shared / "data" / "nerf_synthetic" / "lego"
    if not folder.is_dir():
        pytest.skip("the lego scene is not among the shared data")
    return LAYOUTS["nerf_synthetic"].parse(folder, folder, "lego", CloudFile(folder / "mvs_pc.ply"))


def test_counts(lego):
    names = [view.name for view in lego.views]
    assert [sum(name.startswith(stage) for name in names) for stage in ("train-", "val-", "test-")] == [80, 5, 15]
    assert lego.splits == {"train": tuple(range(80)), "val": (80,), "test": tuple(range(85, 100))}
    cloud = lego.cloud.read()
    assert len(cloud) == 60_000 and cloud.rgb_u8 is not None


@pytest.mark.parametrize("index", [0, 40, 90])
def test_the_cloud_projects_into_the_mask(lego, index):
    """At least 99 % of the points fall on the object, grown by two pixels."""
    view = lego.views[index]
    height, width = view.camera.image_size
    uv, depth = view.camera.project(lego.cloud.read().xyz)
    column, row = uv[0].floor().long().unbind(1)
    inside = (depth[0] > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    mask = max_pool2d((read_photo(view).mask > 0).float()[None], 5, stride=1, padding=2)[0, 0] > 0
    assert mask.float().mean() < 0.6, "the mask must be able to tell"
    hit = mask[row[inside], column[inside]].sum().item() / len(depth[0])
    assert hit >= 0.99


def test_colours_of_the_cloud_are_those_of_the_photo(lego):
    """Points shown by the nearest-point rule have about the colour of their pixel; with another view's photo they do not."""
    cloud = lego.cloud.read()

    def error(camera_of: int, photo_of: int) -> float:
        uv, depth = lego.views[camera_of].camera.project(cloud.xyz)
        image = read_photo(lego.views[photo_of]).image
        order = depth[0].argsort(descending=True)
        column, row = uv[0][order].floor().long().unbind(1)
        drawn = np.full(image.shape[1:], -1)
        drawn[row.numpy(), column.numpy()] = order.numpy()  # far to near: the last one written stays
        nearest = torch.from_numpy(drawn)
        shown = nearest >= 0
        return (image[:, shown].float() - cloud.rgb_u8[nearest[shown]].T.float()).abs().mean().item()

    assert error(0, 0) < 0.6 * error(0, 40)
