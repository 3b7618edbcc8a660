"""From settings to loaders: which scenes and views serve which purpose, and what is refused before any work starts."""

import dataclasses
import multiprocessing
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from npbgpp.core.paths import SearchPaths
from npbgpp.data.settings import DataloaderSettings, SceneLists
from npbgpp.engine.datamodule import DataModule
from npbgpp.errors import InputError, original_message
from npbgpp.methods.base import DataNeeds

from ..helpers.settings import data_module, dataset_settings, loaders_of, stage_loader

LOADERS = loaders_of(stage_loader(2, shuffle=True), stage_loader(2), stage_loader(3))
BALL = SceneLists(("ball",), ("ball",), ("ball",))


@pytest.fixture
def build(tiny_root: Path, tmp_path: Path):
    """Builds a DataModule on the tiny scenes from settings that differ from small defaults."""

    def go(scenes_per_epoch: int = 4, evaluate_only: bool = False, loaders: DataloaderSettings = LOADERS, **changes) -> DataModule:
        settings = dataset_settings(**{"layout": "nerf_synthetic", "data_root": tiny_root, "scenes": BALL, **changes})
        paths = SearchPaths(tmp_path, tmp_path, tmp_path)
        return data_module(settings, loaders, paths, DataNeeds(scenes_per_epoch=scenes_per_epoch), evaluate_only)

    return go


def test_one_scene(build):
    data = build()
    assert [(s.name, s.indices) for s in (*data.train_sets, *data.val_sets, *data.test_sets)] == [
        ("ball", tuple(range(12))),
        ("ball_val", (12,)),
        ("ball_holdout", (15, 16)),
    ]
    assert list(data.scenes) == ["ball"] and data.scenes["ball"].cloud.path.name == "mvs_pc.ply"


def test_indices_of_the_config_reach_the_sets(build):
    data = build(val_indices=(0, 3), test_indices=(1,))
    assert data.val_sets[0].indices == (0, 3) and data.test_sets[0].indices == (1,)
    assert data.train_sets[0].indices == (2, *range(4, 12))


def test_the_authors_spelling_of_test_views(tiny_root):
    def settings(**changes):
        return dataset_settings(layout="nerf_synthetic", data_root=tiny_root, scenes=BALL, **changes)

    assert settings(holdout_indices=(1,)) == settings(test_indices=(1,)) != settings()
    with pytest.raises(InputError, match=r"test_indices.*holdout_indices"):
        settings(holdout_indices=(1,), test_indices=(1,))


LISTS = [
    (SceneLists(("ball", "globe", "moon"), ("globe",), ("globe",)), {"ball": set(), "globe": {12, 15, 16}, "moon": set()}),
    (SceneLists(("ball", "globe"), ("globe",), ()), {"ball": set(), "globe": {12}}),
    (SceneLists(("ball", "globe"), (), ("ball",)), {"ball": {15, 16}, "globe": set()}),
    (SceneLists(("ball",), ("moon",), ("moon",)), {"ball": set()}),
]


@pytest.mark.parametrize(("lists", "evaluated"), LISTS)
def test_pretraining_uses_every_view_that_this_run_does_not_evaluate(build, lists, evaluated):
    data = build(scenes=lists, train_on="all")
    for dataset in data.train_sets:
        assert set(dataset.indices) == set(range(17)) - evaluated[dataset.scene.name]
    trained = {(s.scene.name, i) for s in data.train_sets for i in s.indices}
    assert not trained & {(s.scene.name, i) for s in (*data.val_sets, *data.test_sets) for i in s.indices}


@pytest.mark.parametrize(
    ("val", "named"), [("every:8", "all 3 of datasets.val_indices=every:8 are test views"), ((), "no validation views and")]
)
def test_scenes_that_are_not_validated_say_why(build, caplog, val, named):
    data = build(val_indices=val, test_indices="every:8")
    assert data.val_sets == [] and named in caplog.text


def test_evaluation_reads_no_training_scene(build):
    data = build(scenes=SceneLists(("absent",), ("ball",), ("globe",)), evaluate_only=True)
    assert list(data.scenes) == ["ball", "globe"] and data.train_sets == [] and data.sampler is None


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_every_purpose(build, workers):
    """Settings reach the loaders; worker processes draw the same views as this process."""
    loaders = loaders_of(stage_loader(5, workers), stage_loader(2, workers), stage_loader(3, workers))
    data = build(
        loaders=loaders,
        train_num_samples=14,
        train_image_size=(16, 20),
        train_random_shift=True,
        train_random_zoom=(0.8, 1.2),
        image_margin=1,
    )
    train = list(data.train_dataloader())
    assert [len(batch) for batch in train] == [5, 5], "the last, incomplete batch is dropped"
    assert [name for batch in train for name in batch.target.names] == [f"train-r_{k}" for k in range(10)]
    target = train[0].target
    assert target.image.shape == (5, 3, 16, 20) and target.mask.shape == target.valid.shape == (5, 1, 16, 20)
    assert target.cameras.image_size == (16, 20) and len(target.cameras) == 5 and train[0].dataset == ("ball",) * 5
    (test,) = data.test_dataloader()
    (batch,) = list(test)
    assert batch.target.names == ("test-r_0", "test-r_1") and batch.target.image.shape == (2, 3, 32, 32)
    assert not batch.target.valid[:, :, 0].all()
    (val,) = data.val_dataloader()
    assert [b.dataset for b in val] == [("ball_val",)]


