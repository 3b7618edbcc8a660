"""NSFF as a system: training, evaluation, resuming, videos, weights of nsff_pl, invalid input."""

import csv
import json
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.cli.render import render_video
from npbgpp.cli.settings import RenderSettings
from npbgpp.core.files import load_tensors
from npbgpp.engine.run import build_run, evaluation_of, run_config
from npbgpp.errors import InputError
from npbgpp.methods.nsff import system as nsff
from npbgpp.methods.nsff.losses import LossWeights

from ..conftest import TINY_NERF, TINY_NSFF
from ..run_folders import remember
from .run_files import weights

LAST = "checkpoints/last.ckpt"
FRAMES, SIZE = 8, (16, 24)
NAMES = [f"{k:05}" for k in range(FRAMES)]


def scores(folder):
    content = json.loads((folder / "metrics.json").read_text())
    ((name, found),) = content["datasets"].items()
    return name, found


def logged(folder) -> dict[str, list[float]]:
    """Every value of every column of the log."""
    found: dict[str, list[float]] = {}
    for path in folder.rglob("metrics.csv"):
        with path.open() as file:
            for row in csv.DictReader(file):
                for key, value in row.items():
                    if value:
                        found.setdefault(key, []).append(float(value))
    return found


@pytest.fixture(scope="module")
def trained(run_nsff, moving_root, tmp_path_factory):
    """A field after 2 x 40 steps with hard sampling, evaluated; two checkpoints."""
    launch = tmp_path_factory.mktemp("nsff")
    words = (
        *("trainer.max_epochs=2", "trainer.limit_train_batches=40", "datasets.batches_per_epoch=40", "datasets.hard_sampling=true"),
        *("test_after_fit=true", "loggers=[csv]", "trainer.log_every_n_steps=1"),
    )
    folder = run_nsff(launch, *words)
    remember(folder, launch, *TINY_NSFF, f"datasets.data_root={moving_root}", *words)
    return folder


def system_of(run, *overrides):
    """The system of a run, ready to render."""
    config, search_paths = run_config(run)
    evaluation_of(config, run, "last", None, list(overrides))
    return build_run(config, search_paths, needs_test_views=False).system.eval()


# ------------------------------------------------------------------------------------------------------------------ training
def test_every_term_is_logged_and_finite_and_they_add_up_to_the_loss(trained):
    found = logged(trained)
    terms = {key.name for key in fields(LossWeights)} - {"coarse_colour", "coarse_disparity"}
    assert terms == {key.removeprefix("loss_") for key in found if key.startswith("loss_")}
    assert all(math.isfinite(value) for values in found.values() for value in values)
    assert len(found["loss"]) == 80 and sum(found["loss"]) == pytest.approx(sum(sum(found[f"loss_{term}"]) for term in terms), rel=1e-5)
    # the weight of the cross entropy is 0 in the first epoch; the first and the last frame have one neighbour
    assert not any(found["loss_cross_entropy"][:40]) and all(found["loss_cross_entropy"][40:]) and all(found["loss_cycle"])
    assert 0 < sum(value == 0 for value in found["loss_flow_forward"]) < 40 and 0 in found["loss_temporal_smoothness"]


def test_training_helps(trained):
    found = logged(trained)
    assert np.mean(found["psnr"][-10:]) > np.mean(found["psnr"][:5]) + 1.5


def test_files_of_a_run(trained):
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"epoch0.ckpt", "epoch1.ckpt", "last.ckpt"}
    state = load_tensors(trained / LAST, "checkpoint")["state_dict"]
    assert state["field.embedding_t.weight"].shape == (FRAMES, 5)
    assert not [name for name in state if "rgb" in name and not name.startswith("field.")], "colours of training stay out"
    name, found = scores(trained)
    assert name == "hop_holdout" and found["views"] == FRAMES
    for view in found["per_view"].values():
        assert view["ssim_legacy"] == pytest.approx((1 + view["ssim"]) / 2, abs=1e-4)
        assert 0 < view["psnr_dynamic"] < 60 and -1 <= view["ssim_dynamic"] <= 1
    for key in ("psnr_dynamic", "ssim_dynamic", "ssim_legacy"):
        assert found[key] == pytest.approx(np.mean([view[key] for view in found["per_view"].values()]))
    for kind in ("rendered", "gt", "raster", "parts"):
        assert len(list(trained.glob(f"rendered/hop_holdout/test_epoch1/*_{kind}.png"))) == FRAMES
    (validated,) = trained.glob("rendered/hop_val/val_epoch1/*_parts.png")
    assert validated.name == "00004_parts.png", "the middle frame"
    with Image.open(validated) as image:
        assert image.size == (5 * (SIZE[1] + 2), 2 * (SIZE[0] + 2))


