"""The feature pyramid: against recordings of the authors' code, and the pyramid without points.

Of the recordings, ``full_image_background`` (a background picture instead of one feature) has no counterpart here: checkpoints hold one
feature, and it is one row of the table that cells look their features up in. ``invert_mask_values`` is mended: the original inverted the features and left
the mask as it was, ours inverts the mask and leaves the features.
"""

import pytest
import torch
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixels import PixelConvention
from npbgpp.kernels.chunks import ChunkedCloud
from npbgpp.kernels.rasterization import Level, rasterize
from npbgpp.points.feature_pyramid import NearestScatterRasterizer

CASES = ("default", "no_mask_channel", "no_valid_mask", "ss2", "nothing_valid")


@pytest.fixture(scope="module")
def recorded(parity):
    return parity("c_project_features.pt")


def build(recorded: dict, **settings) -> NearestScatterRasterizer:
    scales = settings.setdefault("scales", recorded["scales"])
    settings.setdefault("ss_scale", [1] * len(scales))
    module = NearestScatterRasterizer(descriptor_dim=3, learnable=True, **settings)
    module.load_state_dict({"bg_feature": recorded["bg_feature"]})
    return module


def winning_rows(
    points: Tensor, valid: Tensor, cameras: Cameras, levels: tuple[Level, ...], rule: PixelConvention = PixelConvention.AUTHORS
) -> list[Tensor]:
    """Per level, the row of every cell in the flattened (b n) clouds, -1 where it is empty; invalid points do not exist."""
    count = points.shape[1]
    found: list[list[Tensor]] = [[] for _ in levels]
    for k in range(len(points)):
        kept = valid[k].nonzero()[:, 0]
        for rows, fragments in zip(found, rasterize(ChunkedCloud.build(points[k, kept]), cameras[k], levels, 1.0, rule), strict=True):
            hit = fragments.index >= 0
            rows.append(torch.full_like(fragments.index, -1).masked_scatter(hit, kept[fragments.index[hit]] + k * count))
    return [torch.stack(rows) for rows in found]


def rendered(recorded: dict, name: str, **changes) -> tuple[list[Tensor], dict, Tensor, NearestScatterRasterizer]:
    case = next(c for c in recorded["cases"] if c["name"] == name)
    batch, arguments = case["batch"], {**case["args"], **changes}
    valid = recorded["valid_mask"]
    if "valid_mask" in arguments:
        valid = torch.ones_like(valid) if arguments.pop("valid_mask") is None else valid
    elif name == "nothing_valid":
        valid = torch.zeros_like(valid)
    module = build(recorded, **arguments)
    cameras = Cameras.from_authors_ndc(
        recorded["R_row"], recorded["T"], recorded["fcl_ndc"], recorded["prp_ndc"], tuple(recorded["image_size"])
    )
    descriptors = recorded["descriptors"][:batch].clone().requires_grad_()
    rows = winning_rows(recorded["points"][:batch], valid[:batch], cameras, module.levels)
    return module(rows, descriptors.flatten(0, 1)), case, descriptors, module