def test_worker_processes_are_seeded(build):
    loaders = loaders_of(stage_loader(3, 2), stage_loader(1), stage_loader(1))
    images = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        data = build(loaders=loaders, train_random_zoom=(0.5, 2.0), train_num_samples=6)
        images.append(torch.cat([batch.target.cameras.focal_length for batch in data.train_dataloader()]))
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    assert len(images[0].unique()) == 6, "each worker must draw its own numbers"


def test_a_worker_does_not_hear_what_is_told_to_all(build):
    """It is this process that is to stop, when it can; and it can end its worker."""
    data = build(loaders=loaders_of(stage_loader(1, 1), stage_loader(1), stage_loader(1)), train_num_samples=9)
    loader = data.train_dataloader()
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    subprocess.run(["sh", "-c", f"kill -TERM {worker.pid}"], check=True)
    assert len(list(batches)) == 8 and worker.is_alive()
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0


def test_a_worker_reports_a_damaged_photo_in_one_message(build, tiny_root, tmp_path):
    folder = tmp_path / "spoilt" / "ball"
    shutil.copytree(tiny_root / "ball", folder)
    photo = folder / "train" / "r_2.png"
    photo.write_bytes(photo.read_bytes()[:150])
    loaders = loaders_of(stage_loader(3, 1), stage_loader(1), stage_loader(1))
    with pytest.raises(InputError) as caught:
        list(build(data_root=str(tmp_path / "spoilt"), loaders=loaders).train_dataloader())
    message = original_message(caught.value)
    assert message.startswith("image ") and "train/r_2.png" in message and "Traceback" not in message


def test_several_scenes_take_turns(build):
    data = build(scenes=SceneLists(("ball", "globe", "moon")), scenes_per_epoch=2)
    seen = set()
    loader = data.train_dataloader()
    for epoch in range(2):
        data.sampler.set_epoch(epoch)
        scenes = {name for batch in loader for name in batch.scene}
        assert len(scenes) == 2
        seen |= scenes
    assert seen == {"ball", "globe", "moon"}


def test_conditions_of_the_scores(build):
    assert build().conditions()["background"] == "(1.0, 1.0, 1.0)"
    assert build(white_bg=False).conditions()["background"] == "as photographed"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layout": "blender"}, ["datasets.layout", "nerf_synthetic", "blender"]),
        ({"train_on": "train"}, ["datasets.train_on", "split", "all"]),
        ({"data_root": "nowhere"}, ["datasets.data_root=nowhere"]),
        ({"scenes": SceneLists(("balll",))}, ["scene balll", "ball, globe, moon"]),
        ({"pc_name": "other.ply"}, ["other.ply", "ball", "datasets.pc_name"]),
        ({"n_point": 0}, ["datasets.n_point", "0"]),
        ({"train_image_size": 33}, ["datasets.train_image_size", "32x32", "33x33"]),
        ({"train_random_shift": True}, ["datasets.train_random_shift"]),
        ({"train_random_shift": True, "train_image_size": 32}, ["datasets.train_random_shift"]),
        ({"val_indices": "every:1"}, ["datasets.val_indices", "every:<n>", "every:1"]),
        ({"test_indices": "list.txt"}, ["datasets.test_indices", "list.txt"]),
        ({"test_indices": 1.5}, ["datasets.test_indices", "1.5"]),
        ({"downscale": 0.5}, ["datasets.downscale", "0.5"]),
        ({"downscale": 100.0}, ["datasets.downscale", "32x32"]),
        ({"cache_memory_gb": 0.0}, ["datasets.cache_memory_gb"]),
        ({"names": ("a",)}, ["datasets.names", "datasets.scene_name"]),
        ({"paths_file": "paths.yaml"}, ["datasets.paths_file", "paths.yaml"]),
        ({"test_indices": (17,)}, ["datasets.test_indices", "[17]"]),
        ({"train_num_samples": 0}, ["datasets.train_num_samples"]),
    ],
)
def test_impossible_settings_are_refused(build, changes, words):
    with pytest.raises(InputError) as caught:
        build(**changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_mode_of_drawing_that_does_not_exist_is_refused(build):
    with pytest.raises(InputError, match="dataloader.train_data_mode.*common or each"):
        build(loaders=dataclasses.replace(LOADERS, train_data_mode="all"))


@pytest.mark.parametrize("size", [13, 1000])
def test_a_batch_larger_than_the_epoch_is_refused(build, size):
    with pytest.raises(InputError, match=rf"total_batch_size.*12 samples.*batch of {size}"):
        build(loaders=dataclasses.replace(LOADERS, train=stage_loader(size))).train_dataloader()
    assert len(build(loaders=dataclasses.replace(LOADERS, train=stage_loader(12))).train_dataloader()) == 1


def test_a_batch_of_no_views_is_refused(build):
    with pytest.raises(InputError, match="dataloader.val.total_batch_size"):
        build(loaders=dataclasses.replace(LOADERS, val=stage_loader(0))).val_dataloader()


def test_images_may_lie_apart_from_the_scene(run_here, tiny_root, tmp_path):
    """``images_subroot`` and ``scene_subroot`` of the original's configuration."""
    scenes, images = tmp_path / "scenes", tmp_path / "pictures"
    shutil.copytree(tiny_root / "ball", scenes / "ball", ignore=shutil.ignore_patterns("train", "val", "test"))
    for stage in ("train", "val", "test"):
        shutil.copytree(tiny_root / "ball" / stage, images / "ball" / stage)
    folder = run_here(f"datasets.scene_subroot={scenes}", f"datasets.images_subroot={images}", "trainer.max_epochs=1", root=scenes)
    assert (folder / "metrics.json").is_file()
    with pytest.raises(InputError, match=r"train/r_0\.png: no such file"):
        run_here(name="without", root=scenes)
