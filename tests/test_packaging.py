"""The files that install, build and check the project agree with each other.

Symbols: a *pin* is one `name==version` line of requirements.txt, a *range* one entry of setup.py, a *lock entry* one package of
requirements.lock.
"""

import ast
import importlib.metadata
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12")
PACKAGING_FILES = (
    ".ci/run",
    ".github/workflows/ci.yml",
    ".gitignore",
    ".pre-commit-config.yaml",
    "Makefile",
    "pyproject.toml",
    "requirements.lock",
    "requirements.txt",
    "setup.py",
)
# Import names that are not the name of the distribution with `_` for `-`.
DISTRIBUTION_OF = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "hydra": "hydra-core",
    "hydra_plugins": "hydra-submitit-launcher",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
}
# Their files import each other by their plain names.
SCRIPT_FOLDERS = ("benchmarks", "example", "tests", "tests/plugin")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def setup_arguments() -> dict[str, Any]:
    """What setup.py hands to setuptools."""
    captured: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: captured.update(arguments))
        patch.chdir(ROOT)
        runpy.run_path(str(ROOT / "setup.py"))
    return captured


def setup_ranges(python: str = "3.11") -> dict[str, SpecifierSet]:
    """Supported versions by package for one Python: what runs, tests and builds the project, without the optional peers."""
    arguments = setup_arguments()
    entries = [Requirement(line) for line in arguments["install_requires"] + arguments["extras_require"]["dev"]]
    applying = [entry for entry in entries if entry.marker is None or entry.marker.evaluate({"python_version": python})]
    return {canonicalize_name(entry.name): entry.specifier for entry in applying}


def pinned_lines(text: str) -> list[Requirement]:
    """The `name==version; marker` parts of a requirements file, without comments and hashes."""
    lines = (line.split("#")[0].rstrip(" \\") for line in text.splitlines() if not line.startswith((" ", "#")))
    return [Requirement(line) for line in lines if line]


def versions_for(requirements: list[Requirement], python: str) -> dict[str, str]:
    """Version by package for one Python on Linux; fails where two lines apply to one package."""
    environment = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux", "platform_system": "Linux"}
    versions: dict[str, str] = {}
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        name = canonicalize_name(requirement.name)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{requirement} should be pinned with =="
        assert name not in versions, f"{name} has two versions for Python {python}"
        versions[name] = specifier.version
    return versions


NEWER_THAN_3_10 = {"tomllib"}  # of the standard library; Python 3.10 has a package in its place


def imported_packages(files: list[Path]) -> set[str]:
    """Distributions that the files import, without the standard library and the project's own modules."""
    own = {"npbgpp", "train_net", "tests"} | {path.stem for folder in SCRIPT_FOLDERS for path in (ROOT / folder).glob("*")}
    modules: set[str] = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                modules.add(node.module.split(".")[0])
    return {canonicalize_name(DISTRIBUTION_OF.get(name, name)) for name in modules - own - set(sys.stdlib_module_names) - NEWER_THAN_3_10}


def copy_makefile(folder: Path) -> None:
    """Put the Makefile and the files that its environment depends on into a folder."""
    for name in ("Makefile", "requirements.txt", "requirements.lock", "setup.py"):
        shutil.copy(ROOT / name, folder)


