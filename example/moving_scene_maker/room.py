"""Objects of the room, their motion, and the cameras."""

from collections.abc import Callable

import numpy as np

from moving_scene_maker.solids import Array, Ball, Crate, Floor, Pillar, SceneObject, Texture

_LOOK_AT = (0.0, 0.75, -4.0)
_PATH = 0.55  # half of the length of the camera path


def room(seed: int) -> tuple[SceneObject, ...]:
    """A floor, three walls, a static crate and pillar, a ball that hops to the right, and a crate that approaches and turns. The seed sets the textures."""
    rng = np.random.default_rng(seed)

    def texture(base: tuple[float, float, float], scale: float) -> Texture:
        return Texture.random(rng, base, scale)

    return (
        SceneObject(Floor(), texture((0.55, 0.5, 0.42), 1.0), _static((0.0, 0.0, 0.0))),
        SceneObject(Floor(), texture((0.5, 0.58, 0.66), 1.6), _static((0.0, 0.0, -7.0), tilt=_quarter_turn(0))),
        SceneObject(Floor(), texture((0.66, 0.56, 0.5), 1.3), _static((-4.0, 0.0, 0.0), tilt=_quarter_turn(2))),
        SceneObject(Floor(), texture((0.5, 0.62, 0.52), 1.3), _static((4.0, 0.0, 0.0), tilt=_quarter_turn(2, -1.0))),
        SceneObject(Crate((0.5, 0.5, 0.5)), texture((0.45, 0.3, 0.2), 0.45), _static((-1.5, 0.5, -5.2), turn=0.5)),
        SceneObject(Pillar(0.35), texture((0.8, 0.78, 0.7), 0.6), _static((2.7, 0.0, -5.6))),
        SceneObject(Ball(0.42), texture((0.85, 0.25, 0.2), 0.4), _hopping, moves=True),
        SceneObject(Crate((0.3, 0.34, 0.3)), texture((0.2, 0.35, 0.8), 0.35), _approaching, moves=True),
    )


def path_camera(time: float) -> Array:
    """(4, 4) camera-to-world of the video at a time; axes right, up, backward."""
    x = _PATH * (2 * time - 1)
    return look_at_room((x, 1.35 + 0.12 * np.sin(2 * np.pi * time), 0.15 * np.cos(np.pi * time)))


def static_camera() -> Array:
    """(4, 4) camera-to-world of a static camera above the middle of the path."""
    return look_at_room((0.12, 1.6, 0.05))


def look_at_room(centre: tuple[float, float, float]) -> Array:
    """(4, 4) camera-to-world of an upright camera at ``centre``."""
    back = np.array(centre) - _LOOK_AT
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, np.array(centre)], 1)
    return pose


def _hopping(time: float) -> Array:
    height = 0.42 + 0.45 * np.sin(2 * np.pi * time) ** 2
    return _pose((-1.5 + 2.9 * time, height, -4.2), 1.5 * time)


def _approaching(time: float) -> Array:
    return _pose((1.45 - 0.6 * time, 0.34, -5.3 + 2.7 * time), 0.4 + 1.6 * time)


def _static(centre: tuple[float, float, float], turn: float = 0.0, tilt: Array | None = None) -> Callable[[float], Array]:
    pose = _pose(centre, turn)
    if tilt is not None:
        pose[:3, :3] = tilt
    return lambda time: pose


def _pose(centre: tuple[float, float, float], turn: float) -> Array:
    """Rotated about the vertical axis, radians."""
    pose = np.eye(4)
    pose[0, 0] = pose[2, 2] = np.cos(turn)
    pose[0, 2], pose[2, 0] = np.sin(turn), -np.sin(turn)
    pose[:3, 3] = centre
    return pose


def _quarter_turn(axis: int, sign: float = 1.0) -> Array:
    """Rotation that turns a floor into a wall: about x (it faces +z), or about z (it faces +x, -x for the sign -1)."""
    if axis == 0:
        return np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    return np.array([[0.0, sign, 0.0], [-sign, 0.0, 0.0], [0.0, 0.0, 1.0]])
