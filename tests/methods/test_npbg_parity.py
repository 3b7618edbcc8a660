"""NPBG as a whole against recordings of the authors' code: images of their weights, and one training step."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from npbgpp.core.paths import SearchPaths
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Batch, Scene, View, Views
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.point_cloud import PointCloud, write_ply
from npbgpp.methods.base import RunContext
from npbgpp.methods.npbg import NPBG
from npbgpp.metrics import ImageMetrics
from npbgpp.nets.unet import NPBGPlusPlusUNet
from npbgpp.points.feature_pyramid import FeaturePyramid, RGBConverter
from npbgpp.points.sparse_optim import SparseRMSprop

from ..helpers.settings import system_settings
from .recorded import close_to_largest, scene_cameras, train


@pytest.fixture(scope="module")
def weights(parity) -> dict[str, Tensor]:
    """The recorded NPBG: its own file, and the refiner of the sphere checkpoint."""
    shared_refiner = parity("h_ckpt_npbgpp_sphere.pt")["state_dict"]
    refiner = {name: value for name, value in shared_refiner.items() if name.startswith("refiner.")}
    return parity("h_ckpt_npbg_without_refiner.pt")["state_dict"] | refiner


@pytest.fixture
def build(parity, shared, weights, tmp_path):
    """Makes the recorded system with its descriptors."""

    def make(**settings) -> NPBG:
        recorded = parity("h0_scene.pt")
        write_ply(tmp_path / "cloud.ply", PointCloud(recorded["points"]))
        (tmp_path / "descriptors").mkdir()
        (tmp_path / "descriptors" / "recorded.pth").symlink_to(shared / "parity" / "h_descriptors_npbg_synth.pth")
        cameras = scene_cameras(recorded, recorded["input_views"])
        views = tuple(View(f"view{k}", Path("unread.png"), cameras[k]) for k in range(len(cameras)))
        scene = Scene("recorded", views, {"train": tuple(range(len(views))), "val": (), "test": ()}, CloudFile(tmp_path / "cloud.ply"))
        system = NPBG(
            system_settings(
                "npbg",
                loss_factors={"l1_d4_loss": 2500.0, "dimred_loss": 1.0},
                descriptors_pretrained_dir="descriptors",
                **settings,
            ),
            RunContext({"recorded": scene}, SearchPaths(tmp_path, tmp_path / "run", tmp_path), ImageMetrics()),
            NPBGPlusPlusUNet(in_channels=[9] * 5, out_channels=3, filters=[16, 32, 48, 64, 80], padding_mode="reflect"),
            FeaturePyramid(descriptor_dim=8, learnable=True),
        )
        assert system.state_dict().keys() == weights.keys()
        system.load_state_dict(weights)
        return system

    return make


@pytest.mark.parametrize("kind", ["plain", "aligned"])
def test_recorded_images(parity, build, kind):
    recorded = parity("h4_npbg.pt")
    expected = recorded[kind]
    system = build(align_during_rendering=kind == "aligned")
    cameras = scene_cameras(parity("h0_scene.pt"), parity("h0_scene.pt")["target_views"])
    with torch.no_grad():
        aligned = system.align_cameras(cameras)
        visible = system.visible(aligned, ["recorded", "recorded"], system.rasterizer.levels)
        image = system.decode(aligned, visible).rgb
    seen = visible.gathered.parts[0].points
    for rows, index in zip(visible.rows, expected["index_pyramid"], strict=True):
        points = torch.where(rows >= 0, seen[rows.clamp(min=0)], -1)
        assert torch.equal(points, index.long())
    if kind == "aligned":
        torch.testing.assert_close(aligned.rendered.R, expected["raster_R_row"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(image, expected["image_not_clamped"], rtol=0, atol=1e-5)
    shown = system.render(cameras, "recorded", raster=True)
    assert torch.equal(shown.rgb, image.clamp(0, 1)) and shown.alpha is None
    torch.testing.assert_close(shown.raster, recorded["raster_rgb"], rtol=0, atol=1e-5)


def test_recorded_training_step(parity, build, weights, monkeypatch, tmp_path):
    """Losses, gradients and parameters of one step on two crops.

    The term that trains the colours of the preview (``dimred_loss``) is a sum over every number of the cloud in the original and a mean over the points
    in view here, so its value and the gradients and parameters of ``rgb_converter`` are not those recorded. That both mean the same otherwise is
    checked by computing the original's sum with the converter of the system: value and gradients must be the recorded ones.
    """
    recorded = parity("h7_train_npbg.pt")
    batch = recorded["batch"]
    cameras = Cameras.from_authors_ndc(batch["R_row"], batch["T"], batch["fcl_ndc"], batch["prp_ndc"], (64, 64))
    views = Views(batch["img"], ~batch["empty"], cameras, None, ("a", "b"))
    system = build()
    start = system.tables._initial_values("recorded", 4464).clone()
    gradients: dict[str, Tensor] = {}
    of_descriptors = torch.zeros_like(start)
    rendered = []
    original_step, original_update, original_refine = NPBG.step, SparseRMSprop.update, NPBG.decode

    def step(self):
        gradients.update({name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None})
        original_step(self)

    def update(self, table, rows, gradient):
        of_descriptors[rows] += gradient
        original_update(self, table, rows, gradient)

    def refine(self, *arguments):
        rendered.append(original_refine(self, *arguments))
        return rendered[-1]

    monkeypatch.setattr(NPBG, "step", step)
    monkeypatch.setattr(SparseRMSprop, "update", update)
    monkeypatch.setattr(NPBG, "decode", refine)
    trainer = train(system, Batch(("recorded",) * 2, ("recorded",) * 2, views), tmp_path)

    torch.testing.assert_close(rendered[0].rgb.detach(), recorded["rendered"], rtol=0, atol=1e-5)
    terms = recorded["loss_terms"]
    assert trainer.callback_metrics["l1_d4_loss"].item() == pytest.approx(terms["l1_d4_loss"], rel=1e-4)
    trained = [name for name in recorded["grads"] if not name.startswith("rgb_converter")]
    assert len(trained) == 11
    for name in trained:
        close_to_largest(gradients[name], recorded["grads"][name], 1e-3)
    for name, norm in recorded["grad_norms"].items():
        if name.startswith(("refiner", "rasterizer")):
            assert gradients[name].norm().item() == pytest.approx(norm.item(), rel=1e-3), name
    close_to_largest(of_descriptors, recorded["grad_descriptors"], 1e-3)

    after = torch.load(system.tables.folders.save / "recorded.pth", weights_only=True)
    sure = recorded["grad_descriptors"].abs() > 1e-5 * recorded["grad_descriptors"].abs().max()
    assert sure.sum() > 5000
    torch.testing.assert_close(after[sure], recorded["descriptors_after"][sure], rtol=0, atol=1e-2)
    unseen = ~recorded["grad_descriptors"].any(1)
    assert unseen.any() and torch.equal(after[unseen], start[unseen])
    parameters = dict(system.named_parameters())
    for name in trained:
        expected, gradient = recorded["params_after"][name], recorded["grads"][name]
        sure = gradient.abs() > 1e-5 * gradient.abs().max()
        assert sure.any()
        step_size = (expected - weights[name]).abs().max().item()
        assert step_size > 0
        torch.testing.assert_close(parameters[name].detach()[sure], expected[sure], rtol=0, atol=1e-2 * step_size)

    converter = build_converter(weights)
    loss = 2 * (converter.reconstruct(converter(start)) - start).abs().sum()  # the cloud counts once per view
    assert loss.item() == pytest.approx(terms["dimred_loss"], rel=1e-4)
    loss.backward()
    for name, parameter in converter.named_parameters():
        close_to_largest(parameter.grad, recorded["grads"][f"rgb_converter.{name}"], 1e-3)
        assert gradients[f"rgb_converter.{name}"].any()


def build_converter(weights: dict[str, Tensor]) -> RGBConverter:
    converter = RGBConverter(8)
    prefix = "rgb_converter."
    converter.load_state_dict({name.removeprefix(prefix): value.clone() for name, value in weights.items() if name.startswith(prefix)})
    return converter
