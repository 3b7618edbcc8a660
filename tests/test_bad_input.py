"""What a user can get wrong ends in one message that names it, and exit code 1; files of earlier runs stay as they were."""

import os
import re
import resource
import shutil
import subprocess

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from npbgpp.errors import InputError, original_message

from .helpers.programs import TRAIN_NET, run_program

QUIET = ("trainer.limit_val_batches=0", "datasets.scenes.test=[]")


def complaint(done: subprocess.CompletedProcess) -> str:
    """The one line that says what is wrong."""
    assert done.returncode == 1, done.stdout + done.stderr
    text = done.stdout + done.stderr
    assert "Traceback" not in text, text
    (line,) = [line for line in text.splitlines() if "[ERROR]" in line]
    return line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+system.nea=2", "system.nea: unknown key; did you mean system.near?"),
        ("+datasets.scene=2", "datasets.scene: unknown key; did you mean datasets.scenes?"),
        ("+trainer.max_epoch=2", "trainer.max_epoch: unknown key; did you mean trainer.max_epochs?"),
        ("+dataloader.train.workers=2", "dataloader.train.workers: unknown key"),
        ("+weight_path=a.ckpt", "config.weight_path: unknown key; did you mean config.weights_path?"),
        ("+system.rasterizer.scale=[1]", "system.rasterizer: .*scale"),
        ("+system.refiner.filter=[1]", "system.refiner: .*filter"),
        ("system.near=close", "system.near: expected a number, got 'close'"),
        ("system.near=-1", "system.near: expected a depth of at least 0"),
        ("system.max_points=many", "system.max_points: expected an integer or null, got 'many'"),
        ("system.descriptor_dim=0", "system.descriptor_dim: expected at least 1, got 0"),
        ("system.max_scenes_per_train_epoch=0", "system.max_scenes_per_train_epoch: expected at least 1, got 0"),
        ("trainer.accumulate_grad_batches=0", "accumulate_grad_batches: expected at least 1, got 0"),
        ("system.pixel_convention=half", "system.pixel_convention: expected .*authors.*exact.*got .*half"),
        ("system.lr_schedule=linear", "system.lr_schedule: expected .*constant.*cosine.*got .*linear"),
        ("system.postprocessing_transform=flip", "system.postprocessing_transform: expected null or rotate_90_ccw, got flip"),
        ("system.system_class=NERF", "system.system_class: expected .*NPBG .*NPBGPlusPlus .*NeRF .*got NERF"),
        ("system.bg_rgb_color=[1,1]", "system.bg_rgb_color: expected a list of 3 values"),
        ("system.rasterizer.ss_scale=[1,1]", "system.rasterizer.ss_scale: expected one entry per scale"),
        ("system.refiner.filters=[1,2]", "expected 5 positive filters"),
        ("system.refiner.in_channels=[8,8,8,8,8]", "expected 5 levels of .*in_channels"),
        ("system.descriptor_dim=4", "in_channels"),
        ("system.loss_factors.l1_d1_los=1", "Key 'l1_d1_los' is not in struct|l1_d1_los"),
        ("+system.loss_factors.l2_loss=1", "system.loss_factors.l2_loss: unknown term"),
        ("system.loss_factors={l1_d1_loss: 0, ssim_loss: 0, dimred_loss: 0, mask_loss: 0, m_reg_loss: 0}", "every factor is 0"),
        ("system.descriptors_pretrained_dir=nowhere", "system.descriptors_pretrained_dir=nowhere: expected a file or folder"),
        ("weights_path=nowhere.ckpt", "weights_path=nowhere.ckpt: expected a checkpoint file"),
        ("trainer.resume_from_checkpoint=nowhere.ckpt", "nowhere.ckpt: expected a checkpoint file"),
        ("cache_dir=nowhere", "cache_dir=nowhere: expected a file or folder"),
        ("trainer.precision=16", "trainer.precision=16: .*use trainer.precision=bf16 or 32"),
        ("trainer.precision=64", "trainer.precision=64: .*use trainer.precision=32"),
        ("trainer.accelerator=mps", "trainer.accelerator=mps: this machine has none; it has .*cpu"),
        ("trainer.devices=-1", "trainer.devices=-1: expected a positive number of processes on the CPU"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0: nothing would be trained; evaluate .*eval_only=true"),
        ("trainer.max_steps=0", "trainer.max_steps=0: nothing would be trained"),
        ("resume=/nowhere", "^resume=/nowhere: expected a checkpoint file, or the folder of a run, there is none"),
        ("datasets.scene_name=null", "datasets.scene_name: expected the name of a scene, got nothing; set it"),
        ("datasets.scene_name=???", "datasets.scene_name: expected a value, got nothing; set it"),
        ("datasets.scenes.val=[globe]", "scene globe is not trained in this run and has no saved descriptors"),
        ("dataloader.train_total_batch_size=5", "one epoch has 4 samples, fewer than a batch of 5"),
        ("datasets.pc_name=cloud.ply", "point cloud .*cloud.ply: no such file"),
        (
            "datasets.scene_name=bal",
            "scene bal: expected the folder .*datasets.data_root=.*datasets.scene_name.*folders there: ball, globe, moon",
        ),
    ],
)
def test_config_mistakes_are_named(run_here, override, message):
    quiet = () if override.startswith("datasets.scenes.val") else QUIET
    with pytest.raises(Exception, match=message) as caught:
        run_here(*quiet, override)
    if not override.startswith("system.loss_factors.l1_d1_los"):  # that one is Hydra's own refusal
        assert isinstance(caught.value, InputError)
        assert "\n" not in str(caught.value)


