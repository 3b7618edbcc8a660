"""Commands before a training: scene checks, point clouds, LLFF cameras, and masks, poses, depth and flow of videos."""
