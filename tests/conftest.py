"""Shape checking for every function that says what shapes it takes, the shared recordings, tiny scenes, and runs on them."""

import os
from importlib.util import find_spec
from pathlib import Path

_CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
if "GenuineIntel" in _CPU and "avx512f" in _CPU:
    # the recordings were made with MKL's AVX2 code; that for AVX-512 rounds otherwise, which the extractor and the regression amplify beyond the tolerances
    os.environ.setdefault("MKL_CBWR", "AVX2")

# while jaxtyping executes a module, whatever that imports is compiled anew: the large libraries come before (25 s of CPU time)
import pytorch_lightning  # noqa: E402, F401
import torchmetrics  # noqa: E402, F401
import torchvision  # noqa: E402, F401
from jaxtyping import install_import_hook  # noqa: E402

_PACKAGE = Path(find_spec("npbgpp").origin).parent
# the modules that speak of shapes; the others are left to mypy, since checking every call was a quarter of the time of a small run
_SHAPED = [
    ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts) for path in _PACKAGE.rglob("*.py") if "jaxtyping" in path.read_text()
]
install_import_hook(_SHAPED, "beartype.beartype")  # stays: submodules are imported later

import functools  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import subprocess  # noqa: E402
from collections.abc import Callable  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from npbgpp.geometry.cameras import Cameras  # noqa: E402
from npbgpp.geometry.pixels import ProjectionSettings  # noqa: E402
from npbgpp.geometry.point_cloud import PointCloud, write_ply  # noqa: E402
from npbgpp.kernels.rasterization import (  # noqa: E402
    ChunkedCloud,
    Level,
    rasterize,
)

from .helpers.programs import TRAIN_NET, run_program  # noqa: E402
from .run_folders import REPOSITORY, run_words  # noqa: E402

TINY_SIZE = 32
TINY_COUNTS = {"train": 12, "val": 3, "test": 2}
# a run on the tiny scenes that takes a second or two
TINY_OVERRIDES = (
    "datasets=nerf_blender_one_scene",
    "datasets.scene_name=ball",
    "datasets.train_image_size=null",
    "datasets.train_random_shift=false",
    "datasets.train_num_samples=4",
    "system=npbg",
    "system/loss_factors=l1_ssim",
    "system.refiner.filters=[10,11,12,13,14]",
    "dataloader=small",
    "loggers=none",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
)
_TINY_DATA = tuple(override for override in TINY_OVERRIDES if not override.startswith("system"))
# NPBG++ with a small random encoder and a small decoder
TINY_NPBGPP = (
    *_TINY_DATA,
    "system=npbgpp_sphere",
    "system/loss_factors=l1_ssim_npbgpp",
    "system.refiner.filters=[10,11,12,13,14]",
    "system.feature_extractor.encoder=test_efficientnet",
    "system.feature_extractor.pretrained_encoder=false",
    "system.feature_extractor.decoder_channels=[8,8,8,8,8]",
)
# NPBG++ without its networks: several times faster
TINY_COLOURS = (*_TINY_DATA, "system=npbgpp_rgb", "system/loss_factors=l1_ssim_npbgpp")
# NeRF with fields of some thousand weights; trainer.limit_train_batches keeps its epochs, which are all pixels, short
TINY_NERF = (
    *(override for override in _TINY_DATA if "train_num_samples" not in override),
    "system=nerf",
    "system.field.depth=3",
    "system.field.width=32",
    "system.field.skips=[1]",
    "system.field.sampling.samples=24",
    "system.field.sampling.importance=16",
    "system.field.sampling.noise_std=0.0",
    "system.field.sampling.marched=64",
    "system.grid_resolution=16",
    "system.rays.rays_per_batch=256",
    "trainer.limit_train_batches=4",
)
# NPCR with a network of some thousand weights
TINY_NPCR = (
    *_TINY_DATA,
    "system=npcr",
    "system.descriptor_dim=6",
    "system.network.in_channels=9",
    "system.network.filters=[8,9,10,11,12]",
    "system.network.alpha_filters=[6,7,8]",
    "system.losses={rgba_mse: 1.0, ssim: 0.1, perceptual: 0.0}",
    "system.layers=2",
    "system.warmup_epochs=0",
    "system.learning_rates={network: 5e-3, descriptors: 2e-2}",
)
# as many gaussians as the cloud of ball has points, moved and sorted every few steps
TINY_GAUSSIANS = (
    *_TINY_DATA,
    "system=gaussians",
    "system.gaussians=400",
    "system.sh_degree=1",
    "system.sh_every=3",
    "system.sort_every=5",
    "system.relocation={every: 4, begin: 4}",
    "system.learning_rates={scales: 2e-2, colours: 1e-2}",
    "test_video=null",
)
# the same on the example scene with hair, at 32x32 pixels; its root is example/
SMALL_HAIR = (
    *(word for word in TINY_NPCR if not word.startswith(("datasets=", "datasets.scene_name"))),
    "datasets=npcr_one_scene",
    "datasets.scene_name=hair",
    "datasets.downscale=4",
    "system.photo_background=[0.2353,0.2353,0.2353]",
    "system.max_splat=0",
    "system.lr_schedule=cosine",
)
# NSFF with fields of some thousand weights on the small moving scene
TINY_NSFF = (
    *("datasets=monocular", "datasets.scene_name=hop", "datasets.img_wh=[24,16]", "datasets.batches_per_epoch=4"),
    *("dataloader=small", "loggers=none", "trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.check_val_every_n_epoch=2"),
    *("system=nsff", "system.field.depth=3", "system.field.width=24", "system.field.skips=[1]", "system.field.time_channels=5"),
    *("system.field.xyz_frequencies=4", "system.field.dir_frequencies=2", "system.field.sampling.samples=12", "system.lr=5e-3"),
    *("system.field.sampling.noise_std=0.0", "system.rays_per_batch=128", "test_video=null"),
)


