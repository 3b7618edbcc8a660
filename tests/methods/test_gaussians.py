"""Gaussians as a system: training, evaluation, starts, backgrounds, files of other programs, failed steps, invalid input."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.core.files import load_tensors
from npbgpp.engine.run import build_run, evaluation_of, run_config
from npbgpp.errors import InputError
from npbgpp.export.__main__ import main as export
from npbgpp.geometry import GaussianCloud, PointCloud, read_gaussian_ply, write_gaussian_ply, write_ply
from npbgpp.methods.gaussians.system import Gaussians
from npbgpp.render import main as render

from ..conftest import TINY_GAUSSIANS
from ..helpers.layouts import llff, nerf_synthetic
from ..run_folders import remember

LAST = "checkpoints/last.ckpt"
EVALUATE = ("eval_only=true", "datasets.scenes.val=[]")


def psnr(folder) -> float:
    ((_, found),) = json.loads((folder / "metrics.json").read_text())["datasets"].items()
    return found["psnr"]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_tensors(folder / LAST, "checkpoint")["state_dict"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Balls of one colour each, with a cloud."""
    root = tmp_path_factory.mktemp("drawn")
    nerf_synthetic.write(root / "scene", 12, (32, 32))
    return root


@pytest.fixture(scope="module")
def run_drawn(run_gaussians, drawn):
    return lambda launch, *words, **options: run_gaussians(launch, "datasets.scene_name=scene", *words, root=drawn, **options)


@pytest.fixture(scope="module")
def trained(run_drawn, drawn, tmp_path_factory):
    """Gaussians after 120 steps, evaluated, with what a shell leaves in the folder."""
    launch = tmp_path_factory.mktemp("gaussians")
    words = ("trainer.max_epochs=2", "datasets.train_num_samples=60", "trainer.limit_val_batches=0", "test_after_fit=true")
    run = run_drawn(launch, *words)
    remember(run, launch, *TINY_GAUSSIANS, "datasets.scene_name=scene", f"datasets.data_root={drawn}", *words)
    return run


def rebuilt(run) -> Gaussians:
    config, search_paths = run_config(run)
    evaluation_of(config, run, "last", None, [])
    return build_run(config, search_paths, needs_test_views=False).system.eval()


# ------------------------------------------------------------ training
def test_training_improves_the_pictures(trained, run_drawn, tmp_path):
    early = run_drawn(tmp_path, "datasets.train_num_samples=1", "trainer.limit_val_batches=0", "test_after_fit=true")
    assert psnr(trained) > psnr(early) + 6
    state = weights(trained)
    assert len(state["gaussians.means"]) == 400 and state["gaussians.active_degree"] == 1
    assert (trained / "report.png").is_file() and len(list((trained / "train_images").glob("*.png"))) == 1


def test_depths_are_those_of_the_balls(trained):
    """They lie within 0.9 of the origin, which the cameras see from a distance of 3."""
    system = rebuilt(trained)
    found = system.render(system.scene.views[0].camera, "scene", depth=True, raster=True)
    there = found.depth > 0
    assert 0.05 < there.float().mean() < 0.8 and found.depth[0, 0, 0, 0] == 0
    assert found.depth[there].min() > 2 and found.depth[there].max() < 4
    assert torch.equal(there, found.alpha >= 0.5) and 0 < found.raster.max() <= 1


