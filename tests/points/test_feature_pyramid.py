"""Feature images and pyramids against a plain reference and the recordings of the authors' code; RGBConverter.

Two recordings differ on purpose: ``full_image_background`` (a background image instead of one feature) is not supported, and ``invert_mask_values`` inverts the
mask, where the original inverted the features.
"""

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixels import PixelConvention, ProjectionSettings
from npbgpp.kernels.rasterization import ChunkedCloud, Level, rasterize
from npbgpp.points.feature_pyramid import FeaturePyramid, RGBConverter, feature_image, feature_table


def feature_image_reference(row: Tensor, descriptors: Tensor, background: Tensor, supersampling: int) -> Tensor:
    """``feature_image`` pixel by pixel."""
    b, h, w = row.shape
    images, masks = [], []
    for k in range(b):
        for i in range(0, h, supersampling):
            for j in range(0, w, supersampling):
                cells = row[k, i : i + supersampling, j : j + supersampling].flatten().tolist()
                covered = [descriptors[r] for r in cells if r >= 0]
                images.append(sum(covered[1:], covered[0]) / len(covered) if covered else background[0, :, 0, 0])
                masks.append(float(bool(covered)))
    size = (b, h // supersampling, w // supersampling)
    features = torch.stack(images).view(*size, -1).permute(0, 3, 1, 2)
    return torch.cat([features, torch.tensor(masks).view(*size)[:, None].to(features)], 1)


def parts(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and mask."""
    return image[:, :-1], image[:, -1:]


def example(seed: int = 0, points: int = 30, empty: float = 0.4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of a 2 x 8 x 12 raster with empty cells (among them a 4x4 corner), and descriptors and background that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    row = torch.randint(points, (2, 8, 12), generator=generator)
    row[torch.rand(row.shape, generator=generator) < empty] = -1
    row[:, :4, :4] = -1
    row[row == 3] = 4  # point 3 wins nowhere
    descriptors = torch.randn(points, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    background = torch.randn(1, 5, 1, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    return row, descriptors, background


@pytest.mark.parametrize("supersampling", [1, 2, 4])
@pytest.mark.parametrize("empty", [0.0, 0.4, 1.0])
def test_equals_reference_in_values_and_gradients(supersampling, empty):
    row, descriptors, background = example(empty=empty)
    found, expected = (
        parts(feature_image(row, feature_table(descriptors, background), supersampling)),
        parts(feature_image_reference(row, descriptors, background, supersampling)),
    )
    assert found[0].shape == (2, 5, 8 // supersampling, 12 // supersampling)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(found[1], expected[1])
    cotangent = torch.randn(found[0].shape, dtype=torch.float64)
    for a, b in zip(
        *(torch.autograd.grad((f[0] * cotangent).sum(), [descriptors, background], materialize_grads=True) for f in (found, expected)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("supersampling", [1, 2])
def test_only_winning_points_get_gradients(supersampling):
    row, descriptors, background = example()
    image, covered = parts(feature_image(row, feature_table(descriptors, background), supersampling))
    gradient, of_background = torch.autograd.grad(image.sum(), [descriptors, background])
    winners = torch.zeros(len(descriptors), dtype=torch.bool)
    winners[row[row >= 0]] = True
    assert not winners[3] and winners.sum() > 20
    assert (gradient[winners] > 0).all() and not gradient[~winners].any()
    torch.testing.assert_close(of_background.flatten(), (1 - covered).sum().expand(5))


def test_feature_image_is_channels_last():
    row, descriptors, background = example()
    assert feature_image(row, feature_table(descriptors, background)).is_contiguous(memory_format=torch.channels_last)


def test_feature_image_without_points():
    background = torch.randn(1, 5, 1, 1)
    image, covered = parts(feature_image(torch.full((1, 4, 6), -1), feature_table(torch.zeros(0, 5), background)))
    assert torch.equal(image, background.expand(1, 5, 4, 6)) and not covered.any()


def test_shape_annotations_are_checked_in_tests():
    """The import hook of ``conftest.py`` is active."""
    with pytest.raises(TypeCheckError):
        feature_table(torch.zeros(3), torch.zeros(1, 4, 1, 1))


# ------------------------------------------------------------------ FeaturePyramid


CASES = ("default", "no_mask_channel", "no_valid_mask", "ss2", "nothing_valid")


@pytest.fixture(scope="module")
def recorded(parity):
    return parity("c_project_features.pt")


def build(recorded: dict, **settings) -> FeaturePyramid:
    scales = settings.setdefault("scales", recorded["scales"])
    settings.setdefault("ss_scale", [1] * len(scales))
    module = FeaturePyramid(descriptor_dim=3, learnable=True, **settings)
    module.load_state_dict({"bg_feature": recorded["bg_feature"]})
    return module


def winning_rows(
    points: Tensor, valid: Tensor, cameras: Cameras, levels: tuple[Level, ...], convention: PixelConvention = PixelConvention.AUTHORS
) -> list[Tensor]:
    """Row of every cell of every level in the flattened (b n) clouds, -1 for empty cells; invalid points are left out."""
    count = points.shape[1]
    found: list[list[Tensor]] = [[] for _ in levels]
    for k in range(len(points)):
        kept = valid[k].nonzero()[:, 0]
        for rows, fragments in zip(
            found,
            rasterize(ChunkedCloud.build(points[k, kept]), cameras[k], levels, ProjectionSettings(1.0, convention)),
            strict=True,
        ):
            hit = fragments.index >= 0
            rows.append(torch.full_like(fragments.index, -1).masked_scatter(hit, kept[fragments.index[hit]] + k * count))
    return [torch.stack(rows) for rows in found]


def rendered(recorded: dict, name: str, **changes) -> tuple[list[Tensor], dict, Tensor, FeaturePyramid]:
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


def test_recorded_inversion_applies_to_the_mask(recorded):
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
    """Gradients of supersampled levels are left out: in the original they do not reach the descriptors."""
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
    plain = build(recorded).from_image(image, None, corrupt=False)
    for level, expected in zip(plain, recorded["module"]["multi_scale_img_no_mask_no_corrupt"], strict=True):
        assert torch.equal(level, expected)
    assert torch.equal(build(recorded).from_image(image, mask, corrupt=False)[0], recorded["module"]["masked_img"])


def test_recorded_pyramid_with_missing_pixels(recorded):
    image, mask = recorded_image(recorded)
    draws = recorded["module"]["corrupt_draws"]
    corrupted = build(recorded).from_image(image, mask, corrupt=True, draws=draws)
    for level, expected in zip(corrupted, recorded["module"]["multi_scale_img_corrupt"], strict=True):
        assert torch.equal(level, expected)


def test_recorded_mask_of_an_image_is_inverted(recorded):
    image, mask = recorded_image(recorded)
    found = build(recorded, invert_mask_values=True).from_image(image, mask, corrupt=False)[0]
    assert torch.equal(found, recorded["module"]["masked_img_inverted"])


def test_corruption_rate_is_half_the_scale():
    module = FeaturePyramid(descriptor_dim=3)
    for level, (image, whole) in zip(
        module.levels,
        zip(*(module.from_image(torch.rand(4, 3, 128, 128), None, corrupt) for corrupt in (True, False)), strict=True),
        strict=True,
    ):
        assert torch.equal(whole[:, 3:], torch.ones_like(whole[:, 3:]))
        missing = image[:, 3] == 0
        count = missing.numel()
        assert abs(missing.float().mean().item() - level.scale / 2) < 4 * (level.scale / 2 / count) ** 0.5
        assert torch.equal(image[:, :3].movedim(1, -1)[missing], module.bg_feature[0, :, 0, 0].expand(int(missing.sum()), 3))


@pytest.mark.parametrize("settings", [{}, {"cat_mask": False}, {"ss_scale": [2, 1, 1, 1, 1]}, {"invert_mask_values": True}])
def test_empty_equals_forward_without_points(settings):
    module = FeaturePyramid(descriptor_dim=3, **settings)
    rows = [torch.full((2, int(q.scale * 40) * q.supersampling, int(q.scale * 56) * q.supersampling), -1) for q in module.levels]
    for a, b in zip(module(rows, torch.zeros(0, 3)), module.empty((40, 56), batch=2), strict=True):
        assert torch.equal(a, b)


def test_background_requires_gradients_only_if_learnable():
    frozen, learnable = (FeaturePyramid(descriptor_dim=3, learnable=flag) for flag in (False, True))
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
def test_invalid_settings_are_refused(settings, key):
    with pytest.raises(InputError, match=key):
        FeaturePyramid(descriptor_dim=3, **settings)


# ------------------------------------------------------------------ RGBConverter


def test_colours_are_in_range_for_any_batch_shape() -> None:
    converter = RGBConverter(8)
    for shape in [(8,), (5, 8), (2, 0, 8), (2, 3, 4, 8)]:
        rgb = converter(1e3 * torch.randn(shape))
        assert rgb.shape == (*shape[:-1], 3)
        assert bool(((rgb >= 0) & (rgb <= 0.9)).all())
        assert converter.reconstruct(rgb).shape == shape


def test_converter_parameters_all_get_gradients() -> None:
    converter = RGBConverter(8)
    assert sum(p.numel() for p in converter.parameters()) == 59
    x = torch.randn(10, 8)
    (converter.reconstruct(converter(x)) - x).abs().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in converter.parameters())


@pytest.mark.parametrize("case", [0, 1])
def test_recorded_converter(parity, case: int) -> None:
    record = parity("g_rgb_view_selection.pt")["rgb_converter"][case]
    converter = RGBConverter(record["feature_dim"])
    converter.load_state_dict(record["state_dict"], strict=True)
    torch.testing.assert_close(converter(record["x"]), record["rgb"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(converter.reconstruct(record["rgb"]), record["reconstructed"], rtol=1e-5, atol=1e-6)


def test_released_names_load_strictly(parity) -> None:
    state = parity("h_ckpt_npbgpp_sphere.pt")["state_dict"]
    released = {k.removeprefix("rgb_converter."): v for k, v in state.items() if k.startswith("rgb_converter.")}
    converter = RGBConverter(8)
    converter.load_state_dict(released, strict=True)
    assert released and all(torch.equal(v, released[k]) for k, v in converter.state_dict().items())
