"""Weights of pretrained backbones and encoders, found and read on this machine only: nothing here downloads.

A backbone is the convolutional part (`features`) of a torchvision VGG. N is the index of a layer in that `nn.Sequential`; a state dict of a
backbone has the keys `N.weight` and `N.bias` of its convolutions. An encoder is a classifier of timm without its head, as
`timm.create_model(name, features_only=True)` builds it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import huggingface_hub.constants
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from npbgpp.errors import InputError

BackboneName = Literal["vgg19_caffe", "vgg19", "vgg16"]


@dataclass(frozen=True)
class _Backbone:
    file_name: str
    title: str
    key: str  # of the configuration, gives the path of the file
    build: Callable[..., torchvision.models.VGG]
    older_folders: tuple[str, ...] = ()


_BACKBONES: dict[str, _Backbone] = {
    "vgg19_caffe": _Backbone(
        file_name="vgg19-d01eb7cb.pth",
        title="VGG-19 with the weights of Caffe, converted by J. Johnson",
        key="system.vgg_weights",
        build=torchvision.models.vgg19,
        older_folders=("~/.cache/torch/models",),
    ),
    "vgg19": _Backbone(
        file_name="vgg19-dcbb9e9d.pth",
        title="VGG-19 with the ImageNet weights of torchvision",
        key="system.vgg_weights",
        build=torchvision.models.vgg19,
    ),
    "vgg16": _Backbone(
        file_name="vgg16-397923af.pth",
        title="VGG-16 with the ImageNet weights of torchvision",
        key="system.lpips_weights",
        build=torchvision.models.vgg16,
    ),
}


def find_backbone(name: BackboneName, path: str | Path | None = None) -> Path:
    """Path of the weight file of a backbone.

    Args:
        name: which backbone.
        path: a file named in the configuration, it wins over every other place; None looks into the cache of `torch.hub` (which follows
            the environment variable TORCH_HOME) and, for `vgg19_caffe`, into `~/.cache/torch/models`, where NPBG++ kept it.

    Raises:
        InputError: the given file does not exist, or no place holds the file. The message lists the places and the configuration key.
    """
    backbone = _BACKBONES[name]
    if path is not None:
        return _given_file(path, backbone.key, backbone.title, f"{backbone.file_name} in the torch hub cache")
    cache = _torch_hub_cache()
    candidates = [folder / backbone.file_name for folder in (cache, *(Path(older).expanduser() for older in backbone.older_folders))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(
        f"{backbone.file_name} ({backbone.title}) not found; looked for {', '.join(map(str, candidates))}; "
        f"put the file into {cache} or give its path with {backbone.key}=PATH (nothing is downloaded)"
    )


def read_backbone(path: str | Path, name: BackboneName) -> dict[str, Tensor]:
    """Convolution weights in a weight file.

    Args:
        path: a file written by `torch.save(model.state_dict())`, of the whole VGG or of its `features` alone.
        name: the backbone whose shapes the file must have.

    Returns:
        `N.weight` (out, in, 3, 3) and `N.bias` (out,) of every convolution, float32 on the CPU.

    Raises:
        InputError: the file is truncated, is no state dict (a pickled module, for one: those can run code and are not opened), or holds
            another network.
    """
    state = _read_state(Path(path), f"expected a state dict of {_BACKBONES[name].title}, saved with torch.save(model.state_dict(), path)")
    return select_features(state, name, source=str(path))


def select_features(state: Mapping[str, object], name: BackboneName, source: str) -> dict[str, Tensor]:
    """The convolutions in a state dict, under the keys of the bare `features`, checked against the architecture.

    Args:
        state: tensors under `N.weight` or `features.N.weight` (likewise `.bias`); keys of the classifier are ignored.
        name: the backbone whose shapes are wanted.
        source: where the state comes from, for messages.

    Returns:
        As `read_backbone`. Tensors that are float32 on the CPU already are shared with `state`, not copied.

    Raises:
        InputError: a tensor is missing, of another shape, or unknown.
    """
    found = {str(key).removeprefix("features."): value for key, value in state.items() if not str(key).startswith("classifier")}
    wanted = {key: tuple(tensor.shape) for key, tensor in _empty_features(name).state_dict().items()}
    advice = f"; is this {_BACKBONES[name].title}? Replace it or correct {_BACKBONES[name].key}"
    if wrong := sorted(found.keys() ^ wanted.keys()):
        problem = "lacks" if wrong[0] in wanted else "has the unexpected entry"
        raise InputError(f"{source}: expected {len(wanted)} tensors features.N.weight and .bias, but it {problem} {wrong[0]!r}{advice}")
    return {
        key: _checked(found[key], shape, f"features.{key}", source, advice).to(device="cpu", dtype=torch.float32)
        for key, shape in wanted.items()
    }


def load_features(name: BackboneName, weights: str | Path | Mapping[str, Tensor]) -> nn.Sequential:
    """The convolutional layers of a backbone, frozen and in evaluation mode, on the CPU.

    Args:
        name: which backbone.
        weights: a weight file, or a state dict as `select_features` takes it.

    Raises:
        InputError: as `read_backbone`.
    """
    if isinstance(weights, Mapping):  # noqa: SIM108 - mypy narrows the type in statements only
        state = select_features(weights, name, source=f"state dict for {name}")
    else:
        state = read_backbone(weights, name)
    features = _empty_features(name)
    features.load_state_dict(state, assign=True)
    return features.requires_grad_(False).eval()


def _empty_features(name: BackboneName) -> nn.Sequential:
    # On the meta device there is no memory to fill and no random number is drawn, so the run's random state stays as it is.
    with torch.device("meta"):
        features = _BACKBONES[name].build(weights=None).features
    assert isinstance(features, nn.Sequential)
    return features


@dataclass(frozen=True)
class PublishedEncoder:
    """Where timm publishes the ImageNet weights of an encoder.

    Attributes:
        name: of the encoder in timm.
        file_name: what the file is called in the cache of `torch.hub`; None if it is not published that way.
        repository: owner/name on the Hugging Face hub; None likewise.
    """

    name: str
    file_name: str | None
    repository: str | None


_ENCODER_KEY = "system.feature_extractor.encoder_weights"
_HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")


def find_encoder(encoder: PublishedEncoder, path: str | Path | None = None) -> Path:
    """Path of the weight file of an encoder.

    Args:
        encoder: which one.
        path: a file named in the configuration, it wins over every other place; None looks into the cache of `torch.hub` (which follows
            the environment variable TORCH_HOME), then into that of the Hugging Face hub (HF_HOME), as timm fills them.

    Raises:
        InputError: the given file does not exist, or no place holds one. The message lists the places and the configuration keys.
    """
    title = f"the ImageNet weights of timm's {encoder.name}"
    if path is not None:
        return _given_file(path, _ENCODER_KEY, title, "them in the torch hub and Hugging Face caches")
    looked_for, advice = [], ""
    if encoder.file_name:
        candidate = _torch_hub_cache() / encoder.file_name
        if candidate.is_file():
            return candidate
        looked_for.append(str(candidate))
        advice = f"put {encoder.file_name} into {candidate.parent}, "
    if encoder.repository:
        for file_name in _HUGGING_FACE_FILES:
            cached = huggingface_hub.try_to_load_from_cache(encoder.repository, file_name)
            if isinstance(cached, str):
                return Path(cached)
        looked_for.append(f"{_HUGGING_FACE_FILES[0]} of {encoder.repository} in {huggingface_hub.constants.HF_HUB_CACHE}")
    raise InputError(
        f"{title} not found; looked for {' and '.join(looked_for) or 'nothing, since timm publishes none'}; "
        f"{advice}give a file with {_ENCODER_KEY}=FILE (.safetensors or .pth), or start from random weights with "
        "system.feature_extractor.pretrained_encoder=false (nothing is downloaded)"
    )


def read_encoder(path: str | Path, name: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an encoder in a weight file.

    Args:
        path: a state dict of the whole classifier or of the encoder alone, `.safetensors`, or written by `torch.save` under another ending.
        name: of the encoder in timm, for messages.
        wanted: the state dict of the encoder that is to be filled.

    Returns:
        The tensors of the file under the keys of `wanted`, with its dtypes, on the CPU. Counters of batches (`num_batches_tracked`), which
        files of old versions of torch lack, are those of `wanted` there.

    Raises:
        InputError: the file cannot be read (see `read_backbone`), or lacks a tensor, or has one of another shape.
    """
    state = _read_state(
        Path(path), f"expected a state dict of timm's {name}, .safetensors or saved with torch.save(model.state_dict(), path)"
    )
    advice = f"; is this timm's {name}? Replace it, correct {_ENCODER_KEY} or set system.feature_extractor.pretrained_encoder=false"
    found = {_spelled_alike(str(key)): value for key, value in state.items()}
    weights = {}
    for key, tensor in wanted.items():
        value = found.get(_spelled_alike(key))
        if value is None and not key.endswith("num_batches_tracked"):
            raise InputError(f"{path}: expected {len(wanted)} tensors of the encoder, but it lacks {key!r}{advice}")
        if value is not None:
            tensor = _checked(value, tuple(tensor.shape), key, str(path), advice).to("cpu", tensor.dtype)
        weights[key] = tensor
    return weights


