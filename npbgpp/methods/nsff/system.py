"""NSFF (Li et al., CVPR 2021, as in nsff_pl): a dynamic scene from one video as a static field, a dynamic field and scene flow.

Symbols: n rays of a batch, all of one time step, or n = h w pixels of one picture, row by row. Coordinates of the field are those of
``npbgpp.methods.nsff.normalisation``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import mse_loss, pad
from torchvision.utils import flow_to_image

from npbgpp.data import Batch, Scene, VideoSampling, read_disparity, read_static
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, TimedCamera
from npbgpp.methods.base import Render, RunContext, TrainingViews, VideoOptions
from npbgpp.methods.nsff.compositing import InterpolatedOutputs, interpolate_outputs
from npbgpp.methods.nsff.data import HardSampling, VideoBatch, VideoDataset
from npbgpp.methods.nsff.losses import LossWeights, NsffSettings, loss_terms, weighted_means
from npbgpp.methods.nsff.model import SAME_AS_NSFF_PL, Nsff, RayOutputs, VisibilityTest, architecture_of
from npbgpp.methods.nsff.normalisation import VideoNormalisation, video_normalisation
from npbgpp.methods.radiance import RadianceSystem
from npbgpp.metrics import moving_scores
from npbgpp.volume import Rays

# ----------------------------------------------------------------------
# Views at a time step or between two: colours, depth, motion, static and dynamic part


PARTS = ("full", "static", "dynamic")
_STOPPED = 0.5  # smallest dynamic opacity with a depth


@dataclass(frozen=True)
class FieldRenderer:
    """Renders whole views.

    Attributes:
        field: the trained field.
        normalisation: coordinates of the field, on its device.
        world_viewdirs: viewing directions in Euclidean field coordinates; otherwise in NDC.
        empty_where_unseen: the dynamic density is zero outside of the frustum of the camera of the time step.
        chunk: points per query of the field.
    """

    field: Nsff
    normalisation: VideoNormalisation
    world_viewdirs: bool
    empty_where_unseen: bool
    chunk: int

    def rays(self, camera: Cameras) -> tuple[Rays, Float[Tensor, "n 3"]]:
        """(rays through all pixels in NDC, viewing directions for the field)."""
        origins, along = (part[0].flatten(0, 1) for part in self.normalisation.cameras(camera).rays())
        return self.ndc(*self.normalisation.rays(origins, along), along)

    def ndc(
        self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"], view_directions: Float[Tensor, "n 3"]
    ) -> tuple[Rays, Float[Tensor, "n 3"]]:
        """(rays from origins and directions in NDC, viewing directions for the field)."""
        rays = Rays(origins, directions, torch.zeros_like(origins[:, 0]), torch.ones_like(origins[:, 0]))
        return rays, view_directions if self.world_viewdirs else directions

    def visibility_test(self, time_step: int) -> VisibilityTest | None:
        """Test whether NDC points are in the image of the camera of a time step; None without ``empty_where_unseen``."""
        if not self.empty_where_unseen:
            return None

        def seen(xyz_ndc: Float[Tensor, "p 3"]) -> Bool[Tensor, " p"]:
            uv_px, depth = self.normalisation.project(self.normalisation.ndc_to_field(xyz_ndc), time_step)
            height, width = self.normalisation.image_size
            return (depth > 0) & (uv_px >= 0).all(-1) & (uv_px <= uv_px.new_tensor([width, height])).all(-1)

        return seen

    def render(self, camera: Cameras, time_step: int) -> RayOutputs:
        """Renders a view at a time step."""
        rays, viewdirs = self.rays(camera)
        return self.field.render(rays, viewdirs, time_step, self.visibility_test(time_step), self.chunk)

    def along(self, path: Sequence[TimedCamera]) -> Iterator[RayOutputs | InterpolatedOutputs]:
        """Renders a path in order. Consecutive frames of one camera between the same time steps share the queries of the field."""
        first = 0
        while first < len(path):
            start, last = path[first], first + 1
            if start.share == 0:
                yield self.render(start.camera, start.time_step)
            else:
                while (
                    last < len(path)
                    and path[last].share > 0
                    and path[last].time_step == start.time_step
                    and path[last].camera is start.camera
                ):
                    last += 1
                yield from self.between(start.camera, start.time_step, [timed.share for timed in path[first:last]])
            first = last

    def between(self, camera: Cameras, time_step: int, shares: Sequence[float]) -> list[InterpolatedOutputs]:
        """Interpolates views of a camera between a time step and the next one."""
        rays, viewdirs = self.rays(camera)
        field_camera = self.normalisation.cameras(camera)
        z = self.field.depths(rays, viewdirs, time_step, self.visibility_test(time_step), self.chunk)
        planes = (
            tuple(
                self.field.plane(rays, viewdirs, when, z, k, self.visibility_test(when), self.chunk) for when in (time_step, time_step + 1)
            )
            for k in range(z.shape[1])
        )

        def to_pixels(xyz_field: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
            return field_camera.project(xyz_field)[0][0]

        return interpolate_outputs(planes, shares, camera.image_size, self.normalisation.ndc_to_field, to_pixels)  # type: ignore[arg-type]

    def colours(self, outputs: RayOutputs | InterpolatedOutputs, part: str) -> Float[Tensor, "n 3"]:
        """Colours of the scene (``full``), of the static part or of the dynamic part on grey."""
        return {"full": outputs.rgb, "static": outputs.static_rgb, "dynamic": outputs.dynamic_rgb}[part].clamp(0, 1)

    def depth(self, outputs: RayOutputs | InterpolatedOutputs, camera: Cameras, part: str) -> Float[Tensor, " n"]:
        """Depth along the viewing axis, scene units; of the dynamic part 0 where its opacity is below a half."""
        rays, _ = self.rays(camera)
        z = outputs.static_depth if part == "static" else outputs.depth
        if part == "dynamic":
            z = outputs.dynamic_depth / outputs.dynamic_alpha.clamp_min(_STOPPED)
        xyz_field = self.normalisation.ndc_to_field(rays.origins + z[:, None] * rays.directions)
        depth = self.normalisation.cameras(camera).project(xyz_field)[1][0] / self.normalisation.scale
        return torch.where(outputs.dynamic_alpha >= _STOPPED, depth, 0.0) if part == "dynamic" else depth

    def optical_flow(self, outputs: RayOutputs, time_step: int, forward: bool) -> Float[Tensor, "h w 2"]:
        """Optical flow from the photo of a time step to a neighbouring one, pixels: scene flow and motion of the camera."""
        height, width = self.normalisation.image_size
        point, neighbour = (outputs.forward, time_step + 1) if forward else (outputs.backward, time_step - 1)
        uv_px, _ = self.normalisation.project(self.normalisation.ndc_to_field(point), neighbour)
        v, u = torch.meshgrid(torch.arange(height, device=uv_px.device), torch.arange(width, device=uv_px.device), indexing="ij")
        return uv_px.view(height, width, 2) - torch.stack([u, v], -1) - 0.5

    def motion(self, outputs: RayOutputs, camera: Cameras) -> Float[Tensor, "h w 2"]:
        """Optical flow to the next time step for a static camera, pixels."""
        rays, _ = self.rays(camera)
        field_camera = self.normalisation.cameras(camera)
        now, then = (
            field_camera.project(self.normalisation.ndc_to_field(xyz))[0][0]
            for xyz in (rays.origins + outputs.depth[:, None] * rays.directions, outputs.forward)
        )
        return (then - now).view(*camera.image_size, 2)


def flow_image(flow: Float[Tensor, "h w 2"]) -> Float[Tensor, "3 h w"]:
    """Colour wheel of optical flow (Baker et al., 2011), normalised to the longest flow; white is no motion."""
    known = torch.where(torch.isfinite(flow).all(-1, keepdim=True), flow, 0.0)
    if not known.any():
        return known.new_ones(3, *flow.shape[:2])  # flow_to_image divides by the longest
    return flow_to_image(known.permute(2, 0, 1).float()).float() / 255


def grey_image(values: Float[Tensor, "h w"], low: float = 0.0, high: float = 1.0) -> Float[Tensor, "3 h w"]:
    """Maps values to grey, ``low`` black and ``high`` white."""
    return ((values - low) / max(high - low, 1e-12)).clamp(0, 1).expand(3, *values.shape)


# ----------------------------------------------------------------------
# System


@dataclass(frozen=True)
class NsffRender(Render):
    """One rendered view.

    Attributes:
        outputs: rendered rays, row by row; None between time steps.
        time_step: the time step.
    """

    outputs: RayOutputs | None = None
    time_step: int = 0


class NSFF(RadianceSystem):
    """The field of one video.

    Args:
        settings: keys of the config.
        context: the run, of one video.
        field: constructor of the field; takes the number of time steps.
    """

    settings: NsffSettings
    settings_class = NsffSettings
    display_keys = (*RadianceSystem.display_keys, "empty_where_unseen")
    unused_weights = ("loss", "tmp_rgb")
    renders_time = True
    scene_parts = PARTS
    field: Nsff

    def __init__(self, settings: NsffSettings, context: RunContext, field: Callable[..., Nsff]) -> None:
        super().__init__(settings, context)
        self._make_field = field
        self._seed_of_run, self._launch = context.seed, context.search_paths.launch
        self.normalisation = video_normalisation(self.scene)
        self.field = field(time_steps=len(self.normalisation))
        self.views = {view.name: view for view in self.scene.views}
        # frames of the time embeddings: weights of other frames are refused
        self.register_buffer("frame_names", _packed(self.scene))
        self.frame_names: Tensor
        self.hard: HardSampling | None = None
        coarse = () if self.field.nerf_coarse is not None else ("coarse_colour", "coarse_disparity")
        self._terms = [key.name for key in fields(LossWeights) if getattr(settings.loss_weights, key.name) > 0 and key.name not in coarse]

    def training_batches(self, views: TrainingViews) -> VideoDataset:
        sampling = views.options if isinstance(views.options, VideoSampling) else VideoSampling()
        cache = None if sampling.motion_cache is None else self._launch / sampling.motion_cache / self.scene.name
        dataset = VideoDataset(
            views.scene,
            views.indices,
            self.normalisation,
            sampling,
            views.budget,
            views.image_margin,
            cache,
            self.settings.rays_per_batch,
            self._seed_of_run,
        )
        self.hard = None if dataset.weights is None else HardSampling(dataset.weights)
        return dataset

    # ----------------------------------------------------------------- weights
    def require_weights(self, missing: Sequence[str]) -> None:
        """Only weights of the field are required: checkpoints of nsff_pl have no frame names."""
        if any(name.startswith("field.") for name in missing):
            raise InputError(
                f"weights_path: the checkpoint lacks {', '.join(missing[:3])}, which would be random; choose the field that it was trained with, "
                "or begin anew with weights_strict=false"
            )

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Renames weights of nsff_pl."""
        return {f"field.{name}" if name.startswith(SAME_AS_NSFF_PL) else name: value for name, value in weights.items()}

    def adapt_to_weights(self, weights: dict[str, Tensor]) -> None:
        """Rebuilds the field with the sizes of the checkpoint. Raises InputError for a checkpoint of other frames."""
        sizes = architecture_of({name.removeprefix("field."): value for name, value in weights.items() if name.startswith("field.")})
        self._check_frames(sizes.time_steps, weights.get("frame_names"), "weights_path")
        if "frame_names" not in weights and sizes.view_directions and self.settings.world_viewdirs:
            raise InputError(
                "system.world_viewdirs: expected false for weights of nsff_pl, whose viewing directions are in NDC, got true; set it to false"
            )
        self.field = self._make_field(time_steps=len(self.normalisation), **sizes.changes(self.field))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.hard is not None:
            checkpoint["npbgpp"]["pixel_weights"] = self.hard.weights.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Restores the weights of hard sampling. Raises InputError for a checkpoint of other frames."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        if self.hard is not None:
            found = checkpoint["npbgpp"].get("pixel_weights")
            if found is not None:
                self.hard.weights.load_state_dict(found)
        self._check_frames(len(state["field.embedding_t.weight"]), state["frame_names"], "trainer.resume_from_checkpoint")

    def _check_frames(self, time_steps: int, names: Tensor | None, key: str) -> None:
        """Raises InputError for weights of other frames than those of the run; ``names`` is None for checkpoints without names."""
        if time_steps == len(self.normalisation) and (names is None or torch.equal(names.cpu(), self.frame_names.cpu())):
            return
        trained = "" if names is None else f" ({_span(names)})"
        raise InputError(
            f"{key}: expected weights of the {len(self.normalisation)} frames of scene {self.scene.name} ({_span(self.frame_names)}), got those of "
            f"{time_steps}{trained}; choose the frames that were trained with datasets.start_end=[first,end]"
        )

    # --------------------------------------------------------------- rendering
    def renderer(self) -> FieldRenderer:
        """Renderer of the field with its current weights."""
        s = self.settings
        return FieldRenderer(self.field, self._normalisation_on_device(), s.world_viewdirs, s.empty_where_unseen, s.chunk)

    def _normalisation_on_device(self) -> VideoNormalisation:
        """``normalisation`` on the device."""
        if self.normalisation.rotation.device != self.device:
            self.normalisation = self.normalisation.to(self.device)
        return self.normalisation

    def render(self, cameras: Cameras, scene: str, raster: bool = False, depth: bool = False) -> Render:
        """Views of the middle time step, see ``render_at`` for others; ``raster`` shows nearness in NDC."""
        views = [self.render_at(cameras[k], len(self.normalisation) // 2, raster, depth) for k in range(len(cameras))]

        def joined(name: str) -> Tensor | None:
            return torch.cat([getattr(view, name) for view in views]) if getattr(views[0], name) is not None else None

        return Render(torch.cat([view.rgb for view in views]), None, joined("raster"), joined("depth"))

    def render_at(self, camera: Cameras, time_step: int, raster: bool = False, depth: bool = False) -> NsffRender:
        """A view at a time step."""
        (found,) = self._frames([TimedCamera(camera, time_step)], raster=raster, depth=depth)
        return found

    def render_video(self, scene: str, path: Sequence[TimedCamera], options: VideoOptions) -> Iterator[Render]:
        yield from self._frames(path, options.part, depth=options.depth, motion=options.motion)

    def _frames(
        self, path: Sequence[TimedCamera], part: str = "full", raster: bool = False, depth: bool = False, motion: bool = False
    ) -> Iterator[NsffRender]:
        """Renders a path.

        Args:
            path: cameras and their times.
            part: full, static or dynamic.
            raster: render nearness.
            depth: render depths.
            motion: render optical flow, which exists only at time steps.
        """
        renderer = self.renderer()
        # consecutive frames of one camera must share one object, see FieldRenderer.along
        moved = {id(timed.camera): timed.camera.to(self.device) for timed in path}
        path = [TimedCamera(moved[id(timed.camera)], timed.time_step, timed.share) for timed in path]
        rendered_path = renderer.along(path)
        for timed in path:
            with torch.no_grad(), self.autocast_free():
                outputs, size = next(rendered_path), timed.camera.image_size
                rgb = renderer.colours(outputs, part).T.view(1, 3, *size)
                nearness = grey_image(1 - outputs.depth.view(size))[None] if raster else None
                depths = renderer.depth(outputs, timed.camera, part).view(1, 1, *size) if depth else None
                seen = outputs if isinstance(outputs, RayOutputs) else None
                flow = flow_image(renderer.motion(seen, timed.camera))[None] if motion and seen is not None else None
            yield NsffRender(rgb, None, nearness, depths, outputs=seen, time_step=timed.time_step, motion=flow)

    # -------------------------------------------------------------- evaluation
    def render_target(self, batch: Batch, k: int) -> Render:
        """Renders the time step of the photo."""
        time_step = self.views[batch.target.names[k]].time_step
        assert time_step is not None, "views of a video have a time step"
        return self.render_at(batch.target.cameras[k], time_step, raster=True)

    def extra_scores(self, render: Render, batch: Batch, k: int) -> dict[str, Any]:
        moving = ~read_static(self.views[batch.target.names[k]])
        return asdict(moving_scores(render.rgb[0], batch.target.image[k], moving.to(self.device)))

    def parts(self, batch: Batch, k: int, render: Render) -> Float[Tensor, "3 _ _"] | None:
        """Photo, rendering, nearness, dynamic opacity, dynamic part; second row: static part, its nearness, mask, disparity, optical flow.

        For views of the video, the flow is that to the next frame, for the last frame to the previous one; for others that of a static camera.
        """
        assert isinstance(render, NsffRender) and render.outputs is not None
        outputs, view, time_step, size = (
            render.outputs,
            self.views[batch.target.names[k]],
            render.time_step,
            batch.target.cameras[k].image_size,
        )

        def picture(rgb: Float[Tensor, "n 3"]) -> Float[Tensor, "3 h w"]:
            return rgb.clamp(0, 1).T.view(3, *size).cpu()

        blank = torch.ones(3, *size)
        known = view.motion
        with torch.no_grad(), self.autocast_free():
            of_video = known is not None and (
                known.flow_forward is not None or known.flow_backward is not None or known.disparity is not None
            )
            renderer = self.renderer()
            forward = time_step + 1 < len(self.normalisation)
            by_video = of_video and size == self.normalisation.image_size
            flow = renderer.optical_flow(outputs, time_step, forward) if by_video else renderer.motion(outputs, batch.target.cameras[k])
        disparity = blank
        if known is not None and known.disparity is not None:
            values = read_disparity(view)
            disparity = grey_image(values, values.min().item(), values.max().item())
        mask = grey_image(read_static(view).float()) if known is not None and known.static_mask is not None else blank
        above = (
            *(batch.target.image[k].cpu(), render.rgb[0].cpu(), grey_image(1 - outputs.depth.view(size)).cpu()),
            *(grey_image(outputs.dynamic_alpha.view(size)).cpu(), picture(outputs.dynamic_rgb)),
        )
        below = (
            picture(outputs.static_rgb),
            grey_image(1 - outputs.static_depth.view(size)).cpu(),
            mask,
            disparity,
            flow_image(flow.cpu()),
        )
        rows = [torch.cat([pad(tile, (0, 2, 0, 2), value=1.0) for tile in row], 2) for row in (above, below)]
        return torch.cat(rows, 1)

    # ---------------------------------------------------------------- training
    def training_step(self, batch: VideoBatch, batch_idx: int) -> Tensor:
        """Renders rays and computes the loss."""
        s, time_step = self.settings, int(batch.time_step[0])
        rays, viewdirs = self.renderer().ndc(batch.origins, batch.directions, batch.view_directions)
        rendered = self.field.render_training(rays, viewdirs, time_step)
        with self.autocast_free():
            terms = loss_terms(rendered, batch, self._normalisation_on_device(), time_step, s.thickness)
        parts = weighted_means(terms, s.loss_weights, s.loss_schedule, self.current_epoch, self.global_step, s.topk)
        loss = torch.stack(list(parts.values())).sum()
        assert rendered.fine.rgb is not None
        if self.hard is not None:
            self.hard.record(time_step, batch.pixel, rendered.fine.rgb.detach(), batch.rgb)
        for name in self._terms:  # also terms that this batch lacks: Lightning would repeat their last values
            self.log(f"loss_{name}", parts[name].detach() if name in parts else 0.0, batch_size=len(batch))
        self.log_rays(loss, mse_loss(rendered.fine.rgb.detach(), batch.rgb), len(batch))
        return loss

    def on_train_epoch_end(self) -> None:
        """Updates the weights of hard sampling."""
        if self.hard is not None:
            self.hard.reweigh()


def _packed(scene: Scene) -> UInt8[Tensor, " bytes"]:
    """Names of the frames of a video, one per line, as a tensor for checkpoints."""
    return torch.tensor(list("\n".join(view.name for view in scene.frames).encode()), dtype=torch.uint8)


def _span(packed: UInt8[Tensor, " bytes"]) -> str:
    """First and last of the packed names."""
    names = bytes(packed.cpu().tolist()).decode(errors="replace").split("\n")
    return f"{names[0]} to {names[-1]}"
