"""Selection of input views: scores, both methods, and a selector that rasterizes the cloud once per target.

Cameras stand on a ring around a sphere; view number grows with the azimuth.
"""

import math
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from npbgpp.data import view_selection as module
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene, View
from npbgpp.data.view_selection import ViewSelector, angle_scores, best_views, farthest_points, multinomial_views
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixels import PixelConvention, ProjectionSettings
from npbgpp.geometry.point_cloud import PointCloud, write_ply
from npbgpp.kernels.rasterization import ChunkedCloud, Level, rasterize

SIZE = (64, 80)
VIEWS = 10
NEAR = 1.0
PROJECTION = ProjectionSettings(NEAR)


def camera_from(eye: torch.Tensor, aim: torch.Tensor, focal: float = 90.0, size: tuple[int, int] = SIZE) -> Cameras:
    """A camera at ``eye`` that looks at ``aim``, up along y."""
    forward = torch.nn.functional.normalize(aim - eye, dim=0)
    left = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), forward), dim=0)
    R = torch.stack([left, torch.linalg.cross(forward, left), forward], 1)
    centre = torch.tensor([[size[1] / 2, size[0] / 2]])
    return Cameras(R[None], -(eye @ R)[None], torch.full((1, 2), focal), centre, size)


def ring_camera(degrees: float, distance: float = 4.0) -> Cameras:
    angle = math.radians(degrees)
    return camera_from(distance * torch.tensor([math.sin(angle), 0.0, -math.cos(angle)]), torch.zeros(3))


def scene_of(folder: Path, cameras: list[Cameras], xyz: torch.Tensor) -> Scene:
    """A scene without photos."""
    write_ply(folder / "cloud.ply", PointCloud(xyz))
    views = tuple(View(f"v{k}", folder / f"{k}.png", camera) for k, camera in enumerate(cameras))
    return Scene("ring", views, {"train": tuple(range(len(views))), "val": (), "test": ()}, CloudFile(folder / "cloud.ply"))


@pytest.fixture
def sphere() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(3000, 3), dim=1)


@pytest.fixture
def ring(tmp_path, sphere) -> Scene:
    return scene_of(tmp_path, [ring_camera(36.0 * k) for k in range(VIEWS)], sphere)


def selector_of(scene: Scene, method: str = "multinomial", count: int = 3, targets: tuple[int, ...] = tuple(range(VIEWS)), **options):
    return ViewSelector(scene, options.pop("inputs", tuple(range(len(scene.views)))), targets, method, count, PROJECTION)


# ---------------------------------------------------------------- scores
@pytest.mark.parametrize("degrees", [0.0, 0.01, 5.0, 15.0, 16.0, 40.0, 170.0])
def test_score_of_an_angle(degrees):
    """One point at the origin, seen by cameras at an angle around it."""
    target, view = ring_camera(0.0), ring_camera(degrees)
    score = angle_scores(torch.zeros(1, 3), target.centers()[0], view, PROJECTION).item()
    sigma = 5.0 if degrees <= 15 else 15.0
    assert score == pytest.approx(math.exp(-((degrees - 15) ** 2) / (2 * sigma**2)), rel=1e-3, abs=1e-7)


def test_score_with_other_numbers():
    scores = angle_scores(torch.zeros(1, 3), ring_camera(0.0).centers()[0], ring_camera(25.0), PROJECTION, 2.0, 10.0, 20.0)
    assert scores.item() == pytest.approx(math.exp(-0.125), rel=1e-3)


@pytest.mark.parametrize("convention", PixelConvention)
def test_a_view_scores_only_what_it_sees(convention):
    view = camera_from(torch.tensor([0.0, 0.0, -4.0]), torch.zeros(3))
    points = torch.tensor(
        [
            [0.01, 0.01, 0.0],  # seen
            [0.012, 0.012, 1.0],  # behind it, in the same cell
            [0.5, 0.5, 0.0],  # seen
            [9.0, 0.0, 0.0],  # beside the image
            [0.0, 0.0, -3.5],  # before the near plane
            [0.0, 0.0, -9.0],  # behind the camera
            [0.01, 0.01, 0.0],  # as near as the first
        ]
    )
    scores = angle_scores(points, torch.tensor([1.0, 0.0, -4.0]), view, ProjectionSettings(NEAR, convention))[0]
    assert (scores > 0).tolist() == [True, False, True, False, False, False, True]


