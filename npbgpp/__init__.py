"""npbgpp: point-based and radiance-field novel-view synthesis from photos, as swappable Lightning systems."""

__version__ = "0.1.0"
