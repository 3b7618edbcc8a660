"""Camera poses of photos with COLMAP (Schoenberger and Frahm, CVPR 2016; global mapping: Pan et al., ECCV 2024): features, matches, mapping, retries.

Everything is kept in a folder: databases of features and matches, which COLMAP continues by itself, and the models of each finished attempt. An interrupted
call continues from there.
"""

import json
import math
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from jaxtyping import Float64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.transform import Rotation

from npbgpp.core.config import typed
from npbgpp.core.files import write_atomically
from npbgpp.data import ColmapModel, ModelImage
from npbgpp.errors import InputError, listing
from npbgpp.geometry import Cameras, common_up
from npbgpp.prepare.forecast import slower, threads
from npbgpp.prepare.photo_import import ImportedPhoto, panorama_rotations

MAX_EXHAUSTIVE = 200  # photos of which all pairs are compared
ENOUGH = 0.8  # share of the photos of a scene that must be registered
_FEATURES = (2048, 8192)
_MATCHING_SECONDS = 300  # that the number of features aims at, on two cores
# Seconds on two cores of an AMD EPYC: per megapixel, per pair of features, per photo; measured on 57 photos of 512x512 pixels, 20 of 504x378 and 30 of 1600x1200,
# which took 1.1 to 2.0, 5.5e-9 to 7.6e-9 and 0.07 to 0.4 CPU seconds.
_EXTRACTION, _COMPARISON, _MAPPING = 1.0, 5.0e-9, 0.3
_FEATURES_PER_MEGAPIXEL = 7300
_OVERSHOOT = 1.5  # COLMAP drops whole scales, and so keeps up to 1.7 times the largest number of features
_EXTRACTION_BYTES, _EXTRACTION_MEMORY = 350, 3.3e9  # per pixel and thread, and of all threads
_FOCAL = 1.2  # initial focal length without EXIF data, of the longer side
_FEW_FEATURES = 50  # a photo with fewer shows nothing that could be matched
_LINK = 30  # inliers of a pair of photos that show the same scene
_OTHER_SCENE = 3  # photos that match one another, but none of the others
_SEQUENCE = 10  # neighbours that are compared, and further ones at powers of two
_WEAK_PEAK, _WEAK_FEATURES = 0.003, 2  # retry: contrast threshold of features, and how many times as many
_ADJUSTED_ERRORS_PX = (16.0, 8.0, 4.0)  # reprojection errors at which observations are dropped while imported poses are adjusted
_POLL_SECONDS = 0.2
_PHOTOS_A_STEP, _PAIRS_A_STEP = 8, 100  # of COLMAP, between two reports of progress
_T = TypeVar("_T")

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class PoseOptions:
    """How poses are estimated.

    Attributes:
        camera_model: lens model of COLMAP.
        features: largest number per photo.
        sequential: compare neighbours in the order of the names only.
        retries: whether to try other ways where few photos are registered.
        seed: of random choices.
    """

    camera_model: str
    features: int
    sequential: bool
    retries: bool
    seed: int


@dataclass(frozen=True)
class Attempt:
    """What one way of mapping found.

    Attributes:
        name: of the way.
        database: file name of its features and matches.
        models: names of the registered photos of each model, the largest model first.
        folders: folder of each model, relative to that of the attempts.
        points: number of points of each model.
        error_px: mean reprojection error of each model.
        seconds: that it took.
    """

    name: str
    database: str
    models: tuple[tuple[str, ...], ...]
    folders: tuple[str, ...]
    points: tuple[int, ...]
    error_px: tuple[float, ...]
    seconds: float

    @property
    def registered(self) -> int:
        """Photos of the largest model."""
        return len(self.models[0]) if self.models else 0


@dataclass(frozen=True)
class PoseResult:
    """Poses of photos.

    Attributes:
        model: folder of the model.
        registered: names of its photos.
        left_out: the other photos, and why.
        points: number of points.
        error_px: mean reprojection error.
        attempts: all ways that were tried: (name, registered photos, seconds).
        notes: what a user should know.
    """

    model: Path
    registered: tuple[str, ...]
    left_out: dict[str, str]
    points: int
    error_px: float
    attempts: tuple[tuple[str, int, float], ...]
    notes: tuple[str, ...]


