"""Relative paths: launch folder, then run folder, then project; never the working directory of the process."""

import pytest

from npbgpp.core.paths import SearchPaths
from npbgpp.errors import InputError


@pytest.fixture
def search_paths(tmp_path, monkeypatch) -> SearchPaths:
    for name in ("launch", "launch/experiments/run", "project", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    return SearchPaths(tmp_path / "launch", tmp_path / "launch" / "experiments" / "run", tmp_path / "project")


@pytest.mark.parametrize("present", [("launch", "run", "project"), ("run", "project"), ("project",), ("launch", "project")])
def test_the_first_folder_that_has_it_wins(search_paths, present):
    for name in present:
        (getattr(search_paths, name) / "data").mkdir()
    assert search_paths.existing("data", "datasets.data_root") == getattr(search_paths, present[0]) / "data"


def test_data_roots_of_the_original_are_relative_to_the_run(search_paths):
    (search_paths.launch / "data" / "nerf").mkdir(parents=True)
    assert search_paths.existing("../../data/nerf", "datasets.data_root") == search_paths.launch / "data" / "nerf"


def test_what_ships_with_the_project_is_found_from_any_folder(search_paths):
    """Configs of the original name it relative to a run two folders below the project."""
    (search_paths.project / "example").mkdir()
    for path in ("example", "../../example"):
        assert search_paths.existing(path, "key") == search_paths.project / "example"
    with pytest.raises(InputError, match="example/absent"):
        search_paths.existing("../../example/absent", "key")


def test_the_working_directory_does_not_count(search_paths, tmp_path):
    (tmp_path / "elsewhere" / "data").mkdir()
    with pytest.raises(InputError):
        search_paths.existing("data", "datasets.data_root")


def test_absolute_paths_are_taken_as_they_are(search_paths, tmp_path):
    (search_paths.launch / "data").mkdir()
    (tmp_path / "data").mkdir()
    assert search_paths.existing(str(tmp_path / "data"), "datasets.data_root") == tmp_path / "data"
    with pytest.raises(InputError, match="datasets.data_root=.*absent"):
        search_paths.existing(tmp_path / "absent", "datasets.data_root")
    assert search_paths.output(tmp_path / "out") == tmp_path / "out"


def test_a_missing_path_lists_the_places(search_paths):
    with pytest.raises(InputError) as caught:
        search_paths.existing("absent/scene", "datasets.data_root")
    message = str(caught.value)
    assert message.startswith("datasets.data_root=absent/scene")
    for base in (search_paths.launch, search_paths.run, search_paths.project):
        assert str(base / "absent" / "scene") in message


def test_a_place_is_listed_once(tmp_path):
    with pytest.raises(InputError) as caught:
        SearchPaths(tmp_path, tmp_path, tmp_path).existing("absent", "key")
    assert str(caught.value).count(str(tmp_path / "absent")) == 1


def test_home_is_expanded(search_paths, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert search_paths.existing("~/project", "key") == tmp_path / "project"
    assert search_paths.output("~/out") == tmp_path / "out"


def test_output_goes_below_the_launch_folder(search_paths):
    assert search_paths.output("experiments/x/descriptors") == search_paths.launch / "experiments" / "x" / "descriptors"
    assert search_paths.output("../beside") == search_paths.launch.parent / "beside"


def test_a_run_from_another_working_directory(run_here, tiny_root, tmp_path, monkeypatch):
    """Data relative to the launch folder, descriptors saved relative to it; the working directory stays empty and unchanged."""
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
