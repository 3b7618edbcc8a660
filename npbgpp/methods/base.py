"""The interface of a method, and what all methods share: evaluation of views, scores, checkpoints, and the connection to Lightning.

A method is a ``System``. It declares its settings and the training data it needs, renders views (``render``) and trains (``training_step``). Evaluation is
implemented here once: every view is rendered, timed and scored, and the result goes to callbacks, which write images and tables.
"""

import json
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from pytorch_lightning import LightningModule
from torch import Tensor

from npbgpp.core.distributed import broadcast_buffers, process_count, process_rank
from npbgpp.core.paths import SearchPaths
from npbgpp.data import Batch, Scene, SceneNormalisation
from npbgpp.data.sampling import BatchDataset
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, GaussianCloud, PointCloud, ProjectionSettings, TimedCamera
from npbgpp.metrics import ImageMetrics, ImageScores
from npbgpp.volume import Composited, OccupancyGrid, RadianceField, Rays

CHECKPOINT_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class SystemSettings:
    """Keys of the ``system`` group that every method has; their defaults and meaning are in ``conf/system/_method.yaml``.

    ``accumulate_grad_batches`` and ``gradient_clip_val`` come from the ``trainer`` group.
    """

    system_class: str
    save_rendered_eval_images: bool
    lpips_weights: str | None
    postprocessing_transform: str | None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None

    def __post_init__(self) -> None:
        if self.postprocessing_transform not in (None, "rotate_90_ccw"):
            raise InputError(f"system.postprocessing_transform: expected null or rotate_90_ccw, got {self.postprocessing_transform}")
        self.require_at_least(accumulate_grad_batches=1)

    def require_at_least(self, **least: int) -> None:
        """Raises InputError for a key whose value is smaller than given here."""
        for key, smallest in least.items():
            if getattr(self, key) < smallest:
                raise InputError(f"system.{key}: expected at least {smallest}, got {getattr(self, key)}")


@dataclass(frozen=True)
class DataNeeds:
    """The data that a method trains on.

    Attributes:
        needs_cloud: scenes must have a point cloud.
        input_views: training items carry input photos besides the target, chosen by the points that photos see in this projection; None: they do not.
        ray_batches: training batches are made by ``System.training_batches``, not collated from images.
        straight_alpha: photos keep the colours as stored beside their alpha channel, whatever ``datasets.white_bg`` says.
        scenes_per_epoch: at most so many training scenes are visited in an epoch.
    """

    needs_cloud: bool = True
    input_views: ProjectionSettings | None = None
    ray_batches: bool = False
    straight_alpha: bool = False
    scenes_per_epoch: int = 1


@dataclass(frozen=True)
class RunContext:
    """The run that a method is part of.

    Attributes:
        scenes: every scene of the run by name.
        search_paths: base folders of relative paths in the config.
        metrics: scores of views.
        seed: of the run.
        evaluate_only: nothing is trained.
        resumed_run: folder of the run whose training continues; None for a new training.
    """

    scenes: Mapping[str, Scene]
    search_paths: SearchPaths
    metrics: ImageMetrics
    seed: int = 0
    evaluate_only: bool = False
    resumed_run: Path | None = None


@dataclass(frozen=True)
class TrainingViews:
    """The views that ``System.training_batches`` draws rays from.

    Attributes:
        scene: the scene.
        indices: of its views that train.
        image_margin: pixels at each border of a photo that are not drawn.
        options: keys of the ``datasets`` group that the layout declares as ``sampling``; None for layouts without.
        budget: bytes for decoded photos.
    """

    scene: Scene
    indices: tuple[int, ...]
    image_margin: int
    options: Any
    budget: int


@dataclass(frozen=True)
class Render:
    """b rendered views.

    Attributes:
        rgb: colours; in training not clamped to [0, 1].
        alpha: opacity or probability of the object; None for methods that predict none.
        raster: coloured points without the network, on white; None unless requested.
        depth: along the viewing axis, scene units; 0 where there is no surface, inf at infinity; None unless requested.
        rgba: premultiplied colours and opacity, of methods that learn mattes.
        motion: optical flow to the next time step as colours, of methods for moving scenes; None unless requested.
    """

    rgb: Float[Tensor, "b 3 h w"]
    alpha: Float[Tensor, "b 1 h w"] | None = None
    raster: Float[Tensor, "b 3 h w"] | None = None
    depth: Float[Tensor, "b 1 h w"] | None = None
    rgba: Float[Tensor, "b 4 h w"] | None = None
    motion: Float[Tensor, "b 3 h w"] | None = None


