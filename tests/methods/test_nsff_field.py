"""Fields of moving scenes: sizes and names of nsff_pl, what each part depends on, what makes no network."""

import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.methods.nsff.model import SpaceTimeField

SMALL = {"depth": 3, "width": 16, "skips": (1,), "xyz_frequencies": 3, "dir_frequencies": 2, "time_channels": 5}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_as_many_parameters_as_nsff_pl():
    field = SpaceTimeField()
    parts = {name: 0 for name in ("static_dir", "static", "transient")}
    for name, parameter in field.named_parameters():
        parts[next(part for part in parts if name.startswith(part))] += parameter.numel()
    assert parts == {"static": 559_876, "static_dir": 72_704, "transient": 585_994}
    assert count(field) == 1_218_574
    assert count(SpaceTimeField(view_directions=False)) == 1_218_574 - 72_704
    assert count(SpaceTimeField(flow_scale=None)) == 1_218_574 - 2 * 771
    assert count(SpaceTimeField(appearance_channels=48)) == 1_218_574 + 48 * 256


def points(n: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.rand(n, 3) * 2 - 1, torch.randn(n, 3), torch.randn(n, 5)


def test_static_matter_knows_directions_and_no_time():
    field = SpaceTimeField(**SMALL)
    xyz, directions, _ = points()
    seen, aside = field.static(field.embedded(xyz), directions), field.static(field.embedded(xyz), -directions)
    assert torch.equal(seen.sigma, aside.sigma) and not torch.allclose(seen.rgb, aside.rgb)
    assert field.static(field.embedded(xyz), directions, colours=False).rgb is None
    blind = SpaceTimeField(**SMALL, view_directions=False)
    assert torch.equal(blind.static(blind.embedded(xyz), directions).rgb, blind.static(blind.embedded(xyz), -directions).rgb)


def test_appearance_changes_static_colours_only():
    field = SpaceTimeField(**SMALL, appearance_channels=4)
    xyz, directions, _ = points()
    one, two = (field.static(field.embedded(xyz), directions, torch.full((5, 4), value)) for value in (-1.0, 1.0))
    assert torch.equal(one.sigma, two.sigma) and not torch.allclose(one.rgb, two.rgb)


def test_dynamic_matter_and_motion_depend_on_time():
    field = SpaceTimeField(**SMALL, flow_scale=0.03)
    xyz, _, time = points()
    (now, motion), (later, later_motion) = (
        field.dynamic(field.embedded(xyz), code, forward=True, backward=True) for code in (time, time + 1)
    )
    assert not torch.allclose(now.sigma, later.sigma) and not torch.allclose(now.rgb, later.rgb)
    assert not torch.allclose(motion.forward, later_motion.forward) and not torch.allclose(motion.forward, motion.backward)
    assert motion.forward.abs().max() <= 0.03 and ((now.rgb > 0) & (now.rgb < 1)).all()
    matter, none = field.dynamic(field.embedded(xyz), time, colours=False)
    assert matter.rgb is None and none.forward is None and none.backward is None and torch.equal(matter.sigma, now.sigma)


def test_dynamic_density_comes_from_the_final_feature():
    """nsff_pl reads the static density before the last layer and the dynamic one behind it."""
    field = SpaceTimeField(**SMALL)
    xyz, directions, time = points()
    static, (dynamic, _) = field.static(field.embedded(xyz), directions).sigma, field.dynamic(field.embedded(xyz), time)
    for layer in (field.static_xyz_encoding_final, field.transient_xyz_encoding_final):
        layer.weight.data.zero_()
        layer.bias.data.zero_()
    assert torch.equal(field.static(field.embedded(xyz), directions).sigma, static)
    assert torch.allclose(field.dynamic(field.embedded(xyz), time)[0].sigma, field.transient_sigma.bias) and not torch.allclose(
        dynamic.sigma, field.transient_sigma.bias
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 0}, "depth"),
        ({"width": 1}, "width"),
        ({"time_channels": 0}, "time_channels"),
        ({"skips": (3,)}, "skips"),
        ({"flow_scale": 0.0}, "flow_scale"),
        ({"appearance_channels": 4, "view_directions": False}, "view_directions=true"),
    ],
)
def test_what_makes_no_network(changes, words):
    with pytest.raises(InputError, match=words):
        SpaceTimeField(**(SMALL | changes))