def test_masks_of_photos_without_alpha(run_here, tiny_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_root / "ball", root / "ball")
    for path in (root / "ball" / "train").glob("*.png"):
        Image.open(path).convert("RGB").save(path)
    with pytest.raises(InputError, match="expected an alpha channel"):
        run_here(*QUIET, "system.use_masks=true", root=root)


def test_descriptors_of_another_cloud(run_here):
    first = run_here(*QUIET, name="first")
    pretrained = f"system.descriptors_pretrained_dir={first}/descriptors"
    with pytest.raises(InputError, match=f"{first}/descriptors/ball.pth: expected 100 x 8 for the cloud of scene ball, got 400 x 8"):
        run_here(*QUIET, pretrained, "datasets.n_point=100", name="second")


def test_weights_of_other_settings(run_here):
    first = run_here(*QUIET, name="first")
    weights = f"weights_path={first}/checkpoints/last.ckpt"
    other = "system.refiner.filters=[12,13,14,15,16]"
    with pytest.raises(InputError, match="weights have another shape") as caught:
        run_here(*QUIET, weights, other, name="second")
    assert f"{first}/checkpoints/last.ckpt" in str(caught.value)
    second = run_here(*QUIET, weights, other, "weights_strict=false", name="second")
    assert (second / "checkpoints" / "last.ckpt").is_file()


def test_damaged_checkpoint_to_resume_from(run_here):
    folder = run_here(*QUIET)
    path = folder / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="damaged") as caught:
        run_here(*QUIET, f"trainer.resume_from_checkpoint={path}", "trainer.max_epochs=2")
    assert str(path) in str(caught.value)


@pytest.fixture
def files_of_at_most_200_kb():
    """Larger writes fail as on a full disk (EFBIG in place of ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_checkpoint_that_cannot_be_written(run_here, files_of_at_most_200_kb):
    folder = run_here(*QUIET)
    before = {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
    files_of_at_most_200_kb()
    with pytest.raises(InputError, match="cannot be written .*the file that was there before is unchanged"):
        run_here(*QUIET, "system.overwrite_descriptors=true", "seed=5")
    assert {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == before


def test_messages_of_worker_processes_are_unwrapped():
    traceback = "Original Traceback (most recent call last):\n  File\nnpbgpp.errors.InputError: image a.png: broken\n"
    wrapped = f"Caught InputError in DataLoader worker process 0.\n{traceback}"
    assert original_message(InputError(wrapped)) == "image a.png: broken"
    assert original_message(InputError("scene InputError: odd name")) == "scene InputError: odd name"


@pytest.mark.parametrize(
    ("value", "reason"), [("${foo}", r"expected .* key that exists, got \$\{foo\}"), ("???", "Missing mandatory value")]
)
def test_messages_of_omegaconf_are_one_line_that_begins_with_the_key(value, reason):
    config = OmegaConf.create({"datasets": {"data_root": value}})
    with pytest.raises(OmegaConfBaseException) as caught:
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    message = original_message(caught.value)
    assert re.match(rf"datasets\.data_root: {reason}", message) and "\n" not in message, message


# ------------------------------------------------------------------ the command line
def test_misspelt_key_on_the_command_line(run_command):
    done = run_command("system.nea=2")
    assert done.returncode == 1
    assert "system.nea" in done.stderr and "Traceback" not in done.stdout + done.stderr


def test_a_traceback_when_asked(run_command):
    """Without HYDRA_FULL_ERROR there is none: the tests below."""
    full = run_command("datasets.scene_name=bal", HYDRA_FULL_ERROR="1")
    assert full.returncode == 1 and "Traceback" in full.stderr and "InputError: scene bal" in full.stderr


def test_choices_are_listed_when_the_data_set_is_missing(tmp_path):
    done = run_program(TRAIN_NET, ["system=npbg"], tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "datasets" in done.stderr and "nerf_blender_one_scene" in done.stderr and "nerf_blender_pretrain" in done.stderr


def test_broken_image_in_a_worker_process(run_command, tiny_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_root / "ball", root / "ball")
    for path in (root / "ball" / "train").glob("*.png"):
        path.write_bytes(path.read_bytes()[:120])
    line = complaint(run_command(*QUIET, "dataloader.train.num_workers=1", root=root))
    assert "image " in line and "r_" in line and "expected a readable image" in line and "worker process" not in line


@pytest.fixture
def small_disk(tmp_path):
    """A file system of three megabytes: room for three checkpoints of the tiny system and not for a fourth."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(run_command, small_disk):
    line = complaint(run_command(*QUIET, "trainer.max_epochs=5", f"hydra.run.dir={small_disk}"))
    assert "cannot be written" in line and "No space left on device" in line and str(small_disk) in line
    kept = sorted((small_disk / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["epoch0.ckpt", "epoch1.ckpt", "last.ckpt"]
    for path in kept:
        assert torch.load(path, weights_only=True)["npbgpp"]["system"] == "NPBG"


def test_run_folder_that_cannot_be_made(run_command, tmp_path):
    """One message, and what is in the way stays."""
    (tmp_path / "file").write_text("in the way")
    done = run_command(*QUIET, f"hydra.run.dir={tmp_path}/file/run")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"hydra.run.dir={tmp_path}/file/run: expected a writable folder" in done.stderr
    assert "Not a directory" in done.stderr and "free space" not in done.stderr
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("kept", [None, "mine.txt"])
def test_a_run_that_was_refused_leaves_nothing(run_command, tmp_path, kept):
    """Neither its folder nor those that it made for it; a folder with something else in it stays."""
    folder = tmp_path / "new" / "run"
    if kept is not None:
        folder.mkdir(parents=True)
        (folder / kept).write_text("mine")
    assert "system.near" in complaint(run_command("system.near=-1", f"hydra.run.dir={folder}"))
    assert (tmp_path / "new").exists() == (kept is not None)
    assert kept is None or (folder / kept).read_text() == "mine"