@pytest.mark.parametrize("name", CASES)
def test_recorded_pyramids(recorded, name):
    found, case, _, _ = rendered(recorded, name)
    for level, expected in zip(found, case["out"], strict=True):
        if name == "ss2":
            torch.testing.assert_close(level, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        else:
            assert torch.equal(level, expected)


def test_recorded_inversion_is_mended(recorded):
    found, case, _, _ = rendered(recorded, "invert_mask_values")
    for level, expected in zip(found, case["out"], strict=True):
        covered = expected[:, 3:]
        assert covered.any() and not covered.all()
        assert torch.equal(level[:, 3:], 1 - covered)
        torch.testing.assert_close(level[:, :3], 1 - expected[:, :3], rtol=1e-6, atol=1e-6)


def hash_cotangent(count: int) -> Tensor:
    index = torch.arange(count, dtype=torch.int64)
    return ((index * 2654435761 % 1000003).double() / 1000003 * 2 - 1).float()


@pytest.mark.parametrize("name", ["default", "ss2"])
def test_recorded_gradients(recorded, name):
    """In the original no gradient of a supersampled level reaches the descriptors; here it does (tests/points/test_feature_pyramid.py), so those are left out."""
    found, case, descriptors, module = rendered(recorded, name)
    losses = [(level * hash_cotangent(level.numel()).view(level.shape)).sum() for level in found]
    (of_background,) = torch.autograd.grad(torch.stack(losses).sum(), [module.bg_feature], retain_graph=True)
    kept = [loss for loss, level in zip(losses, module.levels, strict=True) if level.supersampling == 1]
    (of_descriptors,) = torch.autograd.grad(torch.stack(kept).sum(), [descriptors], retain_graph=True)
    for gradient, expected in ((of_descriptors, case["grad_descriptors"]), (of_background, case["grad_bg_feature"])):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert torch.equal(of_descriptors.any(-1), case["grad_descriptors"].any(-1))
    if name == "ss2":
        (supersampled,) = torch.autograd.grad(losses[0], [descriptors])
        assert supersampled.any()


def test_recorded_single_point(recorded):
    one = recorded["one_point"]
    module = build(recorded)
    cameras = Cameras.from_authors_ndc(one["R_row"], one["T"], one["fcl_ndc"], one["prp_ndc"], tuple(one["image_size"]))
    rows = winning_rows(one["points"], torch.ones(1, 1, dtype=torch.bool), cameras, module.levels)
    for level, expected in zip(module(rows, one["descriptors"][0]), one["out"], strict=True):
        assert torch.equal(level, expected)


@pytest.mark.parametrize("inverted", [False, True])
def test_recorded_pyramid_without_points(recorded, inverted):
    expected = recorded["module"]["empty_inverted" if inverted else "empty_64x48"]
    scales = [expected[0].shape[2] / 64 * 0.5**k for k in range(len(expected))]
    found = build(recorded, scales=scales, invert_mask_values=inverted).empty((64, 48))
    for level, wanted in zip(found, expected, strict=True):
        assert torch.equal(level, wanted)


def recorded_image(recorded: dict) -> tuple[Tensor, Tensor]:
    return recorded["module"]["multi_img_in"], recorded["module"]["multi_mask_in"]


def test_recorded_pyramid_of_an_image(recorded):
    image, mask = recorded_image(recorded)
    plain = build(recorded).of_image(image, None, corrupt=False)
    for level, expected in zip(plain, recorded["module"]["multi_scale_img_no_mask_no_corrupt"], strict=True):
        assert torch.equal(level, expected)
    assert torch.equal(build(recorded).of_image(image, mask, corrupt=False)[0], recorded["module"]["masked_img"])


def test_recorded_pyramid_with_missing_pixels(recorded):
    image, mask = recorded_image(recorded)
    draws = recorded["module"]["corrupt_draws"]
    corrupted = build(recorded).of_image(image, mask, corrupt=True, draws=draws)
    for level, expected in zip(corrupted, recorded["module"]["multi_scale_img_corrupt"], strict=True):
        assert torch.equal(level, expected)


def test_recorded_mask_of_an_image_is_inverted(recorded):
    image, mask = recorded_image(recorded)
    found = build(recorded, invert_mask_values=True).of_image(image, mask, corrupt=False)[0]
    assert torch.equal(found, recorded["module"]["masked_img_inverted"])


def test_pixels_go_missing_as_often_as_levels_are_fine():
    module = NearestScatterRasterizer(descriptor_dim=3)
    for level, (image, whole) in zip(
        module.levels,
        zip(*(module.of_image(torch.rand(4, 3, 128, 128), None, corrupt) for corrupt in (True, False)), strict=True),
        strict=True,
    ):
        assert torch.equal(whole[:, 3:], torch.ones_like(whole[:, 3:]))
        missing = image[:, 3] == 0
        count = missing.numel()
        assert abs(missing.float().mean().item() - level.scale / 2) < 4 * (level.scale / 2 / count) ** 0.5
        assert torch.equal(image[:, :3].movedim(1, -1)[missing], module.bg_feature[0, :, 0, 0].expand(int(missing.sum()), 3))


@pytest.mark.parametrize("settings", [{}, {"cat_mask": False}, {"ss_scale": [2, 1, 1, 1, 1]}, {"invert_mask_values": True}])
def test_empty_is_what_forward_gives_without_points(settings):
    module = NearestScatterRasterizer(descriptor_dim=3, **settings)
    rows = [torch.full((2, int(q.scale * 40) * q.supersampling, int(q.scale * 56) * q.supersampling), -1) for q in module.levels]
    for a, b in zip(module(rows, torch.zeros(0, 3)), module.empty((40, 56), batch=2), strict=True):
        assert torch.equal(a, b)


def test_background_is_trained_only_when_asked():
    frozen, learnable = (NearestScatterRasterizer(descriptor_dim=3, learnable=flag) for flag in (False, True))
    assert not frozen.bg_feature.requires_grad and learnable.bg_feature.requires_grad
    assert [name for name, _ in learnable.named_parameters()] == ["bg_feature"]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"ss_scale": [1, 1]}, "system.rasterizer.ss_scale"),
        ({"scales": [], "ss_scale": []}, "system.rasterizer.ss_scale"),
        ({"scales": [1.0, 0.0], "ss_scale": [1, 1]}, "system.rasterizer.scales"),
        ({"scales": [1.0], "ss_scale": [0]}, "system.rasterizer.ss_scale"),
    ],
)
def test_contradicting_settings_are_named(settings, key):
    with pytest.raises(InputError, match=key):
        NearestScatterRasterizer(descriptor_dim=3, **settings)
