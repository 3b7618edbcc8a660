"""What NPBG++ makes of photos, and the images of it, against recordings of the authors' code. Photos are PNG files, read as those of a user."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from npbgpp.core.files import load_tensors
from npbgpp.geometry.cameras import Cameras
from npbgpp.methods import npbgpp as module
from npbgpp.methods.npbgpp import InputViews, NPBGPlusPlus, SceneSums
from npbgpp.nets.aggregation import PointDirections

from .recorded import SAMPLED, build_npbgpp, build_system, close_to_largest, scene_cameras

POINTS = 4464
KINDS = ("aligned", "plain")


@pytest.fixture(scope="module")
def scene(parity) -> dict:
    return parity("h0_scene.pt")


@pytest.fixture
def build(parity, tmp_path) -> Callable[..., NPBGPlusPlus]:
    """Makes a recorded system with its weights."""
    return functools.partial(build_npbgpp, parity, tmp_path)


@dataclass
class Witness:
    """What an aggregation did, view by view."""

    photos: list[InputViews] = field(default_factory=list)
    maps: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    added: list[Tensor] = field(default_factory=list)

    def visible(self) -> Tensor:
        """(views, points): whose observations were added to the sums."""
        return torch.stack([torch.zeros(POINTS, dtype=torch.bool).index_fill(0, points.long(), True) for points in self.added])

    def cameras(self) -> Cameras:
        return Cameras.cat([photo.cameras for photo in self.photos])


def aggregate(system: NPBGPlusPlus, monkeypatch) -> Witness:
    """Aggregates the recorded scene."""
    witness = Witness()
    prepare_photo, add, add_to_sums = module.upright, SceneSums.add, system.aggregator.add

    def upright(*arguments):
        witness.photos.append(prepare_photo(*arguments))
        return witness.photos[-1]

    def added(sums, rows, features, weights, looked):
        witness.features.append(features)
        add_to_sums(sums, rows, features, weights, looked)

    with monkeypatch.context() as patch:
        patch.setattr(module, "upright", upright)
        patch.setattr(SceneSums, "add", lambda self, points, *look: (witness.added.append(points), add(self, points, *look)))
        patch.setattr(system.aggregator, "add", added)
        handle = system.feature_extractor.register_forward_hook(lambda _, inputs, output: witness.maps.append((inputs[0], output)))
        system.prepare("recorded")
        handle.remove()
    return witness


def drawn_points(system: NPBGPlusPlus) -> Tensor:
    """(points,): which points of the aggregated scene are rasterised."""
    return torch.zeros(POINTS, dtype=torch.bool).index_fill(0, system._aggregated["recorded"].cloud.index.flatten().long(), True)


def descriptors_for(system: NPBGPlusPlus, camera: Cameras) -> Tensor:
    """(c, points) of the aggregated scene as a camera sees them."""
    resident = system._aggregated["recorded"]
    looked = PointDirections(resident.xyz_world - camera.centers(), camera.R[:, :, 2])
    return system.aggregator.evaluate(resident.table.values, looked).t()


def check_views(witness: Witness, recorded: dict) -> None:
    assert torch.equal(witness.visible(), recorded["view_visible"])
    close_to_largest(witness.cameras().R, recorded["view_R_row"], 1e-5)
    close_to_largest(witness.cameras().T, recorded["view_T"], 1e-5)


def check_targets(system: NPBGPlusPlus, cameras: Cameras, expected: dict) -> None:
    """Cameras, indices, pyramid and images, as far as they were recorded."""
    aligned = system.align_cameras(cameras)
    close_to_largest(aligned.rendered.R, expected["raster_R_row"], 1e-5)
    close_to_largest(aligned.rendered.T, expected["raster_T"], 1e-5)
    focal, principal = (number.float() for number in aligned.rendered.to_authors_ndc())
    torch.testing.assert_close(focal, expected["raster_fcl_ndc"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(principal, expected["raster_prp_ndc"], rtol=1e-5, atol=1e-5)
    assert list(aligned.rendered.image_size) == expected["raster_size"]
    visible = system.visible(aligned, ["recorded"] * len(cameras), system.rasterizer.levels)
    points = torch.cat([part.points for part in visible.gathered.parts])
    for rows, index in zip(visible.rows, expected.get("index_pyramid", visible.rows[:0]), strict="index_pyramid" in expected):
        assert torch.equal(torch.where(rows >= 0, points[rows.clamp(min=0)], -1), index.long())
    pyramid = system.rasterizer(visible.rows, visible.descriptors)
    if "refiner_out" in expected:
        for level, wanted in zip(pyramid[1:], expected["pyramid_first_target_levels1to4"], strict=True):
            close_to_largest(level[:1], wanted, SAMPLED)
        torch.testing.assert_close(system.refiner(pyramid), expected["refiner_out"], rtol=0, atol=2e-4)
    image = system.decode(aligned, visible).rgb
    torch.testing.assert_close(image, expected["image_not_clamped"], rtol=0, atol=2e-4)
    assert torch.equal(system.render(cameras, "recorded").rgb, image.clamp(0, 1))


@torch.no_grad()
def test_recorded_aggregation(parity, scene, build, monkeypatch):
    recorded = parity("h1_npbgpp_sphere.pt")
    system = build("npbgpp_sphere")
    witness = aggregate(system, monkeypatch)
    check_views(witness, recorded)
    read, features = witness.maps[0]
    torch.testing.assert_close(read, recorded["feature_extractor_in_view0"], rtol=0, atol=1e-4)
    close_to_largest(features[:, :4], recorded["feature_extractor_out_view0_ch0to3"], SAMPLED)
    for view, expected in ((int(k), v) for k, v in recorded["view_features"].items()):
        mine = recorded["view_visible"][view]
        close_to_largest(witness.features[view].t(), expected[:, mine], SAMPLED)
    total = torch.zeros(POINTS)
    for points in witness.added:
        total[points.long()] += 1
    assert torch.equal(total, recorded["total"])
    assert torch.equal(drawn_points(system), recorded["visible_mask"])
    found = descriptors_for(system, scene_cameras(scene, scene["target_views"])[0])
    close_to_largest(found, recorded["target_descriptors_first"], SAMPLED)


@torch.no_grad()
def test_saved_coefficients_are_those_of_the_recording(parity, scene, build):
    """Row by row: the mean feature, then m x c numbers, function by function. Recomputed here from the file alone."""
    recorded = parity("h1_npbgpp_sphere.pt")
    system = build("npbgpp_sphere")
    system.prepare("recorded")
    system.save_descriptors("recorded")
    saved = load_tensors(system.descriptors_dir / "recorded.pth", "descriptors")
    assert saved.shape == (POINTS, 56) and saved.dtype == torch.float32
    mean, beta = saved[:, :8], saved[:, 8:].reshape(POINTS, 6, 8)
    target = scene["target_views"][0]
    offset = scene["points"] + scene["R_row"][target] @ scene["T"][target]
    basis = system.aggregator.basis(PointDirections(offset, scene["R_row"][target][None, :, 2]))
    close_to_largest((mean + torch.einsum("nm,nmc->nc", basis, beta)).t(), recorded["target_descriptors_first"], SAMPLED)
    assert torch.equal(saved.any(1), recorded["visible_mask"])
    once = recorded["total"] == 1
    assert once.sum() == 360 and not beta[once].any()
    for view, features in ((int(k), v) for k, v in recorded["view_features"].items()):
        alone = once & recorded["view_visible"][view]
        assert alone.any()
        close_to_largest(mean[alone], features.t()[alone], SAMPLED)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_images(parity, scene, build, kind):
    recorded = parity("h1_npbgpp_sphere.pt")
    system = build("npbgpp_sphere", f"align_during_rendering={str(kind == 'aligned').lower()}")
    cameras = scene_cameras(scene, scene["target_views"])
    check_targets(system, cameras, recorded["targets"][kind])
    raster = system.render(cameras, "recorded", raster=True).raster
    torch.testing.assert_close(raster, recorded["raster_rgb"], rtol=0, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_mean(parity, scene, build, monkeypatch, kind):
    recorded = parity("h2_npbgpp_mean.pt")
    system = build("npbgpp_mean", f"align_during_rendering={str(kind == 'aligned').lower()}")
    check_views(aggregate(system, monkeypatch), recorded)
    assert torch.equal(drawn_points(system), recorded["visible_mask"])
    cameras = scene_cameras(scene, scene["target_views"])
    close_to_largest(descriptors_for(system, cameras[0]), recorded["aggregated"], SAMPLED)
    check_targets(system, cameras, recorded["targets"][kind])


@torch.no_grad()
@pytest.mark.parametrize("scale", ["0.5", "None"])
def test_recorded_visibility_scales(parity, build, monkeypatch, scale):
    expected = parity("h2_npbgpp_mean.pt")["view_visible_scale"][scale]
    system = build("npbgpp_mean", f"visibility_scale={scale.replace('None', 'null')}")
    witness = aggregate(system, monkeypatch)
    assert torch.equal(witness.visible(), expected["view_visible"])
    assert torch.equal(drawn_points(system), expected["visible_mask"])


@torch.no_grad()
def test_recorded_colours(parity, scene, build, monkeypatch):
    recorded = parity("h3_npbgpp_rgb.pt")
    system = build("npbgpp_rgb")
    check_views(aggregate(system, monkeypatch), recorded)
    assert torch.equal(drawn_points(system), recorded["visible_mask"])
    cameras = scene_cameras(scene, scene["target_views"])
    close_to_largest(descriptors_for(system, cameras[0]), recorded["aggregated"], SAMPLED)
    check_targets(system, cameras, recorded["targets"]["aligned"])


@torch.no_grad()
def test_recorded_square_pixels(parity, scene, build, monkeypatch):
    """Where upright cameras are rigid, and the original's camera centres are exact."""
    recorded = parity("h8_npbgpp_sphere_square_intrinsics.pt")
    changes = {key: recorded[key] for key in ("fcl_ndc", "prp_ndc")}
    system = build("npbgpp_sphere", changes=changes)
    witness = aggregate(system, monkeypatch)
    assert torch.equal(witness.visible().sum(0), recorded["total"].long())
    centres = torch.cat([photo.centers for photo in witness.photos])
    torch.testing.assert_close(centres, scene_cameras(scene, scene["input_views"]).centers(), rtol=1e-5, atol=1e-5)
    cameras = scene_cameras(scene | changes, scene["target_views"])
    close_to_largest(descriptors_for(system, cameras[0]), recorded["target_descriptors_first"], SAMPLED)
    image = system.decode(aligned := system.align_cameras(cameras), system.visible(aligned, ["recorded"] * 2, system.rasterizer.levels)).rgb
    torch.testing.assert_close(image, recorded["aligned"]["image_not_clamped"], rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["npbgpp_sphere", "npbgpp_mean", "npbgpp_rgb", "npbg", "coefficients_ft"])
def test_weights_have_the_recorded_names_and_shapes(shared, tmp_path, name):
    lines = (shared / "parity" / "state_dict_keys.txt").read_text().splitlines()
    rows = [line.split("\t") for line in lines if line.startswith(f"{name}\t")]
    expected = {key: [int(n) for n in shape.strip("[]").split(",") if n.strip()] for _, key, shape in rows}
    assert len(expected) == len(rows) > 0
    assert {key: list(value.shape) for key, value in build_system(name, {}, tmp_path).state_dict().items()} == expected
