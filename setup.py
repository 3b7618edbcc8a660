"""Package metadata: the supported ranges of every dependency. The exact tested versions are in requirements.txt."""

from setuptools import find_packages, setup

# The tests pass with the lower bounds too; the upper ones are the next release that may break the interface.
INSTALL_REQUIRES = [
    "huggingface-hub>=0.34,<3",
    "hydra-core>=1.3.2,<1.4",
    "imageio>=2.37,<3",
    "imageio-ffmpeg>=0.6,<1",
    "jaxtyping>=0.3.2,<0.4",
    "jinja2>=3.1.6,<4",
    "llvmlite>=0.50,<1",
    "lpips>=0.1.4,<0.2",
    "numba>=0.68,<1",
    "numpy>=2.2,<3",
    "omegaconf>=2.3,<2.4",
    "opencv-python-headless>=5,<6",
    "pillow>=11.3,<14",
    "plyfile>=1.1,<2",
    "pycolmap>=4.2,<5",
    # 2.6.2 and 2.6.3 were uploaded by an attacker and steal credentials on import (advisory GHSA-w37p-236h-pfx3).
    "pytorch-lightning>=2.6,!=2.6.2,!=2.6.3,<3",
    "pyyaml>=6,<7",
    "rich>=14,<16",
    "safetensors>=0.6,<1",
    "scikit-image>=0.25,<1",
    "scipy>=1.15,<2",
    "tensorboard>=2.20,<3",
    "timm>=1.0.20,<2",
    "tomli>=2.2,<3; python_version < '3.11'",
    "torch>=2.14.1,<3",
    "torchmetrics>=1.8,<2",
    "torchvision>=0.29.1,<1",
    "tqdm>=4.67,<5",
    "wandb>=0.22,<1",
]

TEST_REQUIRES = [
    "beartype>=0.22,<1",
    "hydra-submitit-launcher>=1.2,<2",
    "hypothesis>=6.140,<7",
    "packaging>=25",
    "playwright>=1.50,<2",
    "pytest>=9,<10",
    "pytest-xdist>=3.6,<4",
    "setuptools>=77.0.3",
]

VIEWER_REQUIRES = [
    "msgspec>=0.18.6,<1",
    "threadpoolctl>=3.1,<4",
    "viser>=1.1,<2",
    "websockets>=13.1,<17",
]

DEV_REQUIRES = [
    "mypy>=2,<3",
    "pre-commit>=4.3,<5",
    "ruff>=0.17,<0.18",
]

# conf/, example/ and checkpoints/ lie beside the package in a checkout, and inside of it in a wheel: npbgpp.core.paths.project_folder finds them in both.
DATA_PACKAGES = {"npbgpp.checkpoints": "checkpoints", "npbgpp.conf": "conf", "npbgpp.example": "example"}
DATA_FILES = [
    "**/*.yaml",
    "**/*.json",
    "**/*.png",
    "**/*.jpg",
    "**/*.ply",
    "**/*.inf",
    "**/*.xzy",
    "**/*.py",
    "*.md",
    "npbgpp_small.safetensors",
]

# The same door that other packages use: docs/add_a_method.md and docs/add_a_dataset.md.
ENTRY_POINTS = {
    "console_scripts": ["npbgpp=npbgpp.__main__:main"],
    "npbgpp.methods": [
        "Gaussians = npbgpp.methods.gaussians.system:Gaussians",
        "NPBG = npbgpp.methods.npbg:NPBG",
        "NPBGPlusPlus = npbgpp.methods.npbgpp:NPBGPlusPlus",
        "NPCR = npbgpp.methods.npcr.system:NPCR",
        "NSFF = npbgpp.methods.nsff.system:NSFF",
        "NeRF = npbgpp.methods.nerf:NeRF",
    ],
    "npbgpp.layouts": [
        "bundler = npbgpp.parsers.bundler:LAYOUT",
        "colmap = npbgpp.parsers.colmap:LAYOUT",
        "dtu = npbgpp.parsers.idr:DTU_LAYOUT",
        "h3ds = npbgpp.parsers.idr:H3DS_LAYOUT",
        "llff = npbgpp.parsers.llff:LAYOUT",
        "metashape = npbgpp.parsers.metashape:LAYOUT",
        "monocular = npbgpp.parsers.monocular:LAYOUT",
        "nerf_synthetic = npbgpp.parsers.nerf_synthetic:LAYOUT",
        "nerfstudio = npbgpp.parsers.nerfstudio:LAYOUT",
        "npbg = npbgpp.parsers.npbg:LAYOUT",
        "npcr = npbgpp.parsers.npcr:LAYOUT",
        "reality_capture = npbgpp.parsers.reality_capture:LAYOUT",
        "scannet = npbgpp.parsers.scannet:LAYOUT",
    ],
}

setup(
    # a path, not an import hook: elsewhere a folder of that name, such as a clone, would be imported in place of the package
    options={"editable_wheel": {"mode": "compat"}},
    name="npbgpp",
    version="0.1.0",
    description="Neural point-based graphics: novel views of a scene from its photos and a point cloud",
    author="npbgpp contributors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.13",
    packages=[*find_packages(include=["npbgpp", "npbgpp.*"]), *DATA_PACKAGES],
    package_dir=DATA_PACKAGES,
    package_data={package: DATA_FILES for package in DATA_PACKAGES}
    | {f"npbgpp.{package}": ["*.jinja"] for package in ("compare", "export", "prepare")},
    install_requires=INSTALL_REQUIRES,
    entry_points=ENTRY_POINTS,
    extras_require={
        "test": TEST_REQUIRES + VIEWER_REQUIRES,
        "dev": TEST_REQUIRES + VIEWER_REQUIRES + DEV_REQUIRES,
        # npbgpp view, npbgpp export page and callbacks=viewer.
        "viewer": VIEWER_REQUIRES,
        # Sweeps as jobs: hydra/launcher=submitit_slurm and submitit_local.
        "cluster": ["hydra-submitit-launcher>=1.2,<2"],
        # Clouds in .las and .laz files.
        "las": ["laspy[lazrs]>=2.5,<3"],
        # Gaussians on NVIDIA GPUs by gsplat, which needs nvcc.
        "gsplat": ["gsplat>=1.5,<2"],
        # Plots of benchmarks.
        "plots": ["matplotlib>=3.10,<4"],
        # The documentation; make docs uses the pins of requirements-docs.txt.
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.7,<10", "mkdocstrings[python]>=1,<2"],
        # Photos in HEIC.
        "heif": ["pillow-heif>=1,<2"],
        # Optional peers: nothing here needs them. Both must be built against the installed torch.
        "scatter": ["torch-scatter"],
        "pytorch3d": ["pytorch3d"],
    },
)
