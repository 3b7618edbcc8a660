"""Images of training batches: when they are written, and what they show."""

import numpy as np
from PIL import Image

QUIET = ("trainer.limit_val_batches=0", "datasets.scenes.test=[]", "callbacks.fit.training_strip.every_n_batches=3")


def test_strips_show_levels_rendering_and_photo(run_here, tiny_root):
    folder = run_here(*QUIET, "trainer.max_epochs=2")
    assert sorted(p.name for p in (folder / "train_images").iterdir()) == ["step0_rank0.png", "step3_rank0.png", "step6_rank0.png"]
    with Image.open(folder / "train_images" / "step6_rank0.png") as strip:
        pixels = np.asarray(strip.convert("RGB")).astype(int)
    assert pixels.shape == (32, 7 * 32, 3)  # five levels, rendering, photo
    photo, white = pixels[:, -32:], pixels[:, :32] == 255
    photos = [np.asarray(Image.open(p).convert("RGBA")).astype(int) for p in sorted((tiny_root / "ball" / "train").glob("*.png"))]
    on_white = [np.where(p[..., 3:] > 0, p[..., :3], 255) for p in photos]
    assert min(np.abs(photo - p).max() for p in on_white) <= 1
    assert 0.1 < white.all(-1).mean() < 0.95  # points on white


def test_photos_and_features_come_first(run_npbgpp, tmp_path):
    align = ("system.align_view_images=false", "system.align_during_rendering=false")
    folder = run_npbgpp(tmp_path, *QUIET, *align, "datasets.selection_count=2", "datasets.train_num_samples=2")
    with Image.open(folder / "train_images" / "step0_rank0.png") as strip:
        assert strip.size == ((2 + 2 + 5 + 2) * 32, 32)