def test_every_view_has_its_own_intrinsics():
    near_view, far_view = ring_camera(10.0), replace(ring_camera(10.0), focal_length=torch.full((1, 2), 400.0))
    points = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.8, 0.0]])
    scores = angle_scores(points, ring_camera(0.0).centers()[0], Cameras.cat([near_view, far_view]), PROJECTION)
    assert (scores > 0).tolist() == [[True, True], [True, False]]


def scores_by_loop(xyz: torch.Tensor, center: torch.Tensor, views: list[Cameras]) -> torch.Tensor:
    """Double precision, one pair at a time, exact convention."""
    scores = torch.zeros(len(views), len(xyz))
    for k, view in enumerate(views):
        uv, depth = view.project(xyz)
        nearest: dict[tuple[int, int], int] = {}
        for p, ((u, v), z) in enumerate(zip(uv[0].tolist(), depth[0].tolist(), strict=True)):
            if z > NEAR and 0 <= u < view.image_size[1] and 0 <= v < view.image_size[0]:
                cell = int(v // 8), int(u // 8)
                rows, columns = view.image_size[0] // 8, view.image_size[1] // 8
                if cell[0] < rows and cell[1] < columns and (cell not in nearest or z < depth[0, nearest[cell]]):
                    nearest[cell] = p
        for p in nearest.values():
            a, b = (c.double() - xyz[p].double() for c in (center, view.centers()[0]))
            theta = math.degrees(math.acos(float(a @ b / (a.norm() * b.norm()))))
            scores[k, p] = math.exp(-((theta - 15) ** 2) / (2 * (5 if theta <= 15 else 15) ** 2))
    return scores


@pytest.mark.parametrize("size", [(64, 80), (61, 83)])  # the second has pixels outside all cells
def test_scores_equal_a_loop(sphere, size):
    views = [replace(ring_camera(25.0 * k), image_size=size) for k in range(5)]
    center = ring_camera(7.0).centers()[0]
    points = torch.cat([sphere[:300], torch.rand(200, 3) * 4 - 2])
    expected = scores_by_loop(points, center, views)
    assert (expected > 0).sum() > 150
    torch.testing.assert_close(angle_scores(points, center, Cameras.cat(views), PROJECTION), expected, rtol=1e-3, atol=1e-5)


def test_no_points_give_no_scores():
    views = Cameras.cat([ring_camera(0.0), ring_camera(9.0)])
    assert angle_scores(torch.zeros(0, 3), torch.zeros(3), views, PROJECTION).shape == (2, 0)


# ---------------------------------------------------------------- farthest points
@pytest.mark.parametrize("d", [1, 2, 3])
def test_every_point_is_the_farthest_from_those_before(d):
    xyz = torch.rand(80, d)
    chosen = farthest_points(xyz, 20, 7).tolist()
    assert chosen[0] == 7
    for k in range(1, 20):
        distance = torch.cdist(xyz.double(), xyz[chosen[:k]].double()).amin(1)
        assert distance[chosen[k]] >= distance.max() - 1e-6


def test_points_at_one_place_are_chosen_once_each():
    xyz = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).repeat(3, 1)
    assert sorted(farthest_points(xyz, 6, 4).tolist()) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="at least 7 points, got 6"):
        farthest_points(xyz, 7, 0)


# ---------------------------------------------------------------- choices
COVERED = torch.tensor([[0.9, 0.8, 0.0], [0.7, 0.0, 0.0], [0.0, 0.0, 0.5], [0.0, 0.8, 0.0], [0.0, 0.0, 0.0]])


def test_best_goes_on_with_the_largest_score_when_all_points_are_covered():
    """Views 2 and 0 cover everything (shares 1 and 9/16 + 1/2); then the sums 0.8, 0.7, 0 decide."""
    assert best_views(COVERED, 5) == [0, 2, 3, 1, 4]
    assert all(best_views(COVERED, 5) == [0, 2, 3, 1, 4] for _ in range(5))


def test_best_prefers_new_points_to_high_scores():
    scores = torch.tensor([[1.0, 1.0, 0.0], [0.9, 0.9, 0.0], [0.0, 0.0, 0.01]])
    assert best_views(scores, 2) == [0, 2]


