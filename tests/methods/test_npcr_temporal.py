"""Pictures carried over to other cameras."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from npbgpp.geometry.cameras import Cameras
from npbgpp.kernels.peeling import Footprint, peel
from npbgpp.kernels.rasterization import ChunkedCloud
from npbgpp.methods.npcr.temporal import finetune, flicker, reproject, world_points

SIZE = (24, 32)


def camera(x: float = 0.0, size: tuple[int, int] = SIZE) -> Cameras:
    """Looks along z from (x, 0, -4); a unit of the plane z = 0 is 8 pixels."""
    return Cameras(torch.eye(3)[None], torch.tensor([[-x, 0.0, 4.0]]), torch.full((1, 2), 32.0), torch.tensor([[16.0, 12.0]]), size)


def plane(depth: float = 4.0, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.full(size, depth)


def test_a_still_camera_keeps_its_picture():
    """Every pixel of a large point is carried to itself, not to the middle of the point."""
    cloud = ChunkedCloud.build(torch.cat([torch.rand(40, 2) * 3 - 1.5, torch.rand(40, 1)], 1))
    (layer,) = peel(cloud, camera(), 1, Footprint(5.0, 6.0, 2.0))
    picture = torch.rand(4, *SIZE)
    carried = reproject(picture, layer.depth, camera(), layer.depth, camera())
    shown = layer.index >= 0
    assert shown.sum() > 200 and torch.equal(carried.known, shown)
    assert torch.equal(carried.picture[:, shown], picture[:, shown])


@pytest.mark.parametrize("pixels", [1, 3, -2])
def test_a_camera_moved_by_whole_pixels_moves_the_picture(pixels):
    """The camera's +x is to the left of its picture: what it sees goes right by as many pixels."""
    picture = torch.rand(4, *SIZE)
    carried = reproject(picture, plane(), camera(), plane(), camera(pixels / 8))
    moved = torch.roll(picture, pixels, 2)
    inside = torch.zeros(SIZE, dtype=torch.bool)
    inside[:, max(pixels, 0) : SIZE[1] + min(pixels, 0)] = True
    assert torch.equal(carried.known, inside)
    assert torch.equal(carried.picture[:, inside], moved[:, inside])


def test_mixed_precision_moves_nothing():
    """Eight bits tell places apart by pixels where a picture is hundreds of them wide."""
    size = (24, 512)
    views = (torch.rand(4, *size), plane(3.7, size), camera(0.1, size), plane(3.7, size), camera(0.0, size))
    carried = reproject(*views)
    with torch.autocast("cpu", torch.bfloat16):
        again = reproject(*views)
    assert torch.equal(again.picture, carried.picture) and torch.equal(again.known, carried.known)


def test_nothing_is_known_of_empty_pixels_of_either_picture():
    depth, before = plane(), plane()
    depth[3, 4] = before[7, 8] = torch.inf
    known = reproject(torch.rand(4, *SIZE), before, camera(), depth, camera()).known
    assert not known[3, 4] and not known[7, 8] and known.sum() == known.numel() - 2


@pytest.mark.parametrize("other_depth", [3.9, 4.1])
def test_what_is_hidden_in_the_other_picture_is_not_known(other_depth):
    """A strip nearer, or farther, than the plane that the frame shows: two hundredths of the depth are the same place."""
    before = plane(4.07)
    before[:, 5:9] = other_depth
    known = reproject(torch.rand(4, *SIZE), before, camera(), plane(), camera()).known
    assert not known[:, 5:9].any() and known[:, :5].all() and known[:, 9:].all()


def test_points_behind_the_other_camera_are_not_known():
    turned = Cameras(
        torch.diag(torch.tensor([-1.0, 1.0, -1.0]))[None],
        torch.tensor([[0.0, 0.0, -8.0]]),
        camera().focal_length,
        camera().principal_point,
        SIZE,
    )
    assert not reproject(torch.rand(4, *SIZE), plane(), turned, plane(), camera()).known.any()


def test_other_sizes():
    other = camera(size=(12, 16))
    other = Cameras(other.R, other.T, other.focal_length / 2, other.principal_point / 2, (12, 16))
    picture = torch.rand(3, 12, 16)
    carried = reproject(picture, plane(size=(12, 16)), other, plane(), camera())
    assert torch.equal(carried.picture, picture.repeat_interleave(2, 1).repeat_interleave(2, 2)) and carried.known.all()


