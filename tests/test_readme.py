"""The commands of the README run as they stand, with small data in the places they name and a small job."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
# makes any training command a matter of seconds; given after the README's own overrides
SMALL = """
    datasets.train_num_samples=2 datasets.train_image_size=32 datasets.train_random_shift=false trainer.max_epochs=1 trainer.accelerator=cpu
    dataloader.train_total_batch_size=1 dataloader.train.num_workers=0 system.refiner.filters=[10,11,12,13,14] loggers=none
""".split()


def commands() -> list[str]:
    """Lines of the README's bash blocks, in order."""
    return [line.strip() for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines() if line.strip()]


def test_training_commands_run_in_order(tiny_root, tmp_path):
    """Later recipes use what earlier ones left, as a reader would."""
    root = tmp_path / "data" / "nerf_synthetic"
    for name in ("chair", "drums", "lego", "materials", "ship"):
        shutil.copytree(tiny_root / "ball", root / name)
    shutil.copytree(tiny_root / "ball", tmp_path / "example" / "still_life")
    training = ["python train_net.py experiment=demo"] + [c for c in commands() if c.startswith("python train_net.py")]
    assert len(training) >= 7
    for command in training:
        words = shlex.split(command)[2:]
        # the VGG network is nobody's to ship: this one recipe runs up to the message that says so
        needs_vgg = not any("loss_factors" in w or "experiment=" in w for w in words)
        resumes = any("resume_from_checkpoint" in w for w in words)
        small = [s for s in SMALL if not (resumes and s.startswith("trainer.max_epochs"))] + (["trainer.max_epochs=2"] if resumes else [])
        environment = os.environ | {"TORCH_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / "train_net.py"), *words, *small],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        output = done.stdout + done.stderr
        if needs_vgg:
            assert done.returncode == 1 and "vgg19-d01eb7cb.pth" in output and "Traceback" not in output, f"{command}\n{output}"
        else:
            assert done.returncode == 0, f"{command}\n{output}"


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