def clean_environment() -> dict[str, str]:
    """The environment without what an outer make or the user's shell would hand to make."""
    dropped = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "PYTHON", "DEMO_ARGS", "PYTEST_ARGS", "LOCK_ARGS", "DEMO_BUDGET"}
    return {name: value for name, value in os.environ.items() if name not in dropped}


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as from a shell, also where the tests themselves were started by make."""
    return subprocess.run(["make", *arguments], cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_lie_in_the_ranges(python: str) -> None:
    ranges = setup_ranges(python)
    pins = versions_for(pinned_lines(read("requirements.txt")), python)
    assert set(pins) == set(ranges)
    outside = {name: version for name, version in pins.items() if not ranges[name].contains(version)}
    assert not outside


def test_malicious_lightning_releases_are_excluded() -> None:
    lightning = setup_ranges()["pytorch-lightning"]
    assert [version for version in ("2.6.1", "2.6.2", "2.6.3", "2.6.4") if lightning.contains(version)] == ["2.6.1", "2.6.4"]
    locked = [entry for entry in pinned_lines(read("requirements.lock")) if "lightning" in entry.name]
    assert not [str(entry) for entry in locked if {"2.6.2", "2.6.3"} & {part.version for part in entry.specifier}]


def test_supported_pythons_are_3_10_to_3_12() -> None:
    supported = SpecifierSet(setup_arguments()["python_requires"])
    assert [minor for minor in range(8, 16) if supported.contains(f"3.{minor}.1")] == [10, 11, 12]


def test_every_subpackage_is_installed() -> None:
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in (ROOT / "npbgpp").rglob("*.py")}
    arguments = setup_arguments()
    assert (
        set(arguments["packages"])
        == folders | set(arguments["package_dir"])
        == folders | {"npbgpp.checkpoints", "npbgpp.conf", "npbgpp.example"}
    )


def test_data_files_of_the_package_are_installed() -> None:
    installed = setup_arguments()["package_data"]
    files = [path.relative_to(ROOT) for path in (ROOT / "npbgpp").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert files and not [p for p in files if not any(p.match(pattern) for pattern in installed.get(".".join(p.parent.parts), []))]


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_has_every_pin_at_its_version(python: str) -> None:
    pins = versions_for(pinned_lines(read("requirements.txt")), python)
    locked = versions_for(pinned_lines(read("requirements.lock")), python)
    assert {name: locked.get(name) for name in pins} == pins


def test_every_lock_entry_has_hashes() -> None:
    entries = re.split(r"^(?=[A-Za-z0-9])", read("requirements.lock"), flags=re.MULTILINE)[1:]
    assert len(entries) == len(pinned_lines(read("requirements.lock"))) > len(setup_ranges())
    complete = re.compile(r"[^\n]+(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n(?:    #[^\n]*\n)*")
    assert not [entry.splitlines()[0] for entry in entries if not complete.fullmatch(entry)]


def test_installed_versions_are_the_pins() -> None:
    pins = versions_for(pinned_lines(read("requirements.txt")), f"{sys.version_info.major}.{sys.version_info.minor}")
    # A local label such as +cpu names a build of the same release.
    installed = {name: Version(importlib.metadata.version(name)).public for name in pins}
    assert installed == pins, "the environment is not the tested one; `make install` brings it up to date"


@pytest.mark.parametrize("scripts", [False, True])
def test_imports_are_declared(scripts: bool) -> None:
    arguments = setup_arguments()
    extras = arguments["extras_require"]
    optional = ("test", "plots", "viewer") if scripts else ("scatter", "pytorch3d", "gsplat", "heif", "las", "viewer")
    declared = arguments["install_requires"] + [line for name in optional for line in extras[name]]
    folders = SCRIPT_FOLDERS if scripts else ("npbgpp",)
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")] + [ROOT / "train_net.py"]
    assert imported_packages(files) - {canonicalize_name(Requirement(line).name) for line in declared} == set()


def test_no_registry_is_named() -> None:
    """Where packages come from is the user's setting: no address, host name or index option."""
    pattern = re.compile(r"\S*://\S*|--(?:extra-)?index-url\S*|--find-links\S*|\b[\w-]+\.(?:com|dev|io|net|org)\b")
    assert {name: found for name in PACKAGING_FILES if (found := pattern.findall(read(name)))} == {}


def test_make_targets_and_their_arguments() -> None:
    for target in ("help", "install", "demo", "test", "lint", "format", "lock", "bench", "pretrain", "clean"):
        result = make(ROOT, "--dry-run", target)
        assert result.returncode == 0, result.stderr
    demo = make(ROOT, "--dry-run", "demo", "DEMO_DIR=there", "DEMO_ARGS=a=1 b=2").stdout
    assert ".venv/bin/python -m npbgpp demo out=there a=1 b=2\n" in demo
    assert make(ROOT, "--dry-run", "test", "PYTEST_ARGS=-k one").stdout.rstrip().endswith(" -k one")


@pytest.mark.parametrize("version", [None, (2, 7, 18), (3, 9, 18), (3, 13, 0)])
def test_make_refuses_a_missing_or_unsupported_python(tmp_path: Path, version: tuple[int, int, int] | None) -> None:
    copy_makefile(tmp_path)
    python = tmp_path / "python-of-another-version"
    if version is not None:
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = {version}; exec(sys.argv[1])" "$2"\n')
        python.chmod(0o755)
    result = make(tmp_path, "install", f"PYTHON={python}")
    named = str(python) if version is None else f"{version[0]}.{version[1]}"
    assert result.returncode != 0 and named in result.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("created_by_make", [True, False])