def _spelled_alike(key: str) -> str:
    # timm's wrappers for features rename: stages.0.conv becomes stages_0.conv, and some put body. or model. in front.
    return key.removeprefix("body.").removeprefix("model.").replace(".", "_")


def _torch_hub_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _given_file(path: str | Path, key: str, title: str, elsewhere: str) -> Path:
    given = Path(path).expanduser()
    if not given.is_file():
        raise InputError(
            f"{key}: expected a file with {title}, found no file at {given}; correct the path or set the key to null to look for {elsewhere}"
        )
    return given


def _read_state(path: Path, expected: str) -> Mapping[str, object]:
    try:
        state = (
            safetensors.torch.load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # what a damaged or foreign file makes the readers raise has no common base class
        raise InputError(
            f"{path}: {expected}, found a file that cannot be read as one ({type(error).__name__}): truncated, "
            "another format, or a pickled Python object; replace the file"
        ) from error
    if not isinstance(state, Mapping):
        raise InputError(f"{path}: {expected}, found an object of type {type(state).__name__}; replace the file")
    return state


def _checked(value: object, shape: tuple[int, ...], key: str, source: str, advice: str) -> Tensor:
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        seen = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{source}: expected a tensor of shape {shape} under {key}, found {seen}{advice}")
    return value
