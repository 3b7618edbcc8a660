"""Photos of any format and the frames of videos as the photos of a scene: upright, of at most a given size, in 8 bits, with what their EXIF data tells.

Photos are processed one at a time. Each finished one is a line of a journal in JSON, so that an interrupted import continues where it stopped.

The sharpness of a photo is the variance of its Laplacian (Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000), at a common size.
"""

import hashlib
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from npbgpp.core.config import typed
from npbgpp.core.files import write_atomically
from npbgpp.data import in_8_bits, natural, open_image, read_mask
from npbgpp.errors import InputError, listing

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
HEIF_SUFFIXES = (".heic", ".heif")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".gif")
VIEWS_PER_PANORAMA = 12

_QUALITY = 95  # of written JPEG files
_FULL_FRAME = 43.267  # mm, diagonal of 24x36: equivalent focal lengths refer to it
_UNITS_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # of the resolution of the focal plane
_FINGERPRINT = 32  # pixels, side of the picture by which equal photos are found
_SAME = 2  # grey levels by which the pixels of equal pictures differ at most
_SHARPNESS_SIDE = 640  # pixels, longer side at which sharpness is measured
_SEAM = 2.0  # the sides of a panorama differ at most by this factor more than neighbouring columns, and less than distant ones
_FRAME_SIDE = 320  # pixels, longer side at which the frames of a video are compared
_LEAST_MOTION = 0.005  # of that side: frames that differ by less mean flow show the same
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImportedPhoto:
    """A photo of the scene.

    Attributes:
        name: its file below ``images``, with ``/`` between folders.
        source: what it was made from: a path relative to the folder of photos, ``film.mp4 frame 12``, or ``360.jpg view 3``.
        height: pixels.
        width: pixels.
        camera: photos of the same text have the same device, zoom and size.
        focal_px: focal length by the EXIF data, pixels; None if these do not tell it.
        fixed: the intrinsics are exact: views of a panorama.
        sharpness: variance of the Laplacian of grey levels.
        fingerprint: grey levels of the photo at 32x32 pixels, hexadecimal.
        digest: SHA-256 of the pixels.
    """

    name: str
    source: str
    height: int
    width: int
    camera: str
    focal_px: float | None
    fixed: bool
    sharpness: float
    fingerprint: str
    digest: str

    def shows_the_same(self, other: "ImportedPhoto") -> bool:
        """Whether two photos are equal, up to compression."""
        if self.digest == other.digest:
            return True
        pictures = [np.frombuffer(bytes.fromhex(photo.fingerprint), np.uint8).astype(np.int16) for photo in (self, other)]
        return self.camera == other.camera and int(np.abs(pictures[0] - pictures[1]).max()) <= _SAME


@dataclass(frozen=True)
class PhotoSource:
    """What is imported: photos, or one video.

    Attributes:
        root: the folder, or the video file.
        files: photos in natural order; empty for a video.
        video: the video file.
        ignored: files of other kinds, by name.
    """

    root: Path
    files: tuple[Path, ...]
    video: Path | None
    ignored: tuple[str, ...]

    @classmethod
    def find(cls, root: Path, without: Sequence[Path] = ()) -> "PhotoSource":
        """Looks for photos in a folder and its sub-folders; a folder with a single video and no photo is that video.

        Args:
            root: the folder, or a video file.
            without: files and folders below it that are not the user's.

        Raises:
            InputError: nothing there, no or only one photo, or HEIC photos that cannot be read.
        """
        if root.is_file():
            if root.suffix.lower() not in VIDEO_SUFFIXES:
                raise InputError(f"photos={root}: expected a folder of photos or a video ({', '.join(VIDEO_SUFFIXES)}), got another file")
            return cls(root, (), root, ())
        if not root.is_dir():
            raise InputError(f"photos={root}: expected a folder of photos or a video, there is no such file or folder; correct the path")
        found = [
            path for path in root.rglob("*") if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
        ]
        found = [path for path in found if not any(place == path or place in path.parents for place in without)]
        found.sort(key=lambda path: natural(path.relative_to(root).as_posix()))
        photos = [path for path in found if path.suffix.lower() in PHOTO_SUFFIXES + HEIF_SUFFIXES]
        videos = [path for path in found if path.suffix.lower() in VIDEO_SUFFIXES]
        if not photos and len(videos) == 1:
            return cls(root, (), videos[0], ())
        others = tuple(path.relative_to(root).as_posix() for path in found if path not in set(photos))
        if not photos:
            kinds = ", ".join((*PHOTO_SUFFIXES, *HEIF_SUFFIXES))
            raise InputError(
                f"photos={root}: expected photos ({kinds}) or one video, got {listing(others)}; correct the path, or convert them"
            )
        if len(photos) == 1:
            raise InputError(f"photos={root}: expected photos from several places, got one ({photos[0].name}); take more photos")
        heif = [path for path in photos if path.suffix.lower() in HEIF_SUFFIXES]
        if heif:
            _read_heif(root, heif)
        return cls(root, tuple(photos), None, others)

    @property
    def name(self) -> str:
        """Name of what is imported, without suffix."""
        return self.video.stem if self.video is not None else self.root.name


