"""The drawn scene in each layout."""

from pathlib import Path

import pytest

from ..helpers.every_layout import WRITTEN, write_layout


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of eight views of 48x64 pixels by layout. Never write into them: copy them."""
    root = tmp_path_factory.mktemp("layouts")
    return {name: write_layout(name, root / name) for name in WRITTEN}
