"""Sums over views: the same as plain dense regressions, whatever the order, the passes and the place where they are kept.

Symbols: n points, k views, c channels, m basis functions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from npbgpp.methods.npbgpp import NPBGPlusPlus, SceneSums
from npbgpp.nets.aggregation import Aggregator, MeanAggregator, PointDirections, SphereAggregator

POINTS, VIEWS, CHANNELS = 60, 9, 4


@dataclass(frozen=True)
class Observation:
    """What one view shows: points, their features and where they were looked at from."""

    points: Tensor
    features: Tensor
    looked: PointDirections


@pytest.fixture
def observations() -> list[Observation]:
    """Views that each see about half of the points; point 0 is seen by none, point 1 by one, point 2 by all."""
    found = []
    for k in range(VIEWS):
        seen = torch.rand(POINTS) < 0.5
        seen[:3] = torch.tensor([False, k == 3, True])
        points = seen.nonzero()[:, 0]
        points = points[torch.randperm(len(points))]
        found.append(
            Observation(points, torch.randn(len(points), CHANNELS), PointDirections(torch.randn(len(points), 3), torch.randn(1, 3)))
        )
    return found


def aggregators() -> list[Aggregator]:
    return [
        MeanAggregator(descriptor_dim=CHANNELS),
        SphereAggregator(descriptor_dim=CHANNELS),
        SphereAggregator(descriptor_dim=CHANNELS, type="learnable_vdo", m=3, learnable_alpha=True),
        SphereAggregator(descriptor_dim=CHANNELS, type="spherical", m=4),
    ]


def summed(aggregator: Aggregator, observations: list[Observation]) -> tuple[SceneSums, Tensor]:
    """The state after all views, and (n, q) coefficients, over NaN."""
    sums = SceneSums(POINTS, aggregator, "cpu")
    for o in observations:
        slot = torch.full((POINTS,), -1)
        slot[o.points] = torch.arange(len(o.points))

        def look(part, o=o, slot=slot):
            rows = slot[part]
            return o.features[rows], PointDirections(o.looked.offset[rows], o.looked.axis)

        sums.add_view(o.points, look)
    coefficients = torch.full((POINTS, aggregator.coefficients), torch.nan)
    sums.solve_into(coefficients)
    return sums, coefficients


@torch.no_grad()
def dense(aggregator: Aggregator, observations: list[Observation]) -> Tensor:
    """(n, q) from one regression after the other in double precision, zeros for points that no view saw (NPBG++, section 3.3)."""
    rows = []
    for point in range(POINTS):
        seen = [(o, (o.points == point).nonzero()[:, 0]) for o in observations]
        features = torch.cat([o.features[at] for o, at in seen]).double()
        if len(features) == 0:
            rows.append(torch.zeros(aggregator.coefficients, dtype=torch.float64))
            continue
        mean = features.mean(0)
        parts = [mean]
        if isinstance(aggregator, SphereAggregator):
            basis = torch.cat([aggregator.basis(PointDirections(o.looked.offset[at], o.looked.axis)) for o, at in seen if len(at)]).double()
            alpha = aggregator.alpha.double()[:, 0]
            ridge = torch.diag(torch.nn.functional.softplus(alpha) if aggregator.learnable_alpha else alpha)
            parts.append(torch.linalg.solve(basis.T @ basis + ridge, basis.T @ (features - mean)).flatten())
        rows.append(torch.cat(parts))
    return torch.stack(rows).float()


@pytest.mark.parametrize("k", range(4))
def test_sums_give_the_dense_regression(observations, k):
    aggregator = aggregators()[k]
    sums, coefficients = summed(aggregator, observations)
    assert not coefficients[0].any() and len(sums) == coefficients.any(1).sum() < POINTS
    torch.testing.assert_close(coefficients, dense(aggregator, observations), rtol=1e-3, atol=1e-4)


def test_a_point_that_one_view_saw_has_its_feature_and_no_slope(observations):
    _, coefficients = summed(SphereAggregator(descriptor_dim=CHANNELS), observations)
    feature = observations[3].features[observations[3].points == 1][0]
    torch.testing.assert_close(coefficients[1, :CHANNELS], feature)
    assert coefficients[1, CHANNELS:].abs().max() < 1e-6


@pytest.mark.parametrize("k", range(4))
def test_order_does_not_matter(observations, k):
    aggregator = aggregators()[k]
    _, forward = summed(aggregator, observations)
    mixed = [Observation(o.points[p], o.features[p], PointDirections(o.looked.offset[p], o.looked.axis)) for o, p in shuffled(observations)]
    _, backward = summed(aggregator, mixed)
    torch.testing.assert_close(forward, backward, rtol=1e-4, atol=1e-5)


def shuffled(observations: list[Observation]) -> Iterator[tuple[Observation, Tensor]]:
    for k in torch.randperm(VIEWS).tolist():
        yield observations[k], torch.randperm(len(observations[k].points))


def test_views_that_see_nothing_change_nothing(observations):
    aggregator = SphereAggregator(descriptor_dim=CHANNELS)
    nothing = Observation(torch.zeros(0, dtype=torch.int64), torch.zeros(0, CHANNELS), PointDirections(torch.zeros(0, 3), torch.ones(1, 3)))
    with_it, without = (summed(aggregator, o) for o in ([nothing, *observations[:2], nothing, *observations[2:]], observations))
    assert len(with_it[0]) == len(without[0]) and torch.equal(with_it[1], without[1])
    sums, coefficients = summed(aggregator, [nothing])
    assert len(sums) == 0 and (coefficients == 0).all()


def test_memory_grows_with_the_points_that_were_seen():
    aggregator = SphereAggregator(descriptor_dim=CHANNELS)
    sums = SceneSums(1000, aggregator, "cpu")
    used = [sums.bytes_used()]
    for points in (torch.arange(0, 10), torch.arange(5, 10), torch.arange(5, 25)):
        sums.add(points, torch.ones(len(points), CHANNELS), PointDirections(torch.ones(len(points), 3), torch.ones(1, 3)))
        used.append(sums.bytes_used())
    first, again, more = (after - before for before, after in zip(used, used[1:], strict=False))
    assert again == 0 and first / 10 == more / 15 >= 4 * aggregator.sums
    assert used[0] < 1000 * 4 * aggregator.sums


# ------------------------------------------------------------------ in a run
@pytest.fixture(scope="module")
def aggregated(run_npbgpp, tmp_path_factory) -> Callable[..., Tensor]:
    """Descriptors of the tiny scene by a network that was trained for one step, and further settings."""
    launch = tmp_path_factory.mktemp("npbgpp")
    start = run_npbgpp(launch, "trainer.limit_val_batches=0", "datasets.train_num_samples=1", name="start")

    def evaluate(*overrides: str, name: str) -> Tensor:
        folder: Path = run_npbgpp(launch, "eval_only=true", f"weights_path={start}/checkpoints/last.ckpt", *overrides, name=name)
        return torch.load(folder / "descriptors" / "ball.pth", weights_only=True)

    return evaluate


def test_passes_and_the_place_of_the_state_do_not_matter(aggregated, monkeypatch):
    added: list[int] = []
    add = SceneSums.add
    monkeypatch.setattr(SceneSums, "add", lambda self, points, *look: added.append(len(self._row)) or add(self, points, *look))
    whole = aggregated(name="whole")
    assert whole.shape == (400, 56) and added == [400] * 12
    added.clear()
    in_parts = aggregated("system.points_per_pass=150", "system.state_device=cpu", name="parts")
    assert added == [150] * 12 + [150] * 12 + [100] * 12, "each pass reads every photo for its own points"
    torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=1e-5)  # the kernels round the rest of a part otherwise
    assert whole.any(1).sum() > 300


def test_a_pass_without_any_visible_point(aggregated, monkeypatch):
    """The points of the last pass lie where no photo shows them."""
    read = NPBGPlusPlus.read_cloud
    away = torch.tensor([0.0, 0.0, 50.0])
    monkeypatch.setattr(NPBGPlusPlus, "read_cloud", lambda self, name: torch.cat([xyz := read(self, name), xyz[:100] + away]))
    found = aggregated("system.points_per_pass=400", name="beyond")
    assert found.shape == (500, 56) and found[:400].any() and not found[400:].any()
