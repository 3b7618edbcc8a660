"""Files for other programs from a trained run: weights, point clouds, meshes, volumes, cameras."""
