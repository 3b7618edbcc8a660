"""Draws ``style.png``, the default image of the style loss: waves in a few colours. Run: ``python example/make_style.py``."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 192


def style_image(size: int = SIZE) -> np.ndarray:
    """Colours (size, size, 3), 8 bits."""
    v, u = np.mgrid[0:size, 0:size] / size * 2 * np.pi
    phase = 3 * u + 2 * np.sin(2 * v) + np.sin(5 * u + 3 * v)
    colours = np.array([[24, 44, 97], [231, 111, 81], [244, 211, 94], [42, 157, 143]], dtype=np.float64)
    weights = np.stack([np.cos(phase + k * np.pi / 2) for k in range(4)], -1) * 3 + np.sin(17 * v + phase)[..., None] * 0.4
    weights = np.exp(weights) / np.exp(weights).sum(-1, keepdims=True)
    return np.round(weights @ colours).astype(np.uint8)


if __name__ == "__main__":
    Image.fromarray(style_image()).save(Path(__file__).parent / "style.png", optimize=True)
