"""Command lines of training: mistakes are named before anything slow is imported, and help covers every key."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from npbgpp.cli.train_arguments import hydra_arguments, read_train_arguments
from npbgpp.errors import InputError

from .processes import run_watched

ROOT = Path(__file__).resolve().parents[2]
CHOSEN = "datasets=llff_one_scene system=npbg"

REFUSED = [
    ("", ["datasets=<choice>", "system=<choice>", "experiment=<choice>"]),
    ("seed=3", ["datasets=<choice>", "experiment=<choice>"]),
    ("system=npbg", ["datasets", "llff_one_scene", "dtu_pretrain"]),
    ("datasets=llff_one_scene", ["system", "npbgpp_sphere", "nerf"]),
    ("datasets=llf_one_scene system=npbg", ["datasets=llf_one_scene", "did you mean llff_one_scene?", "dtu_pretrain"]),
    ("experiment=npbg_quik", ["experiment=npbg_quik", "did you mean npbg_quick?"]),
    ("dataset=llff_one_scene system=npbg", ["dataset", "did you mean datasets?"]),
    ("datasets=llff_one_scene sytem=npbg", ["sytem", "did you mean system?"]),
    (f"{CHOSEN} system/refinr=unet", ["system/refinr", "did you mean system/refiner?"]),
    (f"{CHOSEN} system/refiner=unett", ["system/refiner=unett", "did you mean unet?"]),
    (f"{CHOSEN} loggers=[csv,tensorbord]", ["loggers=tensorbord", "did you mean tensorboard?"]),
    (f"{CHOSEN} hydra/launcher=submitit_slrm", ["hydra/launcher=submitit_slrm", "did you mean submitit_slurm?"]),
    (f"{CHOSEN} system.nea=2", ["system.nea", "did you mean system.near?"]),
    (f"{CHOSEN} near=2", ["near", "did you mean system.near?"]),
    (f"{CHOSEN} system.refiner.filtres=[8]", ["system.refiner.filtres", "did you mean system.refiner.filters?"]),
    (f"{CHOSEN} eval_onyl=true", ["eval_onyl", "did you mean eval_only?"]),
    (f"{CHOSEN} hydra.run.dri=x", ["hydra.run.dri", "did you mean hydra.run.dir?"]),
    (f"{CHOSEN} test_video=mp3", ["test_video=mp3", "did you mean mp4?"]),
    (f"{CHOSEN} test_video=true", ["test_video=true", "mp4, gif, null"]),
    (f"{CHOSEN} dataloader.train_data_mode=eahc", ["dataloader.train_data_mode=eahc", "did you mean each?"]),
    (f"{CHOSEN} experiment=null", ["string or a list", "--help"]),
    (f"{CHOSEN} my_scene", ["my_scene", "key=value"]),
    (f"{CHOSEN} datasets.train_image_size=[3", ["datasets.train_image_size=[3", "as many ] as [, got 0 and 1"]),
    (f"{CHOSEN} --foo", ["--foo"]),
    (f"{CHOSEN} --cfg everything", ["--cfg", "everything"]),
    (f"{CHOSEN} seed=1,2", ["seed=1,2", "-m"]),
    (f"-m {CHOSEN} seed=1,2 system.nea=2,3", ["system.nea", "did you mean system.near?"]),
    ("-m datasets=llff_one_scene system=npbg,npgb", ["system=npgb", "did you mean npbg?"]),
    (f"-m {CHOSEN} test_video=gif,mp5", ["test_video=mp5", "did you mean mp4?"]),
]


@pytest.mark.parametrize(("line", "named"), REFUSED)
def test_mistakes_are_named_in_one_line(line, named):
    with pytest.raises(InputError) as caught:
        read_train_arguments(shlex.split(line))
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in named), message


@pytest.mark.parametrize(
    "line",
    [
        CHOSEN,
        "experiment=demo_npbg trainer.max_epochs=1 datasets.train_image_size=null ~callbacks.fit.training_strip",
        f"{CHOSEN} +system.anything=1 ++seed=2 system.refiner._target_=a.b.C weights_path='${{hydra:runtime.cwd}}/a.ckpt' --cfg job",
        f"{CHOSEN} loggers=[] test_video=null hydra.verbose=true system.loss_factors={{vgg_loss:0}}",
        f"-m {CHOSEN} seed=range(1,4) system=npbg,npbgpp_rgb hydra/launcher=submitit_slurm hydra.launcher.partition=gpu",
        f"{CHOSEN} hydra.mode=MULTIRUN seed=1,2",
        "--hydra-help anything",
        "--config-name other whatever=1",
    ],
)
def test_other_command_lines_are_left_to_hydra(line):
    assert read_train_arguments(shlex.split(line)) is None


def test_hydra_gets_its_options_first():
    """Its parser refuses words on both sides of an option."""
    assert hydra_arguments(shlex.split("experiment=demo_npbg --cfg job seed=3 -m")) == [
        "--cfg",
        "job",
        "-m",
        "experiment=demo_npbg",
        "seed=3",
    ]
    assert hydra_arguments(["a=1", "b=2"]) == ["a=1", "b=2"]
    assert hydra_arguments(["datasets.scene_name=2024_05_01", "seed=1_0"]) == ["datasets.scene_name='2024_05_01'", "seed=1_0"]


@pytest.fixture
def configs_of_a_plugin(tmp_path, monkeypatch) -> str:
    """A folder of configs beside ours, as ``hydra.searchpath`` of the command line names it."""
    (tmp_path / "conf" / "system").mkdir(parents=True)
    (tmp_path / "conf" / "system" / "_part.yaml").write_text("# Not for command lines.\n")
    (tmp_path / "conf" / "system" / "mine.yaml").write_text(
        "# A method of others.\nsystem_class: Mine\nmode: fast # One of fast, slow.\nsize: ???\n"
    )
    return f"hydra.searchpath=[file://{tmp_path}/conf]"


def test_configs_of_others_are_known(configs_of_a_plugin):
    overview = read_train_arguments([configs_of_a_plugin, "--help"])
    assert overview is not None and "mine" in overview and "A method of others" in overview and "_part" not in overview
    keys = read_train_arguments([configs_of_a_plugin, "--help", "system=mine"])
    assert keys is not None and "system.mode=fast" in keys and "One of fast, slow." in keys
    assert ["system.size=", "(required)"] in [line.split() for line in keys.splitlines()]
    chosen = [configs_of_a_plugin, "datasets=llff_one_scene", "system=mine"]
    assert read_train_arguments([*chosen, "system.mode=slow"]) is None
    with pytest.raises(InputError, match="system.mode=slwo: unknown choice; did you mean slow?"):
        read_train_arguments([*chosen, "system.mode=slwo"])


def test_the_overview_lists_every_choice_and_no_fragment():
    text = read_train_arguments(["--help"])
    assert text is not None
    for path in (ROOT / "conf").rglob("*.yaml"):
        named = path.parent == ROOT / "conf" or f"  {path.stem} " in text
        assert named is not path.stem.startswith("_"), path
    assert text.splitlines()[-1].startswith("example: npbgpp train ") and read_train_arguments(text.splitlines()[-1].split()[3:]) is None
    for key in ("seed=3407", "eval_only=false", "weights_path=null", "hydra.run.dir="):
        assert f"  {key}" in text
    assert "_base" not in text and max(map(len, text.splitlines())) <= 140


def test_help_of_chosen_groups_shows_their_values():
    text = read_train_arguments(["--help", "datasets=llff_one_scene", "system=nerf", "system.lr=0.25"])
    assert text is not None
    for shown in (
        "datasets.layout=llff",
        "datasets.scene_name=fern",
        "system.lr=0.25",
        "system.field.sampling.importance=128",
        "seed=3407",
    ):
        assert f"  {shown}" in text
    assert "trainer.max_epochs" not in text and "_target_" not in text
    assert "trainer.max_epochs" in str(read_train_arguments(["--help", "experiment=demo_npbg"]))


def test_a_mistake_beside_help_is_named():
    with pytest.raises(InputError, match="did you mean npbg?"):
        read_train_arguments(["--help", "system=npgb"])


@pytest.mark.parametrize(
    ("name", "arguments", "code", "shown"),
    [
        ("npbgpp", "--help", 0, "train"),
        ("npbgpp", "train --help", 0, "npbg_quick"),
        ("npbgpp.train", "--help datasets=llff_one_scene system=nerf", 0, "system.lr="),
        (str(ROOT / "train_net.py"), "--help", 0, "npbg_quick"),
        (str(ROOT / "train_net.py"), "--help experiment=demo_npbg", 0, "trainer.max_epochs="),
        (str(ROOT / "train_net.py"), "", 1, "experiment=<choice>"),
        ("npbgpp", "train experiment=demo_npbg system.nea=2", 1, "did you mean system.near?"),
        ("npbgpp", "trian experiment=demo_npbg", 1, "did you mean train?"),
        ("npbgpp", "render nowhere", 1, "run=nowhere: expected the folder of a run"),
        ("npbgpp", "compare nowhere", 1, "runs=nowhere: expected the folder of a run"),
        ("npbgpp", "auto photos=nowhere", 1, "photos=nowhere: expected a folder of photos"),
        ("npbgpp", "", 1, "train"),
    ],
)
def test_answers_come_at_once(tmp_path, name, arguments, code, shown):
    """Within two seconds of CPU time, without torch; nothing is written."""
    done = run_watched(tmp_path, name, shlex.split(arguments))
    for _ in range(2):  # beside other processes, the same work takes more CPU time
        done = done if done.cpu_s < 2 else run_watched(tmp_path, name, shlex.split(arguments))
    assert done.code == code and shown in (done.out if code == 0 else done.err), done
    assert not done.imported_torch and done.cpu_s < 2 and "Traceback" not in done.err
    if code == 1 and arguments:
        assert done.err.startswith("error: ") and done.err.count("\n") == 1 and done.out == ""
    assert not list(tmp_path.iterdir())


def test_help_whose_reader_has_ended():
    line = f"{sys.executable} -m npbgpp train --help experiment=demo_npbg | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("usage:") and done.stderr == "" and done.returncode in (0, 141)
