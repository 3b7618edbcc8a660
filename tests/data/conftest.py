"""The drawn scene in the layout of NeRF-Synthetic."""

import pytest

from npbgpp.data import Scene

from ..helpers.every_layout import read_layout, write_layout


@pytest.fixture(scope="session")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Coloured balls on white with alpha masks, 48x64 pixels: 6 training views, a validation and a test view."""
    return read_layout("nerf_synthetic", write_layout("nerf_synthetic", tmp_path_factory.mktemp("balls")), "balls")
