"""Data types shared by parsers, datasets and methods: views, scenes and their splits before decoding, batches of decoded views."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npbgpp.data.lens import Lens
from npbgpp.data.point_files import CloudFile
from npbgpp.errors import InputError, listing
from npbgpp.geometry import Cameras, Offset, Transform, reduced

WHITE = (1.0, 1.0, 1.0)

Stage = Literal["train", "val", "test"]
ViewChoice = tuple[int, ...] | float | str
_FORMS = "a list of indices, every:<n>, every:<n>+<first>, a share such as 0.1, or a file with one name or index per line"


@dataclass(frozen=True)
class DepthMap:
    """A depth image of a view.

    Attributes:
        path: 16-bit image, 0 for unknown depth.
        camera: one camera, of the size of the depth image.
        unit: scene units per integer step.
    """

    path: Path
    camera: Cameras
    unit: float


@dataclass(frozen=True)
class MotionMaps:
    """Files with disparity, optical flow and mask of a video frame, at any resolution; None where there is none.

    Attributes:
        disparity: grey image, 8 or 16 bits, larger is nearer; of unknown scale and offset, which may differ between frames.
        flow_forward: ``.flo`` file with optical flow to the next frame, pixels; None for the last frame.
        flow_backward: the same to the previous frame; None for the first frame.
        static_mask: image, bright where the scene is static.
        inverted: the mask is bright where the scene moves instead.
    """

    disparity: Path | None = None
    flow_forward: Path | None = None
    flow_backward: Path | None = None
    static_mask: Path | None = None
    inverted: bool = False


@dataclass(frozen=True)
class View:
    """A photo and its camera, before decoding.

    Attributes:
        name: unique within the scene; names output files.
        image: file of the photo.
        camera: one camera, of the size of the decoded photo.
        alpha_is_mask: the alpha channel of the photo is the mask of the object.
        background: colour in [0, 1] that replaces the background, by alpha or where ``mask`` is dark; None keeps the stored colours.
        mask: image of the same size, bright on the object; replaces the alpha channel.
        truncates: composited colours are truncated to 8 bits as by the NPBG++ authors, not rounded.
        resized: photo and mask differ from the camera in size and are resampled (bilinear) when read.
        lens: distortion of the photo at the size of the camera, removed when it is read; ``camera`` is the pinhole camera of the result.
        depth: its depth image.
        bounds: nearest and farthest depth of the scene, scene units, as stated by the layout.
        time_step: time step in a video: index into ``Scene.frames`` of the frame taken at the same time. None for static scenes.
        motion: disparity, flow and mask of a video frame; views of other cameras have at most a mask. None for static scenes.
    """

    name: str
    image: Path
    camera: Cameras
    alpha_is_mask: bool = False
    background: tuple[float, float, float] | None = None
    mask: Path | None = None
    truncates: bool = False
    resized: bool = False
    lens: Lens | None = None
    depth: DepthMap | None = None
    bounds: tuple[float, float] | None = None
    time_step: int | None = None
    motion: MotionMaps | None = None


@dataclass(frozen=True)
class Scene:
    """Views, splits and point cloud of a scene, before decoding.

    Attributes:
        name: names descriptor files.
        views: all views; index lists refer to their order.
        splits: split of the layout, indices into ``views``.
        cloud: the point cloud file.
        carried_points: sparse points of the poses, for scenes without a cloud.
        carried_transform: takes them to the world of the poses; None: they are in it.
        notes: remarks on how the folder was read, such as photos left out; one sentence each.
        layout: name of the layout.
        offset: by which the coordinates of cameras and points are reduced, see ``npbgpp.geometry.point_cloud``; None for those of the files.
        holds_out: validation and test views of the layout do not train; False: only views chosen in ``with_splits`` do not.
    """

    name: str
    views: tuple[View, ...]
    splits: dict[Stage, tuple[int, ...]]
    cloud: CloudFile
    carried_points: Path | None = None
    carried_transform: Transform | None = None
    notes: tuple[str, ...] = ()
    layout: str = ""
    holds_out: bool = True
    offset: Offset | None = None

    @property
    def frames(self) -> tuple[View, ...]:
        """Frames of a video in temporal order: its first views, followed by those of other cameras. Empty for static scenes."""
        return tuple(view for k, view in enumerate(self.views) if view.time_step == k)

    def reduced_by(self, offset: Offset | None) -> "Scene":
        """The scene, whose cameras are reduced by an offset already, with points that will be; None changes nothing."""
        if offset is None:
            return self
        note = f"coordinates are reduced by ({', '.join(f'{part:.0f}' for part in offset)}) for single precision; exported files have those of the scene"
        return replace(
            self,
            cloud=replace(self.cloud, transform=reduced(self.cloud.transform, offset)),
            carried_transform=reduced(self.carried_transform, offset),
            notes=(*self.notes, note),
            offset=offset,
        )

    def with_splits(self, val_views: ViewChoice | None, test_views: ViewChoice | None) -> "Scene":
        """The scene with other validation and test views (None keeps those of the layout); the other views of the training split train.

        Where rules (every n-th, a share) overlap, test views go first, and validation is dropped if it would leave no training view.

        Raises:
            InputError: an invalid choice, a view outside the scene, a view in both lists, or no training view.
        """
        if val_views is None and test_views is None and not self.holds_out:
            return self
        val, test = self.splits["val"], self.splits["test"]
        names = [view.name for view in self.views]
        where = f"scene {self.name}"
        if val_views is not None:
            val = choose_views(val_views, names, "datasets.val_indices", where)
            test = tuple(i for i in test if i not in val)
        if test_views is not None:
            test = choose_views(test_views, names, "datasets.test_indices", where)
        if val_views is None or isinstance(val_views, str | float):
            val = tuple(i for i in val if i not in test)
            val = val if {*self.splits["train"]} - {*val, *test} else ()
        both = sorted(set(val) & set(test))
        if both:
            raise InputError(
                f"datasets.val_indices and datasets.test_indices of scene {self.name} share {both}; a view is either for validation or held out"
            )
        held_out = {
            *(val if self.holds_out or val_views is not None else ()),
            *(test if self.holds_out or test_views is not None else ()),
        }
        train = tuple(i for i in self.splits["train"] if i not in held_out)
        if not train:
            raise InputError(
                f"scene {self.name}: expected at least one training view, got none left after datasets.val_indices and datasets.test_indices; shorten them"
            )
        return replace(self, splits={"train": train, "val": val, "test": test})


@dataclass(frozen=True)
class Views:
    """Decoded views of one size.

    Attributes:
        image: colours in [0, 1].
        valid: pixels that count in losses: not padding, not in the margin.
        cameras: one per view.
        mask: 1 on the object; None for scenes without masks.
        names: names of the views.
    """

    image: Float[Tensor, "b 3 h w"]
    valid: Bool[Tensor, "b 1 h w"]
    cameras: Cameras
    mask: Float[Tensor, "b 1 h w"] | None
    names: tuple[str, ...]

    def to(self, device: torch.device | str) -> "Views":
        """The same views on another device; page-locked memory is copied to a GPU without waiting."""
        behind = torch.device(device).type == "cuda"
        return replace(
            self,
            image=self.image.to(device, non_blocking=behind),
            valid=self.valid.to(device, non_blocking=behind),
            cameras=self.cameras.to(device),
            mask=None if self.mask is None else self.mask.to(device, non_blocking=behind),
        )

    def pin_memory(self) -> "Views":
        """The same views in page-locked memory."""
        mask = None if self.mask is None else self.mask.pin_memory()
        return replace(self, image=self.image.pin_memory(), valid=self.valid.pin_memory(), mask=mask)


@dataclass(frozen=True)
class Batch:
    """Target views of one or several scenes.

    Attributes:
        dataset: name of the dataset of each view: scene name and stage.
        scene: name of the scene of each view.
        target: the views to render.
        inputs: input photos of each target, all of one size; empty for methods without.
    """

    dataset: tuple[str, ...]
    scene: tuple[str, ...]
    target: Views
    inputs: tuple[Views, ...] = ()

    def __len__(self) -> int:
        return len(self.scene)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device; called by Lightning."""
        return replace(self, target=self.target.to(device), inputs=tuple(views.to(device) for views in self.inputs))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; called by DataLoader."""
        return replace(self, target=self.target.pin_memory(), inputs=tuple(views.pin_memory() for views in self.inputs))

    @staticmethod
    def collate(items: "Sequence[Batch]") -> "Batch":
        """Concatenates items. Raises InputError for views of different sizes."""
        sizes = {item.target.cameras.image_size for item in items}
        if len(sizes) != 1:
            raise InputError(
                f"expected views of one size in a batch, got {sorted(sizes)}; set datasets.train_image_size, or a batch size of 1 "
                "(dataloader.train_total_batch_size=1)"
            )
        masks = [item.target.mask for item in items]
        known = [mask for mask in masks if mask is not None]
        target = Views(
            image=torch.cat([item.target.image for item in items]),
            valid=torch.cat([item.target.valid for item in items]),
            cameras=Cameras.cat([item.target.cameras for item in items]),
            mask=torch.cat(known) if len(known) == len(masks) else None,
            names=tuple(name for item in items for name in item.target.names),
        )
        return Batch(
            tuple(d for item in items for d in item.dataset),
            tuple(s for item in items for s in item.scene),
            target,
            tuple(views for item in items for views in item.inputs),
        )


def rule_splits(count: int, test: str, val: str) -> dict[Stage, tuple[int, ...]]:
    """Splits by rule, for layouts without a published split. Test views go first; validation is dropped if it would leave no training view.

    The training split holds all views: ``Scene.with_splits`` removes the others.
    """
    names = [str(k) for k in range(count)]
    test_views = choose_views(test, names, "test", "the scene")
    validation = tuple(i for i in choose_views(val, names, "val", "the scene") if i not in test_views)
    return {"train": tuple(range(count)), "val": validation if len(test_views) + len(validation) < count else (), "test": test_views}


def choose_views(choice: ViewChoice, names: Sequence[str], key: str, where: str) -> tuple[int, ...]:
    """Indices of the chosen views, ascending unless they are listed.

    ``every:8+4`` takes views 4, 12, 20, ..., or the last view of a scene with fewer; a share takes at least one view, evenly spaced. Neither takes all views
    of a scene.

    Args:
        choice: indices, a rule, or the path of a file.
        names: view names of the scene, in order.
        key: name of the setting, for messages.
        where: name of the scene, for messages.

    Raises:
        InputError: an invalid choice, an unknown view, a missing or unreadable file.
    """
    count = len(names)
    if isinstance(choice, float):
        if not 0 < choice < 1:
            raise InputError(f"{key}: expected {_FORMS}, got {choice}; a share lies between 0 and 1")
        return _spread(count, choice)
    if isinstance(choice, str):
        rule = re.fullmatch(r"every:([0-9]{1,9})(?:\+([0-9]{1,9}))?", choice)
        if rule is not None and int(rule[1]) > 1:
            found = tuple(range(min(int(rule[2] or 0), count - 1), count, int(rule[1])))
            return found if len(found) < count else ()
        if rule is not None or choice.startswith("every:"):
            raise InputError(f"{key}: expected {_FORMS}, got {choice}; n is at least 2")
        return _listed(Path(choice), names, key, where)
    bad = [i for i in choice if not 0 <= i < count]
    if bad:
        raise InputError(
            f"{key}: {where} has {count} views (indices 0 to {count - 1}), got {bad}; views are counted train, validation, test"
        )
    return tuple(choice)


def _spread(count: int, share: float) -> tuple[int, ...]:
    chosen = min(max(1, round(share * count)), count - 1)
    return tuple(((np.arange(chosen) + 0.5) * count / chosen).astype(int).tolist()) if chosen > 0 else ()


def _listed(path: Path, names: Sequence[str], key: str, where: str) -> tuple[int, ...]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise InputError(f"{key}: expected {_FORMS}, got {path}: no such file; correct it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: {path}: expected one view per line, got an unreadable file ({error}); correct it") from error
    index = {name: k for k, name in enumerate(names)} | {str(k): k for k in range(len(names)) if str(k) not in names}
    entries = [line for line in lines if line and not line.startswith("#")]
    unknown = [entry for entry in entries if entry not in index]
    if unknown:
        raise InputError(f"{key}: {path}: expected views of {where}, such as {listing(names)}, got {listing(unknown)}")
    return tuple(dict.fromkeys(index[entry] for entry in entries))
