"""NeRF as a system: training, evaluation, videos, occupancy grid, weights of nerf_pl, invalid input."""

import json
import math

import pytest
import torch
from PIL import Image

from npbgpp.core.files import load_tensors
from npbgpp.engine.run import build_run, evaluation_of, run_config
from npbgpp.errors import InputError

from ..conftest import TINY_NERF
from ..helpers.layouts import colmap, llff, nerf_synthetic, npcr
from ..helpers.scenes import POINTS, RADIUS
from ..run_folders import remember

LAST = "checkpoints/last.ckpt"


def scores(folder):
    content = json.loads((folder / "metrics.json").read_text())
    ((name, found),) = content["datasets"].items()
    return name, found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Balls of one colour each: fields of some thousand weights can learn them."""
    root = tmp_path_factory.mktemp("drawn")
    nerf_synthetic.write(root / "scene", 12, (32, 32))
    return root


def run_drawn(run_nerf, drawn):
    def go(launch, *overrides, name="run"):
        return run_nerf(launch, "datasets.scene_name=scene", "system.lr=3e-3", *overrides, root=drawn, name=name)

    return go


@pytest.fixture(scope="module")
def trained(run_nerf, drawn, tmp_path_factory):
    """A field after 150 steps, evaluated."""
    return run_drawn(run_nerf, drawn)(
        tmp_path_factory.mktemp("nerf"),
        "trainer.max_epochs=5",
        "trainer.limit_train_batches=30",
        "trainer.limit_val_batches=0",
        "test_after_fit=true",
    )


def test_a_field_learns_the_scene(trained, run_nerf, drawn, tmp_path):
    early = run_drawn(run_nerf, drawn)(tmp_path, "test_after_fit=true")
    name, late = scores(trained)
    assert name == "scene_holdout" and late["views"] == 1
    assert late["psnr"] > scores(early)[1]["psnr"] + 3
    for kind in ("rendered", "gt", "raster"):
        assert len(list(trained.glob(f"rendered/scene_holdout/test_epoch4/*_{kind}.png"))) == 1
    assert (trained / "report.png").is_file()


def test_depths_of_spheres(trained, drawn):
    """Along the viewing axis, scene units: the front of the balls."""
    words = ("datasets.scene_name=scene", f"datasets.data_root={drawn}")
    remember(trained, trained.parent, *TINY_NERF, *words)
    config, search_paths = run_config(trained)
    evaluation_of(config, trained, "last", None, [])
    parts = build_run(config, search_paths, needs_test_views=False)
    (scene,) = parts.data.scenes.values()
    errors = []
    for k in (0, 5, 9):
        camera = scene.views[k].camera
        depth = parts.system.eval().render(camera, scene.name, depth=True).depth[0, 0]
        assert depth[0, 0] == 0, "nothing is seen at the corner"
        uv_px, middle = camera.project(torch.from_numpy(POINTS).float())
        for (u, v), z in zip(uv_px[0].tolist(), middle[0].tolist(), strict=True):
            in_front = (middle[0] < z - 0.01) & ((uv_px[0] - torch.tensor([u, v])).norm(dim=1) < 6)
            if not in_front.any():
                errors.append(depth[int(v), int(u)].item() - (z - RADIUS))
    assert len(errors) > 6 and torch.tensor(errors).abs().median() < RADIUS


def test_videos_of_test_views(trained, run_nerf, drawn, tmp_path):
    assert (trained / "rendered/scene_holdout/test_epoch4/film.mp4").is_file()
    run = run_drawn(run_nerf, drawn)
    again = run(tmp_path, "eval_only=true", f"weights_path={trained / LAST}", "test_video=gif", "datasets.test_indices=[3,4,5]")
    (film,) = again.rglob("film.*")
    with Image.open(film) as gif:
        assert film.suffix == ".gif" and gif.n_frames == 3 and gif.size == (32, 32)
    none = run(tmp_path, "eval_only=true", f"weights_path={trained / LAST}", "test_video=null", name="none")
    assert not list(none.rglob("film.*"))
    with pytest.raises(InputError, match="test_video: expected mp4, gif or null, got avi"):
        run(tmp_path, "eval_only=true", "test_video=avi", name="wrong")


def test_evaluating_again_gives_the_same(trained, run_nerf, drawn, tmp_path):
    again = run_drawn(run_nerf, drawn)(tmp_path, "eval_only=true", f"weights_path={trained / LAST}")
    assert scores(again)[1]["psnr"] == pytest.approx(scores(trained)[1]["psnr"], abs=1e-4)


def test_occupancy_grid_does_not_change_scores(trained, run_nerf, drawn, tmp_path):
    """A checkpoint with a grid, evaluated without it."""
    plain = run_drawn(run_nerf, drawn)(
        tmp_path, "eval_only=true", f"weights_path={trained / LAST}", "system.occupancy_grid=false", "weights_strict=false"
    )
    # it marches in finer steps than importance sampling of so few depths does, so that the picture is a little better
    assert -0.3 < scores(trained)[1]["psnr"] - scores(plain)[1]["psnr"] < 2
    densities = load_tensors(trained / LAST, "checkpoint")["state_dict"]["grid.densities"]
    assert densities.max() > 10 * densities.median()


def test_weights_of_nerf_pl_load_by_their_names(trained, run_nerf, drawn, tmp_path):
    run = run_drawn(run_nerf, drawn)
    state = load_tensors(trained / LAST, "checkpoint")["state_dict"]
    theirs = {name.removeprefix("field."): value for name, value in state.items() if name.startswith("field.")}
    assert "nerf_fine.xyz_encoding_1.0.weight" in theirs and "nerf_coarse.rgb.0.bias" in theirs
    torch.save({"state_dict": theirs}, tmp_path / "theirs.ckpt")
    found = run(tmp_path, "eval_only=true", "weights_path=theirs.ckpt", "system.occupancy_grid=false")
    expected = run(
        tmp_path, "eval_only=true", f"weights_path={trained / LAST}", "system.occupancy_grid=false", "weights_strict=false", name="ours"
    )
    assert scores(found)[1]["psnr"] == pytest.approx(scores(expected)[1]["psnr"], abs=1e-6)


@pytest.mark.parametrize(
    "overrides",
    [
        ("system.field.sampling.importance=0",),
        ("system.occupancy_grid=false",),
        ("system.rays.background=random",),
        ("system.rays.background=black", "datasets.white_bg=false"),
        ("system.rays.sampling=image", "system.rays.precrop_batches=2"),
        ("system.optimizer=ranger", "system.lr_schedule=poly", "system.warmup_epochs=1", "trainer.max_epochs=2"),
        ("trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.1"),
        ("dataloader.train.num_workers=2",),
    ],
    ids=lambda overrides: overrides[0],
)
def test_choices_train(run_nerf, tmp_path, overrides):
    folder = run_nerf(tmp_path, "test_after_fit=true", *overrides)
    assert math.isfinite(scores(folder)[1]["psnr"])


@pytest.mark.parametrize(
    ("write", "overrides"),
    [
        (llff.write, ("datasets=llff_one_scene", "datasets.downscale=1", "system.ray_frame=inward")),
        (colmap.write, ("datasets=colmap_one_scene",)),
        (npcr.write, ("datasets=npcr_one_scene", "system.ray_bounds=[1,6]")),
    ],
    ids=["llff", "colmap", "npcr"],
)
def test_other_scenes_train_without_a_cloud(run_nerf, tmp_path, write, overrides):
    write(tmp_path / "data" / "scene", 8, (32, 32))
    for cloud in (*(tmp_path / "data" / "scene").glob("*.ply"), *(tmp_path / "data" / "scene").glob("pointclouds/*")):
        cloud.unlink()
    folder = run_nerf(tmp_path, *overrides, "datasets.scene_name=scene", "test_after_fit=true", root=tmp_path / "data")
    assert math.isfinite(scores(folder)[1]["psnr"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("eval_only=true",), ["weights_path", "random"]),
        (
            ("datasets=nerf_blender_pretrain", "datasets.scenes.train=[ball,globe]", "datasets.scenes.val=[]", "datasets.scenes.test=[]"),
            ["one scene"],
        ),
        (("system.ray_bounds=[3,3]",), ["system.ray_bounds", "[3.0, 3.0]"]),
        (("system.ray_bounds=[0,3]",), ["system.ray_bounds"]),
        (("system.ray_frame=sideways",), ["system.ray_frame", "sideways"]),
        (("system.optimizer=lion",), ["system.optimizer", "adam", "lion"]),
        (("system.lr=0",), ["system.lr"]),
        (("system.chunk=0",), ["system.chunk"]),
        (("system.rays.rays_per_batch=0",), ["rays_per_batch"]),
        (("system.grid_box=[0,0,0,0,1,1]",), ["box"]),
        (("system.field.sampling.samples=1",), ["samples"]),
        (("datasets.cache_memory_gb=1e-5",), ["datasets.cache_memory_gb"]),
    ],
)
def test_invalid_settings_are_refused(run_nerf, tmp_path, overrides, words):
    with pytest.raises(InputError) as caught:
        run_nerf(tmp_path, *overrides)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_checkpoint_of_other_sizes(trained, run_nerf, tmp_path):
    with pytest.raises(InputError, match=r"weights have another shape.*xyz_encoding"):
        run_nerf(tmp_path, "eval_only=true", f"weights_path={trained / LAST}", "system.field.width=16")
    with pytest.raises(InputError, match=r"lacks weights of nerf_coarse and nerf_fine"):
        run_nerf(tmp_path, "eval_only=true", f"weights_path={trained / LAST}", "system.field.depth=4")