@pytest.mark.parametrize("choose", [best_views, multinomial_views])
def test_more_views_than_there_are(choose):
    with pytest.raises(ValueError, match="at least 6 views, got 5"):
        choose(COVERED, 6)


def pair_probabilities(scores: torch.Tensor) -> dict[tuple[int, int], float]:
    """Probability of every ordered pair, written out."""
    k = len(scores)

    def draw(points: torch.Tensor, taken: list[int]) -> list[float]:
        weights = [sum(float(points[v, p] / (points[:, p].sum() + 1e-6)) for p in range(points.shape[1])) for v in range(k)]
        if sum(weights) == 0:
            weights = [0.1] * k
        weights = [0.0 if v in taken else w for v, w in enumerate(weights)]
        return [w / sum(weights) for w in weights]

    return {
        (a, b): pa * pb
        for a, pa in enumerate(draw(scores, []))
        if pa
        for b, pb in enumerate(draw(scores[:, scores[a] == 0], [a]))
        if a != b
    }


@pytest.mark.parametrize(
    "scores",
    [
        pytest.param(torch.tensor([[0.9, 0.2, 0.0, 0.0], [0.3, 0.0, 0.6, 0.0], [0.0, 0.1, 0.2, 0.8], [0.0, 0.0, 0.0, 0.0]]), id="some"),
        pytest.param(torch.tensor([[0.9, 0.2], [0.3, 0.5], [0.0, 0.0]]), id="covered by one"),
        pytest.param(torch.zeros(4, 3), id="unseen"),
        pytest.param(torch.zeros(4, 0), id="no points"),
    ],
)
def test_multinomial_follows_its_distribution(scores):
    draws = 1000
    generator = torch.Generator().manual_seed(5)
    counts = Counter(tuple(multinomial_views(scores, 2, generator)) for _ in range(draws))
    expected = pair_probabilities(scores)
    assert set(counts) <= {pair for pair, probability in expected.items() if probability > 0}
    for pair, probability in expected.items():
        deviation = math.sqrt(draws * probability * (1 - probability))
        assert abs(counts[pair] - draws * probability) <= 4 * deviation + 1e-6, (pair, probability)


def test_multinomial_repeats_with_its_generator_and_with_the_global_one():
    scores = torch.rand(6, 20)
    first, second = (
        [multinomial_views(scores, 4, generator) for _ in range(5)]
        for generator in (torch.Generator().manual_seed(1), torch.Generator().manual_seed(1))
    )
    assert first == second
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append([multinomial_views(scores, 4) for _ in range(5)])
    assert runs[0] == runs[1] and len({tuple(run) for run in runs[0]}) > 1
    assert all(len(set(run)) == 4 for run in runs[0])


# ---------------------------------------------------------------- selector
@pytest.mark.parametrize("method", ["multinomial", "best"])
def test_select_gives_count_others(ring, method):
    selector = selector_of(ring, method, count=4)
    for target in range(VIEWS):
        chosen = selector.select(target, ring.views[target].camera)
        assert len(set(chosen)) == 4 and target not in chosen and set(chosen) <= set(range(VIEWS))


def test_select_can_take_all_views_and_only_inputs(ring):
    selector = selector_of(ring, inputs=(1, 4, 6, 9), targets=(2, 4))
    assert set(selector.select(4, ring.views[4].camera)) == {1, 6, 9}
    assert set(selector.select(2, ring.views[2].camera)) < {1, 4, 6, 9}


def test_neighbours_are_chosen_more_often(ring):
    selector = selector_of(ring, count=2)
    counts = Counter(view for _ in range(100) for view in selector.select(5, ring.views[5].camera))
    assert counts[4] + counts[6] > 5 * (counts[0] + counts[9] + counts[1])
    assert set(selector_of(ring, "best", count=2).select(5, ring.views[5].camera)) == {4, 6}


def test_best_is_deterministic(ring):
    chosen = set()
    for seed in range(4):
        torch.manual_seed(seed)
        chosen.add(selector_of(ring, "best", count=9).select(3, ring.views[3].camera))
    assert len(chosen) == 1


