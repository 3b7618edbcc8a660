"""FeatureExtractor and IdentityExtractor: parameters, image sizes, skips, gradients, frozen statistics, encoder weights, recordings, invalid arguments."""

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npbgpp.errors import InputError
from npbgpp.nets.feature_extractor import FeatureExtractor, IdentityExtractor

SMALL: dict[str, Any] = {
    "encoder": "mobilenetv3_small_050",
    "pretrained_encoder": False,
    "decoder_channels": [12, 10, 8, 6, 5],
    "out_channels": 4,
}


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path / "torch_home" / "hub" / "checkpoints"


@pytest.fixture
def released(parity) -> FeatureExtractor:
    """The shipped network with the weights of the recorded checkpoint, loaded strictly."""
    net = FeatureExtractor()
    prefix = "feature_extractor."
    state = parity("h_ckpt_npbgpp_sphere.pt")["state_dict"]
    net.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    return net


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


def plain_forward(net: FeatureExtractor, images: Tensor) -> Tensor:
    """Reference implementation of the shipped network: NCHW, padding by indexing, sizes from the encoder maps."""
    h, w = images.shape[2:]
    rows, columns = -h % 32, -w % 32
    row = (torch.arange(h + rows) - rows // 2).clamp(0, h - 1)
    column = (torch.arange(w + columns) - columns // 2).clamp(0, w - 1)
    image = images[:, :, row][:, :, :, column].contiguous()
    maps = net.encoder((image - net.mean) / net.std)
    x = maps[4]
    for i, skip in enumerate([maps[3], maps[2], maps[1], maps[0], image]):
        x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=True)
        x = F.leaky_relu(F.conv2d(torch.cat([x, skip], 1), net.get_parameter(f"decoder.blocks.{i}.block.0.weight"), padding=1), 0.01)
    x = F.conv2d(x, net.final.weight)
    return x[:, :, rows // 2 : rows // 2 + h, columns // 2 : columns // 2 + w]


def test_parameter_counts_and_shipped_defaults() -> None:
    net = FeatureExtractor()
    count = {name: sum(p.numel() for p in child.parameters()) for name, child in net.named_children()}
    assert count["decoder"] == 1_415_088 and count["final"] == 128
    torch.testing.assert_close(net.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(net.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))
    plain = FeatureExtractor(pretrained_encoder=False)
    assert torch.equal(plain.mean, torch.zeros(1, 3, 1, 1)) and torch.equal(plain.std, torch.ones(1, 3, 1, 1))


def test_normalisation_follows_the_encoder() -> None:
    net = FeatureExtractor(**SMALL | {"encoder": "tf_efficientnet_lite0", "pretrained_encoder": True})
    assert torch.equal(net.mean, torch.full((1, 3, 1, 1), 0.5)) and torch.equal(net.std, torch.full((1, 3, 1, 1), 0.5))


@pytest.mark.parametrize("size", [(64, 32), (33, 70), (1, 5)])
@pytest.mark.parametrize("encoder", ["mobilenetv3_small_050", "resnet18", "repghostnet_050"])
def test_equals_reference_for_any_size_and_encoder(encoder: str, size: tuple[int, int]) -> None:
    net = FeatureExtractor(**SMALL | {"encoder": encoder, "pretrained_encoder": True})
    assert net.out_channels == 4
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        features, expected = net(images), plain_forward(net, images)
    assert features.shape == (2, 4, *size) and features.is_contiguous()
    assert relative(features, expected) < 1e-4


def test_decoder_layers_norms_and_activations() -> None:
    net = FeatureExtractor(**SMALL, decoder_layers=[2, 1, 3, 1, 1], norm="batch", activation="relu")
    layers = [[type(layer) for layer in block.block] for block in net.decoder.blocks]
    assert layers == [[nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * k for k in (2, 1, 3, 1, 1)]
    assert net.get_parameter("decoder.blocks.0.block.3.weight").shape == (12, 12, 3, 3)
    assert net(torch.rand(1, 3, 32, 32)).shape == (1, 4, 32, 32)


def test_last_block_gets_the_image_without_normalisation() -> None:
    net = FeatureExtractor(**SMALL | {"pretrained_encoder": True})
    weight = net.get_parameter("decoder.blocks.4.block.0.weight")
    images = torch.rand(1, 3, 40, 50)
    with torch.no_grad():
        weight.zero_()
        weight[0, 6 + 1, 1, 1] = 1.0  # the green channel behind the six of the block above
        net.final.weight.zero_()
        net.final.weight[2, 0] = 1.0
        features = net(images)
    assert torch.equal(features[:, 2], images[:, 1])
    assert not features[:, :2].any()
    assert FeatureExtractor(**SMALL, skip_rgb=False).get_parameter("decoder.blocks.4.block.0.weight").shape == (5, 6, 3, 3)
    assert FeatureExtractor(**SMALL, skip_rgb=False)(images).shape == (1, 4, 40, 50)


def test_append_rgb_and_last_act() -> None:
    images = torch.rand(2, 3, 35, 33)
    net = FeatureExtractor(**SMALL | {"out_channels": 5}, append_rgb=True, last_act="sigmoid")
    assert net.get_parameter("final.weight").shape == (2, 5, 1, 1)
    with torch.no_grad():
        net.final.weight.mul_(1e4)
        features = net(images)
    assert torch.equal(features[:, 2:], images)
    assert features.min() >= 0 and features.max() <= 1 and features[:, :2].std() > 0.1
    tanh = FeatureExtractor(**SMALL, last_act="tanh")
    with torch.no_grad():
        tanh.final.weight.mul_(1e4)
        assert -1 <= tanh(images).min() < -0.5


@pytest.mark.parametrize("eval_mode", [True, False])
def test_eval_mode_freezes_statistics_but_no_parameters(eval_mode: bool) -> None:
    net = FeatureExtractor(**SMALL, eval_mode=eval_mode).train()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    net(images).square().mean().backward()
    changed = {name for name, buffer in net.named_buffers() if not torch.equal(buffer, before[name])}
    assert changed == (set() if eval_mode else {name for name in before if name not in ("mean", "std")})
    assert images.grad is not None and images.grad.abs().max() > 0
    trained = {name for name, p in net.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in net.named_parameters()}
    for name in ("encoder.conv_stem.weight", "encoder.bn1.weight", "encoder.bn1.bias", "decoder.blocks.0.block.0.weight", "final.weight"):
        assert net.get_parameter(name).grad.abs().max() > 0, name
    assert not net.eval().training


def test_output_is_independent_of_mode_and_batch() -> None:
    net = FeatureExtractor(**SMALL)
    images = torch.rand(3, 3, 40, 64)
    with torch.no_grad():
        together = net.train()(images)
        alone = torch.cat([net.eval()(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("encoder", ["mobilenetv3_small_050", "resnet18", "repghostnet_050"])
def test_encoder_weights_equal_timm(tmp_path: Path, encoder: str, ending: str) -> None:
    source = timm.create_model(encoder, pretrained=False).state_dict()
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save(source, path)
    else:
        safetensors.torch.save_file(source, path)
    net = FeatureExtractor(**SMALL | {"encoder": encoder, "pretrained_encoder": True, "encoder_weights": str(path)})
    net.load_pretrained_encoder()
    library = timm.create_model(encoder, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(path)}).state_dict()
    loaded = net.encoder.state_dict()
    assert loaded.keys() == library.keys()
    assert all(torch.equal(loaded[key], library[key]) for key in library)


def test_encoder_weights_are_found_in_the_cache(empty_caches: Path) -> None:
    source = timm.create_model("spnasnet_100", pretrained=False).state_dict()
    empty_caches.mkdir(parents=True)
    # files of that age have no counters of batches
    torch.save({k: v for k, v in source.items() if "num_batches" not in k}, empty_caches / "spnasnet_100-048bc3f4.pth")
    net = FeatureExtractor()
    assert not torch.equal(net.encoder.conv_stem.weight, source["conv_stem.weight"])
    net.load_pretrained_encoder()
    for key, value in net.encoder.state_dict().items():
        assert torch.equal(value, source[key]), key


def test_weights_are_needed_for_loading_only(empty_caches: Path) -> None:
    net = FeatureExtractor()
    with pytest.raises(InputError) as caught:
        net.load_pretrained_encoder()
    for part in (
        f"put spnasnet_100-048bc3f4.pth into {empty_caches}",
        "model.safetensors of timm/spnasnet_100.rmsp_in1k",
        "system.feature_extractor.encoder_weights=FILE",
        "system.feature_extractor.pretrained_encoder=false",
    ):
        assert part in str(caught.value)


def test_nothing_is_loaded_without_pretrained_encoder() -> None:
    net = FeatureExtractor(**SMALL)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.load_pretrained_encoder()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("mobilenetv3_small_075", pretrained=False).state_dict(), tmp_path / "wider.pth")
    net = FeatureExtractor(**SMALL | {"pretrained_encoder": True, "encoder_weights": tmp_path / "wider.pth"})
    with pytest.raises(InputError, match=r"wider\.pth: expected a tensor of shape .* found .* is this timm's mobilenetv3_small_050"):
        net.load_pretrained_encoder()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder": "spnasnet_101"}, r"encoder: .* in timm, got 'spnasnet_101'; .*resnet18"),
        ({"encoder": "hf-hub:timm/resnet18.a1_in1k"}, r"encoder: .* in timm, got 'hf-hub"),
        ({"encoder": "resnet18.no_such_tag"}, r"'resnet18.no_such_tag' gives none .*resnet18"),
        ({"encoder": "convit_tiny"}, r"'convit_tiny' gives none .*resnet18"),
        ({"encoder": "vit_tiny_patch16_224"}, r"strides \[2, 4, 8, 16, 32\] .*'vit_tiny_patch16_224'.*resnet18"),
        ({"encoder": "convnext_atto"}, r"64 x 96 pixels 'convnext_atto' gives maps .*\(40, 16, 24\).*resnet18"),
        ({"decoder_channels": [8, 8, 8, 8]}, r"decoder_channels: expected 5 .* got \[8, 8, 8, 8\]"),
        ({"decoder_layers": [1, 1, 0, 1, 1]}, r"decoder_layers: expected 5 positive .* got \[1, 1, 0, 1, 1\]"),
        ({"out_channels": 0}, r"out_channels: expected at least 1 .* got 0"),
        ({"out_channels": 3, "append_rgb": True}, r"out_channels: expected at least 4 .* got 3"),
        ({"activation": "gelu"}, r"activation: expected one of 'leaky_relu', 'relu', got 'gelu'"),
        ({"norm": "group"}, r"norm: expected one of .*'batch'.* got 'group'"),
        ({"last_act": "relu"}, r"last_act: expected one of .*'tanh'.* got 'relu'"),
        ({"encoder_weights": "a.pth"}, r"encoder_weights: expected null with pretrained_encoder=false, got a\.pth"),
    ],
)
def test_invalid_values_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FeatureExtractor(**SMALL | changed)


def test_identity_extractor_returns_the_image() -> None:
    extractor = IdentityExtractor()
    images = torch.rand(2, 3, 7, 9)
    assert torch.equal(extractor(images), images)
    assert extractor.out_channels == 3 and not extractor.state_dict()


def test_recorded_outputs(released: FeatureExtractor, parity) -> None:
    recording = parity("f1_feature_extractor.pt")
    inputs, outputs = recording["inputs"], recording["outputs"]
    with torch.no_grad():
        for images, expected in zip(inputs, outputs["imagenet_norm"], strict=True):
            assert relative(released(images), expected) < 2e-4
        maps = released.encoder((inputs[1] - released.mean) / released.std)
        for features, expected in zip(maps, recording["encoder_levels_input1"], strict=True):
            assert relative(features, expected) < 2e-4
        released.mean.zero_()
        released.std.fill_(1)
        assert relative(released(inputs[1]), outputs["no_norm"][0]) < 2e-4


def test_recorded_view(released: FeatureExtractor, parity) -> None:
    recording = parity("h1_npbgpp_sphere.pt")
    with torch.no_grad():
        features = released.train()(recording["feature_extractor_in_view0"])
    assert relative(features[:, :4], recording["feature_extractor_out_view0_ch0to3"]) < 2e-4


def test_recorded_state_dict(shared: Path) -> None:
    lines = (line.split("\t") for line in (shared / "parity" / "state_dict_keys.txt").read_text().splitlines() if "\t" in line)
    recorded = {name: shape for system, name, shape in lines if system == "npbgpp_sphere" and name.startswith("feature_extractor.")}
    ours = {
        f"feature_extractor.{name}": str(list(tensor.shape))
        for name, tensor in FeatureExtractor(pretrained_encoder=False).state_dict().items()
    }
    assert ours == recorded