def number_of_features(pairs: int) -> int:
    """Features per photo such that comparing so many pairs takes a few minutes."""
    affordable = math.sqrt(_MATCHING_SECONDS / _COMPARISON / max(pairs, 1)) / _OVERSHOOT
    return int(min(max(affordable // 256 * 256, _FEATURES[0]), _FEATURES[1]))


def number_of_pairs(photos: int, sequential: bool) -> int:
    """Pairs of photos that are compared."""
    return sum(photos - step for step in _steps(photos, sequential))


def _steps(photos: int, sequential: bool) -> list[int]:
    """Differences of the places of photos that are compared."""
    if not sequential:
        return list(range(1, photos))
    return [step for step in (*range(1, _SEQUENCE + 1), *(2**k for k in range(4, 30))) if step < photos]


def pairs_of_photos(photos: Sequence[ImportedPhoto], sequential: bool) -> list[tuple[str, str]]:
    """Names of the photos that are compared: all, or neighbours in their order. Views of one panorama are not compared with one another."""
    groups: dict[str, list[str]] = {}
    for photo in photos:
        groups.setdefault(photo.source.rpartition(" view ")[0] if photo.fixed else photo.name, []).append(photo.name)
    names = list(groups.values())
    return [
        (first, second)
        for step in sorted(_steps(len(names), sequential))
        for k in range(len(names) - step)
        for first in names[k]
        for second in names[k + step]
    ]


def forecast_seconds(megapixels: Sequence[float], options: PoseOptions) -> dict[str, float]:
    """Expected seconds of each stage on this machine, without retries, for photos of these sizes."""
    features = min(_OVERSHOOT * options.features, _FEATURES_PER_MEGAPIXEL * sum(megapixels) / len(megapixels))
    return {
        "features": slower() * _EXTRACTION * sum(megapixels),
        "matching": slower() * _COMPARISON * features**2 * number_of_pairs(len(megapixels), options.sequential),
        "mapping": slower() * _MAPPING * len(megapixels),
    }


def _interruptible(call: Callable[..., _T], report: Callable[[], None] | None = None, **arguments: Any) -> _T:
    """Calls COLMAP in a thread, so that Ctrl-C ends it between two steps: what is in the database stays valid. ``report`` is called in the meantime.

    Raises:
        InputError: COLMAP failed, for instance since the disk is full.
    """
    import pycolmap

    token = pycolmap.CancellationToken()
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = call(**arguments, cancellation_token=token) if call is not pycolmap.global_mapping else call(**arguments)
        except Exception as error:
            outcome["error"] = error
        finally:
            done.set()

    # an event, since Thread.join counts a thread as ended when it is interrupted itself
    done = threading.Event()
    threading.Thread(target=run).start()
    try:
        while not done.wait(_POLL_SECONDS):
            if report is not None:
                report()
    except KeyboardInterrupt:
        token.cancel()
        done.wait()
        raise
    if "error" in outcome:
        error = outcome["error"]
        raise InputError(
            f"COLMAP, {call.__name__}: {' '.join(str(error).split())[:300]}; free disk space if it is full, then call the command again: it continues"
        ) from error
    return outcome["result"]


class Database:
    """Features and matches of the photos of a scene in a database of COLMAP.

    Args:
        path: the file; it is made if there is none.
        images: folder of the photos.
        photos: the photos.
        camera_model: lens model.
    """

    def __init__(self, path: Path, images: Path, photos: Sequence[ImportedPhoto], camera_model: str) -> None:
        self.path, self.images, self.photos = path, images, photos
        self._cameras = {text: number for number, text in enumerate(dict.fromkeys(photo.camera for photo in photos), 1)}
        if not path.is_file():
            self._create(camera_model)

    def _create(self, camera_model: str) -> None:
        import pycolmap

        part = self.path.with_name(f"part-{self.path.name}")
        _remove_database(part)
        with closing(pycolmap.Database.open(part)) as database:
            for text, number in self._cameras.items():
                own = [photo for photo in self.photos if photo.camera == text]
                focals = [photo.focal_px for photo in own if photo.focal_px is not None]
                focal = float(np.median(focals)) if focals else _FOCAL * max(own[0].width, own[0].height)
                model = "PINHOLE" if own[0].fixed else camera_model
                camera = pycolmap.Camera.create_from_model_name(number, model, focal, own[0].width, own[0].height)
                camera.has_prior_focal_length = bool(focals)
                database.write_camera(camera, use_camera_id=True)
        part.rename(self.path)

    @property
    def fixed_cameras(self) -> set[int]:
        """Numbers of the cameras whose intrinsics are exact."""
        return {self._cameras[photo.camera] for photo in self.photos if photo.fixed}

    def extract(self, masks: Path, features: int, progress: Progress, weak: bool = False) -> None:
        """Adds features of the photos that have none. ``weak``: affine, and at less contrast."""
        import pycolmap

        extraction = pycolmap.FeatureExtractionOptions()
        pixels = max(photo.width * photo.height for photo in self.photos)
        affordable = max(1, int(_EXTRACTION_MEMORY / (_EXTRACTION_BYTES * pixels)))
        extraction.num_threads, extraction.sift.max_num_features = min(threads(), affordable), features
        if weak:
            extraction.sift.estimate_affine_shape, extraction.sift.peak_threshold = True, _WEAK_PEAK
        done = 0
        for text, number in self._cameras.items():
            reader = pycolmap.ImageReaderOptions()
            reader.existing_camera_id = number
            if masks.is_dir():
                reader.mask_path = str(masks)
            names = [photo.name for photo in self.photos if photo.camera == text]
            for some in (names[k : k + _PHOTOS_A_STEP] for k in range(0, len(names), _PHOTOS_A_STEP)):
                progress(done, len(self.photos))
                _interruptible(
                    pycolmap.extract_features,
                    database_path=self.path,
                    image_path=self.images,
                    image_names=some,
                    camera_mode=pycolmap.CameraMode.SINGLE,
                    reader_options=reader,
                    extraction_options=extraction,
                    device=pycolmap.Device.cpu,
                )
                done += len(some)
        with closing(pycolmap.Database.open(self.path)) as database:
            ungrouped = database.num_frames() == database.num_images()
            if ungrouped and any(photo.fixed for photo in self.photos):
                # the views of a panorama have one centre
                pycolmap.apply_rig_config([pycolmap.panorama.create_pano_rig_config(panorama_rotations())], database)

    def match(self, sequential: bool, seed: int, progress: Progress) -> None:
        """Compares pairs of photos that were not compared before."""
        import pycolmap

        matching, pairing = pycolmap.FeatureMatchingOptions(), pycolmap.ImportedPairingOptions()
        matching.num_threads = threads()
        verification = pycolmap.TwoViewGeometryOptions()
        verification.ransac.random_seed = seed
        pairs = pairs_of_photos(self.photos, sequential)
        listed = self.path.with_name("pairs.txt")
        pairing.match_list_path = listed
        for k in range(0, len(pairs), _PAIRS_A_STEP):
            progress(k, len(pairs))
            text = "".join(f"{first} {second}\n" for first, second in pairs[k : k + _PAIRS_A_STEP]).encode()
            write_atomically(listed, partial(_write, text))
            _interruptible(
                pycolmap.match_image_pairs,
                database_path=self.path,
                matching_options=matching,
                pairing_options=pairing,
                verification_options=verification,
                device=pycolmap.Device.cpu,
            )

    def features(self) -> dict[str, int]:
        """Number of features by the name of the photo."""
        import pycolmap

        with closing(pycolmap.Database.open(self.path)) as database:
            return {image.name: database.num_keypoints_for_image(image.image_id) for image in database.read_all_images()}

    def links(self) -> dict[tuple[str, str], int]:
        """Matches that agree with one geometry, by pairs of photos."""
        import pycolmap

        with closing(pycolmap.Database.open(self.path)) as database:
            names = {image.image_id: image.name for image in database.read_all_images()}
            pairs, counts = database.read_two_view_geometry_num_inliers()
        found = {}
        for pair, count in zip(pairs, counts, strict=True):
            first, second = pycolmap.pair_id_to_image_pair(pair)
            if count:
                found[names[first], names[second]] = count
        return found


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def _remove_database(path: Path) -> None:
    for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        file.unlink(missing_ok=True)


def groups_of_photos(names: Sequence[str], links: Mapping[tuple[str, str], int]) -> list[list[str]]:
    """Photos that match one another, directly or through others; the largest group first."""
    index = {name: k for k, name in enumerate(names)}
    pairs = [(index[a], index[b]) for (a, b), count in links.items() if count >= _LINK and a in index and b in index]
    rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(names), len(names)))
    labels = connected_components(graph, directed=False)[1]
    groups = [[name for name, label in zip(names, labels, strict=True) if label == k] for k, _ in Counter(labels.tolist()).most_common()]
    return groups


# ------------------------------------------------------------------ attempts
class PoseEstimator:
    """Estimates the poses of the photos of a scene.

    Args:
        work: folder of databases and models.
        images: folder of the photos.
        masks: folder of masks of features; need not exist.
        photos: the photos, in order.
        options: see ``PoseOptions``.
        stage: called with the name of a stage; returns what shows its progress.
        say: prints a line.
    """

    def __init__(
        self,
        work: Path,
        images: Path,
        masks: Path,
        photos: Sequence[ImportedPhoto],
        options: PoseOptions,
        stage: Callable[[str], Progress],
        say: Callable[[str], None],
    ) -> None:
        self.work, self.images, self.masks, self.photos, self.options = work, images, masks, tuple(photos), options
        self.stage, self.say = stage, say
        _silence_colmap(options.seed)

    def _database(self, name: str) -> Database:
        return Database(self.work / name, self.images, self.photos, self.options.camera_model)

    @cached_property
    def database(self) -> Database:
        """Features and matches of the first attempt.

        Raises:
            InputError: photos without features, or that have nothing in common.
        """
        database = self._database("features.db")
        database.extract(self.masks, self.options.features, self.stage("features"))
        counts = database.features()
        usable = [name for name, count in counts.items() if count >= _FEW_FEATURES]
        self.say(
            f"features: {int(np.median(list(counts.values())))} per photo (median), {len(counts) - len(usable)} photos with almost none"
        )
        if len(usable) < 2:
            raise InputError(
                f"photos: expected sharp photos of textured things, got {len(usable)} of {len(counts)} with at least {_FEW_FEATURES} features; take photos in "
                "good light, with the camera at rest, and not of blank walls"
            )
        database.match(self.options.sequential, self.options.seed, self.stage("matching"))
        self.say(f"matching: {len(database.links())} of {len(pairs_of_photos(self.photos, self.options.sequential))} pairs of photos match")
        return database

    def estimate(self) -> PoseResult:
        """The poses of the best attempt. Raises InputError if no two photos get a pose."""
        best: tuple[Attempt, Database] | None = None
        tried: list[tuple[str, int, float]] = []
        for attempt, database in self._attempts():
            tried.append((attempt.name, attempt.registered, attempt.seconds))
            self.say(f"{attempt.name}: {attempt.registered} of {len(self.photos)} photos registered")
            if best is None or (attempt.registered, sum(attempt.points[:1])) > (best[0].registered, sum(best[0].points[:1])):
                best = attempt, database
            if not self.options.retries or best[0].registered >= max(2, math.ceil(ENOUGH * self._expected(best[1]))):
                break
        assert best is not None
        attempt, database = best
        if attempt.registered < 2:
            raise InputError(self._failure(database))
        return PoseResult(
            model=self.work / "models" / attempt.folders[0],
            registered=attempt.models[0],
            left_out=self._left_out(attempt, database),
            points=attempt.points[0],
            error_px=attempt.error_px[0],
            attempts=tuple(tried),
            notes=self._notes(attempt),
        )

    def _expected(self, database: Database) -> int:
        """Photos of the scene: those with features, without those that match one another but none of the others."""
        usable = [name for name, count in database.features().items() if count >= _FEW_FEATURES]
        return len(usable) - sum(len(group) for group in groups_of_photos(usable, database.links())[1:] if len(group) >= _OTHER_SCENE)

    def _attempts(self) -> Iterator[tuple[Attempt, Database]]:
        """Ways of mapping, from the usual one to those for difficult photos."""
        database, seed = self.database, self.options.seed
        yield self._map("incremental mapping", database), database
        if self.options.sequential and len(self.photos) <= MAX_EXHAUSTIVE:
            database.match(False, seed, self.stage("matching all pairs"))
            yield self._map("all pairs matched", database), database
        weak = self._database("more_features.db")
        weak.extract(self.masks, _WEAK_FEATURES * self.options.features, self.stage("more features"), weak=True)
        weak.match(self.options.sequential and len(self.photos) > MAX_EXHAUSTIVE, seed, self.stage("matching"))
        yield self._map("more and affine features", weak), weak
        if not weak.links():
            return
        for angle in (8.0, 4.0):
            yield self._map(f"first pair at {angle:g} degrees", weak, min_angle=angle), weak
        yield self._map_globally(weak), weak
        yield self._map("fewer inliers", weak, min_angle=4.0, few_inliers=True), weak

    def _options(self, database: Database) -> Any:
        import pycolmap

        mapping = pycolmap.IncrementalPipelineOptions()
        mapping.random_seed, mapping.num_threads, mapping.min_model_size = self.options.seed, threads(), 2
        mapping.constant_cameras = database.fixed_cameras
        mapping.ba_refine_sensor_from_rig = False
        return mapping

    def _map(self, name: str, database: Database, min_angle: float | None = None, few_inliers: bool = False) -> Attempt:
        import pycolmap

        mapping = self._options(database)
        if min_angle is not None:
            mapping.mapper.init_min_tri_angle = min_angle
        if few_inliers:
            mapping.min_num_matches, mapping.mapper.abs_pose_min_num_inliers, mapping.mapper.init_min_num_inliers = 10, 12, 40
        progress, registered = self.stage(name), Counter[str]()

        def run(out: Path) -> dict[int, Any]:
            return _interruptible(
                pycolmap.incremental_mapping,
                lambda: progress(min(registered["photos"] + 2, len(self.photos)), len(self.photos)),
                database_path=database.path,
                image_path=self.images,
                output_path=out,
                options=mapping,
                next_image_callback=lambda: registered.update(["photos"]),
            )

        return self._attempt(name, database, run)

    def _map_globally(self, database: Database) -> Attempt:
        """GLOMAP, with focal lengths from the fundamental matrices, in a copy of the database since that changes it."""
        import pycolmap

        mapping = pycolmap.GlobalPipelineOptions()
        mapping.random_seed, mapping.num_threads, mapping.min_model_size = self.options.seed, threads(), 2
        self.stage("global mapping")

        def run(out: Path) -> dict[int, Any]:
            copy = out / "calibrated.db"
            shutil.copyfile(database.path, copy)
            pycolmap.calibrate_view_graph(copy)
            found = _interruptible(pycolmap.global_mapping, database_path=copy, image_path=self.images, output_path=out, options=mapping)
            _remove_database(copy)
            return found

        return self._attempt("global mapping", database, run)

    def _attempt(self, name: str, database: Database, run: Callable[[Path], dict[int, Any]]) -> Attempt:
        """Runs a way of mapping, unless an earlier call did. Models appear in their folder when all is finished."""
        folder = self.work / "models" / name.replace(" ", "_")
        record = folder / "attempt.json"
        if record.is_file():
            return typed(Attempt, json.loads(record.read_text(encoding="utf-8")), "attempt")
        part = folder.with_name(f"part-{folder.name}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        start = time.perf_counter()
        found = sorted(run(part).items(), key=lambda model: -model[1].num_reg_images())
        attempt = Attempt(
            name=name,
            database=database.path.name,
            models=tuple(tuple(sorted(model.image(k).name for k in model.reg_image_ids())) for _, model in found),
            folders=tuple(f"{folder.name}/{number}" for number, _ in found),
            points=tuple(model.num_points3D() for _, model in found),
            error_px=tuple(float(model.compute_mean_reprojection_error()) for _, model in found),
            seconds=round(time.perf_counter() - start, 1),
        )
        write_atomically(part / record.name, lambda file: file.write(json.dumps(asdict(attempt)).encode()))
        part.rename(folder)
        return attempt

    # ------------------------------------------------------------------ what is wrong
    def _failure(self, database: Database) -> str:
        links = database.links()
        if max(links.values(), default=0) < _LINK:
            return (
                f"photos: expected photos that show the same things from different places, got {len(self.photos)} that have almost nothing in common; take "
                "neighbouring photos with at least 60 % overlap"
            )
        return (
            f"photos: expected photos from different places, COLMAP found no pose for {len(self.photos)} photos although some match (pairs: {len(links)}); take 20 "
            "or more, and move sideways between them: turning the camera in one place shows no depth"
        )

    def _left_out(self, attempt: Attempt, database: Database) -> dict[str, str]:
        features, links = database.features(), database.links()
        registered = set(attempt.models[0])
        reasons = {}
        for photo in self.photos:
            name = photo.name
            if name in registered:
                continue
            matches = {other: count for pair, count in links.items() if name in pair for other in pair if other != name}
            known = max((count for other, count in matches.items() if other in registered), default=0)
            model = next((names for names in attempt.models[1:] if name in names), None)
            if features.get(name, 0) < _FEW_FEATURES:
                reasons[name] = f"{features.get(name, 0)} features: blurred, dark or without texture"
            elif model is not None and known < _LINK:
                others = listing([other for other in model if other != name], 3)
                reasons[name] = f"matches only {len(model) - 1} photos that are left out too ({others}): probably of another scene"
            elif not matches:
                reasons[name] = "matches no other photo"
            elif not known:
                reasons[name] = f"matches only photos that are left out too ({listing(sorted(matches), 3)})"
            elif known < _LINK:
                reasons[name] = f"at most {known} matches with a registered photo"
            else:
                reasons[name] = f"{known} matches with a registered photo, but too few points that several photos see"
        return reasons

    def _notes(self, attempt: Attempt) -> tuple[str, ...]:
        others = [len(names) for names in attempt.models[1:] if not set(names) <= set(attempt.models[0])]
        if not others:
            return ()
        return (
            f"{len(others)} other models of {listing(others)} photos: photos of other scenes, or without overlap; the largest model is used",
        )

    # ------------------------------------------------------------------ poses of other programs
    def adjust(self, folder: Path) -> PoseResult:
        """Poses of a COLMAP model of the same photos, adjusted to matches: points are triangulated and both refined, in rounds of stricter limits.

        Raises:
            InputError: a model that cannot be read, that has fewer than two of the photos, or whose photos have another aspect ratio.
        """
        import pycolmap

        given = ColmapModel.read(folder)
        poses = {image.name: image for image in given.images}
        stems = {Path(name).stem: name for name in poses}
        matched = {
            photo.name: poses.get(photo.source) or poses.get(photo.name) or poses.get(stems.get(Path(photo.name).stem, ""))
            for photo in self.photos
        }
        found = {name: image for name, image in matched.items() if image is not None}
        if len(found) < 2:
            raise InputError(
                f"poses={folder}: expected poses of the photos, got {len(found)} of {len(self.photos)} (the model has {listing(list(poses), 3)}); its photos need "
                "the names of the files"
            )
        model = self._posed(folder, given, found)
        start, progress = time.perf_counter(), self.stage("adjusting the poses")
        adjustment = pycolmap.BundleAdjustmentOptions()
        adjustment.print_summary = False
        adjustment.ceres.loss_function_type = pycolmap.LossFunctionType.SOFT_L1
        out = self.work / "models" / "adjusted_poses"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        rounds = Counter[str]()

        def report() -> None:
            progress(rounds["done"], len(_ADJUSTED_ERRORS_PX))

        for error_px in _ADJUSTED_ERRORS_PX:
            mapping = self._options(self.database)
            mapping.mapper.filter_max_reproj_error = error_px
            mapping.triangulation.merge_max_reproj_error = mapping.triangulation.complete_max_reproj_error = error_px
            mapping.triangulation.create_max_angle_error = mapping.triangulation.continue_max_angle_error = error_px / 2
            model = _interruptible(
                pycolmap.triangulate_points,
                report,
                reconstruction=model,
                database_path=self.database.path,
                image_path=self.images,
                output_path=out,
                options=mapping,
            )
            if not model.num_points3D():
                raise InputError(
                    f"poses={folder}: expected poses with which matches meet in points, got none within {error_px:g} pixels; leave poses out to estimate them"
                )
            _interruptible(
                pycolmap.bundle_adjustment,
                report,
                reconstruction=model,
                options=adjustment,
            )
            rounds.update(["done"])
        model.update_point_3d_errors()
        seen = {k for k in model.reg_image_ids() if model.image(k).num_points3D >= _FEW_FEATURES / 5}
        for k in [k for k in model.reg_image_ids() if k not in seen]:
            model.deregister_frame(model.image(k).frame_id)
        names = tuple(sorted(model.image(k).name for k in seen))
        _move_to_given(model, found)
        model.write_binary(out)
        left_out = {photo.name: "no pose in the model" for photo in self.photos if photo.name not in found}
        left_out |= {name: "its pose agrees with almost no match" for name in found if name not in names}
        seconds = round(time.perf_counter() - start, 1)
        error_px = float(model.compute_mean_reprojection_error())
        return PoseResult(out, names, left_out, model.num_points3D(), error_px, (("given poses, adjusted", len(names), seconds),), ())

    def _posed(self, folder: Path, given: ColmapModel, found: Mapping[str, ModelImage]) -> Any:
        """A reconstruction without points, with the given poses and focal lengths. Raises InputError for photos of another aspect ratio."""
        import pycolmap

        model = pycolmap.Reconstruction()
        with closing(pycolmap.Database.open(self.database.path)) as stored:
            images, cameras = stored.read_all_images(), stored.read_all_cameras()
        for camera in cameras:
            lenses = [given.lenses[found[i.name].camera] for i in images if i.camera_id == camera.camera_id and i.name in found]
            for lens in lenses:
                if abs(lens.image_size[1] * camera.height / lens.image_size[0] - camera.width) > 0.02 * camera.width:
                    raise InputError(
                        f"poses={folder}: expected cameras of the aspect ratio of the photos ({camera.width}x{camera.height}), got "
                        f"{lens.image_size[1]}x{lens.image_size[0]}; export the model for the upright photos"
                    )
            if lenses:
                focal = float(np.median([sum(lens.focal_length) / 2 * camera.width / lens.image_size[1] for lens in lenses]))
                camera.params = [focal if k in camera.focal_length_idxs() else value for k, value in enumerate(camera.params)]
            model.add_camera_with_trivial_rig(camera)
        for image in images:
            if image.name in found:
                pose = found[image.name].world_to_cam.numpy()
                model.add_image_with_trivial_frame(
                    pycolmap.Image(name=image.name, camera_id=image.camera_id, image_id=image.image_id), pycolmap.Rigid3d(pose[:3])
                )
        return model


def _move_to_given(model: Any, given: Mapping[str, ModelImage]) -> None:
    """Moves an adjusted model to the given poses by a similarity: the adjustment keeps one camera where it is, and the errors of its pose move all others.

    The rotation is the mean of those of the cameras, since centres on a line do not tell it.
    """
    import pycolmap

    images = [model.image(k) for k in model.reg_image_ids()]
    before = np.stack([given[image.name].world_to_cam.numpy() for image in images])
    now = np.stack([image.cam_from_world().matrix() for image in images])
    turn = Rotation.from_matrix(before[:, :3, :3].transpose(0, 2, 1) @ now[:, :3, :3]).mean().as_matrix()
    target, source = (-(poses[:, :3, :3].transpose(0, 2, 1) @ poses[:, :3, 3:])[..., 0] for poses in (before, now))
    turned = source @ turn.T
    a, b = turned - turned.mean(0), target - target.mean(0)
    scale = float((a * b).sum() / max((a * a).sum(), 1e-30))
    if scale <= 0:  # centres without extent, or nothing in common with those given
        return
    model.transform(pycolmap.Sim3d(np.column_stack([scale * turn, target.mean(0) - scale * turned.mean(0)])))


def _silence_colmap(seed: int) -> None:
    import pycolmap

    pycolmap.logging.minloglevel = int(pycolmap.logging.Level.FATAL)
    pycolmap.set_random_seed(seed)


# ------------------------------------------------------------------ upright and scaled
@dataclass(frozen=True)
class Similarity:
    """A change of coordinates: ``new = scale * rotation @ old + translation``.

    Attributes:
        scale: new units per old unit.
        rotation: 3x3, row by row.
        translation: new units.
    """

    scale: float
    rotation: tuple[tuple[float, ...], ...]
    translation: tuple[float, ...]

    def apply(self, xyz: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
        """New coordinates of points."""
        return self.scale * xyz @ np.array(self.rotation).T + np.array(self.translation)

    def inverse(self) -> "Similarity":
        """From new to old coordinates."""
        rotation = np.array(self.rotation).T
        translation = -rotation @ np.array(self.translation) / self.scale
        return Similarity(1 / self.scale, tuple(map(tuple, rotation.tolist())), tuple(translation.tolist()))


def upright(folder: Path, out: Path, distance: float) -> tuple[Similarity, bool]:
    """Writes a model whose vertical is +z, whose origin is in the median of its points, and whose cameras have a median distance to the points they see.

    Args:
        folder: the model.
        out: folder of the new one.
        distance: the median distance, new scene units.

    Returns:
        (the change of coordinates, whether the photos have a common vertical; otherwise the rotation is kept).
    """
    import pycolmap

    model = pycolmap.Reconstruction(folder)
    images = [model.image(k) for k in model.reg_image_ids()]
    xyz = {k: point.xyz for k, point in model.points3D.items()}
    distances = []
    for image in images:
        seen = np.array([xyz[point.point3D_id] for point in image.points2D if point.has_point3D()]).reshape(-1, 3)
        if len(seen):
            distances.append(np.median(np.linalg.norm(seen - image.projection_center(), axis=1)))
    scale = distance / float(np.median(distances))
    poses = np.stack([np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]) for image in images])
    rotation = _to_vertical(poses)
    turn = np.eye(3) if rotation is None else rotation
    translation = -scale * turn @ np.median(np.array(list(xyz.values())), axis=0)
    model.transform(pycolmap.Sim3d(np.column_stack([scale * turn, translation])))
    out.mkdir(parents=True, exist_ok=True)
    model.write_binary(out)
    return Similarity(scale, tuple(map(tuple, turn.tolist())), tuple(translation.tolist())), rotation is not None


def _to_vertical(world_to_cam: Float64[np.ndarray, "n 4 4"]) -> Float64[np.ndarray, "3 3"] | None:
    """The shortest rotation that turns the common vertical of views to +z; None if they have none."""
    import torch

    poses = torch.from_numpy(world_to_cam).float()
    ones = torch.ones(len(poses), 2)
    try:
        up = common_up(Cameras.from_opencv(poses, ones, ones, (2, 2))).numpy()
    except InputError:
        return None
    return Rotation.align_vectors([[0.0, 0.0, 1.0]], [up])[0].as_matrix()
