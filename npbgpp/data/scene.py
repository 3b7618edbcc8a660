"""What the package knows of a scene and of a batch: the types that cross the border between data and systems."""

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
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras

Stage = Literal["train", "val", "test"]
ViewChoice = tuple[int, ...] | float | str
_FORMS = "a list of indices, every:<n>, every:<n>+<first>, a share such as 0.1, or a file with names or indices, one per line"


@dataclass(frozen=True)
class DepthMap:
    """A picture of depths beside a photo.

    Attributes:
        path: 16-bit picture, 0 where no depth is known.
        camera: one camera, of the size of the picture.
        unit: scene units per step of its values.
    """

    path: Path
    camera: Cameras
    unit: float


@dataclass(frozen=True)
class MotionMaps:
    """Files beside a frame of a video that say how it moves; each is None where there is none. They may have another size than the photo.

    Attributes:
        disparity: grey picture, 8 or 16 bits, larger is nearer; scale and offset are unknown and may differ from frame to frame.
        flow_forward: ``.flo`` file with the flow to the next frame, pixels; None for the last frame.
        flow_backward: the same to the frame before; None for the first frame.
        static_mask: picture, bright where nothing moves.
        inverted: the mask is bright where something moves instead.
    """

    disparity: Path | None = None
    flow_forward: Path | None = None
    flow_backward: Path | None = None
    static_mask: Path | None = None
    inverted: bool = False