def shared_folder() -> Path | None:
    """Folder of recordings and real data: $NPBGPP_SHARED, or ../shared beside the checkout when it exists."""
    folder = Path(os.environ.get("NPBGPP_SHARED", REPOSITORY.parent / "shared"))
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_folder()
    if folder is None:
        pytest.skip("recordings and real data are not here: set NPBGPP_SHARED to their folder")
    return folder


@pytest.fixture(scope="session")
def parity(shared: Path):
    """Reads one recording of the authors' code by name."""

    def read(name: str):
        return torch.load(shared / "parity" / name, map_location="cpu", weights_only=True)

    return read


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _hub_folder(monkeypatch) -> None:
    """Runs with ``cache_dir`` choose the folder of the torch hub for their process, which is that of other tests, too."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)


def write_tiny_scene(folder: Path, points: int = 400, seed: int = 0) -> None:
    """A coloured unit sphere in NeRF-Synthetic layout, seen from a ring at distance 3 (depth > 1), drawn by splatting its own points."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.nn.functional.normalize(torch.randn(points, 3, generator=generator), dim=1)
    rgb = ((xyz * 0.5 + 0.5) * 255).to(torch.uint8)
    write_ply(folder / "mvs_pc.ply", PointCloud(xyz, rgb))
    angle = 2 * math.atan(0.4)
    focal = 0.5 * TINY_SIZE / 0.4
    total = sum(TINY_COUNTS.values())
    drawn = 0
    for stage, count in TINY_COUNTS.items():
        frames = []
        (folder / stage).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            pose = ring_pose(2 * math.pi * drawn / total)
            drawn += 1
            camera = Cameras.from_opengl(
                pose[None], torch.tensor([[focal, focal]]), torch.full((1, 2), TINY_SIZE / 2), (TINY_SIZE, TINY_SIZE)
            )
            index = (
                rasterize(ChunkedCloud.build(xyz), camera, [Level(0.5)], ProjectionSettings(1.0))[0]
                .index.repeat_interleave(2, 0)
                .repeat_interleave(2, 1)
            )
            pixels = torch.cat([rgb[index.clamp(min=0)], torch.full((TINY_SIZE, TINY_SIZE, 1), 255, dtype=torch.uint8)], -1)
            pixels[index < 0] = 0
            Image.fromarray(np.ascontiguousarray(pixels.numpy()), "RGBA").save(folder / stage / f"r_{k}.png")
            frames.append({"file_path": f"./{stage}/r_{k}", "transform_matrix": pose.tolist()})
        (folder / f"transforms_{stage}.json").write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))


