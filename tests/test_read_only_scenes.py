"""Scenes in folders without write permission: methods train on them, and commands that write into them say so before they work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import TINY_OVERRIDES

# root may write everywhere unless it gives this right up
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(WITHOUT_RIGHTS) and shutil.which("setpriv") is None, reason="root can write everywhere: needs setpriv of util-linux"
    ),
]


@pytest.fixture
def read_only(tiny_root, tmp_path) -> Path:
    root = Path(shutil.copytree(tiny_root, tmp_path / "data"))
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    yield root
    for folder in folders:
        folder.chmod(0o755)


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([*WITHOUT_RIGHTS, sys.executable, "-m", "npbgpp", *words], cwd=cwd, capture_output=True, text=True)


def test_training_writes_into_the_run_folder_only(read_only, tmp_path):
    done = run("train", *TINY_OVERRIDES, f"datasets.data_root={read_only}", f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_check_says_where_it_cannot_write(read_only, tmp_path):
    scene = next(path for path in read_only.iterdir() if path.is_dir())
    done = run("prepare", "check", str(scene), cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(f"error: out={scene / 'check'}") and len(done.stderr.splitlines()) == 1
    assert not (scene / "check").exists() and not done.stdout
