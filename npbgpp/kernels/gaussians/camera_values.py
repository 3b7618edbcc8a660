"""A camera as the list of numbers that the kernels take."""

from npbgpp.geometry import Cameras
from npbgpp.kernels.gaussians.types import FOV_MARGIN


def camera_values(camera: Cameras) -> list[float]:
    """R (rows), T, fx, fy, cx, cy, centre, and the smallest and largest x/z and y/z in the Jacobian: 23 numbers."""
    height, width = camera.image_size
    (fx, fy), (cx, cy) = camera.focal_length[0].tolist(), camera.principal_point[0].tolist()
    margin_x, margin_y = FOV_MARGIN * width / (2 * fx), FOV_MARGIN * height / (2 * fy)
    limits = [-(width - cx) / fx - margin_x, cx / fx + margin_x, -(height - cy) / fy - margin_y, cy / fy + margin_y]
    return [*camera.R[0].flatten().tolist(), *camera.T[0].tolist(), fx, fy, cx, cy, *camera.centers()[0].tolist(), *limits]