def test_evaluation_takes_sizes_from_the_checkpoint(trained, run_nsff, tmp_path):
    words = ("eval_only=true", f"weights_path={trained / LAST}")
    again = run_nsff(tmp_path, *words)
    other = run_nsff(
        tmp_path,
        *words,
        *(
            f"system.field.{key}"
            for key in ("width=8", "depth=4", "skips=[]", "xyz_frequencies=2", "view_directions=false", "time_channels=3")
        ),
        name="other",
    )
    for folder in (again, other):
        assert scores(folder)[1]["psnr"] == pytest.approx(scores(trained)[1]["psnr"], abs=1e-4)
        assert scores(folder)[1]["psnr_dynamic"] == pytest.approx(scores(trained)[1]["psnr_dynamic"], abs=1e-4)


def test_weights_of_nsff_pl_load_by_their_names(trained, run_nsff, tmp_path):
    state = load_tensors(trained / LAST, "checkpoint")["state_dict"]
    theirs = {name.removeprefix("field."): value for name, value in state.items() if name.startswith("field.")}
    theirs |= {"loss.Ks": torch.eye(3)[None], "loss.Ps": torch.zeros(1, FRAMES, 3, 4), "tmp_rgb": torch.zeros(FRAMES, 384, 3)}
    torch.save({"state_dict": theirs}, tmp_path / "theirs.ckpt")
    with pytest.raises(InputError, match=r"system.world_viewdirs: expected false"):
        run_nsff(tmp_path, "eval_only=true", "weights_path=theirs.ckpt")
    words = ("eval_only=true", "system.world_viewdirs=false")
    found = run_nsff(tmp_path, *words, "weights_path=theirs.ckpt", name="found")
    expected = run_nsff(tmp_path, *words, f"weights_path={trained / LAST}", name="expected")
    assert scores(found)[1]["psnr"] == pytest.approx(scores(expected)[1]["psnr"], abs=1e-6)


def test_training_and_hard_sampling_continue(trained, run_nsff, tmp_path):
    saved = load_tensors(trained / LAST, "checkpoint")
    kept = saved["npbgpp"]["pixel_weights"]["weights"]
    assert kept.min() < 0.9 and (kept != 1).float().mean() > 0.2, "pixels that were drawn are weighed"
    again = run_nsff(
        tmp_path,
        *("trainer.max_epochs=3", "trainer.limit_train_batches=2", "datasets.batches_per_epoch=2", "datasets.hard_sampling=true"),
        *(f"trainer.resume_from_checkpoint={trained / LAST}", "resume_strict=false"),
    )
    after = load_tensors(again / LAST, "checkpoint")
    assert after["global_step"] == 82
    assert not torch.equal(weights(trained)["field.nerf_fine.static_sigma.weight"], weights(again)["field.nerf_fine.static_sigma.weight"])
    # two batches change the weights of at most two frames
    same = (after["npbgpp"]["pixel_weights"]["weights"] == kept).flatten(1).all(1)
    assert same.sum() >= FRAMES - 2


