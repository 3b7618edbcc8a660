"""Pictures between two time steps: every pixel of every plane carried by hand, values and gradients, and what stands still."""

import math

import pytest
import torch

from npbgpp.methods.nsff.compositing import InterpolatedOutputs, Plane, interpolate_outputs

D = torch.float64
SIZE = (3, 4)
N = SIZE[0] * SIZE[1]


def to_field(xyz: torch.Tensor) -> torch.Tensor:
    return torch.stack([xyz[:, 0] * 2, xyz[:, 1] * 3, 4 + xyz[:, 2]], 1)


def to_pixels(xyz: torch.Tensor) -> torch.Tensor:
    return 10 * xyz[:, :2] / xyz[:, 2:]


def some_planes(count: int = 3, seed: int = 0, motion: float = 0.3) -> list[tuple[Plane, Plane]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=D).requires_grad_()

    planes = []
    for k in range(count):
        xyz, z = draw(N, 3).detach(), torch.full((N,), k / count, dtype=D)
        static = (draw(N), draw(N, 3))
        planes.append(
            tuple(
                Plane(xyz, z, *static, draw(N), draw(N, 3), motion * (draw(N, 3) * 2 - 1), motion * (draw(N, 3) * 2 - 1)) for _ in range(2)
            )
        )
    return planes


def carried(plane: Plane, flow: list[tuple[float, float]]) -> tuple[list, list]:
    """(mean colour, mean opacity) that arrives in each pixel."""
    sums = [[torch.zeros(4, dtype=D), torch.zeros((), dtype=D)] for _ in range(N)]
    for i in range(N):
        layers = torch.cat([plane.dynamic_rgb[i], 1 - torch.exp(-plane.dynamic_tau[i : i + 1])])
        x, y = i % SIZE[1] + flow[i][0], i // SIZE[1] + flow[i][1]
        left, top = math.floor(x.item()), math.floor(y.item())
        for u, v in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
            if 0 <= u < SIZE[1] and 0 <= v < SIZE[0]:
                share = (1 - abs(x - u)) * (1 - abs(y - v))
                sums[v * SIZE[1] + u][0] = sums[v * SIZE[1] + u][0] + share * layers
                sums[v * SIZE[1] + u][1] = sums[v * SIZE[1] + u][1] + share
    means = [total / (weight if weight > 0 else 1.0) for total, weight in sums]
    return [mean[:3] for mean in means], [mean[3] for mean in means]


