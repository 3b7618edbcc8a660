"""The data module on folders that users bring: clouds that are missing, notes, photos of several sizes, paths files, splits by rule and file."""

import logging
from pathlib import Path

import pytest
from PIL import Image

from npbgpp.core.paths import SearchPaths
from npbgpp.data.point_files import CloudManifest
from npbgpp.data.settings import DataloaderSettings, SceneLists
from npbgpp.engine.datamodule import DataModule
from npbgpp.errors import InputError
from npbgpp.geometry.pixels import ProjectionSettings
from npbgpp.methods.base import DataNeeds

from ..helpers.layouts import colmap, dtu, npbg
from ..helpers.settings import data_module, dataset_settings, loaders_of, stage_loader

LOADERS = loaders_of(stage_loader(1), stage_loader(1), stage_loader(1))
LISTS = SceneLists(("scene",), ("scene",), ("scene",))


@pytest.fixture
def build(tmp_path: Path):
    """Builds a DataModule for the scenes of a folder from settings that differ from small defaults."""

    def go(loaders: DataloaderSettings = LOADERS, **changes) -> DataModule:
        settings = dataset_settings(**{"layout": "auto", "data_root": tmp_path, "scenes": LISTS, **changes})
        return data_module(settings, loaders, SearchPaths(tmp_path, tmp_path / "run", tmp_path))

    return go


def test_points_of_colmap_stand_in_for_a_missing_cloud(build, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    colmap.write(tmp_path / "scene")
    assert build().scenes["scene"].cloud.path.name == "mvs_pc.ply" and not any("points3D" in m for m in caplog.messages)
    (tmp_path / "scene" / "mvs_pc.ply").unlink()
    scene = build(n_point=50).scenes["scene"]
    assert scene.cloud.path.name == "points3D.bin" and len(scene.cloud.read()) == 50
    (said,) = [m for m in caplog.messages if "points3D" in m]
    assert "mvs_pc.ply" in said and "npbgpp prepare dense scene=" in said


def test_a_scene_without_points_names_the_command_that_makes_them(build, tmp_path):
    dtu.write(tmp_path / "scene")
    (tmp_path / "scene" / "mvs_pc.ply").unlink()
    with pytest.raises(InputError, match=r"mvs_pc\.ply: no such file.*npbgpp prepare cloud scene=.*/scene"):
        build()


def test_what_a_parser_left_out_is_said(build, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    colmap.write(tmp_path / "scene")
    Image.new("RGB", (64, 48)).save(tmp_path / "scene" / "images" / "another.png")
    assert len(build().scenes["scene"].views) == 8
    assert any("scene scene: " in m and "1 of 9 photos" in m and "another.png" in m for m in caplog.messages), caplog.messages


def test_an_unknown_folder_asks_for_its_layout(build, tmp_path):
    (tmp_path / "scene").mkdir()
    with pytest.raises(InputError, match=r"looks like none.*datasets\.layout"):
        build()


def test_photos_of_several_sizes(build, tmp_path):
    """Whole photos come one by one, crops of all of them in one batch."""
    colmap.write(tmp_path / "scene", views=4)
    larger = tmp_path / "scene" / "images"
    first = sorted(larger.iterdir())[1]  # one that trains
    with Image.open(first) as photo:
        photo.resize((32, 24)).save(first)
    data = build()
    sizes = {batch.target.cameras.image_size for batch in data.train_dataloader()}
    assert len(sizes) == 2
    together = build(loaders_of(stage_loader(3), stage_loader(1), stage_loader(1)), train_image_size=16, train_random_shift=True)
    (batch,) = list(together.train_dataloader())
    assert batch.target.image.shape == (3, 3, 16, 16)
    with pytest.raises(InputError, match=r"datasets\.train_image_size.*24x32.*25x25"):
        build(train_image_size=25)
    with pytest.raises(InputError, match=r"of one size.*train_total_batch_size=1"):
        list(build(loaders_of(stage_loader(3), stage_loader(1), stage_loader(1))).train_dataloader())


def test_scenes_of_a_paths_file(build, tmp_path):
    npbg.write(tmp_path / "one", paths=True)
    (paths,) = [p for p in (tmp_path / "one").glob("*.yaml") if p.name != "scene.yaml"]
    name = "ball"
    lists = SceneLists((name,), (name,), (name,))
    data = build(layout="npbg", paths_file=paths, names=(name,), scenes=lists, data_root="nowhere", pc_name="point_cloud.ply")
    assert list(data.scenes) == [name] and len(data.scenes[name].views) == 8
    with pytest.raises(InputError, match=f"other.*{name}"):
        build(layout="npbg", paths_file=paths, scenes=SceneLists(("other",)))


@pytest.mark.parametrize(
    ("val", "test", "expected"),
    [
        ("every:4+1", "every:4", ((1, 5), (0, 4))),
        (None, "every:2", ((), (0, 2, 4, 6))),
        (0.25, (7,), ((2, 6), (7,))),
        ("test.txt", 0.25, ((3, 1), (2, 6))),
    ],
)
def test_views_by_rule_share_and_file(build, tmp_path, val, test, expected):
    colmap.write(tmp_path / "scene")
    (tmp_path / "test.txt").write_text("3\n1\n")
    splits = build(val_indices=val, test_indices=test).scenes["scene"].splits
    assert (splits["val"], splits["test"]) == expected or val is None
    assert splits["test"] == expected[1] and not {*splits["val"], *splits["test"]} & {*splits["train"]}


def test_a_scene_without_validation_views_trains_all_the_same(build, tmp_path, caplog):
    colmap.write(tmp_path / "scene", views=2)
    data = build(val_indices=())
    assert data.val_sets == [] and [s.indices for s in data.train_sets] == [(0,)] and [s.indices for s in data.test_sets] == [(1,)]
    assert any("no validation views" in m and "datasets.val_indices" in m for m in caplog.messages)


def test_a_cloud_that_knows_test_views_is_told(build, tmp_path, caplog):
    dtu.write(tmp_path / "scene")
    cloud = tmp_path / "scene" / "mvs_pc.ply"
    views = build().scenes["scene"].views

    def made_from(*used: str) -> DataModule:
        caplog.clear()
        names = tuple(view.name for view in views)
        CloudManifest("hull", {}, "scene", "dtu", used, tuple(n for n in names if n not in used), 9, cloud.name, "0", "a command").write(
            cloud
        )
        return build(test_indices=(1, 7))

    data = made_from("0", "2")
    assert not any("test views" in m for m in caplog.messages) and data.conditions()["cloud"] == "not known to be made from test views"
    data = made_from("0", "7")
    (said,) = [m for m in caplog.messages if "test views" in m]
    assert (
        "made from 1 of the test views (7)" in said
        and "overwrite=true" in said
        and data.conditions()["cloud"] == "made from 1 test views of scene"
    )


def test_worker_processes_need_no_cloud(tmp_path, monkeypatch):
    """What input views are chosen by is found before workers are made; they do not read the cloud again."""
    colmap.write(tmp_path / "scene")
    settings = dataset_settings("auto", tmp_path, LISTS, selection_count=2)
    loaders = loaders_of(stage_loader(1, num_workers=1), stage_loader(1), stage_loader(1))
    needs = DataNeeds(input_views=ProjectionSettings(1.0), scenes_per_epoch=4)
    data = data_module(settings, loaders, SearchPaths(tmp_path, tmp_path, tmp_path), needs)
    loader = data.train_dataloader()
    (tmp_path / "scene" / "mvs_pc.ply").unlink()
    assert len([len(batch.inputs[0].names) for batch in loader]) == len(data.train_sets[0].indices)