def test_many_points_are_subsampled(ring, monkeypatch):
    monkeypatch.setattr(module, "_VOTERS", 20)
    received = []
    scores = module.angle_scores
    monkeypatch.setattr(module, "angle_scores", lambda xyz, *rest: received.append(xyz) or scores(xyz, *rest))
    selector = selector_of(ring)
    for _ in range(4):
        selector.select(0, ring.views[0].camera)
    assert [len(xyz) for xyz in received] == [20] * 4
    assert len({tuple(xyz.flatten().tolist()) for xyz in received}) > 1  # random start
    selector_of(ring, "best").select(0, ring.views[0].camera)
    assert len(received[-1]) > 20


@pytest.mark.parametrize("convention", PixelConvention)
def test_voters_are_the_visible_points_of_the_whole_view(ring, sphere, convention, monkeypatch):
    received = []
    scores = module.angle_scores
    monkeypatch.setattr(module, "angle_scores", lambda xyz, *rest: received.append(xyz) or scores(xyz, *rest))
    selector = ViewSelector(ring, tuple(range(VIEWS)), range(VIEWS), "best", 3, ProjectionSettings(NEAR, convention))
    for target in (0, 7, 0):
        selector.select(target, ring.views[target].camera)
        index = rasterize(ChunkedCloud.build(sphere), ring.views[target].camera, [Level(0.125)], ProjectionSettings(NEAR, convention))[
            0
        ].index
        expected = sphere[index[index >= 0]]
        assert received[-1].dtype == torch.float32 and len(expected) > 10
        assert {tuple(row) for row in received[-1].tolist()} == {tuple(row) for row in expected.tolist()}


@pytest.fixture
def two_balls(tmp_path) -> Scene:
    """Views 1 to 3 see the ball on the left only, views 4 to 6 the one on the right only, view 0 both."""
    ball = 0.3 * torch.nn.functional.normalize(torch.randn(800, 3), dim=1)
    left, right = torch.tensor([-1.5, 0.0, 0.0]), torch.tensor([1.5, 0.0, 0.0])
    eye = torch.tensor([0.0, 0.0, -6.0])
    cameras = [camera_from(eye, torch.zeros(3))]
    for ball_centre in (left, right):
        cameras += [camera_from(eye + torch.tensor([0.2 * k, 1.0, 0.0]), ball_centre, focal=300.0) for k in range(3)]
    return scene_of(tmp_path, cameras, torch.cat([left + ball, right + ball]))


def test_crops_and_zooms_restrict_the_choice(two_balls):
    """+x of the world is on the left of the image of a camera that looks along +z with y up."""
    selector = selector_of(two_balls, targets=(0,), count=1)
    camera = two_balls.views[0].camera
    u, _ = camera.project(torch.tensor([[-1.5, 0.0, 0.0]]))[0][0, 0].tolist()
    assert u > 40
    parts = {"whole": camera, "right": camera.crop(16, 40, (32, 40)), "left": camera.crop(16, 0, (32, 40)).zoom(1.2)}
    seen = {name: {selector.select(0, part)[0] for _ in range(40)} for name, part in parts.items()}
    assert seen["right"] == {1, 2, 3} and seen["left"] == {4, 5, 6}
    assert seen["whole"] & {1, 2, 3} and seen["whole"] & {4, 5, 6}


@pytest.mark.parametrize("method", ["multinomial", "best"])
def test_a_target_without_points_draws_evenly(two_balls, method):
    selector = selector_of(two_balls, method, targets=(0,), count=1)
    empty = two_balls.views[0].camera.crop(16, 30, (20, 20)).zoom(4.0)
    counts = Counter(selector.select(0, empty)[0] for _ in range(150))
    assert set(counts) == {1, 2, 3, 4, 5, 6} and min(counts.values()) > 8


def test_the_cloud_is_read_once_and_rasterized_once_per_target(ring, monkeypatch):
    read, drawn = [], []
    original_read, original_rasterize = CloudFile.read, module.rasterize
    monkeypatch.setattr(CloudFile, "read", lambda self: read.append(self) or original_read(self))
    monkeypatch.setattr(module, "rasterize", lambda *a: drawn.append(a) or original_rasterize(*a))
    selector = selector_of(ring, targets=(0, 3, 5))
    assert not read
    for count, target in enumerate((0, 3, 5), 1):
        for zoom in (1.0, 0.7, 1.5):
            selector.select(target, ring.views[target].camera.zoom(zoom))
        assert len(read) == 1 and len(drawn) == count
        assert (selector._cloud is None) == (target == 5)
    ring.cloud.path.unlink()

    def refuse(*_):
        raise AssertionError("the cloud is rasterized again")

    monkeypatch.setattr(module, "rasterize", refuse)
    for target in (5, 0, 3):
        assert len(selector.select(target, ring.views[target].camera.crop(8, 8, (40, 40)))) == 3