def test_world_points_project_to_the_centres_of_their_pixels():
    rotation = torch.linalg.qr(torch.randn(3, 3))[0]
    some = Cameras(
        (rotation * torch.linalg.det(rotation).sign())[None],
        torch.randn(1, 3),
        torch.tensor([[30.0, 33.0]]),
        torch.tensor([[15.0, 13.0]]),
        SIZE,
    )
    depth = torch.rand(SIZE) + 1
    uv_px, found = some.project(world_points(depth, some).view(-1, 3))
    torch.testing.assert_close(found[0].view(SIZE), depth)
    assert (uv_px[0].floor().view(*SIZE, 2)[5, 9] == torch.tensor([9.0, 5.0])).all()
    torch.testing.assert_close(uv_px[0].view(*SIZE, 2)[5, 9], torch.tensor([9.5, 5.5]), rtol=0, atol=1e-3)


def test_the_threshold_is_on_the_scale_of_255():
    """8000 is a difference of 51.6 in each of three channels; mattes do not count."""
    current, before = torch.full((4, *SIZE), 0.2), torch.full((4, *SIZE), 0.2)
    before[3] = 1.0
    before[:3, :, 10:] += 51 / 255
    before[:3, :, 20:] += 1 / 255
    alike = reproject(before, plane(), camera(), plane(), camera()).similar(current, 8000.0)
    assert alike[:, :20].all() and not alike[:, 20:].any()


def test_unsteadiness_is_what_changes_beside_the_motion():
    texture = torch.rand(3, SIZE[0], 64)
    still = [texture[:, :, 16 - k : 48 - k] for k in range(4)]
    cameras, depths = [camera(k / 8) for k in range(4)], [plane()] * 4
    assert flicker(still, depths, cameras) == pytest.approx(0, abs=1e-6)
    flickering = [picture + 0.1 * (k % 2) for k, picture in enumerate(still)]
    assert flicker(flickering, depths, cameras) == pytest.approx(25.5, rel=1e-4)
    with pytest.raises(ValueError, match="same points"):
        flicker(still, [plane(torch.inf)] * 4, cameras)


class LearnedFrames:
    """A method that learns the colours of every frame of a path along the plane z = 0, none shared between frames."""

    def __init__(self, frames: torch.Tensor, cameras: list[Cameras]) -> None:
        self.frames, self.cameras = torch.nn.Parameter(frames), cameras
        self.device = torch.device("cpu")
        self.settings = SimpleNamespace(refine_weights=[0.5, 0.5, 0.25, 0.75], colour_threshold=8000.0)
        self.tables = SimpleNamespace(resident=lambda *_, **__: None, accumulate=lambda _: None, step=lambda _: None)

    def render_layers(self, camera: Cameras, scenes: list[str], learn: bool) -> SimpleNamespace:
        k = next(k for k, known in enumerate(self.cameras) if torch.equal(known.T, camera.T))
        return SimpleNamespace(rgba=self.frames[k][None], depth=plane()[None], gathered=None)

    def objective(self) -> SimpleNamespace:
        return SimpleNamespace(perceptual=None)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam([{"params": [self.frames]}, {"params": []}, {"params": []}])]

    def eval(self) -> None:
        pass

    def render(self, *_, **__) -> None:
        raise NotImplementedError

    over_background = render


def test_temporal_finetuning_removes_flicker():
    """Frames whose brightness alternates become equal; what all frames agree on stays."""
    texture = torch.rand(4, SIZE[0], 64)
    still = torch.stack([texture[:, :, 16 - k : 48 - k] for k in range(5)])
    alternating = 0.06 * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])[:, None, None, None]
    cameras, depths = [camera(k / 8) for k in range(5)], [plane()] * 5
    method = LearnedFrames(still + alternating, cameras)
    before = flicker(list(method.frames.detach()), depths, cameras)
    losses = finetune(method, "plane", cameras, 20, 0.005, nullcontext)
    after = flicker(list(method.frames.detach()), depths, cameras)
    assert before == pytest.approx(30.6, rel=1e-3) and after < 0.3 * before
    assert losses[-1] < 0.1 * losses[0]
    content = method.frames.detach() - still
    assert content.abs().max() < 0.13 and content.mean((1, 2, 3)).std() < alternating.std() / 2
