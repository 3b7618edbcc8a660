"""What a training run left in its folder."""

import csv
from pathlib import Path

import torch
from torch import Tensor


def weights(folder: Path, name: str = "last") -> dict[str, Tensor]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def descriptors(folder: Path, scene: str = "ball") -> Tensor:
    return torch.load(folder / "descriptors" / f"{scene}.pth", weights_only=True)


def logged(folder: Path, name: str) -> list[float]:
    with open(folder / "csv_logs" / "metrics.csv", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]