@dataclass(frozen=True)
class View:
    """One photo before it is decoded.

    Attributes:
        name: unique within the scene; names output files.
        image: file with the photo.
        camera: one camera, of the size of the photo.
        alpha_is_mask: the photo has an alpha channel that is the mask of the object.
        background: colour in [0, 1] that the photo is composited on where alpha < 1, or that it has where ``mask`` is dark; None keeps the colours as
            stored.
        mask: picture of the same size, bright on the object; an alpha channel of the photo is then ignored.
        truncates: composited colours are cut to 8 bits, as the NPBG++ authors do, in place of rounding them.
        resized: the photo has another size than the camera and is resampled (bilinear) when it is read; so is its mask.
        lens: distortion of the photo at the size of the camera, taken out when it is read; ``camera`` is the pinhole camera of the result.
        depth: depths that belong to the photo.
        bounds: the nearest and the farthest depth that matters, scene units, as the layout states them.
        moment: of a video, the number of the frame that shows the same moment, in the order of time from 0 over the frames in use; ``Scene.frames`` has them.
            None for still scenes.
        motion: how the frame moves; photos that other cameras took at its moment have a mask at most. None for still scenes.
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
    moment: int | None = None
    motion: MotionMaps | None = None


@dataclass(frozen=True)
class Scene:
    """One scene before any image is decoded.

    Attributes:
        name: names descriptor files.
        views: all views, in the order that index lists refer to.
        splits: natural split of the layout: indices into ``views``.
        cloud: the point cloud file.
        carried_points: file with points that came with the poses, for scenes without a cloud of their own.
        notes: what the user should know of how the folder was read, such as photos left out; one sentence each.
        layout: name of the layout that it was read as.
        holds_out: natural validation and test views do not train. Otherwise only those do not that ``with_splits`` is told to take out.
    """

    name: str
    views: tuple[View, ...]
    splits: dict[Stage, tuple[int, ...]]
    cloud: CloudFile
    carried_points: Path | None = None
    notes: tuple[str, ...] = ()
    layout: str = ""
    holds_out: bool = True

    @property
    def frames(self) -> tuple[View, ...]:
        """The frames of a video in the order of time: its first views, after which come those of other cameras. Empty for still scenes."""
        return tuple(view for k, view in enumerate(self.views) if view.moment == k)

    def with_splits(self, val_views: ViewChoice | None, holdout_views: ViewChoice | None) -> "Scene":
        """The scene with other validation and test views; training keeps what is left of its natural views.

        Of views that two rules choose (every n-th, a share), the test views are taken first, and validation leaves one view to train.

        Raises:
            InputError: a choice that cannot be read, a view outside the scene, a view in both lists, or no training view left.
        """
        if val_views is None and holdout_views is None and not self.holds_out:
            return self
        val, test = self.splits["val"], self.splits["test"]
        names = [view.name for view in self.views]
        where = f"scene {self.name}"
        if val_views is not None:
            val = choose_views(val_views, names, "datasets.val_indices", where)
            test = tuple(i for i in test if i not in val)
        if holdout_views is not None:
            test = choose_views(holdout_views, names, "datasets.holdout_indices", where)
        if val_views is None or isinstance(val_views, str | float):
            val = tuple(i for i in val if i not in test)
            val = val if {*self.splits["train"]} - {*val, *test} else ()
        both = sorted(set(val) & set(test))
        if both:
            raise InputError(
                f"datasets.val_indices and datasets.holdout_indices of scene {self.name} share {both}; a view has one purpose only"
            )
        held_out = {
            *(val if self.holds_out or val_views is not None else ()),
            *(test if self.holds_out or holdout_views is not None else ()),
        }
        train = tuple(i for i in self.splits["train"] if i not in held_out)
        if not train:
            raise InputError(
                f"scene {self.name}: no training view left after datasets.val_indices and datasets.holdout_indices; shorten them"
            )
        return replace(self, splits={"train": train, "val": val, "test": test})


@dataclass(frozen=True)
class Views:
    """b decoded views of one size.

    Attributes:
        image: colours in [0, 1].
        valid: pixels that count in losses: not padded, not in the margin.
        cameras: one per view.
        mask: 1 on the object, None when the scene has no masks.
        names: names of the views.
    """

    image: Float[Tensor, "b 3 h w"]
    valid: Bool[Tensor, "b 1 h w"]
    cameras: Cameras
    mask: Float[Tensor, "b 1 h w"] | None
    names: tuple[str, ...]

    def to(self, device: torch.device | str) -> "Views":
        """The same views on another device."""
        return replace(
            self,
            image=self.image.to(device),
            valid=self.valid.to(device),
            cameras=self.cameras.to(device),
            mask=None if self.mask is None else self.mask.to(device),
        )

    def pin_memory(self) -> "Views":
        """The same views in page-locked memory."""
        mask = None if self.mask is None else self.mask.pin_memory()
        return replace(self, image=self.image.pin_memory(), valid=self.valid.pin_memory(), mask=mask)


@dataclass(frozen=True)
class Batch:
    """b target views of one or several scenes.

    Attributes:
        dataset: name of the dataset the views come from (scene name plus purpose), one per view.
        scene: name of the scene of each view.
        target: the views to render.
        inputs: per target, the photos that it is to be described from, all of one size; empty for systems that read none.
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
        """Joins single items. Raises InputError when the views differ in size."""
        sizes = {item.target.cameras.image_size for item in items}
        if len(sizes) != 1:
            raise InputError(
                f"views of different sizes {sorted(sizes)} cannot share a batch; set datasets.train_image_size, or a batch size of 1 "
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


def rule_splits(count: int, holdout: str, val: str) -> dict[Stage, tuple[int, ...]]:
    """Splits of layouts without published ones: ``holdout`` and ``val`` are rules, test views are taken first, and one view at least is left to train.

    Every view may train, ``Scene.with_splits`` takes the others out.
    """
    names = [str(k) for k in range(count)]
    test = choose_views(holdout, names, "holdout", "the scene")
    validation = tuple(i for i in choose_views(val, names, "val", "the scene") if i not in test)
    return {"train": tuple(range(count)), "val": validation if len(test) + len(validation) < count else (), "test": test}


def choose_views(choice: ViewChoice, names: Sequence[str], key: str, where: str) -> tuple[int, ...]:
    """Indices of the chosen views, ascending unless they are listed.

    ``every:8+4`` takes views 4, 12, 20, ..., and the last view of a scene that has not so many; a share takes views at even distances, one at least. Neither
    takes all views of a scene.

    Args:
        choice: indices, a rule, or the path of a file.
        names: names of the views of the scene, in order.
        key: the setting, for messages.
        where: the scene, for messages.

    Raises:
        InputError: a choice of another form, an unknown view, a missing or unreadable file.
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
            f"{key}: {where} has {count} views (indices 0 to {count - 1}), got {bad}; indices count train, then validation, then test views"
        )
    return tuple(choice)


def _spread(count: int, share: float) -> tuple[int, ...]:
    chosen = min(max(1, round(share * count)), count - 1)
    return tuple(((np.arange(chosen) + 0.5) * count / chosen).astype(int).tolist()) if chosen > 0 else ()


def _listed(path: Path, names: Sequence[str], key: str, where: str) -> tuple[int, ...]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise InputError(f"{key}: expected {_FORMS}, got {path}, which is no such file; correct it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: {path}: expected a text with one view per line, got an unreadable file ({error}); correct it") from error
    index = {name: k for k, name in enumerate(names)} | {str(k): k for k in range(len(names)) if str(k) not in names}
    entries = [line for line in lines if line and not line.startswith("#")]
    unknown = [entry for entry in entries if entry not in index]
    if unknown:
        raise InputError(f"{key}: {path}: {where} has no view {', '.join(unknown[:5])}; its views are {', '.join(names[:5])} and so on")
    return tuple(dict.fromkeys(index[entry] for entry in entries))
