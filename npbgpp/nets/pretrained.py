"""Pretrained weights of VGG backbones and timm encoders from local files and caches; nothing is downloaded.

A backbone is the convolutional part (`features`) of a torchvision VGG; its state dict has the keys `N.weight` and `N.bias` for the convolution at index N.
An encoder is a timm classifier without its head, as built by `timm.create_model(name, features_only=True)`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import huggingface_hub.constants
import safetensors.torch
import torch
from torch import Tensor, nn

from npbgpp.errors import InputError

BackboneName = Literal["vgg19_caffe", "vgg19", "vgg16"]


@dataclass(frozen=True)
class _Backbone:
    file_name: str
    title: str
    key: str  # configuration key with the path of the file
    other_folders: tuple[str, ...] = ()


_BACKBONES: dict[str, _Backbone] = {
    "vgg19_caffe": _Backbone(
        file_name="vgg19-d01eb7cb.pth",
        title="VGG-19 with the weights of Caffe, converted by J. Johnson",
        key="system.vgg_weights",
        other_folders=("~/.cache/torch/models",),
    ),
    "vgg19": _Backbone(
        file_name="vgg19-dcbb9e9d.pth",
        title="VGG-19 with the ImageNet weights of torchvision",
        key="system.vgg_weights",
    ),
    "vgg16": _Backbone(
        file_name="vgg16-397923af.pth",
        title="VGG-16 with the ImageNet weights of torchvision",
        key="system.lpips_weights",
    ),
}


def find_backbone(name: BackboneName, path: str | Path | None = None) -> Path:
    """Path of the weight file of a backbone.

    Args:
        name: the backbone.
        path: a file given in the configuration; None searches the cache of `torch.hub` (which follows the environment variable TORCH_HOME) and, for
            `vgg19_caffe`, `~/.cache/torch/models`, which NPBG++ used.

    Raises:
        InputError: the file does not exist. The message lists the searched paths and the configuration key.
    """
    backbone = _BACKBONES[name]
    if path is not None:
        return _given_file(path, backbone.key, backbone.title, f"{backbone.file_name} in the torch hub cache")
    cache = _torch_hub_cache()
    candidates = [folder / backbone.file_name for folder in (cache, *(Path(other).expanduser() for other in backbone.other_folders))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(
        f"{backbone.file_name} ({backbone.title}) not found; searched {', '.join(map(str, candidates))}; "
        f"put the file into {cache} or give its path with {backbone.key}=PATH (nothing is downloaded)"
    )


def read_backbone(path: str | Path, name: BackboneName) -> dict[str, Tensor]:
    """Convolution weights in a weight file.

    Args:
        path: a file written by `torch.save(model.state_dict())`, of the whole VGG or of its `features`.
        name: the expected backbone.

    Returns:
        `N.weight` (out, in, 3, 3) and `N.bias` (out,) of every convolution, float32 on the CPU.

    Raises:
        InputError: the file is truncated, is not a state dict (pickled modules can run code and are not loaded), or holds another network.
    """
    state = _read_state(Path(path), f"expected a state dict of {_BACKBONES[name].title}, saved with torch.save(model.state_dict(), path)")
    return select_features(state, name, source=str(path))


def select_features(state: Mapping[str, object], name: BackboneName, source: str) -> dict[str, Tensor]:
    """Convolution weights of a VGG state dict, checked against the architecture.

    Args:
        state: tensors under `N.weight` or `features.N.weight` (likewise `.bias`); keys of the classifier are ignored.
        name: the expected backbone.
        source: origin of the state, for messages.

    Returns:
        As `read_backbone`. Tensors that are already float32 on the CPU are shared with `state`.

    Raises:
        InputError: a tensor is missing, of another shape, or unknown.
    """
    found = {str(key).removeprefix("features."): value for key, value in state.items() if not str(key).startswith("classifier")}
    shapes = {key: tuple(tensor.shape) for key, tensor in _empty_features(name).state_dict().items()}
    advice = f"; is this {_BACKBONES[name].title}? Replace it or correct {_BACKBONES[name].key}"
    if wrong := sorted(found.keys() ^ shapes.keys()):
        problem = "lacks" if wrong[0] in shapes else "has the unexpected entry"
        raise InputError(f"{source}: expected {len(shapes)} tensors features.N.weight and .bias, but it {problem} {wrong[0]!r}{advice}")
    return {
        key: _checked(found[key], shape, f"features.{key}", source, advice).to(device="cpu", dtype=torch.float32)
        for key, shape in shapes.items()
    }


def load_features(name: BackboneName, weights: str | Path | Mapping[str, Tensor]) -> nn.Sequential:
    """The convolutional layers of a backbone, frozen and in evaluation mode, on the CPU.

    Args:
        name: the backbone.
        weights: a weight file, or a state dict as for `select_features`.

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
    import torchvision  # here: its import takes a second

    # on the meta device, so that the state of the random number generator does not change
    with torch.device("meta"):
        build = torchvision.models.vgg16 if name == "vgg16" else torchvision.models.vgg19
        features = build(weights=None).features
    assert isinstance(features, nn.Sequential)
    return features


