"""The commands of the README run as they stand, with small data in the places they name and a small job."""

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from npbgpp.errors import InputError

from .helpers.layouts import colmap
from .helpers.scenes import write_dtu
from .run_folders import remember

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
# makes any training command a matter of seconds; given after the README's own overrides
SMALL = """
    datasets.train_num_samples=2 datasets.train_image_size=32 datasets.train_random_shift=false trainer.max_epochs=1 trainer.accelerator=cpu
    dataloader.train_total_batch_size=1 dataloader.train.num_workers=0 system.refiner.filters=[10,11,12,13,14] loggers=none
""".split()
SMALL_NPBGPP = "system.feature_extractor.pretrained_encoder=false system.feature_extractor.decoder_channels=[8,8,8,8,8] datasets.selection_count=2".split()


SMALL_NERF = """
    trainer.max_epochs=1 trainer.limit_train_batches=2 trainer.accelerator=cpu loggers=none system.field.width=16 system.grid_resolution=8
    datasets.downscale=1 system.field.sampling.marched=16
""".split()


SMALL_NSFF = """
    trainer.max_epochs=1 trainer.accelerator=cpu loggers=none datasets.batches_per_epoch=2 system.rays_per_batch=64 system.field.width=16
    system.field.sampling.samples=8
""".split()
SMALL_NPCR = """
    datasets.train_num_samples=2 datasets.downscale=4 trainer.max_epochs=1 trainer.accelerator=cpu loggers=none system.layers=1
    system.network.filters=[8,9,10,11,12] system.network.alpha_filters=[6,7,8]
""".split()
SMALL_VIDEO = ["--frames", "9", "--size", "24", "16", "--samples", "1"]


def commands() -> list[str]:
    """Lines of the README's bash blocks, in order."""
    return [line.strip() for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines() if line.strip()]


def small(words: list[str]) -> list[str]:
    """What makes one command a small job."""
    if "experiment=nerf_lego" in words:
        return SMALL_NERF
    if "experiment=nsff_quick" in words:
        return SMALL_NSFF
    if "experiment=npcr_quick" in words:
        return SMALL_NPCR
    added = list(SMALL)
    if "resume=auto" in words:
        added = [w for w in added if not w.startswith("trainer.max_epochs")] + ["trainer.max_epochs=2"]
    if "trainer.devices=2" in words:
        added = [w for w in added if "total_batch_size" not in w] + ["dataloader.train_total_batch_size=2"]
    if any("npbgpp_" in w and w.startswith(("system=", "experiment=")) or w == "experiment=demo" for w in words):
        added += SMALL_NPBGPP
    return added


EXPERIMENT_FOLDERS = {
    "demo": "experiments/demo/npbgpp",
    "demo_npbg": "experiments/demo/npbg",
    "nsff_quick": "experiments/nsff_hop",
    "npcr_quick": "experiments/npcr_hair",
}


def test_commands_run_in_order(tiny_root, tmp_path, run_line, monkeypatch):
    """Later recipes use what earlier ones left, as a reader would. Most run in this process, the first one, sweeps and several devices as their own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    for name in ("chair", "drums", "lego", "materials", "ship"):
        shutil.copytree(tiny_root / "ball", tmp_path / "data" / "nerf_synthetic" / name)
    shutil.copytree(tiny_root / "ball", tmp_path / "example" / "still_life")
    shutil.copytree(REPOSITORY / "example" / "hair", tmp_path / "example" / "hair")
    write_dtu(tmp_path / "data" / "DTU_masked" / "scan65", views=49, size=(32, 48))
    colmap.write(tmp_path / "data" / "my_scene", views=20, size=(48, 64))
    (tmp_path / "data" / "my_scene" / "mvs_pc.ply").unlink()
    demo = ["python train_net.py experiment=demo", "python train_net.py experiment=demo_npbg"]
    recipes = demo + [c for c in commands() if c.startswith(("python train_net.py", "python -m npbgpp.", "python example/"))]
    assert len(recipes) >= 14
    for number, command in enumerate(recipes):
        _, *words = shlex.split(command)
        if words[0].startswith("example/"):
            subprocess.run([sys.executable, str(REPOSITORY / words[0]), *words[1:], *SMALL_VIDEO], cwd=tmp_path, check=True, timeout=200)
            continue
        overrides = [*words[1:], *small(words)]
        if words[0] == "-m":
            monkeypatch.chdir(tmp_path)
            monkeypatch.setattr(sys, "argv", words[1:])
            try:
                command_of(words[1]).main()
            except SystemExit as ended:
                # a field of two steps has no surface: its mesh is refused, and the message says how dense it is
                unlearnt = "npbgpp.export mesh" in command and "sigma_threshold" in str(ended.code)
                assert not ended.code or unlearnt, f"{command}\n{ended.code}"
        elif number == 0 or "-m" in words or any(word.startswith("trainer.devices") for word in words):
            in_shell = [sys.executable, str(REPOSITORY / "train_net.py"), *overrides]
            done = subprocess.run(in_shell, cwd=tmp_path, capture_output=True, text=True, timeout=200)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        elif "experiments/npbg_lego_published" in command:
            # the VGG network is nobody's to ship: this one recipe runs up to the message that says so
            with pytest.raises(InputError, match="vgg19-d01eb7cb.pth"):
                run_line(tmp_path, *overrides)
        else:
            folder = run_line(tmp_path, *overrides, *folder_of(overrides))
            remember(folder, tmp_path, *overrides)
        weights = tmp_path / "checkpoints" / "npbgpp_dtu_nm_mvs_ft_epoch35.ckpt"
        if not weights.exists():  # those of the authors are theirs: the ones just trained take their place
            weights.parent.mkdir()
            shutil.copy(tmp_path / "experiments" / "demo" / "npbgpp" / "checkpoints" / "last.ckpt", weights)


def command_of(name: str) -> Any:
    """The module that ``python -m`` runs."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    return importlib.import_module(f"{name}.__main__" if spec.submodule_search_locations else name)


def folder_of(overrides: list[str]) -> list[str]:
    """The run folder that an experiment chooses where the command names none."""
    if any(word.startswith("hydra.run.dir=") for word in overrides):
        return []
    (name,) = (word.partition("=")[2] for word in overrides if word.startswith("experiment="))
    return [f"hydra.run.dir={EXPERIMENT_FOLDERS.get(name, f'experiments/{name}')}"]


def test_make_targets_of_the_readme_exist():
    targets = {c.split()[1] for c in commands() if c.startswith("make ")}
    assert targets == {"demo", "test"}
    makefile = (REPOSITORY / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_links_of_the_readme_point_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_named_files_exist():
    for name in ("docs/conventions.md", "checkpoints/README.md", "tests/test_layers.py", "CHANGELOG.md", "LICENSE", ".ci/run"):
        assert (REPOSITORY / name).is_file(), name