def _read_heif(root: Path, photos: Sequence[Path]) -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise InputError(
            f"photos={root}: {len(photos)} HEIC photos, such as {photos[0].name}, need a decoder: pip install pillow-heif, or convert them to JPEG"
        ) from None
    register_heif_opener()


# ------------------------------------------------------------------ journal
class Journal:
    """Records of finished photos, one JSON object a line; a line that was cut off by an interruption is ignored.

    Args:
        path: the file.
        key: of what is imported and how: a journal of another one is started anew.

    Attributes:
        done: records by the text that says what was imported.
        earlier: photos of the journal that was replaced, names below ``images``.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.done: dict[str, dict[str, Any]] = {}
        first = json.dumps({"key": key})
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        self.earlier = () if lines[:1] == [first] else tuple(_names_in(lines[1:-1]))
        if lines[:1] != [first]:
            lines = [first, ""]
        for line in lines[1:-1]:
            record = json.loads(line)
            self.done[record["of"]] = record
        write_atomically(path, lambda file: file.write("\n".join([*lines[:-1], ""]).encode()))

    def add(self, of: str, photos: Sequence[ImportedPhoto], failure: str | None = None) -> None:
        """Records a file, or a frame, with its photos or the reason for which there are none. Raises InputError if the disk is full."""
        record = {"of": of, "photos": [asdict(photo) for photo in photos], "failure": failure}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error}); free space, then call the command again: it continues") from error
        self.done[of] = record

    def photos(self, of: str) -> tuple[ImportedPhoto, ...]:
        """Photos of a finished file."""
        return tuple(typed(ImportedPhoto, photo, "photo") for photo in self.done[of]["photos"])

    def failure(self, of: str) -> str | None:
        """Why a finished file gave no photo."""
        reason = self.done[of]["failure"]
        return None if reason is None else str(reason)


def _names_in(lines: Sequence[str]) -> list[str]:
    return [photo["name"] for line in lines for photo in json.loads(line)["photos"]]


# ------------------------------------------------------------------ photos
@dataclass(frozen=True)
class Decoded:
    """An upright photo in 8 bits of at most the size asked for, with its metadata."""

    image: Image.Image
    turned: Image.Transpose | None
    stored_size: tuple[int, int]
    as_stored: bool
    camera: str
    focal_share: float | None
    panorama: bool


def decode(path: Path, max_side: int, panoramas: bool | None) -> Decoded:
    """Reads a photo.

    ``stored_size`` is (height, width) in the file; ``as_stored`` says that a copy of the file would be the same; ``camera`` describes device and zoom;
    ``focal_share`` is the focal length divided by the diagonal. A panorama keeps four times the size.

    Raises:
        InputError: a file that cannot be decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # 50 megapixels are a usual photo
        with open_image(path) as file:
            width, height = file.size
            exif = file.getexif()
            turned = _TRANSPOSE.get(exif.get(ExifTags.Base.Orientation, 1))
            spherical = panoramas is not False and width == 2 * height and (panoramas is True or "GPano" in str(file.info.get("xmp", "")))
            looks_spherical = panoramas is None and width == 2 * height
            limit = max_side * (4 if spherical or looks_spherical else 1)
            plain = file.format in ("JPEG", "PNG") and file.mode in ("RGB", "RGBA", "L") and "transparency" not in file.info
            as_stored = plain and turned is None and max(file.size) <= limit
            scale = min(1.0, limit / max(file.size))
            size = max(1, round(width * scale)), max(1, round(height * scale))
            if file.format == "JPEG":
                file.draft(None, size)  # decodes fewer pixels where an eighth, a quarter or a half of them are enough
            image = in_8_bits(path, file)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    spherical = spherical or (looks_spherical and _continues(image))
    if not spherical and max(image.size) > max_side:  # width = 2 * height, but no panorama
        scale = max_side / max(image.size)
        image, as_stored = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS), False
    if turned is not None:
        image = image.transpose(turned)
    camera, focal_share = _camera(exif, (width, height))
    return Decoded(image, turned, (height, width), as_stored, camera, focal_share, spherical)


