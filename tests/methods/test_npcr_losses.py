"""What NPCR learns from: colours by matte, and the terms of its loss."""

from dataclasses import replace

import pytest
import torch
import torchvision

from npbgpp.errors import InputError
from npbgpp.losses import RGBAPerceptualLoss
from npbgpp.methods.npcr.system import RGBALoss, RGBALosses, premultiply

from ..helpers.settings import system_settings


def losses(**factors: float) -> RGBALosses:
    return replace(system_settings("npcr").losses, **factors)


def test_what_shows_through_is_taken_out():
    straight, matte = torch.rand(3, 6, 7), torch.rand(1, 6, 7)
    behind = (0.2, 0.5, 0.9)
    mixed = straight * matte + (1 - matte) * torch.tensor(behind)[:, None, None]
    torch.testing.assert_close(premultiply(mixed, matte, behind), torch.cat([straight * matte, matte]))
    assert torch.equal(premultiply(straight, matte, None), torch.cat([straight * matte, matte]))


def test_weighted_colours_never_exceed_their_matte():
    """Noise of a JPEG: a pixel that is brighter or darker than the background can explain."""
    found = premultiply(torch.tensor([[[0.9]], [[0.0]], [[0.5]]]), torch.tensor([[[0.1]]]), (0.5, 0.5, 0.5))
    assert found[:, 0, 0].tolist() == pytest.approx([0.1, 0.0, 0.05, 0.1])


@pytest.fixture(scope="module")
def vgg19() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = torchvision.models.vgg19(weights=None).features
    return {f"features.{key}": value for key, value in shapes.state_dict().items()}


def test_perceptual_loss_by_hand(vgg19):
    """Mean squared differences after relu1_2 and relu2_2 of the unscaled pictures, colour and matte, over four."""
    features = torchvision.models.vgg19(weights=None).features
    features.load_state_dict({key.removeprefix("features."): value for key, value in vgg19.items()})
    a, b = torch.rand(1, 4, 20, 22), torch.rand(1, 4, 20, 22)
    terms = []
    for pair in ((a[:, :3], b[:, :3]), (a[:, 3:].repeat(1, 3, 1, 1), b[:, 3:].repeat(1, 3, 1, 1))):
        for end in (4, 9):
            ours, wanted = (features[:end](image) for image in pair)
            terms.append(((ours - wanted) ** 2).mean())
    loss = RGBAPerceptualLoss(vgg19)
    torch.testing.assert_close(loss(a, b), sum(terms) / 4)
    torch.testing.assert_close(loss.colours(a[:, :3], b[:, :3]), (terms[0] + terms[1]) / 2)
    a.requires_grad_()
    loss(a, b).backward()
    assert a.grad.abs().sum() > 0 and not any(p.requires_grad for p in loss.parameters())


def test_the_objective_adds_up_its_terms(tmp_path, vgg19):
    torch.save(vgg19, tmp_path / "vgg.pth")
    objective = RGBALoss(losses(rgba_mse=2.0, rgba_l1=0.5, ssim=0.1, perceptual=0.25), tmp_path / "vgg.pth")
    a, b = torch.rand(1, 4, 20, 22), torch.rand(1, 4, 20, 22)
    terms = objective.terms(a, b, torch.ones(1, 1, 20, 22, dtype=torch.bool))
    assert set(terms) == {"rgba_mse", "rgba_l1", "ssim", "perceptual"}
    torch.testing.assert_close(terms["rgba_mse"], ((a - b) ** 2).mean())
    expected = 2 * terms["rgba_mse"] + 0.5 * terms["rgba_l1"] + 0.1 * terms["ssim"] + 0.25 * terms["perceptual"]
    torch.testing.assert_close(objective.total(terms), expected)
    assert set(RGBALoss(losses(perceptual=0.0), None).terms(a, b, torch.ones(1, 1, 20, 22, dtype=torch.bool))) == {"rgba_mse"}


def test_pixels_outside_of_the_region_count_as_right():
    objective = RGBALoss(losses(ssim=0.1, perceptual=0.0), None)
    rendered, target = torch.rand(1, 4, 16, 16, requires_grad=True), torch.rand(1, 4, 16, 16)
    region = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    region[..., :5, :5] = True
    terms = objective.terms(rendered, target, region)
    objective.total(terms).backward()
    inside = region.expand(1, 4, -1, -1)
    assert not rendered.grad[~inside].any() and rendered.grad[inside].any()


def test_layers_of_a_schedule():
    settings = system_settings("npcr", layers={"0": 1, "20": 4, "30": 2})
    assert [settings.layers_at(epoch) for epoch in (0, 19, 20, 29, 30, 900)] == [1, 1, 4, 4, 2, 2] and settings.most_layers == 4
    assert system_settings("npcr", layers=3).layers_at(7) == 3


def test_a_missing_network_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match="vgg19-dcbb9e9d.pth .*or train without it: system.losses="):
        RGBALoss(losses(), None)