def test_make_clean_removes_only_what_make_created(tmp_path: Path, created_by_make: bool) -> None:
    copy_makefile(tmp_path)
    for folder in (".venv", "experiments/run/__pycache__", "npbgpp/__pycache__", ".pytest_cache"):
        (tmp_path / folder).mkdir(parents=True)
    if created_by_make:
        (tmp_path / ".venv" / ".created-by-make").touch()
    result = make(tmp_path, "clean")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / ".venv").exists() is not created_by_make
    assert (tmp_path / "experiments/run/__pycache__").exists()
    assert (tmp_path / "npbgpp").exists()
    assert not (tmp_path / "npbgpp/__pycache__").exists()
    assert not (tmp_path / ".pytest_cache").exists()


# The stand-in for .venv/bin/python is a script, since a link into another environment would lose that environment's packages.
STAND_IN_MAKEFILE = """\
install: ; mkdir -p .venv/bin && printf '#!/bin/sh\\nexec {python} "$$@"\\n' > .venv/bin/python && chmod +x .venv/bin/python && {install}
browser: ; {browser}
lint: ; {lint}
test: ; {test}
demo: ; folder='$(DEMO_DIR)'; for run in npbgpp coefficients npbg gaussians video; do mkdir -p $$folder/$$run; done; {demo}
"""
METRICS = '{\\"datasets\\": {\\"a\\": {\\"psnr\\": 20.0, \\"views\\": 2}}}'
WRITE_METRICS = f'for run in npbgpp coefficients npbg gaussians; do echo "{METRICS}" > $$folder/$$run/metrics.json; done'
DRAW = f"{sys.executable} -c \"import sys; from PIL import Image; [Image.new('RGB', (4, 3)).save(p) for p in sys.argv[1:]]\""
WRITE_REPORT = f"{DRAW} $$folder/gaussians/report.png $$folder/coefficients/report.png $$folder/npbgpp/report.png $$folder/npbg/report.png"
WRITE_COMPARISON = f"{DRAW} $$folder/compare.png"
WRITE_VIDEO = "head -c 20000 /dev/zero > $$folder/video/film.mp4"
WRITE_ALL = f"{WRITE_METRICS} && {WRITE_REPORT} && {WRITE_COMPARISON} && {WRITE_VIDEO}"