def _continues(image: Image.Image) -> bool:
    """Whether the left and the right side of a picture show the same, as those of a panorama do."""
    grey = np.asarray(image.convert("L").resize((128, 64), Image.Resampling.BOX), np.float32)
    beside, apart = (np.abs(grey - np.roll(grey, step, 1)) for step in (1, 16))
    across = beside[:, 0].mean()
    return bool(across < _SEAM * beside[:, 1:].mean() and _SEAM * across < apart.mean())


def _camera(exif: Image.Exif, size: tuple[int, int]) -> tuple[str, float | None]:
    """(description of device and zoom, focal length divided by the diagonal of the photo) by the EXIF data."""
    tags = exif.get_ifd(ExifTags.IFD.Exif)
    focal_mm, equivalent = _number(tags.get(ExifTags.Base.FocalLength)), _number(tags.get(ExifTags.Base.FocalLengthIn35mmFilm))
    zoom = _number(tags.get(ExifTags.Base.DigitalZoomRatio))
    device = [str(exif.get(tag, "")).strip("\0 ") for tag in (ExifTags.Base.Make, ExifTags.Base.Model)]
    share = None
    if equivalent:
        share = equivalent / _FULL_FRAME
    else:
        density, unit = _number(tags.get(ExifTags.Base.FocalPlaneXResolution)), tags.get(ExifTags.Base.FocalPlaneResolutionUnit, 2)
        stored = _number(tags.get(ExifTags.Base.ExifImageWidth)) or size[0]
        if focal_mm and density and unit in _UNITS_MM:
            sensor_mm = stored * _UNITS_MM[unit] / density  # the width of the whole sensor, also of photos that were reduced
            share = focal_mm / (sensor_mm * float(np.hypot(1, size[1] / size[0])))
    if share is not None and not 0.1 < share < 50:  # 140 degrees of view to beyond telescopes: nonsense
        share = None
    return " ".join([*device, *(f"{value:g}" for value in (focal_mm, equivalent, zoom) if value)]).strip(), share


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if np.isfinite(number) and number > 0 else None


def record(image: Image.Image, name: str, source: str, camera: str, focal_px: float | None, fixed: bool = False) -> ImportedPhoto:
    """The record of a photo, with what is measured on its pixels."""
    import cv2  # slow to import

    grey = image.convert("L")
    scale = min(1.0, _SHARPNESS_SIDE / max(image.size))
    small = np.asarray(grey.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX))
    return ImportedPhoto(
        name=name,
        source=source,
        height=image.height,
        width=image.width,
        camera=f"{image.width}x{image.height} {camera}".strip(),
        focal_px=focal_px,
        fixed=fixed,
        sharpness=float(cv2.Laplacian(small, cv2.CV_32F).var()),
        fingerprint=np.asarray(grey.resize((_FINGERPRINT, _FINGERPRINT), Image.Resampling.BOX)).tobytes().hex(),
        digest=hashlib.sha256(image.tobytes()).hexdigest(),
    )


def write_image(path: Path, image: Image.Image, exif: Image.Exif | None = None) -> None:
    """Writes JPEG or PNG by the suffix, with EXIF data if given, complete or not at all. Raises InputError if that is not possible."""
    buffer = io.BytesIO()
    kept = {} if exif is None else {"exif": exif.tobytes()}
    if path.suffix.lower() == ".png":
        image.save(buffer, format="PNG", **kept)
    else:
        image.save(buffer, format="JPEG", quality=_QUALITY, subsampling=0, **kept)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


