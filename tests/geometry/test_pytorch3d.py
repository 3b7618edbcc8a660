"""Cameras against PyTorch3D: the library where it is installed, else a fake that projects as documented."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from npbgpp.geometry.cameras import Cameras


class PerspectiveCameras:
    """As documented in https://www.pytorch3d.org/docs/cameras for cameras in screen space: +x right, +y down, (0, 0) the top left corner."""

    def __init__(self, *, R: Tensor, T: Tensor, focal_length: Tensor, principal_point: Tensor, in_ndc: bool, image_size, device) -> None:
        assert not in_ndc and R.device == device
        self.R, self.T = R, T
        # normalised: the short side spans -1..1 between the edges of the image, +x left, +y up
        height, width = torch.as_tensor(image_size, dtype=torch.float32).unbind(1)
        self.half = torch.minimum(height, width)[:, None] / 2
        self.middle = torch.stack([width, height], 1) / 2
        self.focal, self.principal = focal_length / self.half, (self.middle - principal_point) / self.half

    def transform_points_screen(self, points: Tensor) -> Tensor:
        seen = points @ self.R + self.T[:, None]
        ndc = self.focal[:, None] * seen[..., :2] / seen[..., 2:] + self.principal[:, None]
        return torch.cat([self.middle[:, None] - ndc * self.half[:, None], seen[..., 2:]], -1)


def cameras() -> Cameras:
    rotation = torch.linalg.qr(torch.randn(3, 3, 3))[0]
    rotation = rotation * torch.linalg.det(rotation).sign()[:, None, None]
    offset = torch.randn(3, 3) + torch.tensor([0.0, 0.0, 6.0])
    return Cameras(rotation, offset, torch.rand(3, 2) * 20 + 60, torch.rand(3, 2) * 5 + 30, (60, 80))


def assert_projected_alike(ours: Cameras) -> None:
    points = torch.randn(3, 50, 3)
    theirs = ours.to_pytorch3d().transform_points_screen(points)
    torch.testing.assert_close(theirs[..., :2], ours.project(points)[0], rtol=1e-4, atol=1e-2)


def test_cameras_project_as_documented(monkeypatch):
    renderer = ModuleType("pytorch3d.renderer")
    renderer.PerspectiveCameras = PerspectiveCameras
    monkeypatch.setitem(sys.modules, "pytorch3d", ModuleType("pytorch3d"))
    monkeypatch.setitem(sys.modules, "pytorch3d.renderer", renderer)
    assert_projected_alike(cameras())


def test_cameras_project_as_the_library():
    pytest.importorskip("pytorch3d.renderer", reason="PyTorch3D, an optional peer, is not installed")
    assert_projected_alike(cameras())
