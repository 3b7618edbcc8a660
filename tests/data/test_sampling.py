"""Sampling of scenes and items. S scenes, at most M per epoch, E = ceil(S / M) epochs of one round."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from npbgpp.data.sampling import Draw, SceneSampler, Shard
from npbgpp.errors import InputError


def items(rotation: SceneSampler) -> list[int]:
    """Numbers of the items of the epoch, in their order."""
    return [draw.item for draw in rotation]


def visited(rotation: SceneSampler, lengths: list[int]) -> set[int]:
    """Scenes that the indices of the epoch belong to."""
    ends = torch.tensor(lengths).cumsum(0)
    return set(torch.searchsorted(ends, torch.tensor(items(rotation)), right=True).tolist())


CASES = [(5, 4), (11, 4), (3, 2), (1, 4), (4, 4), (1, 1), (7, 1), (7, 3), (8, 4), (78, 4), (6, 5), (9, 2)]


@pytest.mark.parametrize(("scenes", "most"), CASES)
def test_every_scene_comes_in_every_round(scenes, most):
    lengths = [3 + k % 4 for k in range(scenes)]
    rotation = SceneSampler(lengths, most, shuffle=True)
    epochs = -(-scenes // most)
    for cycle in range(3):
        seen = set()
        for epoch in range(cycle * epochs, (cycle + 1) * epochs):
            rotation.set_epoch(epoch)
            chosen = rotation.scenes()
            assert len(chosen) == len(set(chosen)) == min(most, scenes) and chosen == sorted(chosen)
            assert visited(rotation, lengths) == set(chosen) and len(rotation) == sum(lengths[k] for k in chosen) == len(list(rotation))
            seen |= set(chosen)
        assert seen == set(range(scenes))


@pytest.mark.parametrize(("scenes", "most"), [(5, 4), (7, 3), (78, 4)])
def test_rounds_differ_and_repeat_exactly(scenes, most):
    def rounds(rotation: SceneSampler) -> list[list[int]]:
        chosen = []
        for epoch in range(12):
            rotation.set_epoch(epoch)
            chosen.append(rotation.scenes())
        return chosen

    first = rounds(SceneSampler([2] * scenes, most, True))
    torch.manual_seed(99)
    assert rounds(SceneSampler([2] * scenes, most, True)) == first, "scenes must not depend on the seed of the run"
    assert len({tuple(chosen) for chosen in first}) > 1


def test_every_item_of_a_chosen_scene_comes_once():
    for shuffle in (False, True):
        rotation = SceneSampler([4, 2, 3], 2, shuffle)
        starts = (0, 4, 6)
        for epoch in range(4):
            rotation.set_epoch(epoch)
            expected = [starts[k] + i for k in rotation.scenes() for i in range(rotation.lengths[k])]
            assert sorted(items(rotation)) == expected
            assert shuffle or items(rotation) == expected


def test_shuffling_changes_with_the_epoch_and_follows_the_seed():
    torch.manual_seed(1)
    rotation = SceneSampler([50], 1, True)
    first = items(rotation)
    assert first != sorted(first) and items(rotation) == first
    rotation.set_epoch(1)
    assert items(rotation) != first
    torch.manual_seed(1)
    assert items(SceneSampler([50], 1, True)) == first
    torch.manual_seed(2)
    assert items(SceneSampler([50], 1, True)) != first


@pytest.mark.parametrize("most", [0, -1])
def test_no_scene_per_epoch_is_refused(most):
    with pytest.raises(InputError, match=f"system.max_scenes_per_train_epoch.*{most}"):
        SceneSampler([3], most, True)


class Numbers(Dataset):
    """Item i is i."""

    def __len__(self) -> int:
        return 15

    def __getitem__(self, draw: Draw) -> int:
        return draw.item


class Recorder(LightningModule):
    """Notes which items each epoch brings."""

    def __init__(self, loader: DataLoader) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.loader, self.epochs = loader, {}

    def train_dataloader(self) -> DataLoader:
        return self.loader

    def training_step(self, batch, batch_idx):
        self.epochs.setdefault(self.current_epoch, []).extend(batch.tolist())

    def configure_optimizers(self):
        return []


@pytest.mark.parametrize("reload", [0, 1])
def test_scenes_rotate_in_a_trainer_whether_or_not_loaders_are_rebuilt(reload, tmp_path):
    """Five scenes of three items, four at a time: the fifth must come in the second epoch."""
    rotation = SceneSampler([3] * 5, 4, True)
    recorder = Recorder(DataLoader(Numbers(), batch_size=3, sampler=rotation))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        reload_dataloaders_every_n_epochs=reload,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(recorder)
    scenes = [{item // 3 for item in items} for items in recorder.epochs.values()]
    assert [len(s) for s in scenes] == [4, 4] and scenes[0] | scenes[1] == set(range(5))
    assert all(len(items) == 12 for items in recorder.epochs.values())


def test_scenes_of_an_epoch_are_logged(caplog):
    caplog.set_level("INFO", "npbgpp")
    names = ["a", "b", "c"]
    rotation = SceneSampler([2, 2, 2], 2, True, names)
    rotation.set_epoch(1)
    assert caplog.messages == ["epoch 1: scenes " + ", ".join(names[k] for k in rotation.scenes())]
    SceneSampler([2, 2, 2], 3, True, names).set_epoch(1)
    assert len(caplog.messages) == 1


# ------------------------------------------------------------------ several processes
def dealt(lengths: list[int], most: int, count: int, mode: str, epoch: int = 0) -> list[list[int]]:
    """Items of every process."""
    found = []
    for rank in range(count):
        rotation = SceneSampler(lengths, most, True, mode=mode)
        rotation.shard, rotation.epoch = Shard(rank, count), epoch
        found.append(items(rotation))
    return found


@pytest.mark.parametrize("mode", ["common", "each"])
@pytest.mark.parametrize(
    ("lengths", "most", "count"), [([4, 4], 2, 2), ([5, 3, 4], 3, 2), ([6], 1, 2), ([3, 9, 4, 4, 2], 4, 3), ([7, 7], 2, 5)]
)
def test_processes_draw_equally_many_items_and_each_its_own(mode, lengths, most, count):
    """Any number of scenes and processes; no item comes twice in ``common``, and in ``each`` only where a process has too few."""
    for epoch in range(3):
        parts = dealt(lengths, most, count, mode, epoch)
        assert len({len(part) for part in parts}) == 1 and len(parts[0]) >= 1
        if mode == "common":
            together = [item for part in parts for item in part]
            assert len(set(together)) == len(together)
        else:
            assert all(not set(a) & set(b) for k, a in enumerate(parts) for b in parts[:k]), "processes draw from disjoint items"


def test_each_process_has_scenes_of_its_own():
    rotation = SceneSampler([4] * 6, 5, True, mode="each")
    for epoch in range(4):
        rotation.epoch = epoch
        own = []
        for rank in range(2):
            rotation.shard = Shard(rank, 2)
            own.append(rotation.own_scenes())
            assert visited(rotation, [4] * 6) <= set(own[-1]) and not rotation.shares_scenes(2)
        assert sorted(own[0] + own[1]) == rotation.scenes() and not set(own[0]) & set(own[1])
    assert rotation.shares_scenes(8)


def test_a_resumed_epoch_has_the_same_draws():
    rotation = SceneSampler([20], 1, True, per_batch=3)
    rotation.set_epoch(4)
    whole = list(rotation)
    again = SceneSampler([20], 1, True, per_batch=3)
    again.seed = rotation.seed
    again.skip(4, 2)
    assert list(again) == whole[6:] and len(again) == 20
    again.set_epoch(5)
    assert len(list(again)) == 20