@pytest.mark.parametrize(
    "words",
    [
        ("system.start=random",),
        ("system.background=environment", "datasets.white_bg=false", "system.use_masks=true", "system.exposure=true"),
        ("system.use_masks=true", "system.antialiased=true", "system.gaussians=700", "system.far_share=0.1"),
        ("system.gaussians=100", "system.refine_cameras=true", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.1"),
        ("system/refiner=unet", "system.refiner.filters=[10,11,12,13,14]", "datasets.scenes.val=[]"),
    ],
    ids=["random start", "environment and exposure", "masks and copies of points", "few points, cameras, accumulation", "refiner"],
)
def test_options_train(run_gaussians, tmp_path, words):
    run = run_gaussians(tmp_path, *words, "datasets.train_num_samples=12", "trainer.limit_val_batches=0", "test_after_fit=true")
    state = weights(run)
    assert all(bool(value.isfinite().all()) for value in state.values())
    assert psnr(run) > 5
    if "system.exposure=true" in words:
        change = state["exposure.change"]
        assert change.abs().max() > 0 and change.mean(0).abs().max() < 1e-6
        assert state["background.coefficients"].abs().max() > 0
        (scores,) = json.loads((run / "metrics.json").read_text())["datasets"].values()
        assert scores["cc_psnr"] >= scores["psnr"] - 1e-3
    if "system.refine_cameras=true" in words:
        assert state["motions"].abs().max() > 0 and state["motions"].mean(0).abs().max() < 1e-6


def test_random_backgrounds_leave_the_photos_background_for_evaluation(run_gaussians, tmp_path):
    """The same steps reach about the same scores on white, and gaussians do not turn white to hide before it."""
    words = ("datasets.train_num_samples=60", "trainer.max_epochs=2", "trainer.limit_val_batches=0", "test_after_fit=true")
    plain = run_gaussians(tmp_path, *words, name="plain")
    random = run_gaussians(tmp_path, *words, "system.random_background=true", name="random")
    assert psnr(random) > psnr(plain) - 2
    assert not torch.equal(weights(random)["gaussians.means"], weights(plain)["gaussians.means"])


def test_random_backgrounds_need_photos_that_can_be_composited(run_gaussians, tmp_path):
    for words in (("datasets.white_bg=false", "system.use_masks=true"), ("system.use_masks=true",), ("system/refiner=unet",)):
        with pytest.raises(InputError, match="random_background"):
            run_gaussians(tmp_path, *words, "system.random_background=true")


def test_auto_chooses_a_number_and_says_why(run_gaussians, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run = run_gaussians(tmp_path, "system.gaussians=auto", "datasets.train_num_samples=1", "trainer.limit_val_batches=0")
    assert len(weights(run)["gaussians.means"]) == 5000
    assert "5000 gaussians (one per 128 of the 12288 training pixels" in caplog.text and "from 400 points of mvs_pc.ply" in caplog.text


def test_scenes_without_a_cloud_start_between_their_bounds(run_gaussians, tmp_path, caplog):
    llff.write(tmp_path / "scene", 8, (24, 32))
    (tmp_path / "scene" / "mvs_pc.ply").unlink()
    words = ("datasets=llff_one_scene", "datasets.scene_name=scene", "datasets.downscale=1", "datasets.train_num_samples=3")
    with caplog.at_level(logging.INFO):
        run = run_gaussians(tmp_path, *words, "system.start=auto", "trainer.limit_val_batches=0", root=tmp_path)
    assert len(weights(run)["gaussians.means"]) == 400 and "background.coefficients" in weights(run)
    assert "at random, since there is no cloud mvs_pc.ply" in caplog.text


def test_depth_maps_are_compared_where_they_are_known(trained, monkeypatch):
    system = rebuilt(trained)
    view = system.scene.views[0]
    image = system._splat(view.camera)
    depth = system.render(view.camera, "scene", depth=True).depth[0, 0]
    v, u = (depth > 0).nonzero(as_tuple=True)
    origins, directions = view.camera.rays_through((torch.stack([u, v], 1) + 0.5)[None].double())
    along = directions / (directions @ view.camera.R[0, :, 2:3])
    errors = []
    for factor in (1.0, 1.5):
        monkeypatch.setitem(system._depths, view.name, (origins + factor * depth[v, u, None] * along)[0].float())
        monkeypatch.setitem(system._has_depth, view.name, view)
        errors.append(system._depth_error(image, view.camera, view.name))
    assert errors[0] < 1e-4 and errors[1].item() == pytest.approx(1 / 3, abs=1e-3) and errors[1].requires_grad


# ------------------------------------------------------------ failed steps
def poisoned(monkeypatch, *steps: int) -> None:
    """NaN in the gradients of some steps."""
    done = Gaussians.backward_batch

    def backward(self, loss):
        done(self, loss)
        if self.trainer.global_step in steps:
            self.gaussians.means.grad[3] = torch.nan

    monkeypatch.setattr(Gaussians, "backward_batch", backward)


def test_a_step_with_nan_is_taken_back_once(run_gaussians, tmp_path, monkeypatch, caplog):
    poisoned(monkeypatch, 3)
    run = run_gaussians(tmp_path, "datasets.train_num_samples=5", "trainer.limit_val_batches=0")
    state = weights(run)
    assert "step 4: gradients are not finite" in caplog.text and state["failures"] == 1
    assert all(bool(value.isfinite().all()) for value in state.values())
    assert load_tensors(run / LAST, "checkpoint")["global_step"] == 5


def test_the_second_one_stops_the_run(run_gaussians, tmp_path, monkeypatch):
    poisoned(monkeypatch, 2, 4)
    with pytest.raises(InputError, match=r"step 5 .*second time.*learning_rates"):
        run_gaussians(tmp_path, "datasets.train_num_samples=6", "trainer.limit_val_batches=0")


# ------------------------------------------------------------ files
def run_export(monkeypatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["npbgpp export", *map(str, words)])
    export()


def test_an_exported_ply_is_evaluated_as_the_checkpoint(trained, run_drawn, tmp_path, monkeypatch, caplog):
    run_export(monkeypatch, "splats", f"run={trained}", f"out={tmp_path / 'scene.ply'}")
    with caplog.at_level(logging.INFO):
        run = run_drawn(tmp_path, *EVALUATE, f"weights_path={tmp_path / 'scene.ply'}")
    (report,) = (record for record in caplog.records if record.getMessage().startswith("weights "))
    assert report.levelno == logging.INFO and "missing 0" in report.getMessage() and "failures" not in report.getMessage()
    assert psnr(run) == pytest.approx(psnr(trained), abs=1e-4)
    state, cloud = weights(trained), read_gaussian_ply(tmp_path / "scene.ply")
    for name, value in cloud.__dict__.items():
        assert torch.equal(value, state[f"gaussians.{name}"]), name
    more = run_drawn(tmp_path, f"weights_path={tmp_path / 'scene.ply'}", "trainer.limit_val_batches=0", name="more")
    assert not torch.equal(weights(more)["gaussians.means"], state["gaussians.means"])


def test_exports_and_videos(trained, tmp_path, monkeypatch):
    run_export(monkeypatch, "splats", f"run={trained}", f"out={tmp_path / 'scene.splat'}")
    assert (tmp_path / "scene.splat").stat().st_size == 400 * 32
    run_export(monkeypatch, "cloud", f"run={trained}", f"out={tmp_path / 'cloud.ply'}")
    monkeypatch.setattr(
        "sys.argv", ["npbgpp render", f"run={trained}", "path=circle", "frames=3", "depth=[npy]", f"out={tmp_path / 'film'}"]
    )
    render()
    assert len(list((tmp_path / "film").glob("0*.png"))) == 3
    assert all(np.load(path).max() > 1 for path in (tmp_path / "film").glob("depth_*.npy"))


# ------------------------------------------------------------ refusals
def cloud_of(count: int = 3, degree: int = 1) -> GaussianCloud:
    new = torch.zeros
    return GaussianCloud(torch.randn(count, 3), new(count, 3), torch.ones(count, 4), new(count), new(count, (degree + 1) ** 2, 3))


def without_cloud(root) -> None:
    (root / "ball" / "mvs_pc.ply").unlink()


def parallel(root) -> None:
    """Cameras side by side, which look at no common point."""
    without_cloud(root)
    path = root / "ball" / "transforms_train.json"
    content = json.loads(path.read_text())
    for k, frame in enumerate(content["frames"]):
        frame["transform_matrix"] = [[1, 0, 0, 0.1 * k], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    path.write_text(json.dumps(content))


def one_photo(root) -> None:
    without_cloud(root)
    path = root / "ball" / "transforms_train.json"
    content = json.loads(path.read_text())
    del content["frames"][1:]
    path.write_text(json.dumps(content))


def empty_masks(root) -> None:
    for path in (root / "ball" / "train").glob("*.png"):
        Image.fromarray(np.zeros((32, 32, 4), np.uint8), "RGBA").save(path)


def masks_elsewhere(root) -> None:
    """Masks of a speck in the corner, far from the points."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[0, 0] = 255
    for path in (root / "ball" / "train").glob("*.png"):
        Image.fromarray(pixels, "RGBA").save(path)


def plain_ply(root) -> None:
    write_ply(root / "file.ply", PointCloud(torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.uint8)))


def other_degree(root) -> None:
    write_gaussian_ply(root / "file.ply", cloud_of(degree=2))


def not_finite(root) -> None:
    cloud = cloud_of()
    cloud.log_scales[1, 2] = torch.nan
    write_gaussian_ply(root / "file.ply", cloud)


def truncated(root) -> None:
    write_gaussian_ply(root / "file.ply", cloud_of())
    content = (root / "file.ply").read_bytes()
    (root / "file.ply").write_bytes(content[:-7])


def splat(root) -> None:
    (root / "file.splat").write_bytes(bytes(32))


def nothing(root) -> None:
    pass


PLY = (*EVALUATE, "weights_path={root}/file.ply")


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (nothing, ("system.gaussians=0",), r"system\.gaussians: expected a positive number or auto, got 0"),
        (nothing, ("system.gaussians=-3",), r"system\.gaussians: .* -3"),
        (nothing, ("system.gaussians=many",), r"system\.gaussians: expected an integer or one of auto, got 'many'"),
        (
            nothing,
            ("system.gaussians=3000000000",),
            r"system\.gaussians: 3000000000 gaussians of degree 1 need about \d+.* GiB, and .* free",
        ),
        (nothing, ("system.sh_degree=4",), r"system\.sh_degree: expected 0 to 3, got 4"),
        (nothing, ("system.dilation=0",), r"system\.dilation: .* 0"),
        (nothing, ("system.near=-1",), r"system\.near: .* -1"),
        (nothing, ("system.initial_opacity=1",), r"system\.initial_opacity: .* 1"),
        (nothing, ("system.background=black",), r"system\.background: .* composited on white, got black"),
        (nothing, ("system.learning_rates.means=-1",), r"system\.learning_rates\.means: .* -1"),
        (nothing, ("system.relocation.end=2",), r"system\.relocation\.end: .* 2"),
        (nothing, ("datasets.white_bg=false",), r"datasets\.white_bg: photos such as r_0\.png .* alpha.*white_bg=true"),
        (nothing, ("datasets.scenes.train=[ball,globe]",), r"system=gaussians: .* one scene, got 2"),
        (nothing, ("eval_only=true",), r"weights_path: .* point_cloud\.ply"),
        (without_cloud, ("system.start=cloud",), r"mvs_pc\.ply: no such file"),
        (nothing, ("datasets.pc_name=mvs_pt.ply",), r"ball/mvs_pt\.ply: no such file; did you mean mvs_pc\.ply.*datasets\.pc_name"),
        (nothing, ("datasets.pc_name=README.md", "system.start=random"), r"ball/README\.md: no such file.*clouds there: mvs_pc\.ply"),
        (parallel, (), r"scene ball: a random start .* no depth bounds and 12 cameras.*npbgpp prepare cloud"),
        (one_photo, (), r"no depth bounds and 1 cameras"),
        (empty_masks, (), r"scene ball: .* 12 masks that are dark everywhere"),
        (masks_elsewhere, (), r"the masks exclude all 400 points of .*mvs_pc\.ply"),
        (plain_ply, PLY, r"file\.ply: expected gaussians, got a point cloud with colours of 4 points.*datasets\.pc_name"),
        (other_degree, PLY, r"file\.ply: .* degree 1 \(system\.sh_degree\), got 2; set system\.sh_degree=2"),
        (not_finite, PLY, r"file\.ply: 1 of 3 gaussians have log scales that are not finite"),
        (truncated, PLY, r"file\.ply: .* truncated"),
        (nothing, (*EVALUATE, "weights_path={root}/none.ply"), r"none\.ply"),
        (splat, (*EVALUATE, "weights_path={root}/file.splat"), r"file\.splat: expected .*\.safetensors, \.ply, got \.splat.*Gaussians"),
    ],
)
def test_refusals(run_gaussians, tiny_root, tmp_path, change, words, message):
    root = tmp_path / "scenes"
    shutil.copytree(tiny_root, root)
    change(root)
    with pytest.raises(InputError, match=message):
        run_gaussians(tmp_path, *(word.format(root=root) for word in words), root=root)


def test_a_camera_inside_of_gaussians_sees_something_finite(trained):
    system = rebuilt(trained)
    camera = system.scene.views[0].camera
    with torch.no_grad():
        system.gaussians.means[:200] = camera.centers() + 0.05 * torch.randn(200, 3)
        system.gaussians.log_scales[:200] = 0.0
    assert bool(system.render(camera, "scene").rgb.isfinite().all())


def test_a_view_without_gaussians_shows_the_background(trained):
    system = rebuilt(trained)
    with torch.no_grad():
        system.gaussians.means += 100
    found = system.render(system.scene.views[0].camera, "scene", depth=True, raster=True)
    assert (found.rgb == 1).all() and (found.depth == 0).all() and (found.raster == 0).all()