@dataclass(frozen=True)
class PublishedEncoder:
    """Where timm publishes the ImageNet weights of an encoder.

    Attributes:
        name: timm name of the encoder.
        file_name: file in the cache of `torch.hub`; None if not published there.
        repository: owner/name on the Hugging Face hub; None if not published there.
    """

    name: str
    file_name: str | None
    repository: str | None


_ENCODER_KEY = "system.feature_extractor.encoder_weights"
_HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")


def find_encoder(encoder: PublishedEncoder, path: str | Path | None = None) -> Path:
    """Path of the weight file of an encoder.

    Args:
        encoder: the encoder.
        path: a file given in the configuration; None searches the cache of `torch.hub` (which follows the environment variable TORCH_HOME), then that of
            the Hugging Face hub (HF_HOME).

    Raises:
        InputError: the file does not exist. The message lists the searched paths and the configuration keys.
    """
    title = f"the ImageNet weights of timm's {encoder.name}"
    if path is not None:
        return _given_file(path, _ENCODER_KEY, title, "them in the torch hub and Hugging Face caches")
    searched, advice = [], ""
    if encoder.file_name:
        candidate = _torch_hub_cache() / encoder.file_name
        if candidate.is_file():
            return candidate
        searched.append(str(candidate))
        advice = f"put {encoder.file_name} into {candidate.parent}, "
    if encoder.repository:
        for file_name in _HUGGING_FACE_FILES:
            cached = huggingface_hub.try_to_load_from_cache(encoder.repository, file_name)
            if isinstance(cached, str):
                return Path(cached)
        searched.append(f"{_HUGGING_FACE_FILES[0]} of {encoder.repository} in {huggingface_hub.constants.HF_HUB_CACHE}")
    raise InputError(
        f"{title} not found; searched {' and '.join(searched) or 'nothing, since timm publishes none'}; "
        f"{advice}give a file with {_ENCODER_KEY}=FILE (.safetensors or .pth), or start from random weights with "
        "system.feature_extractor.pretrained_encoder=false (nothing is downloaded)"
    )


def read_encoder(path: str | Path, name: str, template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an encoder in a weight file.

    Args:
        path: a state dict of the whole classifier or of the encoder: `.safetensors`, or written by `torch.save` with any other suffix.
        name: timm name of the encoder, for messages.
        template: state dict of the encoder to load into.

    Returns:
        The tensors of the file with the keys and dtypes of `template`, on the CPU. Missing `num_batches_tracked`, which old versions of torch did not save,
        are taken from `template`.

    Raises:
        InputError: the file cannot be read (see `read_backbone`), lacks a tensor, or has one of another shape.
    """
    state = _read_state(
        Path(path), f"expected a state dict of timm's {name}, .safetensors or saved with torch.save(model.state_dict(), path)"
    )
    advice = f"; is this timm's {name}? Replace it, correct {_ENCODER_KEY} or set system.feature_extractor.pretrained_encoder=false"
    found = {_canonical(str(key)): value for key, value in state.items()}
    weights = {}
    for key, tensor in template.items():
        value = found.get(_canonical(key))
        if value is None and not key.endswith("num_batches_tracked"):
            raise InputError(f"{path}: expected {len(template)} tensors of the encoder, but it lacks {key!r}{advice}")
        if value is not None:
            tensor = _checked(value, tuple(tensor.shape), key, str(path), advice).to("cpu", tensor.dtype)
        weights[key] = tensor
    return weights


def _canonical(key: str) -> str:
    # the feature wrappers of timm rename stages.0.conv to stages_0.conv, and some add the prefix body. or model.
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
    except Exception as error:  # the readers raise various types for invalid files
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
