"""The Python interface: scenes, clouds and trained runs by the names in ``npbgpp.__all__``, and the snippet of the README."""

import json
import logging
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import npbgpp
from npbgpp.core.saved_config import with_current_classes

from .conftest import TINY_OVERRIDES
from .run_folders import REPOSITORY, remember, run_words


@pytest.fixture(scope="module")
def trained(tiny_root, tmp_path_factory) -> Path:
    """A tiny run of NPBG that was evaluated."""
    launch = tmp_path_factory.mktemp("api")
    words = (*TINY_OVERRIDES, f"datasets.data_root={tiny_root}", "test_after_fit=true", "hydra.run.dir=run")
    folder = run_words(launch, *words)
    remember(folder, launch, *words)
    return folder


def test_public_names_exist_and_import_nothing_heavy():
    assert all(getattr(npbgpp, name) is not None for name in npbgpp.__all__) and set(npbgpp.__all__) <= set(dir(npbgpp))
    script = "import npbgpp, sys; assert 'torch' not in sys.modules and 'omegaconf' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=REPOSITORY, timeout=60)
    with pytest.raises(AttributeError, match="load_sence"):
        npbgpp.load_sence  # noqa: B018


def test_scenes(tiny_root):
    scene = npbgpp.load_scene(tiny_root / "ball")
    assert isinstance(scene, npbgpp.Scene) and scene.layout == "nerf_synthetic" and len(scene.splits["train"]) == 12
    assert isinstance(scene.views[0].camera, npbgpp.Cameras) and len(scene.cloud.read()) == 400
    half = npbgpp.load_scene(str(tiny_root / "ball"), downscale=2, white_bg=False)
    assert half.views[0].camera.image_size == (16, 16) and half.views[0].background is None


def test_clouds(tiny_root):
    cloud = npbgpp.load_cloud(tiny_root / "ball" / "mvs_pc.ply")
    assert isinstance(cloud, npbgpp.PointCloud) and cloud.xyz.shape == cloud.rgb.shape == (400, 3)
    assert cloud.rgb.min() >= 0 and 0.9 < cloud.rgb.max() <= 1
    torch.testing.assert_close(cloud.rgb, cloud.xyz * 0.5 + 0.5, rtol=0, atol=1 / 255)  # the colours of the tiny scene


def test_runs_render_what_their_evaluation_saved(trained, caplog):
    with caplog.at_level(logging.INFO):
        run = npbgpp.load_run(trained)
    assert not [record for record in caplog.records if record.name.startswith("pytorch_lightning")]
    cameras = run.cameras("test")
    for none in (cameras[:0], [], "test"):
        with pytest.raises(npbgpp.InputError, match="expected at least one camera"):
            run.render(none)
    render = run.render(cameras)
    assert isinstance(run, npbgpp.TrainedRun) and isinstance(render, npbgpp.Render) and run.method == "NPBG"
    assert render.rgb.shape == (2, 3, 32, 32) and render.depth.shape == (2, 1, 32, 32) and render.alpha is None
    assert (render.depth > 0).any() and (render.depth == 0).any(), "the ball, and nothing around it"
    for k, index in enumerate(run.scene.splits["test"]):
        saved = np.asarray(
            Image.open(trained / "rendered" / "ball_holdout" / "test_epoch0" / f"{run.scene.views[index].name}_rendered.png")
        )
        assert np.abs((render.rgb[k].permute(1, 2, 0).numpy() * 255).round() - saved).max() <= 1


def test_runs_of_version_0_1_name_classes_differently(trained, tmp_path):
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    for name in ("checkpoints", "descriptors"):
        (folder / name).symlink_to(trained / name)
    text = (trained / ".hydra" / "config.yaml").read_text()
    for new, old in (
        ("npbgpp.nets.unet.NPBGPlusPlusUNet", "npbgpp.models.refiner.RefinerUnetV2"),
        ("npbgpp.points.feature_pyramid.FeaturePyramid", "npbgpp.models.rasterizer.NearestScatterRasterizer"),
    ):
        assert new in text
        text = text.replace(new, old)
    (folder / ".hydra" / "config.yaml").write_text(text)
    (folder / ".hydra" / "hydra.yaml").write_text((trained / ".hydra" / "hydra.yaml").read_text())
    one, two = (npbgpp.load_run(path) for path in (trained, folder))
    assert torch.equal(one.render(one.cameras()).rgb, two.render(two.cameras()).rgb)


@pytest.mark.parametrize(
    "name",
    [
        "npbgpp.callbacks.training_strip.TrainingStrip",
        "npbgpp.methods.nerf.model.Nerf",
        "npbgpp.methods.nerf.model.NerfSampling",
        "npbgpp.models.nerf.Nerf",
        "npbgpp.models.rgba_unet.RGBAUNet",
    ],
)
def test_classes_that_have_moved_are_found_by_their_earlier_names(name):
    config = with_current_classes({"system": {"parts": [{"_target_": name}]}})
    module, _, cls = config["system"]["parts"][0]["_target_"].rpartition(".")
    assert cls == name.rpartition(".")[2] and isinstance(getattr(import_module(module), cls), type)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda root, run: npbgpp.load_scene(root / "nothing"), ["folder", "nothing"]),
        (lambda root, run: npbgpp.load_scene(root / "ball", layout="blender"), ["datasets.layout", "nerf_synthetic (npbgpp", "blender"]),
        (lambda root, run: npbgpp.load_scene(root / "ball", pc_name="other.ply"), ["other.ply"]),
        (lambda root, run: npbgpp.load_cloud(root / "nothing.ply"), ["nothing.ply"]),
        (lambda root, run: npbgpp.load_run(root / "ball"), ["run=", "ball"]),
        (lambda root, run: npbgpp.load_run(run, checkpoint="first"), ["checkpoint", "last", "first"]),
        (lambda root, run: npbgpp.load_run(run).cameras("tset"), ["split", "test", "tset"]),
    ],
)
def test_bad_input_is_named(call, words, tiny_root, trained):
    with pytest.raises(npbgpp.InputError) as caught:
        call(tiny_root, trained)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_snippet_of_the_readme_runs(trained, tiny_root, tmp_path, monkeypatch):
    """The paths of the snippet are those of the demo; here they are those of the tiny run."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "npbgpp.load_run" in block)
    assert len(code.strip().splitlines()) <= 14
    for path, ours in (("example/still_life", tiny_root / "ball"), ("experiments/demo/npbg", trained)):
        assert path in code
        code = re.sub(rf"{path}(?=[\"'/])", str(ours), code)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its code cells one after another, on a training of a few steps."""
    cells = json.loads((REPOSITORY / "example" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "still_life").symlink_to(REPOSITORY / "example" / "still_life")
    short = 'budget = ["trainer.max_epochs=1", "datasets.train_num_samples=4", "test_after_fit=false", "trainer.limit_val_batches=0"]'
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace('budget = ["trainer.max_epochs=2"]', short)
            exec(compile(source, "tour.ipynb", "exec"), names)
    assert short in "".join("".join(cell["source"]) for cell in cells).replace('budget = ["trainer.max_epochs=2"]', short)
    assert names["run"].method == "NPBG" and names["render"].rgb.shape == (1, 3, 200, 200)
    last = names["show"](*names["run"].render(names["orbit"][0]).rgb)
    assert last.size == (400, 400) and (tmp_path / "experiments" / "tour" / "export" / "every_tenth_point.ply").is_file()
