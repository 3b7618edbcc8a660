"""``weights_path=npbgpp_small``: weights that come with the project, found by name, and what they do on a scene that they have not seen."""

import json
import shutil
from pathlib import Path

import pytest

from npbgpp.core.paths import SearchPaths, project_folder
from npbgpp.engine.checkpoint import find_weights, read_weights
from npbgpp.errors import InputError

CHECKPOINTS = project_folder() / "checkpoints"
NAMES = sorted(path.stem for path in CHECKPOINTS.glob("*.safetensors"))
STILL_LIFE = ("datasets=nerf_blender_one_scene", f"datasets.data_root={project_folder() / 'example'}", "datasets.scene_name=still_life")
ONE_PASS = ("experiment=npbgpp_small", *STILL_LIFE, "loggers=none", "test_video=null", "trainer.accelerator=cpu")
LEAST_PSNR = 24.5


@pytest.fixture
def paths(tmp_path) -> SearchPaths:
    (tmp_path / "project" / "checkpoints").mkdir(parents=True)
    for suffix in (".safetensors", ".md"):
        (tmp_path / "project" / "checkpoints" / f"small{suffix}").write_bytes(b"content")
    return SearchPaths(launch=tmp_path, run=tmp_path / "run", project=tmp_path / "project")


def test_weights_are_found_by_name_wherever_a_command_starts(paths, tmp_path):
    assert find_weights("small", paths) == tmp_path / "project" / "checkpoints" / "small.safetensors"
    (tmp_path / "small").write_bytes(b"a file of the user")
    assert find_weights("small", paths) == tmp_path / "small"


@pytest.mark.parametrize("word", ["smal", "../checkpoints/small", "folder/small", "/small", ""])
def test_other_words_are_no_names(paths, word):
    with pytest.raises(InputError, match="weights_path") as refused:
        find_weights(word, paths)
    assert ("did you mean small?" in str(refused.value)) == (word == "smal")


def test_weights_without_their_card_are_refused(paths, tmp_path):
    (tmp_path / "project" / "checkpoints" / "small.md").unlink()
    with pytest.raises(InputError, match="card"):
        find_weights("small", paths)


def test_shipped_files_are_small_and_have_cards():
    assert NAMES == ["npbgpp_small"]
    for name in NAMES:
        assert (CHECKPOINTS / f"{name}.safetensors").stat().st_size < 10e6
        assert (CHECKPOINTS / f"{name}.md").is_file()
        origin = read_weights(CHECKPOINTS / f"{name}.safetensors").origin
        assert origin is not None and origin.system == "NPBGPlusPlus"


@pytest.mark.slow
def test_one_pass_describes_a_scene_that_was_not_seen(run_line, tmp_path):
    folder = run_line(tmp_path, *ONE_PASS, f"hydra.run.dir={tmp_path / 'run'}")
    (scores,) = json.loads((folder / "metrics.json").read_text())["datasets"].values()
    assert scores["views"] == 15 and scores["psnr"] > LEAST_PSNR
    assert (folder / "descriptors" / "still_life.pth").is_file() and not (folder / "checkpoints").exists()


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("system/feature_extractor=unet", "feature_extractor"),
        ("system.descriptor_dim=16", "shape"),
        ("system.aggregator.m=5", "aggregator"),
        ("system=gaussians", "NPBGPlusPlus"),
    ],
)
def test_other_architectures_are_refused_in_one_line(run_line, tmp_path, word, named):
    words = list(ONE_PASS)
    if word == "system=gaussians":
        words[0] = "experiment=gaussians_quick"
        words.append("weights_path=npbgpp_small")
    elif word.startswith("system/feature"):
        word += " system.feature_extractor.pretrained_encoder=false"
    with pytest.raises(InputError, match=named) as refused:
        run_line(tmp_path, *words, *word.split(), "eval_only=true", f"hydra.run.dir={tmp_path / 'run'}")
    assert "\n" not in str(refused.value)


def test_damaged_weights_are_refused(run_line, tmp_path):
    damaged = Path(shutil.copy(CHECKPOINTS / "npbgpp_small.safetensors", tmp_path / "damaged.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    with pytest.raises(InputError, match="copy it again"):
        run_line(tmp_path, *ONE_PASS, f"weights_path={damaged}", f"hydra.run.dir={tmp_path / 'run'}")
