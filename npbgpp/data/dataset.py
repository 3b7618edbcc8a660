"""Training and evaluation items of one scene: decoded views, random crops and zooms, margins, input photos."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from npbgpp.data import Batch, Photo, PhotoCache, Scene, Views, read_photo
from npbgpp.data.view_selection import ViewSelector
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, resample

_CENTRE_STEP = 8  # pixels between candidate crop centres, as in the code of the authors


@dataclass(frozen=True)
class Augmentation:
    """Random crops and zooms of training views.

    Attributes:
        image_size: (height, width) of the crop, pixels; None keeps the whole image.
        random_shift: centre the crop at a random pixel of the object (of the image without masks), not at the image centre.
        random_zoom: (smallest, largest) factor of the focal length, drawn uniformly; None does not zoom.
    """

    image_size: tuple[int, int] | None = None
    random_shift: bool = False
    random_zoom: tuple[float, float] | None = None


class SceneDataset(Dataset[Batch]):
    """Views of one scene for one stage.

    Item i is view ``indices[i % len(indices)]``: ``num_samples`` may exceed the number of views. ``__getitem__`` uses torch's global RNG, which DataLoader
    seeds per worker.

    Args:
        name: dataset name, names output folders.
        scene: the scene.
        indices: its views.
        augmentation: crops and zooms; None gives whole views.
        num_samples: length; None is one pass over the views.
        image_margin: pixels along each border that do not count in losses.
        photos: cache of decoded photos; None decodes them every time.
        selector: selects input photos of each item; None gives none.

    Raises:
        InputError: no view, or a crop, zoom, margin or number of samples out of range.
    """

    def __init__(
        self,
        name: str,
        scene: Scene,
        indices: tuple[int, ...],
        *,
        augmentation: Augmentation | None = None,
        num_samples: int | None = None,
        image_margin: int = 0,
        photos: PhotoCache | None = None,
        selector: ViewSelector | None = None,
    ) -> None:
        if not indices:
            raise InputError(
                f"dataset {name}: expected at least one view, got none; extend its split (datasets.val_indices, datasets.test_indices)"
            )
        if num_samples is not None and num_samples < 1:
            raise InputError(f"datasets.train_num_samples: expected a positive number or null, got {num_samples}")
        self.name, self.scene, self.indices = name, scene, indices
        self.augmentation = augmentation or Augmentation()
        self.num_samples, self.image_margin, self.selector = num_samples, image_margin, selector
        self.photos = photos
        sizes = [scene.views[i].camera.image_size for i in indices]
        full = (min(height for height, _ in sizes), min(width for _, width in sizes))
        wanted = self.augmentation.image_size
        if wanted is not None and min(wanted) < 1:
            raise InputError(f"datasets.train_image_size: expected positive numbers or null, got {wanted[0]}x{wanted[1]}")
        if wanted is not None and (wanted[0] > full[0] or wanted[1] > full[1]):
            raise InputError(
                f"datasets.train_image_size: expected at most the {full[0]}x{full[1]} pixels (height x width) of the smallest photo of scene "
                f"{scene.name}, got {wanted[0]}x{wanted[1]}; lower it or set datasets.train_image_size=null"
            )
        if self.augmentation.random_shift and (wanted is None or wanted == full):
            raise InputError(
                f"datasets.train_random_shift: a crop smaller than the {full[0]}x{full[1]} pixels of scene {scene.name} is needed to shift it; lower "
                "datasets.train_image_size or set datasets.train_random_shift=false"
            )
        zoom = self.augmentation.random_zoom
        if zoom is not None and not 0 < zoom[0] <= zoom[1] < math.inf:
            raise InputError(f"datasets.train_random_zoom: expected two positive factors, the smallest first, or null, got {list(zoom)}")
        if not 0 <= 2 * image_margin < min(full):
            raise InputError(
                f"datasets.image_margin: expected 0 or more and less than half of {full[0]}x{full[1]} pixels, got {image_margin}"
            )

    def __len__(self) -> int:
        return self.num_samples if self.num_samples is not None else len(self.indices)

    def __getitem__(self, item: int) -> Batch:
        return self.drawn(item, None)

    def drawn(self, item: int, generator: torch.Generator | None) -> Batch:
        """An item with crop, zoom and input views drawn from ``generator``, or from the global RNG."""
        index = self.indices[item % len(self.indices)]
        view = self.scene.views[index]
        photo, camera = self._photo(index), view.camera
        target = self._crop(camera, photo, generator)
        if self.augmentation.random_zoom is not None:
            low, high = self.augmentation.random_zoom
            target = target.zoom(low + (high - low) * torch.rand((), generator=generator).item())
        top, left, size = _source_region(camera, target)
        layers = _layers(photo, self.image_margin, top, left, size)[None]
        if self.augmentation.random_zoom is not None:
            layers = resample(layers, camera.crop(top, left, size), target)
        mask = layers[:, 4:] if photo.mask is not None else None
        valid = layers[:, 3:4] >= 0.5
        if mask is not None:  # the object counts also within the margin
            valid = valid | (mask >= 0.5)
        views = Views(layers[:, :3], valid, target, mask, (view.name,))
        inputs = () if self.selector is None else (self._whole_views(self.selector.select(index, target, generator)),)
        return Batch((self.name,), (self.scene.name,), views, inputs)

    def _whole_views(self, indices: tuple[int, ...]) -> Views:
        views, photos = [self.scene.views[i] for i in indices], [self._photo(i) for i in indices]
        cameras = Cameras.cat([view.camera for view in views])
        return Views(
            torch.stack([photo.image for photo in photos]).float() / 255,
            torch.ones(len(views), 1, *cameras.image_size, dtype=torch.bool),
            cameras,
            None,  # features are extracted from whole photos
            tuple(view.name for view in views),
        )

    def _photo(self, index: int) -> Photo:
        return read_photo(self.scene.views[index]) if self.photos is None else self.photos.read(index)

    def _crop(self, camera: Cameras, photo: Photo, generator: torch.Generator | None) -> Cameras:
        size = self.augmentation.image_size
        if size is None or size == camera.image_size:
            return camera
        height, width = camera.image_size
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        if self.augmentation.random_shift:
            corners = _candidate_corners(photo, size)
            top, left = corners[int(torch.randint(len(corners), (), generator=generator))].tolist()
        return camera.crop(top, left, size)


def _source_region(camera: Cameras, target: Cameras) -> tuple[int, int, tuple[int, int]]:
    """(top, left, size) of the part of a photo that a crop or zoom needs; a zoom needs one more pixel on each side for interpolation."""
    ratio = (camera.focal_length / target.focal_length)[0].double()
    first = camera.principal_point[0].double() - target.principal_point[0].double() * ratio
    last = first + torch.tensor(target.image_size[::-1]) * ratio
    border = 0.0 if torch.equal(camera.focal_length, target.focal_length) else 1.0
    (left, top), (right, bottom) = (first - border + 1e-3).floor().int().tolist(), (last + border - 1e-3).ceil().int().tolist()
    height, width = camera.image_size
    top, left = max(top, 0), max(left, 0)
    return top, left, (min(bottom, height) - top, min(right, width) - left)


def _layers(photo: Photo, margin: int, top: int, left: int, size: tuple[int, int]) -> Float[Tensor, "c h w"]:
    """Colours, validity and mask of a part of a photo, stacked to be resampled together."""
    height, width = photo.image.shape[1:]
    part = (slice(None), slice(top, top + size[0]), slice(left, left + size[1]))
    valid = torch.zeros(1, *size)
    valid[:, max(margin - top, 0) : max(height - margin - top, 0), max(margin - left, 0) : max(width - margin - left, 0)] = 1.0
    layers = [photo.image[part].float() / 255, valid]
    if photo.mask is not None:
        layers.append(photo.mask[part].float() / 255)
    return torch.cat(layers)


def _candidate_corners(photo: Photo, size: tuple[int, int]) -> Tensor:
    """Top-left corners (k, 2) of crops within the photo: centred on object pixels of a coarse grid, or at the image corners."""
    height, width = photo.image.shape[1:]
    step = _CENTRE_STEP
    grid = torch.ones(-(-height // step), -(-width // step), dtype=torch.bool) if photo.mask is None else photo.mask[0, ::step, ::step] > 0
    corner = grid.nonzero() * step - torch.tensor([size[0] // 2, size[1] // 2])
    limit = torch.tensor([height - size[0], width - size[1]])
    fits = ((corner >= 0) & (corner <= limit)).all(1)
    extreme = torch.cartesian_prod(torch.tensor([0, height - size[0]]), torch.tensor([0, width - size[1]]))
    return torch.cat([corner[fits], extreme])


def as_size(value: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """A crop size of the config: one number stands for a square."""
    return (value, value) if isinstance(value, int) else value
