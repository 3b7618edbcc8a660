"""Pixels of a moving scene: the whole procedure ray by ray and sample by sample, values and gradients; what blocks and cameras change."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.methods.nsff.compositing import interpolate_outputs
from npbgpp.methods.nsff.model import SAME_AS_NSFF_PL, Nsff, NsffSampling, architecture_of
from npbgpp.volume import Rays

SMALL = {"depth": 3, "width": 16, "skips": (1,), "xyz_frequencies": 3, "dir_frequencies": 2, "time_channels": 5}
D = torch.float64


def video_field(importance: int = 0, time_steps: int = 4, **changes) -> Nsff:
    """A random field, dense in parts, that moves visibly."""
    torch.manual_seed(1)
    field = Nsff(NsffSampling(samples=6, importance=importance, perturb=0.0, noise_std=0.0), time_steps=time_steps, **(SMALL | changes)).to(
        D
    )
    for net in (field.nerf_fine, field.nerf_coarse):
        if net is not None:
            net.static_sigma.weight.data *= 40
            net.transient_sigma.weight.data *= 60
    return field


def some_rays(n: int = 4, seed: int = 0) -> tuple[Rays, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    origins = torch.cat([torch.rand(n, 2, generator=generator, dtype=D) * 2 - 1, torch.full((n, 1), -1.0, dtype=D)], 1)
    directions = torch.cat([torch.rand(n, 2, generator=generator, dtype=D) * 0.4 - 0.2, torch.full((n, 1), 2.0, dtype=D)], 1)
    rays = Rays(origins, directions, torch.zeros(n, dtype=D), torch.ones(n, dtype=D))
    return rays, torch.randn(n, 3, generator=generator, dtype=D)


# ------------------------------------------------------------------- the procedure in plain loops
class Plain:
    """The text of the method, one sample at a time; of the field only its two networks are used."""

    def __init__(self, field: Nsff, time_step: int, seen=None) -> None:
        self.field, self.time_step, self.seen = field, time_step, seen

    def static(self, net, point, viewdirs):
        code = None
        if self.field.embedding_a is not None and net is self.field.nerf_fine:
            code = self.field.embedding_a.weight[self.time_step][None]
        matter = net.static(net.embedded(point[None]), viewdirs[None], code)
        return torch.log(1 + torch.exp(matter.sigma[0])), matter.rgb[0]

    def dynamic(self, net, point, time_step, flow):
        matter, motion = net.dynamic(net.embedded(point[None]), self.field.embedding_t.weight[time_step][None], True, flow, flow)
        sigma = matter.sigma[0]
        if self.seen is not None and not self.seen(point[None])[0]:
            sigma = torch.full_like(sigma, -10.0)
        flows = (motion.forward[0], motion.backward[0]) if flow else (None, None)
        return torch.log(1 + torch.exp(sigma)), matter.rgb[0], *flows

    def sums(self, z, static, dynamic):
        """(colour, depth, static weights, dynamic weights, weights) of one ray."""
        colour, depth, passed, kept = torch.zeros(3, dtype=D), torch.zeros((), dtype=D), torch.ones((), dtype=D), ([], [], [])
        for k in range(len(z)):
            last = k + 1 == len(z)
            a = 1 - torch.exp(-static[k][0] * (100.0 if last else z[k + 1] - z[k]))
            b = 1 - torch.exp(-dynamic[k][0] * (1e-3 if last else z[k + 1] - z[k]))
            for values, alpha in zip(kept, (a, b, 1 - (1 - a) * (1 - b)), strict=True):
                values.append(alpha * passed)
            colour = colour + kept[0][k] * static[k][1] + kept[1][k] * dynamic[k][1]
            depth = depth + kept[2][k] * z[k]
            passed = passed * (1 - a) * (1 - b)
        return colour, depth, *map(torch.stack, kept)

    def depths(self, origin, direction, viewdirs):
        s = self.field.sampling
        z = [k / (s.samples - 1) for k in range(s.samples)]
        if not s.importance:
            return None, torch.tensor(z, dtype=D)
        points = [origin + d * direction for d in z]
        net = self.field.nerf_coarse
        seen = self.sums(
            torch.tensor(z, dtype=D),
            [self.static(net, p, viewdirs) for p in points],
            [self.dynamic(net, p, self.time_step, False) for p in points],
        )
        middle = [(a + b) / 2 for a, b in zip(z, z[1:], strict=False)]
        drawn = [quantile_depths(middle, weights.detach().numpy()[1:-1], s.importance) for weights in seen[2:4]]
        return seen, torch.tensor(sorted([*z, *drawn[0], *drawn[1]]), dtype=D)

    def ray(self, origin, direction, viewdirs):
        """Everything that training knows of one ray."""
        coarse, z = self.depths(origin, direction, viewdirs)
        net, field = self.field.nerf_fine, self.field
        points = [origin + d * direction for d in z]
        static = [self.static(net, p, viewdirs) for p in points]
        dynamic = [self.dynamic(net, p, self.time_step, True) for p in points]
        seen = self.sums(z, static, dynamic)
        found = {"coarse": coarse, "z": z, "seen": seen, "xyz": torch.stack(points), "dynamic_rgb": [d[1] for d in dynamic]}
        found["static"] = static
        for name, step, out, home in (("forward", 1, 2, 3), ("backward", -1, 3, 2)):
            if not 0 <= self.time_step + step < field.time_steps:
                continue
            gone = [p + (dynamic[k][out] if z[k] <= 0.95 else 0.0) for k, p in enumerate(points)]
            there = [self.dynamic(net, p, self.time_step + step, True) for p in gone]
            back = [p + (there[k][home] if z[k] <= 0.95 else 0.0) for k, p in enumerate(gone)]
            warped = self.sums(z, static, there)
            change = warped[3] - seen[3]
            point = sum(seen[4][k] * gone[k] for k in range(len(z)))
            disocclusion = (1 - change.abs()).detach(), (1 - change.sum().abs()).detach()
            found[name] = (torch.stack(gone), torch.stack(back), warped, point, *disocclusion)
        return found


def quantile_depths(borders, weights, count):
    """Evenly spaced quantiles of a piecewise constant distribution, by walking along it."""
    weights = np.asarray(weights) + 1e-5
    parts = weights / weights.sum()
    found = []
    for u in np.linspace(0, 1, count):
        below, k = 0.0, 0
        while k < len(parts) - 1 and u >= below + parts[k]:
            below, k = below + parts[k], k + 1
        if u >= below + parts[k]:  # beyond the last border
            found.append(borders[k + 1])
            continue
        found.append(borders[k] + (u - below) / (parts[k] if parts[k] >= 1e-5 else 1.0) * (borders[k + 1] - borders[k]))
    return found


def outputs_of(training) -> list[torch.Tensor]:
    """All that training returns, in one order."""
    layers = [training.fine, *([training.coarse] if training.coarse is not None else [])]
    found = [value for layer in layers for value in (layer.rgb, layer.depth, layer.static_weights, layer.dynamic_weights, layer.weights)]
    found.append(training.xyz)
    for warp in (training.forward, training.backward):
        if warp is not None:
            seen = (
                warp.composited.rgb,
                warp.composited.depth,
                warp.composited.static_weights,
                warp.composited.dynamic_weights,
                warp.composited.weights,
            )
            found += [warp.xyz, warp.returned, *seen, warp.point, warp.disocclusion.samples, warp.disocclusion.rays]
    return found


def plain_outputs(field, rays, viewdirs, time_step) -> list[torch.Tensor]:
    plain = Plain(field, time_step)
    rows = []
    for origin, direction, along in zip(rays.origins, rays.directions, viewdirs, strict=True):
        found = plain.ray(origin, direction, along)
        row = [*found["seen"], *(found["coarse"] or ()), found["xyz"]]
        for name in ("forward", "backward"):
            if name in found:
                gone, back, warped, point, samples, whole = found[name]
                row += [gone, back, *warped, point, samples, whole]
        rows.append(row)
    return [torch.stack(values) for values in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    ("time_step", "importance", "changes"),
    [(0, 0, {}), (1, 0, {}), (3, 0, {"view_directions": False}), (2, 5, {}), (1, 0, {"appearance_channels": 4})],
    ids=["first", "inner", "last", "importance", "appearance"],
)
def test_training_equals_the_text_ray_by_ray(time_step, importance, changes):
    field, (rays, viewdirs) = video_field(importance, **changes), some_rays()
    found, expected = outputs_of(field.render_training(rays, viewdirs, time_step)), plain_outputs(field, rays, viewdirs, time_step)
    gradients = []
    for outputs in (found, expected):
        generator = torch.Generator().manual_seed(4)
        total = sum((torch.rand(o.shape, generator=generator, dtype=D) * o).sum() for o in outputs)
        gradients.append(torch.autograd.grad(total, list(field.parameters()), allow_unused=True))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert sum(g is not None and bool(g.any()) for g in gradients[0]) >= 29


def test_ends_have_one_neighbour():
    field, (rays, viewdirs) = video_field(), some_rays()
    first, last = field.render_training(rays, viewdirs, 0), field.render_training(rays, viewdirs, 3)
    assert first.backward is None and first.forward is not None and last.forward is None and last.backward is not None


def test_dynamic_matter_begins_as_thin_as_wanted():
    """Of random networks."""
    rendered_path = []
    for dynamic_sigma in (None, -3.0):
        torch.manual_seed(2)
        field = Nsff(NsffSampling(samples=20, importance=2), time_steps=4, dynamic_sigma=dynamic_sigma, **SMALL).to(D)
        rendered_path.append(field.render(*some_rays(50), 1))
    usual, thin = (outputs.dynamic_alpha.mean().item() for outputs in rendered_path)
    # over depths 0 to 1 nothing but the density counts: about 1 - exp(-softplus), less what static matter hides
    assert 0.6 * (1 - math.exp(-math.log(2))) < usual < 1 - math.exp(-math.log(2)) + 0.05
    assert 0.6 * (1 - math.exp(-math.log1p(math.exp(-3)))) < thin < 1 - math.exp(-math.log1p(math.exp(-3))) + 0.02
    assert thin < 0.2 * usual


def test_depths_and_noise_are_drawn_in_training_only():
    field, (rays, viewdirs) = video_field(), some_rays()
    field.sampling = NsffSampling(samples=6, perturb=1.0, noise_std=1.0)
    one, two = (field.render_training(rays, viewdirs, 1, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert not torch.allclose(one.xyz, two.xyz) and not torch.allclose(one.fine.rgb, two.fine.rgb)
    with torch.no_grad():
        assert torch.equal(field.render(rays, viewdirs, 1).rgb, field.render(rays, viewdirs, 1).rgb)


# ----------------------------------------------------------------------------------- afterwards
def left_half(xyz: torch.Tensor) -> torch.Tensor:
    return xyz[:, 0] < 0


@pytest.mark.parametrize("importance", [0, 5])
@pytest.mark.parametrize("seen", [None, left_half], ids=["everywhere", "frustum"])
def test_a_look_equals_the_text_ray_by_ray(importance, seen):
    field, (rays, viewdirs) = video_field(importance), some_rays(6)
    with torch.no_grad():
        outputs = field.render(rays, viewdirs, 2, seen)
        for r in range(6):
            plain = Plain(field, 2, seen).ray(rays.origins[r], rays.directions[r], viewdirs[r])
            rgb, depth, _, dynamic, weights = plain["seen"]
            nothing = [(torch.zeros((), dtype=D), torch.zeros(3, dtype=D))] * len(plain["z"])
            alone = Plain(field, 2).sums(plain["z"], plain["static"], nothing)
            moving = sum(w * c for w, c in zip(dynamic, plain["dynamic_rgb"], strict=True)) + 0.8 * (1 - dynamic.sum())
            expected = {
                **{"rgb": rgb, "depth": depth, "dynamic_alpha": dynamic.sum(), "dynamic_rgb": moving},
                **{"dynamic_depth": (dynamic * plain["z"]).sum(), "static_rgb": alone[0], "static_depth": alone[1]},
                **{"forward": plain["forward"][3], "backward": plain["backward"][3]},
            }
            assert {key.name for key in fields(outputs)} == set(expected)
            for name, value in expected.items():
                torch.testing.assert_close(getattr(outputs, name)[r], value, rtol=1e-8, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("importance", [0, 5])
def test_blocks_change_nothing(importance):
    field, (rays, viewdirs) = video_field(importance), some_rays(7)
    with torch.no_grad():
        whole, parts = field.render(rays, viewdirs, 1, left_half), field.render(rays, viewdirs, 1, left_half, chunk=40)
    for key in fields(whole):
        torch.testing.assert_close(getattr(whole, key.name), getattr(parts, key.name), rtol=1e-12, atol=1e-12)


def test_what_the_camera_did_not_see_is_static():
    field, (rays, viewdirs) = video_field(), some_rays(6)
    with torch.no_grad():
        everywhere, nowhere = field.render(rays, viewdirs, 1), field.render(rays, viewdirs, 1, lambda xyz: xyz[:, 0] > 9)
    assert everywhere.dynamic_alpha.max() > 0.3 and nowhere.dynamic_alpha.max() < 1e-3
    torch.testing.assert_close(nowhere.rgb, nowhere.static_rgb, atol=1e-3, rtol=0)


@pytest.mark.parametrize("importance", [0, 5])
def test_at_a_moment_planes_give_the_look(importance):
    """share 0 is the time step itself."""
    field, (rays, viewdirs) = video_field(importance), some_rays(6)
    with torch.no_grad():
        outputs, z = field.render(rays, viewdirs, 1, left_half), field.depths(rays, viewdirs, 1, left_half)
        planes = [tuple(field.plane(rays, viewdirs, when, z, k, left_half, chunk=4) for when in (1, 2)) for k in range(z.shape[1])]
        (made,) = interpolate_outputs(planes, [0.0], (2, 3), lambda xyz: xyz, lambda xyz: 30 * xyz[:, :2])
    for name in ("rgb", "depth", "dynamic_alpha", "dynamic_rgb", "dynamic_depth", "static_rgb", "static_depth"):
        torch.testing.assert_close(getattr(made, name), getattr(outputs, name), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------- checkpoints
def theirs(appearance: int = 0, directions: bool = True, coarse: bool = False, time_steps: int = 30) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint of nsff_pl."""
    shapes: dict[str, tuple[int, ...]] = {"embedding_t.weight": (time_steps, 48)}
    if appearance:
        shapes["embedding_a.weight"] = (time_steps, appearance)
    for net in ("nerf_fine", "nerf_coarse") if coarse else ("nerf_fine",):
        layers: dict[str, tuple[int, int]] = {}
        for k in range(1, 9):
            layers[f"static_xyz_encoding_{k}.0"] = (256, {1: 63, 5: 319}.get(k, 256))
            layers[f"transient_xyz_encoding_{k}.0"] = (256, {1: 111, 5: 367}.get(k, 256))
        layers |= {"static_xyz_encoding_final": (256, 256), "transient_xyz_encoding_final": (256, 256)}
        if directions:
            layers["static_dir_encoding.0"] = (256, 283 + (appearance if net == "nerf_fine" else 0))
        layers |= {"static_sigma": (1, 256), "static_rgb.0": (3, 256), "transient_sigma": (1, 256), "transient_rgb.0": (3, 256)}
        if net == "nerf_fine":
            layers |= {"transient_flow_fw.0": (3, 256), "transient_flow_bw.0": (3, 256)}
        for name, (outputs, inputs) in layers.items():
            shapes[f"{net}.{name}.weight"], shapes[f"{net}.{name}.bias"] = (outputs, inputs), (outputs,)
    return shapes


