"""``npbgpp prepare photos``: from a folder of photos or a video to a COLMAP scene with poses, upright and of usual scale.

Files in the folder of the scene: ``images``, ``masks`` if there are any, ``sparse/0``, ``photos.json`` (the manifest), ``report.html`` and ``report.png``, and
``reconstruction`` with the journal of imported photos, features, matches and models, from which an interrupted call continues.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from npbgpp.core.files import write_atomically
from npbgpp.data import ColmapModel, find_models, image_size
from npbgpp.errors import InputError, listing
from npbgpp.prepare.forecast import in_words
from npbgpp.prepare.photo_import import (
    VIEWS_PER_PANORAMA,
    ImportedPhoto,
    Journal,
    PhotoImporter,
    PhotoSource,
    choose_frames,
    frame_source,
    import_frames,
    photo_names,
    write_image,
)
from npbgpp.prepare.photo_poses import (
    ENOUGH,
    MAX_EXHAUSTIVE,
    PoseEstimator,
    PoseOptions,
    PoseResult,
    Similarity,
    forecast_seconds,
    number_of_features,
    number_of_pairs,
    upright,
)
from npbgpp.prepare.photos_manifest import PhotosManifest, ScenePhoto
from npbgpp.prepare.photos_report import write_report
from npbgpp.prepare.settings import PhotoSettings

log = logging.getLogger("npbgpp.prepare")

WORK = "reconstruction"  # folder of what an interrupted call continues from
_KEPT = "sparse.before"  # poses of other programs that were replaced
_IMPORT_SECONDS = 0.08  # per megapixel
_BYTES_PER_PIXEL, _BYTES_PER_FEATURE = 1.0, 400  # of a photo on disk, and of its features and matches
_BLURRED = 0.15  # of the median sharpness
_FEW_POINTS = 100  # that a photo sees
_LARGE_ERROR_PX = 1.5
_FOCAL_OFF = 0.25  # relative difference of the focal length from that of the EXIF data


def prepare_photos(settings: PhotoSettings, command: str) -> PhotosManifest:
    """Makes the scene; a call that was interrupted continues.

    Args:
        settings: the keys.
        command: the command line, for the manifest.

    Raises:
        InputError: photos that cannot be used, a scene that has poses, or a disk that is full.
    """
    scene, root = settings.scene.expanduser().absolute(), settings.photos.expanduser().absolute()
    _refuse_foreign_files(settings, scene, root)
    source = PhotoSource.find(root, own_files(scene, root))
    work = scene / WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"scene={settings.scene}: cannot be written ({error.strerror}); choose another folder") from error
    stages = _Stages()
    options = _announce(settings, source, scene)
    photos, failures = _import(settings, source, scene, stages)
    _require_photos(root, photos, failures)
    if len(photos) > MAX_EXHAUSTIVE and settings.matching == "exhaustive":
        log.warning("%d photos are many for matching all pairs; matching=sequential compares neighbours by name", len(photos))
    masks = scene / "masks" if settings.masks is not None else work / "masks"
    _mask_all(masks, photos)
    _forget_other_photos(work, masks, options, photos)
    estimator = PoseEstimator(work, scene / "images", masks, photos, options, stages.show, log.info)
    with stages.running():
        result = estimator.estimate() if settings.poses is None else estimator.adjust(settings.poses.expanduser())
        stages.show("upright and scaled")
        part = work / "part-sparse"
        shutil.rmtree(part, ignore_errors=True)
        similarity, vertical = upright(result.model, part / "0", settings.distance)
    manifest = _manifest(settings, command, photos, failures, result, similarity, vertical, part / "0", stages.seconds)
    _publish(scene, part, manifest)
    log.info(
        "%d of %d photos registered, %d points, reprojection error %.2f px: %s",
        len(manifest.registered),
        len(manifest.photos),
        manifest.points,
        manifest.error_px,
        scene,
    )
    for photo in manifest.photos:
        if not photo.registered and photo.source not in failures:  # the others are named above
            log.info("left out: %s: %s", photo.source, photo.reason)
    for warning in manifest.warnings:
        log.warning("problem: %s", warning)
    write_report(scene, manifest)
    log.info("report: %s; contact sheet: %s", scene / "report.html", scene / "report.png")
    return manifest


def own_files(scene: Path, root: Path) -> tuple[Path, ...]:
    """Files and folders of a scene, where they lie in the folder of photos."""
    return (scene,) if scene != root else tuple(scene / name for name in ("images", "masks", "sparse", WORK, "report.png"))


def _refuse_foreign_files(settings: PhotoSettings, scene: Path, root: Path) -> None:
    """Raises InputError where files of others would be replaced."""
    images = scene / "images"
    if images == root or images in root.parents:
        raise InputError(
            f"photos={settings.photos}: expected photos outside of {images}, where those of the scene are written; rename the folder, such as to "
            f"{scene / 'input'}, or choose another scene"
        )
    ours = (scene / WORK / "photos.jsonl").is_file()
    for folder in (images, scene / "masks"):
        if not ours and folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"scene={settings.scene}: expected a new folder, or one of an earlier call, got {folder} with files; choose another"
            )
    models = find_models(scene) if scene.is_dir() else []
    if models and not settings.overwrite:
        raise InputError(f"scene={settings.scene}: has poses already ({models[0][0]}); choose another folder, or overwrite=true")


# ------------------------------------------------------------------ progress
class _Stages:
    """Shows the stage that runs as a bar on terminals, and keeps the seconds of each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        console, columns = Console(), (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._name = ""
        self._start = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Draws within the context."""
        with self._bar:
            yield
            self._finish()

    def show(self, name: str) -> Callable[[int, int | None], None]:
        """Begins a stage; returns what is called with (done, total)."""
        self._finish()
        self._name, self._start = name, time.perf_counter()
        task = self._bar.add_task(name, total=None)
        return lambda done, total: self._bar.update(task, completed=done, total=total)

    def _finish(self) -> None:
        if self._name:
            self.seconds[self._name] = round(self.seconds.get(self._name, 0.0) + time.perf_counter() - self._start, 1)
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._name = ""


# ------------------------------------------------------------------ stages
def forecast(settings: PhotoSettings, source: PhotoSource) -> tuple[PoseOptions, list[float], dict[str, float]]:
    """(how poses are estimated, megapixels of each photo of the scene, expected seconds of each stage), from the headers of the files."""
    if source.video is not None:
        sizes = [settings.max_image_size**2 * 9 / 16 / 1e6] * settings.frames
    else:
        sizes = []
        for path in source.files:
            try:
                height, width = image_size(path)
            except InputError:  # is reported when it is imported
                continue
            if settings.panoramas or (settings.panoramas is None and width == 2 * height and width > 2 * settings.max_image_size):
                sizes += [min(settings.max_image_size, width / 4) ** 2 / 1e6] * VIEWS_PER_PANORAMA
            else:
                sizes.append(height * width * min(1.0, settings.max_image_size / max(height, width)) ** 2 / 1e6)
    count = len(sizes)
    sequential = {"sequential": True, "exhaustive": False, "auto": source.video is not None or count > MAX_EXHAUSTIVE}[settings.matching]
    features = settings.features or number_of_features(number_of_pairs(count, sequential))
    options = PoseOptions(settings.camera_model, features, sequential, settings.retries, settings.seed)
    seconds = {"photos": _IMPORT_SECONDS * sum(sizes), **forecast_seconds(sizes, options)} if sizes else {}
    return options, sizes, seconds


def _announce(settings: PhotoSettings, source: PhotoSource, scene: Path) -> PoseOptions:
    """Says how long it will take. Raises InputError where there is not enough space on the disk."""
    options, sizes, seconds = forecast(settings, source)
    retries = "; more if few photos are registered" if settings.retries and settings.poses is None else ""
    if sizes:
        log.info("%s: %d photos, %s%s", source.name, len(sizes), in_words(seconds), retries)
    needed = 1e6 * sum(sizes) * _BYTES_PER_PIXEL + len(sizes) * options.features * _BYTES_PER_FEATURE
    free = shutil.disk_usage(next(folder for folder in (scene, *scene.parents) if folder.is_dir())).free
    if free < needed:
        raise InputError(
            f"scene={settings.scene}: expected {needed / 1e9:.1f} GB of free disk space, got {free / 1e9:.1f}; free space, or choose another"
        )
    return options


def _import(settings: PhotoSettings, source: PhotoSource, scene: Path, stages: _Stages) -> tuple[list[ImportedPhoto], dict[str, str]]:
    """(photos of the scene, reasons for which files gave none). Files that an earlier call imported are not read again."""
    masks = None if settings.masks is None else settings.masks.expanduser().absolute()
    if masks is not None and not masks.is_dir():
        raise InputError(f"masks={settings.masks}: expected a folder of masks, there is none; correct the path")
    stamps = [] if masks is None else sorted((path.name, path.stat().st_mtime_ns) for path in masks.rglob("*.png"))
    key = json.dumps([str(source.root), settings.max_image_size, settings.panoramas, settings.frames, str(masks), stamps])
    journal = Journal(scene / WORK / "photos.jsonl", key)
    importer = PhotoImporter(scene / "images", scene / WORK / "masks", masks, scene / "masks", settings.max_image_size, settings.panoramas)
    for name in journal.earlier:
        importer.remove(name)
    with stages.running():
        if source.video is not None:
            wanted = _import_video(settings, source.video, journal, importer, scene / WORK / "frames.json", key, stages)
        else:
            wanted = _import_photos(source, journal, importer, stages)
    photos = [photo for of in wanted for photo in journal.photos(of)]
    failures = {of.rpartition(" | ")[0]: reason for of in wanted if (reason := journal.failure(of)) is not None}
    cameras = len({photo.camera for photo in photos})
    known = sum(photo.focal_px is not None for photo in photos)
    log.info("photos: %d read, %d left out; cameras: %d; focal length from EXIF data: %d", len(photos), len(failures), cameras, known)
    for name, reason in failures.items():
        log.info("left out: %s: %s", name, reason)
    if source.ignored:
        log.info("other files, which are not used: %s", listing(source.ignored))
    return photos, failures


def _import_photos(source: PhotoSource, journal: Journal, importer: PhotoImporter, stages: _Stages) -> list[str]:
    progress = stages.show("photos")
    wanted: list[str] = []
    digests: dict[str, str] = {}
    last: ImportedPhoto | None = None
    for k, (path, name) in enumerate(zip(source.files, photo_names(source.files, source.root), strict=True)):
        progress(k, len(source.files))
        stat = path.stat()
        of = f"{path.relative_to(source.root).as_posix()} | {stat.st_size} {stat.st_mtime_ns}"
        wanted.append(of)
        if of not in journal.done or not all((importer.images / photo.name).is_file() for photo in journal.photos(of)):
            try:
                photos, failure = importer.add(source.root, path, name), None
                twin = digests.get(photos[0].digest) or (last.source if last is not None and photos[0].shows_the_same(last) else None)
                if twin is not None:
                    for photo in photos:
                        importer.remove(photo.name)
                    photos, failure = (), f"shows the same as {twin}"
            except InputError as error:
                if not str(error).startswith("image "):
                    raise
                size = "the file is empty" if stat.st_size == 0 else "the file is damaged, encrypted or of another kind"
                photos, failure = (), f"{size} ({str(error).partition(': ')[2]})"
            journal.add(of, photos, failure)
        for photo in journal.photos(of):
            last = photo
            digests.setdefault(photo.digest, photo.source)
    return wanted


def _import_video(
    settings: PhotoSettings, video: Path, journal: Journal, importer: PhotoImporter, choice: Path, key: str, stages: _Stages
) -> list[str]:
    stat = video.stat()
    key = f"{key} {stat.st_size} {stat.st_mtime_ns}"
    numbers: list[int] | None = None
    if choice.is_file():
        content = json.loads(choice.read_text(encoding="utf-8"))
        numbers = content["numbers"] if content["key"] == key else None
    if numbers is None:
        progress = stages.show("choosing frames")
        numbers = choose_frames(video, settings.frames, lambda share: progress(round(100 * share), 100))
        text = json.dumps({"key": key, "numbers": numbers})
        write_atomically(choice, lambda file: file.write(text.encode()))
    progress = stages.show("frames")

    def of(source: str) -> str:
        return f"{source} | {stat.st_size} {stat.st_mtime_ns}"

    def is_done(source: str) -> bool:
        text = of(source)
        return text in journal.done and all((importer.images / photo.name).is_file() for photo in journal.photos(text))

    wanted = [frame_source(video, number) for number in numbers]
    missing = [number for number, source in zip(numbers, wanted, strict=True) if not is_done(source)]
    if missing:
        for k, photo in enumerate(import_frames(video, missing, importer.images, settings.max_image_size)):
            progress(k, len(missing))
            journal.add(of(photo.source), (photo,))
    return [of(source) for source in wanted if of(source) in journal.done]


def _require_photos(root: Path, photos: Sequence[ImportedPhoto], failures: dict[str, str]) -> None:
    if len(photos) >= 2:
        return
    equal = [source for source, reason in failures.items() if reason.startswith("shows the same")]
    if photos and equal:
        raise InputError(
            f"photos={root}: expected photos from different places, got {len(equal) + 1} that show the same as {photos[0].source}; move the camera between them"
        )
    reasons = "; ".join(f"{source}: {reason}" for source, reason in list(failures.items())[:3])
    raise InputError(f"photos={root}: expected at least 2 photos that can be read, got {len(photos)} ({reasons}); replace the files")


def _mask_all(masks: Path, photos: Sequence[ImportedPhoto]) -> None:
    """Adds white masks of photos without one: where there is a folder of masks, COLMAP leaves out the photos that have none."""
    if masks.is_dir():
        for photo in photos:
            mask = masks / f"{photo.name}.png"
            if not mask.is_file():
                write_image(mask, Image.new("L", (photo.width, photo.height), 255))


def _forget_other_photos(work: Path, masks: Path, options: PoseOptions, photos: Sequence[ImportedPhoto]) -> None:
    """Removes features and models of other photos or other settings, so that none are mixed."""
    stamps = sorted((path.name, path.stat().st_mtime_ns) for path in (masks.glob("*.png") if masks.is_dir() else ()))
    text = json.dumps([asdict(options) | {"retries": None}, [(photo.name, photo.digest, photo.camera) for photo in photos], stamps])
    path = work / "poses.json"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    for database in work.glob("*.db*"):
        database.unlink()
    shutil.rmtree(work / "models", ignore_errors=True)
    write_atomically(path, lambda file: file.write(text.encode()))


def _manifest(
    settings: PhotoSettings,
    command: str,
    photos: Sequence[ImportedPhoto],
    failures: dict[str, str],
    result: PoseResult,
    similarity: Similarity,
    vertical: bool,
    folder: Path,
    seconds: dict[str, float],
) -> PhotosManifest:
    model = ColmapModel.read(folder)
    points = {image.name: len(np.unique(image.point[image.point >= 0])) for image in model.images}
    entries = [
        ScenePhoto(p.name, p.source, p.name in points, points.get(p.name, 0), result.left_out.get(p.name, ""), p.sharpness) for p in photos
    ]
    entries += [ScenePhoto(None, source, False, 0, reason, None) for source, reason in failures.items()]
    return PhotosManifest(
        source=str(settings.photos),
        photos=tuple(entries),
        points=result.points,
        error_px=result.error_px,
        attempts=result.attempts,
        from_colmap=similarity,
        settings={
            name: value if value is None or isinstance(value, bool | int | float) else str(value)
            for name, value in asdict(settings).items()
        },
        seconds=seconds,
        warnings=tuple(_warnings(photos, entries, result, vertical, model)),
        command=command,
    )


def _warnings(
    photos: Sequence[ImportedPhoto], entries: Sequence[ScenePhoto], result: PoseResult, vertical: bool, model: ColmapModel
) -> Iterator[str]:
    registered = [entry for entry in entries if entry.registered]
    if len(registered) < ENOUGH * len(entries):
        yield (
            f"{len(entries) - len(registered)} of {len(entries)} photos have no pose. Take more photos between them and the others, with at least 60 % "
            "overlap, or remove them."
        )
    yield from (f"{note[0].upper()}{note[1:]}." for note in result.notes)
    sharpness = {entry.source: entry.sharpness for entry in registered if entry.sharpness is not None}
    median = float(np.median(list(sharpness.values()))) if sharpness else 0.0
    blurred = [source for source, value in sharpness.items() if value < _BLURRED * median]
    if blurred:
        yield f"{len(blurred)} photos are much less sharp than the others ({listing(blurred)}). Blur is trained, too: remove them if others show the same."
    few = [entry.source for entry in registered if entry.points < _FEW_POINTS]
    if few:
        yield f"{len(few)} photos see fewer than {_FEW_POINTS} points ({listing(few)}): their poses are uncertain. Add photos around them, or remove them."
    if result.error_px > _LARGE_ERROR_PX:
        yield (
            f"The mean reprojection error is {result.error_px:.1f} pixels. Things that move need masks (masks=<folder>); wide lenses need camera_model=OPENCV; a "
            "rolling shutter, of a phone that moves fast, is not modelled."
        )
    if not vertical:
        yield "The photos have no common vertical: the scene keeps the orientation of the reconstruction. Paths around it may be tilted."
    prior = {photo.name: photo.focal_px for photo in photos if photo.focal_px is not None}
    off = {
        image.camera: sum(model.lenses[image.camera].focal_length) / 2 / prior[image.name] - 1
        for image in model.images
        if image.name in prior
    }
    worst = max(off.values(), key=abs, default=0.0)
    if abs(worst) > _FOCAL_OFF:
        yield (
            f"A focal length is {100 * worst:+.0f} % from what the EXIF data say: cropped photos, or wrong data. If the scene looks bent, remove the EXIF data of "
            "these photos."
        )


def _publish(scene: Path, part: Path, manifest: PhotosManifest) -> None:
    """Puts the model in its place, behind the manifest: poses without one are those of other programs."""
    sparse = scene / "sparse"
    try:
        if sparse.is_dir():
            old = part.with_name("old-sparse") if PhotosManifest.read(scene) is not None else _free_name(scene / _KEPT)
            shutil.rmtree(part.with_name("old-sparse"), ignore_errors=True)
            sparse.rename(old)
            if old.name != "old-sparse":
                log.info("the poses of another program are kept: %s", old)
        manifest.write(scene)
        part.rename(sparse)
        shutil.rmtree(part.with_name("old-sparse"), ignore_errors=True)
    except OSError as error:
        raise InputError(f"{sparse}: cannot be written ({error}); free space, then call the command again: it continues") from error


def _free_name(path: Path) -> Path:
    names = (path if k == 0 else path.with_name(f"{path.name}_{k}") for k in range(1000))
    return next(name for name in names if not name.exists())
