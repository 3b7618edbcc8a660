"""Shape checking for every annotated function of the package, the shared recordings, and tiny scenes."""

from jaxtyping import install_import_hook

install_import_hook("npbgpp", "beartype.beartype")  # stays: submodules are imported later

# the imports below come after the hook on purpose
import os  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]


def shared_folder() -> Path | None:
    """Folder of recordings and real data: $NPBGPP_SHARED, or ../shared beside the checkout when it exists."""
    folder = Path(os.environ.get("NPBGPP_SHARED", REPOSITORY.parent / "shared"))
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_folder()
    if folder is None:
        pytest.skip("recordings and real data are not here: set NPBGPP_SHARED to their folder")
    return folder


@pytest.fixture(scope="session")
def parity(shared: Path):
    """Reads one recording of the authors' code by name."""

    def read(name: str):
        return torch.load(shared / "parity" / name, map_location="cpu", weights_only=True)

    return read


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