def test_a_run_repeats(run_nsff, tmp_path):
    one, two = (weights(run_nsff(tmp_path, name=name)) for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_mixed_precision_moves_no_point(run_nsff, tmp_path, monkeypatch):
    """Eight bits would tell apart where points appear in photos by pixels."""
    original, mixed = nsff.loss_terms, []

    def loss_terms(*parts):
        mixed.append(torch.is_autocast_enabled("cpu"))
        return original(*parts)

    monkeypatch.setattr(nsff, "loss_terms", loss_terms)
    folder = run_nsff(tmp_path, "trainer.precision=bf16")
    assert mixed == [False] * 4 and all(torch.isfinite(value).all() for value in weights(folder).values())


@pytest.mark.parametrize(
    "overrides",
    [
        ("system.field.sampling.importance=4", "test_after_fit=true", "datasets.test_indices=[3]"),
        ("system.field.appearance_channels=4", "system.world_viewdirs=false", "system.empty_where_unseen=false", "system.topk=0.3"),
        ("system.loss_schedule.unit=step", "system.thickness=3", "trainer.gradient_clip_val=0.1", "dataloader.train.num_workers=1"),
    ],
    ids=["importance", "appearance", "steps"],
)
def test_choices_train(run_nsff, tmp_path, overrides):
    folder = run_nsff(tmp_path, *overrides)
    assert all(torch.isfinite(value).all() for value in weights(folder).values())
    if "test_after_fit=true" in overrides:
        name, found = scores(folder)
        assert found["views"] == 1 and math.isfinite(found["psnr"])


# --------------------------------------------------------------------------------------------------------------------- films
def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def film(trained, out, path, *overrides, **settings) -> list[np.ndarray]:
    """Frames of a film."""
    render_video(RenderSettings(run=trained, path=path, out=out, video="none", overwrite=True, **settings), overrides)
    return [pixels(found) for found in sorted(out.glob("[0-9]*.png"))]


def test_test_views_are_those_of_the_evaluation(trained, tmp_path):
    found = film(trained, tmp_path / "film", "test")
    for k, picture in enumerate(found):
        evaluated = pixels(trained / "rendered" / "hop_holdout" / "test_epoch1" / f"novel_{k:05}_rendered.png")
        assert np.abs(picture - evaluated).max() <= 1


def test_fixed_view_at_and_between_time_steps(trained, tmp_path):
    time_steps = film(trained, tmp_path / "moments", "fixview2_interp0")
    between = film(trained, tmp_path / "between", "fixview2_interp1")
    assert len(time_steps) == FRAMES and len(between) == (FRAMES - 1) * 2 + 1
    for k in range(FRAMES):
        assert np.array_equal(time_steps[k], between[2 * k])
    own = film(trained, tmp_path / "own", "train", views=(2,))
    assert np.array_equal(own[0], time_steps[2])
    middle = np.stack(between[1::2]).astype(float)
    assert np.isfinite(middle).all() and all(np.abs(a - b).mean() < 40 for a, b in zip(time_steps, between[1::2], strict=False))


def test_spirals_over_time_and_at_one_time_step(trained, tmp_path):
    along = film(trained, tmp_path / "along", "spiral", frames=FRAMES)
    system = system_of(trained)
    assert len(along) == FRAMES and len(film(trained, tmp_path / "still", "spiral3", frames=3)) == 3
    cameras = json.loads((tmp_path / "still" / "cameras.json").read_text())["cameras"]
    assert cameras[0] != cameras[1]
    with torch.no_grad():
        camera = system.scene.views[3].camera
        shown = [system.render_at(camera, time_step).rgb for time_step in (1, 6)]
    assert not torch.allclose(*shown), "time steps differ"


def test_parts_depth_and_motion(trained, tmp_path):
    whole, static, dynamic = (film(trained, tmp_path / part, "train", part=part, views=(0, 4)) for part in ("full", "static", "dynamic"))
    assert not np.array_equal(whole[0], static[0]) and not np.array_equal(static[0], dynamic[0])
    # the static part does not depend on time
    system = system_of(trained)
    rendered_path = [system.renderer().render(system.scene.views[0].camera, time_step) for time_step in (0, 5)]
    assert torch.equal(rendered_path[0].static_rgb, rendered_path[1].static_rgb) and not torch.equal(
        rendered_path[0].dynamic_rgb, rendered_path[1].dynamic_rgb
    )
    film(trained, tmp_path / "maps", "fixview0_interp0", depth=("npy",), motion=True)
    assert len(list((tmp_path / "maps").glob("motion_*.png"))) == FRAMES
    depth = np.load(tmp_path / "maps" / "depth_00000.npy")
    assert depth.shape == SIZE and np.isfinite(depth).all() and depth.min() > 0


def test_gif_and_mp4(trained, tmp_path):
    for kind in ("gif", "mp4"):
        out = tmp_path / kind
        render_video(RenderSettings(run=trained, path="fixview0_interp0", out=out, video=kind, motion=True, images=False), ())
        assert (out / f"film.{kind}").stat().st_size > 100 and (out / f"motion.{kind}").stat().st_size > 100


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": "spiral8"}, ["path=spiral8", "0 to 7"]),
        ({"path": "fixview9_interp0"}, ["0 to 7"]),
        ({"path": "fixview0_interp3", "motion": True}, ["motion", "interp0"]),
        ({"path": "fixview_interp"}, ["path", "fixview<X>_interp<Y>"]),
        ({"part": "moving"}, ["part", "dynamic"]),
        ({"path": "fixview0_interp0", "frames": 4}, ["frames"]),
    ],
)
def test_invalid_video_settings_are_refused(trained, tmp_path, settings, words):
    with pytest.raises(InputError) as caught:
        render_video(RenderSettings(run=trained, out=tmp_path / "film", video="none", **settings), ())
    assert all(word in str(caught.value) for word in words), str(caught.value)