def by_hand(planes: list[tuple[Plane, Plane]], share: float) -> InterpolatedOutputs:
    black, zero = torch.zeros(3, dtype=D), torch.zeros((), dtype=D)
    rows = [
        {
            "rgb": black,
            "depth": zero,
            "dynamic_alpha": zero,
            "dynamic_rgb": black,
            "dynamic_depth": zero,
            "static_rgb": black,
            "static_depth": zero,
            "a": zero,
            "s": zero,
        }
        for _ in range(N)
    ]
    for now, then in planes:
        flows = []
        for plane, motion, part in ((now, now.forward, share), (then, then.backward, 1 - share)):
            start, end = to_field(plane.xyz), to_field(plane.xyz + motion)
            moved = to_pixels(start + part * (end - start)) - to_pixels(start)
            flows.append([(moved[i, 0], moved[i, 1]) for i in range(N)])
        (rgb, alpha), (rgb_then, alpha_then) = carried(now, flows[0]), carried(then, flows[1])
        for i, row in enumerate(rows):
            static = 1 - torch.exp(-now.static_tau[i])
            moving = alpha[i] * (1 - share) + alpha_then[i] * share
            colour = rgb[i] * alpha[i] * (1 - share) + rgb_then[i] * alpha_then[i] * share
            both = 1 - (1 - moving) * (1 - static)
            row["rgb"] = row["rgb"] + (1 - row["a"]) * (colour + static * now.static_rgb[i])
            row["dynamic_rgb"] = row["dynamic_rgb"] + (1 - row["a"]) * colour
            row["dynamic_alpha"] = row["dynamic_alpha"] + (1 - row["a"]) * moving
            row["dynamic_depth"] = row["dynamic_depth"] + (1 - row["a"]) * moving * now.z[i]
            row["depth"] = row["depth"] + (1 - row["a"]) * both * now.z[i]
            row["static_rgb"] = row["static_rgb"] + (1 - row["s"]) * static * now.static_rgb[i]
            row["static_depth"] = row["static_depth"] + (1 - row["s"]) * static * now.z[i]
            row["a"], row["s"] = row["a"] + (1 - row["a"]) * both, row["s"] + (1 - row["s"]) * static
    for row in rows:
        row["dynamic_rgb"] = row["dynamic_rgb"] + 0.8 * (1 - row["dynamic_alpha"])
        del row["a"], row["s"]
    return InterpolatedOutputs(**{name: torch.stack([row[name] for row in rows]) for name in rows[0]})


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_equals_pixels_carried_by_hand_in_values_and_gradients(share):
    planes = some_planes()
    (found,), expected = interpolate_outputs(iter(planes), [share], SIZE, to_field, to_pixels), by_hand(planes, share)
    names = list(found.__dict__)
    for name in names:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)
    now, then = planes[1]
    leaves = [
        now.dynamic_tau,
        now.dynamic_rgb,
        then.dynamic_tau,
        then.dynamic_rgb,
        now.static_tau,
        now.static_rgb,
        now.forward,
        then.backward,
    ]
    weights = {name: torch.rand(getattr(found, name).shape, dtype=D) for name in names}
    gradients = [
        torch.autograd.grad(sum((weights[n] * getattr(made, n)).sum() for n in names), leaves, allow_unused=True, materialize_grads=True)
        for made in (found, expected)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_several_pictures_at_once_are_those_made_one_by_one():
    planes, shares = some_planes(), [0.1, 0.5, 0.9]
    together = interpolate_outputs(planes, shares, SIZE, to_field, to_pixels)
    for share, made in zip(shares, together, strict=True):
        (alone,) = interpolate_outputs(planes, [share], SIZE, to_field, to_pixels)
        assert torch.equal(made.rgb, alone.rgb) and torch.equal(made.depth, alone.depth)


def test_what_stands_still_fades_from_the_one_moment_to_the_other():
    planes = some_planes(1, motion=0.0)
    first, middle, last = interpolate_outputs(planes, [0.0, 0.5, 1.0], SIZE, to_field, to_pixels)
    torch.testing.assert_close(middle.rgb, (first.rgb + last.rgb) / 2)
    assert torch.equal(first.static_rgb, last.static_rgb)


def test_a_patch_that_moves_by_two_pixels_is_in_the_middle_after_half_of_the_time():
    nothing, dense, black = torch.zeros(N, dtype=D), torch.zeros(N, dtype=D), torch.zeros(N, 3, dtype=D)
    place = torch.stack([torch.arange(N, dtype=D) % SIZE[1] + 0.5, torch.arange(N, dtype=D) // SIZE[1] + 0.5, torch.ones(N, dtype=D)], 1)
    step = torch.tensor([2.0, 0.0, 0.0], dtype=D)
    planes, colour = [], torch.tensor([1.0, 0.5, 0.25], dtype=D)
    for pixel, sign in ((4, 1), (6, -1)):  # row 1, columns 0 and 2
        tau, rgb, motion = dense.clone(), black.clone(), black.clone()
        tau[pixel], rgb[pixel], motion[pixel] = 50.0, colour, sign * step
        planes.append(Plane(place, nothing, nothing, black, tau, rgb, motion, motion))
    (made,) = interpolate_outputs([(planes[0], planes[1])], [0.5], SIZE, lambda xyz: xyz, lambda xyz: xyz[:, :2])
    # in the middle arrive the patch and the pixel that stands there and is empty: the mean of both, from either side
    expected = torch.zeros(N, dtype=D)
    expected[5] = 0.5
    torch.testing.assert_close(made.dynamic_alpha, expected)
