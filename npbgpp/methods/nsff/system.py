"""NSFF (Li et al., CVPR 2021, as nsff_pl has it): a moving scene from one video, as static and dynamic matter and the motion of the latter.

Symbols: n rays of a batch, all of one moment; N moments of the video. Coordinates of the field are those of ``npbgpp.methods.nsff.normalisation``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import mse_loss, pad

from npbgpp.data import Batch, Scene, VideoSampling, read_disparity, read_static
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, TimedCamera
from npbgpp.methods.base import Render, RunContext, TrainingViews, VideoOptions
from npbgpp.methods.nsff.data import HardPixels, VideoBatch, VideoDataset
from npbgpp.methods.nsff.model import SAME_AS_NSFF_PL, Look, Nsff, architecture_of
from npbgpp.methods.nsff.normalisation import VideoNormalisation, video_frame
from npbgpp.methods.nsff.objective import LossWeights, NsffSettings, loss_terms, weighted_means
from npbgpp.methods.nsff.rendering import PARTS, Seeing, flow_picture, grey
from npbgpp.methods.radiance import RadianceSystem
from npbgpp.metrics import moving_scores


@dataclass(frozen=True)
class NsffRender(Render):
    """One rendered view.

    Attributes:
        look: field output along all rays, row by row; None between time steps.
        moment: the time step.
    """

    look: Look | None = None
    moment: int = 0


class NSFF(RadianceSystem):
    """The field of one video.

    Args:
        settings: keys of the config.
        context: the run, of one video.
        field: makes the field, once the number of time steps is known.
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
        self.frame = video_frame(self.scene)
        self.field = field(moments=len(self.frame))
        self.views = {view.name: view for view in self.scene.views}
        # which frames the codes of moments stand for, so that weights are not evaluated at other times
        self.register_buffer("frame_names", _packed(self.scene))
        self.frame_names: Tensor
        self.hard: HardPixels | None = None
        coarse = () if self.field.nerf_coarse is not None else ("coarse_colour", "coarse_disparity")
        self._terms = [key.name for key in fields(LossWeights) if getattr(settings.loss_weights, key.name) > 0 and key.name not in coarse]

    def training_batches(self, views: TrainingViews) -> VideoDataset:
        """Rays through the pixels of the frames of the video."""
        sampling = views.options if isinstance(views.options, VideoSampling) else VideoSampling()
        cache = None if sampling.motion_cache is None else self._launch / sampling.motion_cache / self.scene.name
        dataset = VideoDataset(
            views.scene,
            views.indices,
            self.frame,
            sampling,
            views.budget,
            views.image_margin,
            cache,
            self.settings.rays_per_batch,
            self._seed_of_run,
        )
        self.hard = None if dataset.weights is None else HardPixels(dataset.weights)
        return dataset

    # ----------------------------------------------------------------- weights
    def require_weights(self, missing: Sequence[str]) -> None:
        """See System.require_weights. Checkpoints of nsff_pl do not name their frames."""
        if any(name.startswith("field.") for name in missing):
            raise InputError(
                f"weights_path: the checkpoint lacks {', '.join(missing[:3])}, which would be random; choose the field that it was trained with, "
                "or begin anew with weights_strict=false"
            )

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of nsff_pl by the names that they have here."""
        return {f"field.{name}" if name.startswith(SAME_AS_NSFF_PL) else name: value for name, value in weights.items()}

    def adapt_to_weights(self, weights: dict[str, Tensor]) -> None:
        """See System.adapt_to_weights: the field takes the sizes of the checkpoint. Raises InputError for a checkpoint of other frames."""
        sizes = architecture_of({name.removeprefix("field."): value for name, value in weights.items() if name.startswith("field.")})
        self._check_frames(sizes.moments, weights.get("frame_names"), "weights_path")
        if "frame_names" not in weights and sizes.view_directions and self.settings.world_viewdirs:
            raise InputError(
                "system.world_viewdirs: expected false for weights of nsff_pl, whose static colours were told directions in NDC, got true; set it to false"
            )
        self.field = self._make_field(moments=len(self.frame), **sizes.changes(self.field))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.hard is not None:
            checkpoint["npbgpp"]["pixel_weights"] = self.hard.weights.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Refuses to resume the training of other frames; restores the weights of hard sampling."""
        state = checkpoint["state_dict"]
        if self.hard is not None:
            found = checkpoint["npbgpp"].get("pixel_weights")
            if found is not None:
                self.hard.weights.load_state_dict(found)
        self._check_frames(len(state["field.embedding_t.weight"]), state["frame_names"], "trainer.resume_from_checkpoint")

    def _check_frames(self, moments: int, names: Tensor | None, key: str) -> None:
        """Raises InputError for weights of other frames than those of the run; ``names`` is None where a checkpoint does not say them."""
        if moments == len(self.frame) and (names is None or torch.equal(names.cpu(), self.frame_names.cpu())):
            return
        trained = "" if names is None else f" ({_span(names)})"
        raise InputError(
            f"{key}: expected weights of the {len(self.frame)} frames of scene {self.scene.name} ({_span(self.frame_names)}), got those of "
            f"{moments}{trained}; choose the frames that were trained with datasets.start_end=[first,end]"
        )

    # --------------------------------------------------------------- rendering
    def seeing(self) -> Seeing:
        """What pictures are asked from."""
        s = self.settings
        return Seeing(self.field, self._frame(), s.world_viewdirs, s.empty_where_unseen, s.chunk)

    def _frame(self) -> VideoNormalisation:
        """The coordinates of the field, on the device."""
        if self.frame.rotation.device != self.device:
            self.frame = self.frame.to(self.device)
        return self.frame

    def render(self, cameras: Cameras, scene: str, raster: bool = False, depth: bool = False) -> Render:
        """See System.render: views of the middle moment; ``render_at`` has any. The picture of the bare points is one of nearness, NDC."""
        views = [self.render_at(cameras[k], len(self.frame) // 2, raster, depth) for k in range(len(cameras))]

        def joined(name: str) -> Tensor | None:
            return torch.cat([getattr(view, name) for view in views]) if getattr(views[0], name) is not None else None

        return Render(torch.cat([view.rgb for view in views]), None, joined("raster"), joined("depth"))

    def render_at(self, camera: Cameras, moment: int, raster: bool = False, depth: bool = False) -> NsffRender:
        """One view of a moment."""
        (found,) = self._frames([TimedCamera(camera, moment)], raster=raster, depth=depth)
        return found

    def render_video(self, scene: str, path: Sequence[TimedCamera], options: VideoOptions) -> Iterator[Render]:
        yield from self._frames(path, options.part, depth=options.depth, motion=options.motion)

    def _frames(
        self, path: Sequence[TimedCamera], part: str = "full", raster: bool = False, depth: bool = False, motion: bool = False
    ) -> Iterator[NsffRender]:
        """Views one after another.

        Args:
            path: which camera looks when.
            part: full, static or dynamic.
            raster: ask for the picture of nearness.
            depth: ask for depths.
            motion: ask for the motion of what is seen, of which nothing is known between moments.
        """
        seeing = self.seeing()
        # a camera that looks several times in a row stays one camera
        moved = {id(timed.camera): timed.camera.to(self.device) for timed in path}
        path = [TimedCamera(moved[id(timed.camera)], timed.moment, timed.share) for timed in path]
        looks = seeing.along(path)
        for timed in path:
            with torch.no_grad(), self.autocast_free():
                look, size = next(looks), timed.camera.image_size
                rgb = seeing.colours(look, part).T.view(1, 3, *size)
                nearness = grey(1 - look.depth.view(size))[None] if raster else None
                depths = seeing.depth(look, timed.camera, part).view(1, 1, *size) if depth else None
                seen = look if isinstance(look, Look) else None
                flow = flow_picture(seeing.motion(seen, timed.camera))[None] if motion and seen is not None else None
            yield NsffRender(rgb, None, nearness, depths, look=seen, moment=timed.moment, motion=flow)

    # -------------------------------------------------------------- evaluation
    def render_target(self, batch: Batch, k: int) -> Render:
        """See System.render_target: the moment is that of the photo."""
        moment = self.views[batch.target.names[k]].moment
        assert moment is not None, "views of a video know their moment"
        return self.render_at(batch.target.cameras[k], moment, raster=True)

    def extra_scores(self, render: Render, batch: Batch, k: int) -> dict[str, Any]:
        moving = ~read_static(self.views[batch.target.names[k]])
        return asdict(moving_scores(render.rgb[0], batch.target.image[k], moving.to(self.device)))

    def parts(self, batch: Batch, k: int, render: Render) -> Float[Tensor, "3 _ _"] | None:
        """See System.parts. From left to right: photo, rendering, nearness, how much moves, what moves; below: static scene, its nearness, mask, disparity, flow.

        The flow is that to the next frame, at the last one that to the frame before, for views of the video; for others the motion that they see.
        """
        assert isinstance(render, NsffRender) and render.look is not None
        look, view, moment, size = render.look, self.views[batch.target.names[k]], render.moment, batch.target.cameras[k].image_size

        def picture(rgb: Float[Tensor, "n 3"]) -> Float[Tensor, "3 h w"]:
            return rgb.clamp(0, 1).T.view(3, *size).cpu()

        blank = torch.ones(3, *size)
        known = view.motion
        with torch.no_grad(), self.autocast_free():
            of_video = known is not None and (
                known.flow_forward is not None or known.flow_backward is not None or known.disparity is not None
            )
            seeing = self.seeing()
            forward = moment + 1 < len(self.frame)
            by_video = of_video and size == self.frame.image_size
            flow = seeing.optical_flow(look, moment, forward) if by_video else seeing.motion(look, batch.target.cameras[k])
        disparity = blank
        if known is not None and known.disparity is not None:
            values = read_disparity(view)
            disparity = grey(values, values.min().item(), values.max().item())
        mask = grey(read_static(view).float()) if known is not None and known.static_mask is not None else blank
        above = (
            *(batch.target.image[k].cpu(), render.rgb[0].cpu(), grey(1 - look.depth.view(size)).cpu()),
            *(grey(look.dynamic_alpha.view(size)).cpu(), picture(look.dynamic_rgb)),
        )
        below = (picture(look.static_rgb), grey(1 - look.static_depth.view(size)).cpu(), mask, disparity, flow_picture(flow.cpu()))
        rows = [torch.cat([pad(tile, (0, 2, 0, 2), value=1.0) for tile in row], 2) for row in (above, below)]
        return torch.cat(rows, 1)

    # ---------------------------------------------------------------- training
    def training_step(self, batch: VideoBatch, batch_idx: int) -> Tensor:
        """Compares rays with what is known of their pixels, and moments with their neighbours."""
        s, moment = self.settings, int(batch.moment[0])
        rays, told = self.seeing().ndc(batch.origins, batch.directions, batch.view_directions)
        rendered = self.field.train_on(rays, told, moment)
        with self.autocast_free():
            terms = loss_terms(rendered, batch, self._frame(), moment, s.thickness)
        parts = weighted_means(terms, s.loss_weights, s.loss_schedule, self.current_epoch, self.global_step, s.topk)
        loss = torch.stack(list(parts.values())).sum()
        assert rendered.seen.rgb is not None
        if self.hard is not None:
            self.hard.record(moment, batch.pixel, rendered.seen.rgb.detach(), batch.rgb)
        for name in self._terms:  # also those that this batch lacks: Lightning would log their last values again
            self.log(f"loss_{name}", parts[name].detach() if name in parts else 0.0, batch_size=len(batch))
        self.log_rays(loss, mse_loss(rendered.seen.rgb.detach(), batch.rgb), len(batch))
        return loss

    def on_train_epoch_end(self) -> None:
        """The next epoch draws pixels as their surroundings were unlike the photo in this one."""
        if self.hard is not None:
            self.hard.reweigh()


def _packed(scene: Scene) -> UInt8[Tensor, " bytes"]:
    """Names of the frames of a video, one per line, as a tensor: checkpoints hold nothing else."""
    return torch.tensor(list("\n".join(view.name for view in scene.frames).encode()), dtype=torch.uint8)


def _span(packed: UInt8[Tensor, " bytes"]) -> str:
    """The first and the last of them."""
    names = bytes(packed.cpu().tolist()).decode(errors="replace").split("\n")
    return f"{names[0]} to {names[-1]}"