# ------------------------------------------------------------------------------------------------------------------ mistakes
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("eval_only=true",), ["weights_path", "random"]),
        (("system.thickness=2",), ["system.thickness", "odd"]),
        (("system.topk=0",), ["system.topk"]),
        (("system.loss_weights.cycle=-1",), ["system.loss_weights.cycle"]),
        (("system.loss_schedule.unit=hour",), ["system.loss_schedule.unit", "step"]),
        (("system.field.flow_scale=0.0",), ["flow_scale"]),
        (("system.field.time_channels=0",), ["time_channels"]),
        (("system.lr_schedule=never",), ["system.lr_schedule", "cosine"]),
        (("system.rays_per_batch=0",), ["system.rays_per_batch"]),
    ],
)
def test_invalid_settings_are_refused(run_nsff, tmp_path, overrides, words):
    with pytest.raises(InputError) as caught:
        run_nsff(tmp_path, *overrides)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_still_scene_is_refused(run_in, tmp_path):
    still = ("datasets=nerf_blender_one_scene", "datasets.scene_name=ball", "dataloader=small", "loggers=none", "trainer.accelerator=cpu")
    with pytest.raises(InputError, match=r"expected the frames of a video, got a still scene of layout nerf_synthetic"):
        run_in(tmp_path, "system=nsff", tiny=still)


@pytest.mark.parametrize("frames", ["[0,7]", "[0,5]"])
def test_weights_of_other_frames(trained, run_nsff, tmp_path, frames):
    with pytest.raises(InputError, match=r"expected weights of the [57] frames.*got those of 8 \(00000 to 00007\).*start_end"):
        run_nsff(tmp_path, "eval_only=true", f"weights_path={trained / LAST}", f"datasets.start_end={frames}")


def test_weights_of_as_many_other_frames(run_nsff, tmp_path):
    early = run_nsff(tmp_path, "datasets.start_end=[0,6]")
    with pytest.raises(InputError, match=r"\(00002 to 00007\), got those of 6 \(00000 to 00005\)"):
        run_nsff(tmp_path, "eval_only=true", f"weights_path={early / LAST}", "datasets.start_end=[2,8]", name="late")
    with pytest.raises(InputError, match=r"resume_from_checkpoint: expected weights of the 6 frames.*\(00000 to 00005\)"):
        run_nsff(
            tmp_path,
            f"trainer.resume_from_checkpoint={early / LAST}",
            "resume_strict=false",
            "trainer.max_epochs=2",
            "datasets.start_end=[2,8]",
            name="on",
        )


def test_another_system(run_nsff, run_nerf, tiny_root, tmp_path):
    nerf = run_nerf(tmp_path, name="nerf")
    with pytest.raises(InputError, match="weights of system NeRF"):
        run_nsff(tmp_path, "eval_only=true", f"weights_path={nerf / LAST}", name="other")
    remember(nerf, tmp_path, *TINY_NERF, f"datasets.data_root={tiny_root}")
    with pytest.raises(InputError, match=r"path=fixview0_interp0.*system=nsff.*NeRF"):
        render_video(RenderSettings(run=nerf, path="fixview0_interp0", out=tmp_path / "film"), ())
