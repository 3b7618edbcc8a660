"""`experiment=nsff_quick` with a smaller budget: separation of static and dynamic parts, scene flow against optical flow."""

from dataclasses import replace

import pytest
import torch

from npbgpp.data.motion_maps import read_static, read_uv
from npbgpp.engine.run import build_run, evaluation_of, run_config
from npbgpp.methods.nsff.system import NSFF

from ..run_folders import remember, run_words


@pytest.fixture(scope="module")
def trained_system(moving_root, tmp_path_factory) -> NSFF:
    """The moving scene of 8 frames of 48x32 pixels after 480 of the 2400 steps of the experiment, with smaller fields."""
    launch = tmp_path_factory.mktemp("separates")
    words = (
        *("experiment=nsff_quick", "datasets.scene_name=hop", f"datasets.data_root={moving_root}", "trainer.accelerator=cpu"),
        *("datasets.batches_per_epoch=30", "system.field.width=48", "loggers=none", "test_after_fit=false"),
        *("trainer.check_val_every_n_epoch=100", f"hydra.run.dir={launch / 'run'}"),
    )
    run = run_words(launch, *words)
    remember(run, launch, *words)
    config, search_paths = run_config(run)
    evaluation_of(config, run, "last", None, [])
    system = build_run(config, search_paths, needs_test_views=False).system.eval()
    assert isinstance(system, NSFF)
    return system


@torch.no_grad()
def test_dynamic_opacity_is_high_where_the_mask_is_dynamic(trained_system):
    """After a fifth of the training: an intersection over union of 0.32 was seen, opacities of 0.52 and 0.27."""
    frames = trained_system.scene.frames
    found = torch.cat([trained_system.renderer().render(view.camera, view.time_step).dynamic_alpha for view in frames])
    moving = torch.cat([~read_static(view).flatten() for view in frames])
    predicted = found > 0.5
    overlap = (predicted & moving).sum() / (predicted | moving).sum()
    assert overlap > 2.5 * moving.float().mean(), "as much as that would be right if everything moved"
    assert found[moving].mean() > 1.5 * found[~moving].mean()


@torch.no_grad()
def test_projected_scene_flow_matches_the_optical_flow(trained_system):
    """Better than no flow, and where something moves better than the same depths that stand still, seen by the moving camera."""
    renderer, errors = trained_system.renderer(), {"found": [], "standing": [], "none": []}
    for view in trained_system.scene.frames[:-1]:
        outputs, known, moving = renderer.render(view.camera, view.time_step), read_uv(view, True), ~read_static(view)
        rays, _ = renderer.rays(view.camera)
        standing = replace(outputs, forward=rays.origins + outputs.depth[:, None] * rays.directions)
        for name, flow in (
            ("found", renderer.optical_flow(outputs, view.time_step, True)),
            ("standing", renderer.optical_flow(standing, view.time_step, True)),
            ("none", torch.zeros_like(known)),
        ):
            errors[name].append((flow - known).norm(dim=-1)[moving])
    mean = {name: torch.cat(parts).mean() for name, parts in errors.items()}
    assert mean["found"] < 0.5 * mean["standing"] and mean["standing"] < mean["none"]