@dataclass(frozen=True)
class PhotoImporter:
    """Imports photos into a scene.

    Attributes:
        images: folder of the photos of the scene.
        feature_masks: folder of masks ``<name>.png`` of transparent photos and of panoramas, dark where no feature may be.
        masks: folder with masks of the user, or None.
        scene_masks: folder of the masks of the scene.
        max_side: longest side of written photos, pixels.
        panoramas: see ``PhotoSettings``.
    """

    images: Path
    feature_masks: Path
    masks: Path | None
    scene_masks: Path
    max_side: int
    panoramas: bool | None

    def remove(self, name: str) -> None:
        """Removes what was written for a photo."""
        for file in (self.images / name, *(folder / f"{name}.png" for folder in (self.feature_masks, self.scene_masks))):
            file.unlink(missing_ok=True)

    def add(self, root: Path, path: Path, name: str) -> tuple[ImportedPhoto, ...]:
        """Imports one file, as one photo or as the views of a panorama.

        Args:
            root: folder of photos.
            path: the file below it.
            name: of the photo, without suffix.

        Raises:
            InputError: a file that cannot be decoded, a mask that does not fit, or a disk that is full.
        """
        decoded = decode(path, self.max_side, self.panoramas)
        source = path.relative_to(root).as_posix()
        if decoded.panorama:
            return tuple(self._views(decoded.image.convert("RGB"), name, source))
        image = decoded.image
        suffix = path.suffix.lower() if decoded.as_stored else (".png" if image.mode == "RGBA" or path.suffix.lower() == ".png" else ".jpg")
        target = self.images / f"{name}{suffix}"
        if target != path:
            if decoded.as_stored:
                write_atomically(target, lambda file: file.write(path.read_bytes()))
            else:
                write_image(target, image)
        if image.mode == "RGBA":
            write_image(self.feature_masks / f"{target.name}.png", image.getchannel("A").point(lambda alpha: 255 if alpha >= 128 else 0))
        if self.masks is not None:
            self._add_mask(root, path, target.name, decoded)
        focal_px = None if decoded.focal_share is None else decoded.focal_share * float(np.hypot(*image.size))
        return (record(image, target.name, source, decoded.camera, focal_px),)

    def _add_mask(self, root: Path, path: Path, name: str, decoded: Decoded) -> None:
        assert self.masks is not None
        relative = path.relative_to(root)
        places = [self.masks / relative.parent, self.masks]
        found = [folder / f"{stem}.png" for folder in places for stem in (relative.name, relative.stem)]
        mask = next((file for file in found if file.is_file()), None)
        size = decoded.image.size
        if mask is None:  # ``prepare_photos`` adds a white one
            return
        pixels = Image.fromarray(read_mask(mask))
        if decoded.turned is not None and pixels.size == decoded.stored_size[::-1]:
            pixels = pixels.transpose(decoded.turned)
        if abs(pixels.width * size[1] / pixels.height - size[0]) > 1 + size[0] / pixels.height:
            raise InputError(
                f"mask {mask}: expected the aspect ratio of its photo {path.name} ({size[0]}x{size[1]}), got {pixels.width}x{pixels.height}; resize it"
            )
        pixels = pixels.resize(size, Image.Resampling.NEAREST).point(lambda value: 255 if value >= 128 else 0)
        if pixels.getextrema()[1] == 0:
            raise InputError(f"mask {mask}: expected some bright pixels, where the scene is, got none; correct it, or invert it")
        write_image(self.scene_masks / f"{name}.png", pixels)

    def _views(self, panorama: Image.Image, name: str, source: str) -> Iterator[ImportedPhoto]:
        """Overlapping perspective views of 90 degrees; each pixel of the panorama has features in one of them only."""
        import cv2
        from pycolmap import panorama as pycolmap_panorama

        side = min(self.max_side, max(64, panorama.width // 4))
        rotations = panorama_rotations()
        camera = pycolmap_panorama.create_virtual_camera(pano_width=4 * side, pano_height=2 * side, hfov_deg=90.0, vfov_deg=90.0)
        rays = pycolmap_panorama.get_virtual_camera_rays(camera)
        centres = np.stack([rotation[2] for rotation in rotations])
        pixels = np.asarray(panorama)
        for k, rotation in enumerate(rotations):
            # rays are in the order of columns
            seen = rays @ rotation
            uv = pycolmap_panorama.spherical_img_from_cam((2 * panorama.height, panorama.height), seen).astype(np.float32) - 0.5
            u, v = uv.reshape(side, side, 2).transpose(2, 1, 0)
            view = Image.fromarray(cv2.remap(pixels, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP))
            own = (np.argmax(seen @ centres.T, 1) == k).reshape(side, side).T
            target = f"{panorama_folder(k)}{name}.jpg"
            write_image(self.images / target, view)
            write_image(self.feature_masks / f"{target}.png", Image.fromarray(own.astype(np.uint8) * 255))
            yield record(view, target, f"{source} view {k}", f"{panorama_folder(k)} of panoramas", camera.focal_length, fixed=True)


def panorama_folder(view: int) -> str:
    """Folder of the photos of one view of all panoramas, with a slash."""
    return f"pano_camera{view}/"


def panorama_rotations() -> list[np.ndarray]:
    """Rotations (3, 3) from panorama to view, axes right, down, forward."""
    from pycolmap import panorama

    options = panorama.PANO_RENDER_OPTIONS[panorama.PanoRenderType.PERSPECTIVE_OVERLAPPING]
    return list(panorama.get_virtual_rotations(options.num_steps_yaw, options.pitches_deg))


def photo_names(files: Sequence[Path], root: Path) -> list[str]:
    """A name without suffix for each file: its path below the folder, joined by ``-``, in letters, digits, ``-``, ``_`` and dots; numbered if not unique."""
    names: list[str] = []
    taken: set[str] = set()
    for path in files:
        relative = path.relative_to(root).with_suffix("").as_posix().replace("/", "-")
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", relative).strip("._") or "photo"
        name, count = plain, 1
        while name.lower() in taken:  # file systems of some machines do not tell upper and lower case apart
            count += 1
            name = f"{plain}_{count}"
        taken.add(name.lower())
        names.append(name)
    return names


# ------------------------------------------------------------------ videos
@dataclass(frozen=True)
class Frame:
    """A frame of a video: its number, its sharpness, and its grey picture at a small size."""

    number: int
    sharpness: float
    picture: UInt8[np.ndarray, "h w"]


def choose_frames(video: Path, most: int, report: Callable[[float], None]) -> list[int]:
    """Numbers of the sharpest frame of each of ``most`` windows, without those that show the same as the one before.

    Args:
        video: the file.
        most: largest number of frames.
        report: is called with the share of the video that was read.

    Raises:
        InputError: a file that cannot be decoded, or a video in which nothing moves.
    """
    import cv2

    frames = _read_video(video, "gray", 1, f"scale={_FRAME_SIDE}:{_FRAME_SIDE}:force_original_aspect_ratio=decrease:force_divisible_by=2")
    meta = next(frames)
    width, height = meta["size"]
    expected = max(1, round(meta["duration"] * meta["fps"]))
    window = max(1.0, expected / most)
    best: list[Frame] = []
    count = 0
    for number, data in enumerate(frames):
        picture = np.frombuffer(data, np.uint8).reshape(height, width)
        frame = Frame(number, float(cv2.Laplacian(picture, cv2.CV_32F).var()), picture)
        if not best or int(number / window) > int(best[-1].number / window):
            best.append(frame)
        elif frame.sharpness > best[-1].sharpness:
            best[-1] = frame
        count = number + 1
        report(min(1.0, count / expected))
    if not best:
        raise InputError(f"photos={video}: expected a video, got a file without frames; copy it again")
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    kept = best[:1]
    for frame in best[1:]:
        motion = np.linalg.norm(flow.calc(kept[-1].picture, frame.picture, None), axis=2).mean()  # type: ignore[call-overload]
        if motion >= _LEAST_MOTION * max(width, height):
            kept.append(frame)
    if len(kept) < 3:
        raise InputError(
            f"photos={video}: expected a camera that moves, got {count} frames of which {len(kept)} differ; move the camera around the scene while filming"
        )
    return [frame.number for frame in kept]


def import_frames(video: Path, numbers: Sequence[int], images: Path, max_side: int) -> Iterator[ImportedPhoto]:
    """Writes frames of a video, in their order, as JPEG. Raises InputError as ``choose_frames``."""
    chosen = "+".join(f"eq(n\\,{number})" for number in numbers)
    scale = f"scale=w=min(iw\\,{max_side}):h=min(ih\\,{max_side}):force_original_aspect_ratio=decrease:force_divisible_by=2"
    frames = _read_video(video, "rgb24", 3, f"select={chosen},{scale}")
    width, height = next(frames)["size"]
    for number, data in zip(numbers, frames, strict=False):
        image = Image.frombytes("RGB", (width, height), data)
        name = f"frame_{number:06d}.jpg"
        write_image(images / name, image)
        yield record(image, name, frame_source(video, number), video.name, None)


def frame_source(video: Path, number: int) -> str:
    """The source of a frame."""
    return f"{video.name} frame {number}"


def _read_video(video: Path, pixels: str, channels: int, filters: str) -> Iterator[Any]:
    """Metadata, then the bytes of each frame, turned upright, without repeated or left out frames."""
    import imageio_ffmpeg

    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)  # warns that frames are reduced
    reader = imageio_ffmpeg.read_frames(
        video, pix_fmt=pixels, bits_per_pixel=8 * channels, output_params=["-vf", filters, "-fps_mode", "passthrough"]
    )
    try:
        yield from reader
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[-200:]
        raise InputError(
            f"photos={video}: expected a video, got a damaged or other file ({reason}); copy it again, or convert it"
        ) from error
    finally:
        reader.close()
