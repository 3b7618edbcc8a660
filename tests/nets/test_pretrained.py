"""Search for and loading of backbone and encoder weights."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.nets.pretrained import (
    PublishedEncoder,
    find_backbone,
    find_encoder,
    load_features,
    read_backbone,
    read_encoder,
    select_features,
)

ENCODER = PublishedEncoder("tinynet", "tinynet-0123abcd.pth", "timm/tinynet.in1k")


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path / "torch_home" / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def vgg16_state() -> dict[str, Tensor]:
    """Random VGG-16 convolutions in half precision, with the keys of the full network."""
    with torch.device("meta"):
        shapes = torchvision.models.vgg16(weights=None).features.state_dict()
    generator = torch.Generator().manual_seed(0)
    return {f"features.{key}": (0.05 * torch.randn(tensor.shape, generator=generator)).half() for key, tensor in shapes.items()}


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(("name", "file"), [("vgg19_caffe", "vgg19-d01eb7cb.pth"), ("vgg16", "vgg16-397923af.pth")])
def test_torch_hub_cache_is_searched(empty_caches: Path, name: str, file: str) -> None:
    expected = touch(empty_caches / file)
    assert find_backbone(name) == expected


def test_other_folder_is_searched_last_for_caffe_weights_only(tmp_path: Path, empty_caches: Path) -> None:
    older = tmp_path / "home" / ".cache" / "torch" / "models"
    expected = touch(older / "vgg19-d01eb7cb.pth")
    touch(older / "vgg16-397923af.pth")
    assert find_backbone("vgg19_caffe") == expected
    with pytest.raises(InputError):
        find_backbone("vgg16")
    newer = touch(empty_caches / "vgg19-d01eb7cb.pth")
    assert find_backbone("vgg19_caffe") == newer


def test_given_path_precedes_the_cache(tmp_path: Path, empty_caches: Path) -> None:
    touch(empty_caches / "vgg16-397923af.pth")
    given = touch(tmp_path / "mine.pth")
    assert find_backbone("vgg16", given) == given
    assert find_backbone("vgg16", str(given)) == given
    touch(tmp_path / "home" / "mine.pth")
    assert find_backbone("vgg16", "~/mine.pth") == tmp_path / "home" / "mine.pth"


def test_given_path_must_exist_even_if_the_cache_has_the_file(tmp_path: Path, empty_caches: Path) -> None:
    touch(empty_caches / "vgg16-397923af.pth")
    with pytest.raises(InputError) as caught:
        find_backbone("vgg16", tmp_path / "absent.pth")
    for part in ("system.lpips_weights", str(tmp_path / "absent.pth"), "vgg16-397923af.pth"):
        assert part in str(caught.value)
    with pytest.raises(InputError, match="found no file"):
        find_backbone("vgg16", tmp_path)


def test_missing_file_is_refused(tmp_path: Path, empty_caches: Path) -> None:
    with pytest.raises(InputError) as caught:
        find_backbone("vgg19_caffe")
    older = tmp_path / "home" / ".cache" / "torch" / "models"
    for part in ("vgg19-d01eb7cb.pth", str(empty_caches), str(older), "system.vgg_weights=PATH", "nothing is downloaded"):
        assert part in str(caught.value)


@pytest.mark.parametrize("legacy_format", [False, True])
@pytest.mark.parametrize("prefix", ["features.", ""])
def test_reads_networks_and_features(tmp_path: Path, vgg16_state: dict[str, Tensor], prefix: str, legacy_format: bool) -> None:
    state = {prefix + key.removeprefix("features."): value for key, value in vgg16_state.items()}
    state |= {"classifier.0.weight": torch.zeros(4, 5), "classifier.0.bias": torch.zeros(4)}
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy_format)
    read = read_backbone(tmp_path / "weights.pth", "vgg16")
    assert len(read) == 26
    for key, value in vgg16_state.items():
        assert read[key.removeprefix("features.")].dtype == torch.float32
        assert torch.equal(read[key.removeprefix("features.")], value.float())


@pytest.mark.parametrize("kept", [0, 10, 1000, 200_000])
@pytest.mark.parametrize("legacy_format", [False, True])
def test_truncated_file_is_refused(tmp_path: Path, kept: int, legacy_format: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 64, 64)}, path, _use_new_zipfile_serialization=not legacy_format)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"weights\.pth: expected a state dict of VGG-16 .* truncated"):
        read_backbone(path, "vgg16")


class _Intruder:
    opened = False

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return _mark_opened, ("x",)


def _mark_opened(_: str) -> None:
    _Intruder.opened = True


@pytest.mark.parametrize("content", [torch.nn.Linear(1, 1), _Intruder()], ids=["module", "code"])
def test_pickled_objects_are_refused_without_execution(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="pickled Python object"):
        read_backbone(tmp_path / "weights.pth", "vgg16")
    assert not _Intruder.opened


def test_text_file_and_list_are_refused(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>\n<title>404</title>")
    with pytest.raises(InputError, match="another format"):
        read_backbone(tmp_path / "page.pth", "vgg16")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(InputError, match="found an object of type list"):
        read_backbone(tmp_path / "list.pth", "vgg16")


def test_other_networks_are_refused(tmp_path: Path, vgg16_state: dict[str, Tensor]) -> None:
    torch.save(vgg16_state, tmp_path / "vgg16.pth")
    with pytest.raises(InputError, match=r"vgg16\.pth: .* VGG-19 .* system\.vgg_weights"):
        read_backbone(tmp_path / "vgg16.pth", "vgg19_caffe")
    with pytest.raises(InputError, match=r"unexpected entry 'state_dict'"):
        select_features({**vgg16_state, "state_dict": {}}, "vgg16", source="here")
    missing = {key: value for key, value in vgg16_state.items() if key != "features.28.bias"}
    with pytest.raises(InputError, match=r"here: .* lacks '28\.bias'"):
        select_features(missing, "vgg16", source="here")
    misshapen = {**vgg16_state, "features.5.weight": torch.zeros(128, 64, 1, 1)}
    with pytest.raises(InputError, match=r"shape \(128, 64, 3, 3\) under features\.5\.weight, found \(128, 64, 1, 1\)"):
        select_features(misshapen, "vgg16", source="here")
    with pytest.raises(InputError, match=r"under features\.0\.bias, found list"):
        select_features({**vgg16_state, "features.0.bias": [0.0] * 64}, "vgg16", source="here")


def test_loaded_features_are_frozen_and_draw_no_random_numbers(vgg16_state: dict[str, Tensor]) -> None:
    before = torch.get_rng_state()
    features = load_features("vgg16", vgg16_state)
    assert torch.equal(torch.get_rng_state(), before)
    assert not features.training
    assert not any(parameter.requires_grad for parameter in features.parameters())
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    weight, bias = vgg16_state["features.0.weight"].float(), vgg16_state["features.0.bias"].float()
    torch.testing.assert_close(features[:2](image), torch.relu(torch.nn.functional.conv2d(image, weight, bias, padding=1)))


def in_hugging_face_cache(tmp_path: Path, file_name: str) -> Path:
    """An empty file at the path of a downloaded ENCODER."""
    repository = tmp_path / "hf" / "models--timm--tinynet.in1k"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text("abc")
    return touch(repository / "snapshots" / "abc" / file_name)


def test_encoder_search_order(tmp_path: Path, empty_caches: Path) -> None:
    older = in_hugging_face_cache(tmp_path, "pytorch_model.bin")
    assert find_encoder(ENCODER) == older
    newer = in_hugging_face_cache(tmp_path, "model.safetensors")
    assert find_encoder(ENCODER) == newer
    hub = touch(empty_caches / "tinynet-0123abcd.pth")
    assert find_encoder(ENCODER) == hub
    given = touch(tmp_path / "mine.safetensors")
    assert find_encoder(ENCODER, given) == given
    assert find_encoder(PublishedEncoder("tinynet", None, "timm/tinynet.in1k")) == newer


def test_missing_encoder_is_refused(tmp_path: Path, empty_caches: Path) -> None:
    with pytest.raises(InputError) as caught:
        find_encoder(ENCODER)
    for part in (
        "timm's tinynet",
        f"put tinynet-0123abcd.pth into {empty_caches}",
        f"model.safetensors of timm/tinynet.in1k in {tmp_path / 'hf'}",
        "system.feature_extractor.encoder_weights=FILE",
        "system.feature_extractor.pretrained_encoder=false",
        "nothing is downloaded",
    ):
        assert part in str(caught.value)
    with pytest.raises(InputError, match=r"timm publishes none; give a file with system\.feature_extractor\.encoder_weights"):
        find_encoder(PublishedEncoder("tinynet", None, None))
    with pytest.raises(InputError, match=r"system\.feature_extractor\.encoder_weights: .* found no file at .*absent\.pth"):
        find_encoder(ENCODER, tmp_path / "absent.pth")


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_encoder_keys_of_timm_wrappers(tmp_path: Path, ending: str) -> None:
    state = {
        "stages.0.conv.weight": torch.randn(4, 3, 2, 2),
        "stages.0.bn.running_mean": torch.randn(4).half(),
        "head.weight": torch.zeros(9),
    }
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    for prefix in ("", "model.", "body."):
        wanted = {
            f"{prefix}stages_0.conv.weight": torch.zeros(4, 3, 2, 2),
            f"{prefix}stages_0.bn.running_mean": torch.zeros(4),
            f"{prefix}stages_0.bn.num_batches_tracked": torch.tensor(7),
        }
        read = read_encoder(path, "tinynet", wanted)
        assert read.keys() == wanted.keys()
        assert torch.equal(read[f"{prefix}stages_0.conv.weight"], state["stages.0.conv.weight"])
        assert read[f"{prefix}stages_0.bn.running_mean"].dtype == torch.float32
        assert torch.equal(read[f"{prefix}stages_0.bn.running_mean"], state["stages.0.bn.running_mean"].float())
        assert read[f"{prefix}stages_0.bn.num_batches_tracked"] == 7


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_invalid_encoder_files_are_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"weights.{ending}"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(InputError, match=rf"weights\.{ending}: expected a state dict of timm's tinynet.* cannot be read"):
        read_encoder(path, "tinynet", {"a.weight": torch.zeros(2)})
    state = {"a.weight": torch.zeros(3)}
    if ending == "pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    with pytest.raises(InputError, match=r"shape \(2,\) under a\.weight, found \(3,\); is this timm's tinynet.*encoder_weights"):
        read_encoder(path, "tinynet", {"a.weight": torch.zeros(2)})
    with pytest.raises(InputError, match=r"lacks 'b\.weight'; .*pretrained_encoder=false"):
        read_encoder(path, "tinynet", {"a.weight": torch.zeros(3), "b.weight": torch.zeros(2)})


def test_encoder_files_with_code_are_refused(tmp_path: Path) -> None:
    torch.save({"a.weight": _Intruder()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="pickled Python object"):
        read_encoder(tmp_path / "weights.pth", "tinynet", {"a.weight": torch.zeros(2)})
    assert not _Intruder.opened