@pytest.mark.parametrize(
    "changes",
    [{}, {"directions": False}, {"appearance": 48}, {"coarse": True}, {"appearance": 16, "coarse": True}],
    ids=["plain", "no directions", "appearance", "coarse", "both"],
)
def test_checkpoints_of_nsff_pl_have_our_names_and_their_sizes_can_be_read(changes):
    shapes = theirs(**changes)
    weights = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    importance = 8 if changes.get("coarse") else 0
    sizes = architecture_of(weights)
    found = sizes.changes(Nsff(NsffSampling(importance=importance), time_steps=2, **SMALL))
    field = Nsff(NsffSampling(importance=importance), time_steps=sizes.time_steps, **found)
    assert {name: tuple(value.shape) for name, value in field.state_dict().items()} == shapes
    assert all(name.startswith(SAME_AS_NSFF_PL) for name in shapes)
    field.load_state_dict(weights)
    again = architecture_of(field.state_dict())
    assert again == sizes


def test_sizes_of_other_networks_can_be_read():
    field = Nsff(NsffSampling(), time_steps=7, **SMALL)
    sizes = architecture_of(field.state_dict())
    assert (sizes.time_steps, sizes.depth, sizes.width, sizes.skips) == (7, 3, 16, (1,))
    assert (sizes.xyz_frequencies, sizes.dir_frequencies, sizes.time_channels, sizes.coarse) == (3, 2, 5, False)


@pytest.mark.parametrize(
    "lacking", ["embedding_t.weight", "nerf_fine.transient_flow_fw.0.weight", "nerf_fine.transient_xyz_encoding_1.0.weight"]
)
def test_weights_of_something_else(lacking):
    weights = {name: torch.zeros(shape) for name, shape in theirs().items() if name != lacking}
    with pytest.raises(InputError, match=f"expected {lacking}.*encode_t"):
        architecture_of(weights)


def test_importance_cannot_be_read_from_weights():
    sizes = architecture_of({name: torch.zeros(shape) for name, shape in theirs(coarse=True).items()})
    with pytest.raises(InputError, match="importance"):
        sizes.changes(Nsff(NsffSampling(), time_steps=2, **SMALL))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NsffSampling(samples=2), "samples"),
        (lambda: NsffSampling(perturb=1.5), "perturb"),
        (lambda: NsffSampling(importance=-1), "importance"),
        (lambda: NsffSampling(noise_std=math.inf * -1), "noise_std"),
        (lambda: Nsff(NsffSampling(), time_steps=1), "time steps"),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()
