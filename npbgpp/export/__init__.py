"""What a trained run becomes outside of this program: weights, point clouds, meshes, volumes. ``python -m npbgpp.export``."""
