"""Training says how long it waits for photos."""

import logging
import re
import time

from npbgpp.data.dataset import SceneDataset


def line(caplog) -> re.Match:
    pattern = r"epoch 0: (\d+) photos, ([\d.e+]+) per second; waited ([\d.]+) of ([\d.]+) s for them(.*)"
    (found,) = [match for message in caplog.messages if (match := re.fullmatch(pattern, message))]
    return found


def test_a_fast_loader(run_here, caplog):
    caplog.set_level(logging.INFO)
    run_here("datasets.train_num_samples=6")
    found = line(caplog)
    assert (
        int(found[1]) == 6
        and float(found[3]) < 0.5 * float(found[4])
        and abs(float(found[2]) - 6 / float(found[4])) < 0.5 * float(found[2])
    )


def test_a_slow_loader_is_named(run_here, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    item = SceneDataset.drawn

    def slow(self, index, generator):
        time.sleep(0.4)
        return item(self, index, generator)

    monkeypatch.setattr(SceneDataset, "drawn", slow)
    run_here("datasets.train_num_samples=6", "trainer.limit_val_batches=0")
    found = line(caplog)
    assert 2.0 <= float(found[3]) <= float(found[4]) and "num_workers" in found[5]