@dataclass(frozen=True)
class VideoOptions:
    """Options of ``System.render_video``.

    Attributes:
        depth: render depth maps.
        history: filter over time (methods with ``supports_history``).
        part: part of the scene (one of ``System.scene_parts``).
        motion: render motion (methods with ``renders_time``).
    """

    depth: bool = False
    history: bool = False
    part: str = "full"
    motion: bool = False


@dataclass(frozen=True)
class ViewResult:
    """One evaluated view; images are on the CPU in [0, 1].

    Attributes:
        seconds: rendering time.
        extra_scores: further scores of the method: numbers, None where undefined, or mappings of such.
        parts: components of the view side by side; None for methods without.
    """

    dataset: str
    view: str
    rendered: Float[Tensor, "3 h w"]
    target: Float[Tensor, "3 h w"]
    raster: Float[Tensor, "3 h w"] | None
    scores: ImageScores
    seconds: float
    extra_scores: dict[str, Any] = field(default_factory=dict)
    parts: Float[Tensor, "3 _ _"] | None = None


@dataclass(frozen=True)
class FieldExport:
    """A radiance field as meshes and volumes are extracted from it.

    Attributes:
        field: density and colour.
        render_rays: renders rays, given viewing directions, without background.
        grid: occupancy; None: occupied everywhere.
        normalisation: from world coordinates to those of the field.
        chunk: points per query.
    """

    field: RadianceField
    render_rays: Callable[[Rays, Float[Tensor, "n 3"]], Composited]
    grid: OccupancyGrid | None
    normalisation: SceneNormalisation
    chunk: int


@dataclass(frozen=True)
class VideoStability:
    """Result of ``System.stabilise``.

    Attributes:
        losses: of every pass.
        flicker_before, flicker_after: mean absolute difference of consecutive frames after reprojection, 0 to 255.
        change: mean absolute difference of the frames before and after, 0 to 255.
    """

    losses: list[float]
    flicker_before: float
    flicker_after: float
    change: float


@runtime_checkable
class Precision(Protocol):
    """Contexts of the run's numerical precision."""

    def train_step_context(self) -> AbstractContextManager[object]: ...

    def test_step_context(self) -> AbstractContextManager[object]: ...


