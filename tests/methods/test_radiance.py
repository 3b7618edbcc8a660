"""Optimisers descend, and rates are those of their schedules."""

import math

import pytest
import torch

from npbgpp.methods.radiance import build_optimizer, build_schedule

from ..helpers.settings import system_settings


def rates(epochs: int, **changes) -> list[float]:
    settings = system_settings("nerf", lr=1.0, **changes)
    optimizer = build_optimizer(settings, [torch.nn.Parameter(torch.zeros(1))])
    schedule = build_schedule(settings, optimizer, epochs)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return found


def test_schedules():
    assert rates(4, lr_schedule="constant") == [1.0] * 4
    assert rates(5, lr_schedule="steplr", decay_step=(2, 4), decay_gamma=0.5) == pytest.approx([1, 1, 0.5, 0.5, 0.25])
    assert rates(4, lr_schedule="cosine") == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)], abs=1e-7)
    assert rates(5, lr_schedule="poly", poly_exp=0.9) == pytest.approx([(1 - k / 5) ** 0.9 for k in range(5)])
    warm = rates(6, lr_schedule="poly", poly_exp=1.0, warmup_epochs=2)
    assert warm[:3] == pytest.approx([1 / 3, 2 / 3, 1]) and warm[3:] == pytest.approx([0.75, 0.5, 0.25])


@pytest.mark.parametrize("name", ["adam", "sgd", "radam", "ranger"])
def test_optimisers_descend(name):
    parameter = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = build_optimizer(system_settings("nerf", optimizer=name, lr=0.05), [parameter])
    for _ in range(200):
        optimizer.zero_grad()
        (parameter**2).sum().backward()
        optimizer.step()
    assert parameter.abs().item() < 1