def test_pickles_contain_visible_points_but_not_the_cloud(ring):
    selector = selector_of(ring, "best")
    before = selector.select(2, ring.views[2].camera)
    copy = pickle.loads(pickle.dumps(selector))
    assert selector._cloud is not None and copy._cloud is None
    assert len(pickle.dumps(selector)) < 3000 * 12
    assert copy.select(7, ring.views[7].camera) == selector.select(7, ring.views[7].camera)  # reads the cloud again
    ring.cloud.path.unlink()
    again = pickle.loads(pickle.dumps(copy))
    assert [again.select(k, ring.views[k].camera) for k in (2, 7)] == [before, selector.select(7, ring.views[7].camera)]


# ---------------------------------------------------------------- invalid input
@pytest.mark.parametrize(
    ("inputs", "targets", "count"), [((0, 1, 2), (1, 5), 3), ((0, 1, 2), (5,), 4), ((), (1,), 1), ((0, 1, 2), (5,), 0)]
)
def test_other_counts_than_the_candidates_allow_are_refused(ring, inputs, targets, count):
    available = len(inputs) - (1 in inputs and 1 in targets)
    with pytest.raises(InputError, match=rf"datasets\.selection_count: .*{available} in scene ring, got {count};"):
        selector_of(ring, count=count, inputs=inputs, targets=targets)
    assert len(selector_of(ring, count=3, inputs=(0, 1, 2), targets=(5,)).select(5, ring.views[5].camera)) == 3


def test_unknown_methods_are_refused(ring):
    with pytest.raises(InputError, match=r"datasets\.selection_method: .*farthest"):
        selector_of(ring, "farthest")


def test_input_views_of_several_sizes_are_refused(tmp_path, sphere):
    cameras = [ring_camera(0.0), ring_camera(20.0), ring_camera(40.0).resize((32, 40))]
    scene = scene_of(tmp_path, cameras, sphere)
    with pytest.raises(InputError, match=r"scene ring: .*\[\(32, 40\), \(64, 80\)\]"):
        selector_of(scene, count=1, targets=(0,))
    assert selector_of(scene, count=1, targets=(2,), inputs=(0, 1)).select(2, cameras[2]) in ((0,), (1,))


def test_only_announced_targets(ring):
    with pytest.raises(ValueError, match=r"one of the targets \[1, 2\], got 3"):
        selector_of(ring, targets=(2, 1)).select(3, ring.views[3].camera)


# ---------------------------------------------------------------- recordings of the authors' code
def test_recorded_scores_and_choices(parity):
    recorded = parity("g_rgb_view_selection.pt")
    case = recorded["view_selection"]
    k = len(case["R_row"])
    inputs = Cameras.from_authors_ndc(
        case["R_row"], case["T"], case["fcl_ndc"].expand(k, 2), case["prp_ndc"].expand(k, 2), tuple(case["image_size"])
    )
    for name, lower, upper in (("scores_5_15", 5.0, 15.0), ("scores_default", 1.0, 20.0)):
        scores = angle_scores(case["points"], case["cam_pos"][0], inputs, ProjectionSettings(1.0, PixelConvention.AUTHORS), lower, upper)
        assert torch.equal(scores > 0, case[name][0] > 0)
        torch.testing.assert_close(scores, case[name][0], rtol=0, atol=1e-5)  # theirs takes the arc cosine in float32: 5e-6 seen
        if name == "scores_5_15":
            assert best_views(scores, len(recorded["best"]["indices"])) == recorded["best"]["indices"]
    assert best_views(recorded["best_synthetic"]["scores"], 5) == recorded["best_synthetic"]["indices"]


def test_recorded_farthest_points(parity):
    case = parity("g_rgb_view_selection.pt")["fps"]
    for xyz, start, indices in zip(case["xyz"], case["start"], case["indices"], strict=True):
        assert torch.equal(farthest_points(xyz, case["npoint"], int(start)), indices)