def run_ci(folder: Path, **steps: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of .ci/run on a Makefile whose steps are stand-ins; a step that is not given succeeds."""
    commands = {"install": "true", "browser": "true", "lint": "true", "test": "true", "demo": WRITE_ALL} | steps
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", folder / ".ci/run")
    (folder / "Makefile").write_text(STAND_IN_MAKEFILE.format(python=sys.executable, **commands))
    (folder / "tmp").mkdir()
    environment = clean_environment() | {"TMPDIR": str(folder / "tmp")}
    return subprocess.run(["bash", ".ci/run"], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


# (steps that differ from their stand-ins, part of stderr)
FAILING_STEPS = {
    "install": ({"install": "false"}, "install] Error 1"),
    "lint": ({"lint": "false"}, "lint] Error 1"),
    "test": ({"test": "false"}, "test] Error 1"),
    "demo": ({"demo": "false"}, "demo] Error 1"),
    "demo after its files": ({"demo": f"{WRITE_ALL} && false"}, "demo] Error 1"),
    "no report": ({"demo": f"{WRITE_METRICS} && {WRITE_COMPARISON}"}, "report.png"),
    "no metrics": ({"demo": f"{WRITE_REPORT} && {WRITE_COMPARISON}"}, "metrics.json"),
    "no comparison": ({"demo": f"{WRITE_METRICS} && {WRITE_REPORT}"}, "compare.png"),
    "empty video": ({"demo": f"{WRITE_ALL} && : > $$folder/video/film.mp4"}, "AssertionError"),
    "empty report": ({"demo": f"{WRITE_ALL} && : > $$folder/npbg/report.png"}, "cannot identify image file"),
    "empty metrics": ({"demo": f"{WRITE_ALL} && echo '{{}}' > $$folder/npbg/metrics.json"}, "KeyError: 'datasets'"),
}


@pytest.mark.parametrize("case", [None, *FAILING_STEPS])
def test_ci_leaves_no_environment_behind(tmp_path: Path, case: str | None) -> None:
    """Whether it passes, or fails with the message of a step."""
    steps, reason = ({}, "") if case is None else FAILING_STEPS[case]
    result = run_ci(tmp_path, **steps)
    assert (result.returncode == 0) == (case is None) and reason in result.stderr, result.stdout + result.stderr
    assert ("all passed" in result.stdout) == (case is None)
    assert not (tmp_path / ".venv").exists() and not list((tmp_path / "tmp").iterdir())


def test_ci_goes_on_without_a_browser(tmp_path: Path) -> None:
    result = run_ci(tmp_path, browser="false")
    assert result.returncode == 0 and "no browser" in result.stdout


def test_ci_keeps_an_environment_that_was_there_before(tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    assert run_ci(tmp_path).returncode == 0
    assert (tmp_path / ".venv").is_dir()


# ------------------------------------------------------------------ wheel
WHEEL_LIMIT = 15_000_000  # bytes


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy."""
    source = tmp_path_factory.mktemp("source")
    for name in ("npbgpp", "checkpoints", "conf", "example"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (path,) = folder.glob("npbgpp-*.whl")
    return path


def pip(*arguments: str) -> None:
    if importlib.util.find_spec("pip") is None:
        pytest.skip("needs pip")
    offline = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    done = subprocess.run([sys.executable, "-m", "pip", *arguments, *offline], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a new environment with the wheel, and with the dependencies that are installed here."""
    folder = tmp_path_factory.mktemp("environment")
    install(folder, str(wheel))
    return folder / "bin"


def install(folder: Path, *what: str) -> None:
    """Makes an environment with the dependencies that are installed here, and installs something in it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    (packages,) = folder.glob("lib/python*/site-packages")
    # the folder alone: its .pth files, such as that of an editable npbgpp, are not read
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip("--python", str(folder / "bin" / "python"), "install", *what)


def test_editable_installation_beside_a_clone(tmp_path: Path) -> None:
    """The folder of a clone has the name of the package, too: where programs start beside it, the package is imported all the same."""
    clone = tmp_path / "npbgpp"
    clone.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    for name in ("npbgpp", "conf", "checkpoints", "example"):
        (clone / name).mkdir()
    shutil.copy(ROOT / "npbgpp" / "__init__.py", clone / "npbgpp")
    environment = tmp_path / "environment"
    install(environment, "--no-build-isolation", "--editable", str(clone))
    assert run_installed(environment / "bin", tmp_path, "python", "-c", "import npbgpp; print(npbgpp.__version__)").strip()


def run_installed(programs: Path, cwd: Path, *command: str) -> str:
    environment = {name: value for name, value in clean_environment().items() if name != "PYTHONPATH"}
    name, *arguments = command
    done = subprocess.run([str(programs / name), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_configs_and_example_scenes(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("conf", "example/still_life", "example/hair"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert files and {f"npbgpp/{path.relative_to(ROOT).as_posix()}" for path in files} <= names
    assert {"npbgpp/example/style.png", "npbgpp/checkpoints/npbgpp_small.safetensors", "npbgpp/checkpoints/npbgpp_small.md"} <= names
    assert wheel.stat().st_size < WHEEL_LIMIT


@pytest.mark.slow
def test_installed_wheel_trains_from_an_empty_folder(programs: Path, tmp_path: Path) -> None:
    small = (
        "datasets.downscale=4 datasets.train_num_samples=2 trainer.limit_val_batches=0 trainer.accelerator=cpu loggers=none test_video=null"
    )
    run_installed(programs, tmp_path, "npbgpp", "train", "experiment=demo_npbg", *small.split(), "hydra.run.dir=run")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file() and (tmp_path / "run" / "report.png").is_file()
    assert str(programs.parent) in (tmp_path / "run" / ".hydra" / "hydra.yaml").read_text()
    run_installed(programs, tmp_path, "npbgpp", "render", "run", "path=circle", "frames=2", "size=[32,32]", "video=none", "out=film")
    assert (tmp_path / "film" / "00001.png").is_file()


@pytest.mark.parametrize(
    "command",
    [
        "npbgpp --help",
        "npbgpp demo --help",
        "npbgpp train --help experiment=demo_npbg",
        "python -m npbgpp.render --help",
        "python -m npbgpp --version",
    ],
)
def test_installed_wheel_explains_itself(programs: Path, tmp_path: Path, command: str) -> None:
    assert "npbgpp" in run_installed(programs, tmp_path, *command.split())


def test_installed_wheel_finds_what_configs_name(programs: Path, tmp_path: Path) -> None:
    find = "SearchPaths(Path.cwd(), Path.cwd() / 'run', project_folder()).existing(name, 'key')"
    script = f"from pathlib import Path; from npbgpp.core.paths import *; print(*({find} for name in ('example/hair', '../../example/style.png')))"
    found = run_installed(programs, tmp_path, "python", "-c", script).split()
    assert all(Path(path).is_relative_to(programs.parent) for path in found) and len(found) == 2