def ring_pose(azimuth: float, distance: float = 3.0) -> torch.Tensor:
    """Camera-to-world, axes right, up, backward, on a ring around the z axis, looking at the origin."""
    back = torch.tensor([math.cos(azimuth), math.sin(azimuth), 0.3])
    back = back / back.norm()
    right = torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]), back)
    right = right / right.norm()
    pose = torch.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, torch.linalg.cross(back, right), back, distance * back
    return pose


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the tiny scenes ball, globe and moon. Never write into it: copy it."""
    root = tmp_path_factory.mktemp("tiny")
    for seed, name in enumerate(("ball", "globe", "moon")):
        write_tiny_scene(root / name, points=400 + 50 * seed, seed=seed)
    return root


@pytest.fixture(scope="session")
def moving_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the moving example scene ``hop``, small: 8 frames of 48x32 pixels. Tests that change it copy it."""
    root = tmp_path_factory.mktemp("monocular")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "example"))
        import make_moving_scene

        make_moving_scene.main(["--out", str(root / "hop"), "--frames", "8", "--size", "48", "32", "--samples", "2"])
    return root


@pytest.fixture(scope="session")
def run_line() -> Callable[..., Path]:
    """Runs the overrides of a command line in this process, as ``train_net.py`` launched from a folder does; returns the run folder."""

    return run_words


@pytest.fixture(scope="session")
def run_in(run_line, tiny_root: Path) -> Callable[..., Path]:
    """Runs a tiny configuration plus overrides from a launch folder; returns the run folder below it."""

    def go(launch: Path, *overrides: str, name: str = "run", root: Path = tiny_root, tiny: tuple[str, ...] = TINY_OVERRIDES) -> Path:
        return run_line(launch, *tiny, f"datasets.data_root={root}", f"hydra.run.dir={launch / name}", *overrides)

    return go


@pytest.fixture
def run_here(run_in, tmp_path: Path) -> Callable[..., Path]:
    """Runs the tiny configuration plus overrides in this process; returns the run folder."""
    return functools.partial(run_in, tmp_path)


@pytest.fixture(scope="session")
def run_npbgpp(run_in) -> Callable[..., Path]:
    """Runs a small NPBG++ plus overrides from a launch folder; returns the run folder below it."""
    return functools.partial(run_in, tiny=TINY_NPBGPP)


@pytest.fixture(scope="session")
def run_colours(run_in) -> Callable[..., Path]:
    """Runs NPBG++ without networks plus overrides from a launch folder; returns the run folder below it."""
    return functools.partial(run_in, tiny=TINY_COLOURS)


@pytest.fixture(scope="session")
def run_nerf(run_in) -> Callable[..., Path]:
    """Runs a small NeRF plus overrides from a launch folder; returns the run folder below it."""
    return functools.partial(run_in, tiny=TINY_NERF)


@pytest.fixture(scope="session")
def run_gaussians(run_in) -> Callable[..., Path]:
    """Runs a few gaussians plus overrides from a launch folder; returns the run folder below it."""
    return functools.partial(run_in, tiny=TINY_GAUSSIANS)


@pytest.fixture(scope="session")
def run_npcr(run_in) -> Callable[..., Path]:
    """Runs a small NPCR plus overrides from a launch folder; returns the run folder below it."""
    return functools.partial(run_in, tiny=TINY_NPCR)


@pytest.fixture(scope="session")
def run_nsff(run_in, moving_root: Path) -> Callable[..., Path]:
    """Runs a small NSFF plus overrides from a launch folder; returns the run folder below it."""
    return functools.partial(run_in, root=moving_root, tiny=TINY_NSFF)


@pytest.fixture
def run_command(tiny_root: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs ``train_net.py`` with the tiny configuration plus overrides as a user does; returns the finished process."""

    def go(*overrides: str, root: Path = tiny_root, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess:
        return run_program(TRAIN_NET, [*TINY_OVERRIDES, f"datasets.data_root={root}", *overrides], cwd, **environment)

    return go


# Files that start processes of their own take minutes: they come first, so that the others fill the time beside them.
_LONG = (
    "test_distributed",
    "test_preemption",
    "test_resume",
    "test_nsff_separates",
    "test_documentation",
    "test_npbgpp_commands",
    "test_hydra_hooks",
    "test_refine",
    "test_on_another_device",
    "test_plugins",
    "test_full_disk",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; within a file, and among the others, the order stays. Tests of CUDA devices are skipped where there is none."""
    items.sort(key=lambda item: _LONG.index(item.path.stem) if item.path.stem in _LONG else len(_LONG))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