class System(LightningModule):
    """A method of novel-view synthesis.

    Args:
        settings: keys of the ``system`` group; networks, which name their class with ``_target_``, are further keyword arguments.
        context: the run.

    Attributes:
        wants_pictures: set before a training batch: keep images of it.
        pictures: images of the last batch for which they were requested.
        training_keys: keys of the config that influence training, for checkpoints.
    """

    settings_class: ClassVar[type[SystemSettings]] = SystemSettings
    # keys of the system group without influence on training: they may differ when a run is resumed
    display_keys: ClassVar[tuple[str, ...]] = ("save_rendered_eval_images", "lpips_weights", "postprocessing_transform")
    # unit of the logged figure "points" of a batch: points of its clouds, or rays
    unit: ClassVar[str] = "points"
    accepts_checkpoints_of: ClassVar[tuple[str, ...]] = ()
    # first parts of weight names in checkpoints that this method does not use
    unused_weights: ClassVar[tuple[str, ...]] = ()
    # suffixes of files of other programs that ``read_foreign_weights`` reads
    foreign_weights: ClassVar[tuple[str, ...]] = ()
    # meshes are fused from rendered depth maps: for methods without a radiance field whose depth maps are dense
    meshes_from_depth: ClassVar[bool] = False
    # renders dynamic scenes: needed for trajectories over time
    renders_time: ClassVar[bool] = False
    supports_history: ClassVar[bool] = False
    scene_parts: ClassVar[tuple[str, ...]] = ("full",)
    # every pixel is rendered on its own, so that an image can be rendered in parts
    renders_pixels_alone: ClassVar[bool] = False
    # keeps data per scene in files beside the checkpoints, which hold those of the last epoch only
    has_scene_files: ClassVar[bool] = False

    def __init__(self, settings: SystemSettings, context: RunContext) -> None:
        super().__init__()
        self.settings: Any = settings
        self.scenes = dict(context.scenes)
        self.metrics = context.metrics
        self.wants_pictures = False
        self.pictures: tuple[Tensor, ...] = ()
        self.training_keys: dict[str, Any] = {}
        self._seed = 0
        self._last_batch_end: float | None = None
        # of the checkpoint that training goes on from
        self._saved_optimizers: int | None = None
        self._saved_steps = 0

    # ---------------------------------------------------------- training data
    @classmethod
    def data_needs(cls, settings: Any) -> DataNeeds:
        """The data that the method trains on with these settings."""
        return DataNeeds()

    def training_batches(self, views: TrainingViews) -> BatchDataset:
        """Training batches of one scene, for methods with ``DataNeeds.ray_batches``. Raises InputError for views that cannot be used."""
        raise NotImplementedError(f"{type(self).__name__} asks for ray_batches and does not make them")

    # ------------------------------------------------------------------ start
    def check_before_training(self, trained: Sequence[str], validated: Sequence[str]) -> None:
        """Raises InputError for a run that would fail later. Arguments are names of the scenes that are trained and validated."""

    def begin_training(self, shares_scenes: bool) -> None:
        """Called before training. ``shares_scenes``: several processes may train the same scene."""

    def start_without_weights(self, evaluate_only: bool) -> None:
        """Called when no checkpoint is given. Raises InputError if networks would be evaluated with random weights."""
        if evaluate_only and any(True for _ in self.parameters()):
            raise InputError(
                "weights_path: expected the checkpoint of a trained run for eval_only=true, got none; the networks would be random: name it, for example "
                "weights_path=experiments/<run>/checkpoints/last.ckpt"
            )

    def require_weights(self, missing: Sequence[str]) -> None:
        """Raises InputError when weights that a checkpoint lacks would leave a network random."""
        parameters = {name for name, _ in self.named_parameters()}
        lacking = [name for name in missing if name in parameters]
        if lacking:
            raise InputError(
                f"weights_path: the checkpoint lacks {', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}, which would be random; choose the "
                "settings that it was trained with, or start these anew with weights_strict=false"
            )

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a checkpoint by the names that they have in this method."""
        return weights

    def read_foreign_weights(self, path: Path) -> dict[str, Tensor] | None:
        """Weights in a file of another program, by the names that they have in this method; None: the file is a checkpoint.

        Raises InputError for a file of that program that cannot be used.
        """
        return None

    def adapt_to_weights(self, weights: dict[str, Tensor]) -> None:
        """Takes over network sizes from weights, given by the names that they have in this method.

        Raises InputError for weights that belong to another scene.
        """

    # -------------------------------------------------------------- rendering
    @abstractmethod
    def render(self, cameras: Cameras, scene: str, raster: bool = False, depth: bool = False) -> Render:
        """Renders views of a scene, clamped to [0, 1]. ``raster`` requests the image of the bare points, ``depth`` depth maps."""

    def render_video(self, scene: str, path: Sequence[TimedCamera], options: VideoOptions) -> Iterator[Render]:
        """Renders the frames of a trajectory one after another."""
        for timed in path:
            yield self.render(timed.camera, scene, depth=options.depth)

    def layers(self) -> tuple[str, ...]:
        """Names of the pictures of what the method renders from, such as its points, for viewers; empty for methods without."""
        return ()

    def render_layer(self, cameras: Cameras, scene: str, layer: str) -> Float[Tensor, "b 3 h2 w2"]:
        """Colours in [0, 1] of one of ``layers``, in its own resolution."""
        raise NotImplementedError(f"{type(self).__name__} has no layer {layer}")

    def can_render(self, scene: str) -> bool:
        """Whether a scene can be evaluated now. Validation skips scenes that have not been trained yet."""
        return True

    def prepare(self, scene: str) -> None:
        """Work that is done once before views of a scene are rendered; not part of the rendering time."""

    # ----------------------------------------------------------------- export
    def coloured_cloud(self, scene: str) -> PointCloud:
        """Points of a scene with learned colours. Raises InputError for methods without points."""
        raise InputError(f"export cloud: {type(self).__name__} has no points; use export mesh, or a run of a point-based method")

    def gaussian_cloud(self, scene: str) -> GaussianCloud:
        """A scene as gaussians, for programs that show them. Raises InputError for methods without gaussians."""
        raise InputError(f"export splats: {type(self).__name__} has no gaussians; use export cloud or mesh, or a run of a method that has")

    def field_export(self) -> FieldExport:
        """The radiance field for meshes and volumes. Raises InputError for methods without one in Euclidean coordinates."""
        command, other = ("volume", "export mesh or cloud") if self.meshes_from_depth else ("mesh, volume", "export cloud")
        raise InputError(f"export {command}: {type(self).__name__} has no radiance field; use {other}, or a run of a method that has")

    def stabilise(self, scene: str, cameras: Sequence[Cameras], passes: int, lr: float, precision: Precision) -> VideoStability:
        """Finetunes the method along a trajectory so that its video flickers less. Raises InputError for methods that cannot."""
        raise InputError(f"refine: {type(self).__name__} has no temporal finetuning; choose a run of a method that has (system=npcr)")

    def save_scene_files(self, scene: str, folder: Path) -> None:
        """Writes the data of a scene that do not belong to the checkpoint into the folder of a run; checkpoints that are written later refer to them."""

    def expect_scene_files(self, mark: Mapping[str, Any]) -> None:
        """Called before an evaluation in the folder of a run: its data of scenes must be those that its last checkpoint was saved with.

        Args:
            mark: what ``on_save_checkpoint`` put into that checkpoint as ``npbgpp``.
        """

    def suggest_scene_files(self, run: Path) -> None:
        """Tells which run the weights are of, for messages on data of scenes that are missing."""

    # ------------------------------------------------------------- evaluation
    def on_validation_start(self) -> None:
        broadcast_buffers(self)  # all processes evaluate the same networks

    def on_test_start(self) -> None:
        broadcast_buffers(self)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[ViewResult]:  # type: ignore[override]
        """Results of the views of a batch, for callbacks."""
        return self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[ViewResult]:  # type: ignore[override]
        """Results of the views of a batch, for callbacks."""
        return self._evaluate(batch)

    def _evaluate(self, batch: Batch) -> list[ViewResult]:
        results = []
        for k, scene in enumerate(batch.scene):
            if not self.can_render(scene):
                continue
            self.prepare(scene)
            start = time.perf_counter()
            render = self.render_target(batch, k)
            rendered = render.rgb[0].cpu()  # waits for the device, so that the time is right
            seconds = time.perf_counter() - start
            target = self.evaluation_target(batch, k)
            (scores,) = self.metrics(render.rgb, target[None])
            raster = None if render.raster is None else render.raster[0].cpu()
            results.append(
                ViewResult(
                    batch.dataset[k],
                    batch.target.names[k],
                    rendered,
                    target.cpu(),
                    raster,
                    scores,
                    seconds,
                    self.extra_scores(render, batch, k),
                    self.parts(batch, k, render),
                )
            )
        return results

    def render_target(self, batch: Batch, k: int) -> Render:
        """Renders view k of a batch, with the image of the bare points."""
        return self.render(batch.target.cameras[k], batch.scene[k], raster=True)

    def evaluation_target(self, batch: Batch, k: int) -> Float[Tensor, "3 h w"]:
        """The photo that view k is compared with."""
        return batch.target.image[k]

    def extra_scores(self, render: Render, batch: Batch, k: int) -> dict[str, Any]:
        """Further scores of view k, the first of ``render``: JSON numbers, None where undefined, or mappings of such. Means are taken over views."""
        return {}

    def parts(self, batch: Batch, k: int, render: Render) -> Float[Tensor, "3 _ _"] | None:
        """Images of the components of view k side by side; None for methods without."""
        return None

    def conditions(self) -> dict[str, str]:
        """Properties of the method that scores depend on, as text stored with the scores."""
        return {}

    # --------------------------------------------------------------- training
    def on_fit_start(self) -> None:
        self._seed = torch.initial_seed()
        expected, found = len(self.trainer.optimizers), self._saved_optimizers
        if found not in (None, expected):  # Lightning would restore as many as there are
            raise InputError(
                f"checkpoint {self.trainer.ckpt_path}: expected the states of {expected} optimizers, got {found}; name another checkpoint of the run, or begin "
                "with its weights: weights_path=<checkpoint>"
            )

    def on_train_start(self) -> None:
        """Raises InputError for a checkpoint whose progress could not be restored: Lightning passes over what is not there."""
        if self._saved_steps > 0 and self.trainer.global_step == 0:
            raise InputError(
                f"checkpoint {self.trainer.ckpt_path}: expected the progress of {self._saved_steps} steps, got none; name another checkpoint of the run, or begin "
                "with its weights: weights_path=<checkpoint>"
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds the RNG from (run seed, epoch, batch, rank), so that resumed runs draw the same numbers."""
        state = (self._seed, self.current_epoch, batch_idx, process_rank())
        torch.manual_seed(int(np.random.SeedSequence(state).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def on_train_epoch_start(self) -> None:
        self._last_batch_end = None  # evaluation and saving are not training time

    def log_throughput(self, count: int, batch_size: int, batches: int = 1) -> None:
        """Logs how many points or rays (see ``unit``) a batch has, and how many are processed per second, over ``batches`` since the last call."""
        now = time.perf_counter()
        # CPU tensors: Lightning would move plain numbers to the device and wait for it
        self.log("points", torch.tensor(float(count)), logger=False, batch_size=batch_size)
        if self._last_batch_end is not None:
            rate = torch.tensor(batches * count / (now - self._last_batch_end))
            self.log(f"{self.unit}_per_s", rate, prog_bar=True, batch_size=batch_size)
        self._last_batch_end = now

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self._saved_optimizers, self._saved_steps = len(checkpoint["optimizer_states"]), checkpoint["global_step"]

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Marks the file, so that weights of another method are refused by name, and a run is not resumed with other settings."""
        checkpoint["npbgpp"] = {
            "format": CHECKPOINT_FORMAT,
            "system": type(self).__name__,
            "training": json.dumps(self.training_keys),
            "processes": process_count(),
        }

    def autocast_free(self) -> torch.autocast:
        """A context in which geometry stays in full precision under mixed precision."""
        return torch.autocast(device_type=self.device.type, enabled=False)


class ManualOptimizationSystem(System):
    """A method with several optimizers (Lightning's manual optimization): accumulation, clipping, a schedule by steps, logging of batches."""

    def __init__(self, settings: SystemSettings, context: RunContext, schedule: str) -> None:
        """``schedule``: constant, or cosine: down to a hundredth at the end of the run."""
        super().__init__(settings, context)
        self.automatic_optimization = False
        self._accumulate, self._clip, self._schedule = settings.accumulate_grad_batches, settings.gradient_clip_val, schedule
        self._batches_in_step = 0

    def backward_batch(self, loss: Float[Tensor, ""]) -> None:
        """Accumulates the gradients of a batch; ``finish_batch`` must follow."""
        if not loss.requires_grad and process_count() > 1:  # the other processes wait for the gradients of this one
            parameters = [p for p in self.parameters() if p.requires_grad]
            loss = loss + sum((0.0 * p.sum() for p in parameters), loss.new_zeros(()))
        if loss.requires_grad:  # without it no visible point and no trainable network contributed
            self.manual_backward(loss / self._accumulate)

    def finish_batch(self) -> None:
        """Counts a batch and steps when ``accumulate_grad_batches`` is reached."""
        self._batches_in_step += 1
        if self._batches_in_step >= self._accumulate:
            self.step()

    def log_batch(
        self, batch: Batch, terms: dict[str, Tensor], loss: Tensor, rendered: Tensor, target: Tensor, points: int, batches: int = 1
    ) -> None:
        """Logs the loss terms, the loss, the PSNR of colours and the throughput. ``batches``: since the last call, for methods that do not log each one."""
        for name, value in terms.items():
            self.log(name, value.detach(), batch_size=len(batch))
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        with torch.no_grad():
            error = torch.nn.functional.mse_loss(rendered.detach().clamp(0, 1), target)
        self.log("psnr", -10 * torch.log10(error.clamp_min(1e-10)), prog_bar=True, batch_size=len(batch))
        self.log_throughput(points, len(batch), batches)

    def step(self) -> None:
        """Steps and clears every optimizer."""
        scale = self.learning_rate_scale()
        wrapped = self.optimizers()
        first, *others = wrapped if isinstance(wrapped, list) else [wrapped]
        for optimizer in (first, *others):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale
            if self._clip:
                torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], self._clip)
        first.step()
        for optimizer in others:
            # past Lightning's wrapper: it would count every optimizer as a step of its own, and max_steps would come too early
            optimizer.optimizer.step()
        for optimizer in (first, *others):
            optimizer.zero_grad()
        self._batches_in_step = 0

    def learning_rate_scale(self) -> float:
        """Current factor of all learning rates."""
        if self._schedule == "constant":
            return 1.0
        total = self._total_steps()
        done = min(self.trainer.global_step / total, 1.0) if total > 0 else 0.0
        return 0.5 * (1 + math.cos(done * math.pi)) * 0.99 + 0.01

    def _total_steps(self) -> float:
        """Optimizer steps of the run, inf when it has no end. Lightning's estimate counts batches: it does not know of the accumulation done here."""
        limit = math.inf if self.trainer.max_steps < 0 else float(self.trainer.max_steps)
        if self.trainer.max_epochs is None or self.trainer.max_epochs < 0:
            return limit
        per_epoch = math.ceil(self.trainer.num_training_batches / self._accumulate)
        return min(limit, float(per_epoch * self.trainer.max_epochs))

    def on_train_epoch_end(self) -> None:
        """Steps for the remaining accumulated batches."""
        if self._batches_in_step:
            self.step()
