"""What is in the room, how it moves, and how the cameras stand."""

import numpy as np

from moving_scene_maker.solids import Array, Ball, Crate, Floor, Pillar, Texture, Thing

_LOOK_AT = (0.0, 0.75, -4.0)
_PATH = 0.55  # half of the way of the camera to the right


def room(seed: int) -> tuple[Thing, ...]:
    """Floor, three walls, a crate and a pillar that stand, a ball that hops to the right and a crate that comes nearer and turns; the seed paints them."""
    rng = np.random.default_rng(seed)

    def painted(base: tuple[float, float, float], scale: float) -> Texture:
        return Texture.random(rng, base, scale)

    return (
        Thing(Floor(), painted((0.55, 0.5, 0.42), 1.0), _still((0.0, 0.0, 0.0))),
        Thing(Floor(), painted((0.5, 0.58, 0.66), 1.6), _still((0.0, 0.0, -7.0), tilt=_tilted(0))),
        Thing(Floor(), painted((0.66, 0.56, 0.5), 1.3), _still((-4.0, 0.0, 0.0), tilt=_tilted(2))),
        Thing(Floor(), painted((0.5, 0.62, 0.52), 1.3), _still((4.0, 0.0, 0.0), tilt=_tilted(2, -1.0))),
        Thing(Crate((0.5, 0.5, 0.5)), painted((0.45, 0.3, 0.2), 0.45), _still((-1.5, 0.5, -5.2), turn=0.5)),
        Thing(Pillar(0.35), painted((0.8, 0.78, 0.7), 0.6), _still((2.7, 0.0, -5.6))),
        Thing(Ball(0.42), painted((0.85, 0.25, 0.2), 0.4), _hopping, moves=True),
        Thing(Crate((0.3, 0.34, 0.3)), painted((0.2, 0.35, 0.8), 0.35), _coming, moves=True),
    )


def path_camera(moment: float) -> Array:
    """(4, 4) camera-to-world of the video at a moment; axes right, up, backward."""
    x = _PATH * (2 * moment - 1)
    return looking((x, 1.35 + 0.12 * np.sin(2 * np.pi * moment), 0.15 * np.cos(np.pi * moment)))


def still_camera() -> Array:
    """(4, 4) a camera that stands above the middle of the path."""
    return looking((0.12, 1.6, 0.05))


def looking(centre: tuple[float, float, float]) -> Array:
    """(4, 4) camera-to-world of a camera at ``centre`` that looks into the room, upright."""
    back = np.array(centre) - _LOOK_AT
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, np.array(centre)], 1)
    return pose


def _hopping(moment: float) -> Array:
    height = 0.42 + 0.45 * np.sin(2 * np.pi * moment) ** 2
    return _pose((-1.5 + 2.9 * moment, height, -4.2), 1.5 * moment)


def _coming(moment: float) -> Array:
    return _pose((1.45 - 0.6 * moment, 0.34, -5.3 + 2.7 * moment), 0.4 + 1.6 * moment)


def _still(centre: tuple[float, float, float], turn: float = 0.0, tilt: Array | None = None):
    pose = _pose(centre, turn)
    if tilt is not None:
        pose[:3, :3] = tilt
    return lambda moment: pose


def _pose(centre: tuple[float, float, float], turn: float) -> Array:
    """Turned about the vertical, radians."""
    pose = np.eye(4)
    pose[0, 0] = pose[2, 2] = np.cos(turn)
    pose[0, 2], pose[2, 0] = np.sin(turn), -np.sin(turn)
    pose[:3, 3] = centre
    return pose


def _tilted(axis: int, sign: float = 1.0) -> Array:
    """A quarter turn that makes a wall of a floor: about x (it faces +z), or about z (it faces +x, with sign -1 the other way)."""
    if axis == 0:
        return np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    return np.array([[0.0, sign, 0.0], [-sign, 0.0, 0.0], [0.0, 0.0, 1.0]])
