"""Relative paths: launch folder, then run folder, then project; never the working directory of the process."""

import pytest

from npbgpp.core.paths import SearchPaths
from npbgpp.errors import InputError


@pytest.fixture
def search_paths(tmp_path, monkeypatch) -> SearchPaths:
    for name in ("launch/experiments/run", "project", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    return SearchPaths(tmp_path / "launch", tmp_path / "launch" / "experiments" / "run", tmp_path / "project")


@pytest.mark.parametrize("present", [("launch", "run", "project"), ("run", "project"), ("project",), ("launch", "project")])
def test_the_first_folder_that_has_it_wins(search_paths, present):
    for name in present:
        (getattr(search_paths, name) / "data").mkdir()
    assert search_paths.existing("data", "datasets.data_root") == getattr(search_paths, present[0]) / "data"


def test_data_roots_of_the_original_code_are_relative_to_the_run(search_paths):
    (search_paths.launch / "data" / "nerf").mkdir(parents=True)
    assert search_paths.existing("../../data/nerf", "datasets.data_root") == search_paths.launch / "data" / "nerf"


@pytest.mark.parametrize("path", ["example", "../../example"])
def test_data_that_ship_with_the_code_are_found_from_any_run(search_paths, path):
    (search_paths.project / "example").mkdir()
    assert search_paths.existing(path, "key") == search_paths.project / "example"


def test_absolute_paths(search_paths, tmp_path):
    (search_paths.launch / "data").mkdir()
    (tmp_path / "data").mkdir()
    assert search_paths.existing(str(tmp_path / "data"), "datasets.data_root") == tmp_path / "data"
    assert search_paths.output(tmp_path / "out") == tmp_path / "out"


@pytest.mark.parametrize("name", ["elsewhere_data", "absent/scene", "/absent"])
def test_a_missing_path_is_refused_with_every_candidate_once(search_paths, tmp_path, name):
    """The working directory is no candidate."""
    (tmp_path / "elsewhere" / "elsewhere_data").mkdir()
    with pytest.raises(InputError) as caught:
        search_paths.existing(name, "datasets.data_root")
    message = str(caught.value)
    candidates = {str((folder / name).resolve()) for folder in (search_paths.launch, search_paths.run, search_paths.project)}
    assert message.startswith(f"datasets.data_root={name}: ") and all(f" {c}," in message or f" {c};" in message for c in candidates)
    assert message.count("/absent") <= len(candidates) + 1 and "elsewhere/" not in message


def test_home_is_expanded(search_paths, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert search_paths.existing("~/project", "key") == tmp_path / "project"
    assert search_paths.output("~/out") == tmp_path / "out"


def test_output_is_relative_to_the_launch_folder(search_paths):
    assert search_paths.output("experiments/x/descriptors") == search_paths.launch / "experiments" / "x" / "descriptors"
    assert search_paths.output("../beside") == search_paths.launch.parent / "beside"


def test_a_run_from_another_working_directory(run_here, tiny_root, tmp_path, monkeypatch):
    """Data and descriptors are relative to the launch folder; the working directory stays empty and unchanged."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "scenes").symlink_to(tiny_root)
    monkeypatch.chdir(elsewhere)
    folder = run_here(
        "datasets.data_root=scenes", "system.descriptors_save_dir=saved/here", "datasets.train_num_samples=1", "trainer.limit_val_batches=0"
    )
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert (tmp_path / "saved" / "here" / "ball.pth").is_file()
    assert list(elsewhere.iterdir()) == [] and elsewhere.samefile(".")
