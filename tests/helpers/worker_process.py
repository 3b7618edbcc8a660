"""A process of a test of several processes: ``python -m tests.helpers.worker_process <launch folder> <runs as JSON>``.

Runs one configuration after another. Writes the paths of the data that it read to ``read_<rank>.json``, and sums of the buffers that it validated with to
``buffers_<rank>.json``.
"""

import json
import os
import sys
from pathlib import Path

import npbgpp.callbacks.evaluation as evaluation
import npbgpp.data.images as images
import npbgpp.data.point_files as point_files

from ..run_folders import run_words

read: set[str] = set()
buffers: list[list[float]] = []
read_photo, read_cloud = images.read_photo, point_files.CloudFile.read
on_validation_epoch_start = evaluation.EvaluationWriter.on_validation_epoch_start


def record_photo(view, *rest):
    read.add(str(view.image))
    return read_photo(view, *rest)


def record_cloud(self, *rest):
    read.add(str(self.path))
    return read_cloud(self, *rest)


def record_buffers(self, trainer, module):
    buffers.append([value.double().sum().item() for value in module.buffers()])
    on_validation_epoch_start(self, trainer, module)


if __name__ == "__main__":
    images.read_photo, point_files.CloudFile.read = record_photo, record_cloud
    evaluation.EvaluationWriter.on_validation_epoch_start = record_buffers
    launch = Path(sys.argv[1])
    for overrides in json.loads(sys.argv[2]):
        run_words(launch, *overrides)
    for name, found in {"read": sorted(read), "buffers": buffers}.items():
        (launch / f"{name}_{os.environ['RANK']}.json").write_text(json.dumps(found))
