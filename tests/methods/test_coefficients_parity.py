"""Coefficients of one scene, rendered by NPBG with an aggregator, against recordings of the authors' code."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from npbgpp.core.files import load_tensors
from npbgpp.methods.npbg import NPBG
from npbgpp.nets.aggregation import PointDirections

from .recorded import build_system, close_to_largest, scene_cameras, write_scene

POINTS = 4464
COEFFICIENTS = "h_descriptors_coefficients_synth.pth"


@pytest.fixture(scope="module")
def scene(parity) -> dict:
    return parity("h0_scene.pt")


@pytest.fixture
def build(parity, shared, scene, tmp_path) -> Callable[..., NPBG]:
    """Makes the recorded system: networks of the NPBG++ checkpoint, coefficients of a file."""
    (tmp_path / "descriptors").mkdir()
    scenes = {"recorded": write_scene(scene, tmp_path)}

    def make(*overrides: str, coefficients=shared / "parity" / COEFFICIENTS) -> NPBG:
        (tmp_path / "descriptors" / "recorded.pth").symlink_to(coefficients)
        system = build_system("coefficients_ft", scenes, tmp_path, "descriptors_pretrained_dir=descriptors", *overrides)
        weights = parity("h_ckpt_npbgpp_sphere.pt")["state_dict"]
        system.load_state_dict({name: value for name, value in weights.items() if not name.startswith("feature_extractor")})
        return system

    return make


def look(system: NPBG, cameras) -> tuple[list[Tensor], Tensor]:
    """(per level, which point every cell shows; the image)."""
    aligned = system.align_cameras(cameras)
    visible = system.visible(aligned, ["recorded"] * len(cameras), system.rasterizer.levels)
    points = torch.cat([part.points for part in visible.gathered.parts])
    return [torch.where(rows >= 0, points[rows.clamp(min=0)], -1) for rows in visible.rows], system.decode(aligned, visible).rgb


def drawn_points(system: NPBG) -> Tensor:
    return torch.zeros(POINTS, dtype=torch.bool).index_fill(0, system.tables.resident("recorded", False).cloud.index.flatten().long(), True)


def alignment(kind: str) -> str:
    return f"align_during_rendering={str(kind == 'aligned').lower()}"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "aligned"])
def test_recorded_images(parity, scene, build, kind):
    recorded = parity("h5_coefficients_ft.pt")
    system = build(alignment(kind))
    cameras = scene_cameras(scene, scene["target_views"])
    points, image = look(system, cameras)
    for found, expected in zip(points, recorded[kind]["index_pyramid"], strict=True):
        assert torch.equal(found, expected.long())
    torch.testing.assert_close(image, recorded[kind]["image_not_clamped"], rtol=0, atol=2e-5)
    assert torch.equal(drawn_points(system), recorded["valid_mask"])
    resident = system.tables.resident("recorded", False)
    looked = PointDirections(resident.xyz_world - cameras[0].centers(), cameras[0].R[:, :, 2])
    close_to_largest(system.aggregator.evaluate(resident.table.values, looked), recorded["target_descriptors_first"], 2e-4)


@torch.no_grad()
def test_points_that_one_photo_saw_can_be_drawn(parity, scene, build):
    """The original drops points whose regression is zero; ours does so only when told."""
    recorded = parity("h5_coefficients_ft.pt")
    system = build(alignment("plain"), "drop_single_view_points=false")
    values = parity(COEFFICIENTS)
    known, mean_only = values.any(1), ~values[:, 8:].any(1) & values.any(1)
    assert mean_only.any() and torch.equal(known & ~mean_only, recorded["valid_mask"])
    assert torch.equal(drawn_points(system), known)
    points, image = look(system, scene_cameras(scene, scene["target_views"]))
    changed = points[0] != recorded["plain"]["index_pyramid"][0].long()
    assert changed.any() and torch.equal(changed, (points[0] >= 0) & mean_only[points[0].clamp(min=0)])
    assert (image - recorded["plain"]["image_not_clamped"]).abs().max() > 0.01


@torch.no_grad()
def test_coefficients_of_npbgpp_give_its_images(parity, scene, build, tmp_path):
    """What NPBG++ saves is what this system reads: with every point drawn, its images are those that NPBG++ itself renders."""
    source = build_system("npbgpp_sphere", {"recorded": write_scene(scene, tmp_path)}, tmp_path)
    source.load_state_dict(parity("h_ckpt_npbgpp_sphere.pt")["state_dict"])
    cameras = scene_cameras(scene, scene["target_views"])
    expected = source.render(cameras, "recorded").rgb
    source.save_descriptors("recorded")
    saved = source.descriptors_dir / "recorded.pth"
    assert load_tensors(saved, "descriptors").shape == (POINTS, 56)
    found = build("drop_single_view_points=false", coefficients=saved).render(cameras, "recorded").rgb
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        found, parity("h1_npbgpp_sphere.pt")["targets"]["aligned"]["image_not_clamped"].clamp(0, 1), rtol=0, atol=2e-4
    )
