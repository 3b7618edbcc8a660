"""One HTML page of a run with everything inside: scores, the scene in 3D, contact sheet and film. It opens from disk and asks no server."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image

from npbgpp.errors import InputError

SUFFIX = ".html"
_QUALITY = 90  # of the JPEG of the contact sheet
_LARGEST_FILM = 1 << 27  # bytes


@dataclass(frozen=True)
class Scores:
    """Scores of a dataset of a run, as text; empty where they are unknown."""

    dataset: str
    views: str
    psnr: str
    ssim: str
    lpips: str


def page(run: Path, method: str, scene: str, scene_html: str, film: Path | None) -> str:
    """The page.

    Args:
        run: its folder; what an evaluation wrote there is shown.
        method: its name.
        scene: its name.
        scene_html: page of the scene in 3D.
        film: file to show; None: ``film.mp4`` of the run if it is there.

    Raises:
        InputError: a film that is missing or larger than 128 MiB, or files of the run that cannot be read.
    """
    environment = Environment(loader=PackageLoader("npbgpp.export", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html.jinja").render(
        title=f"{run.name}: {scene}",
        method=method,
        scores=read_scores(run / "metrics.json"),
        scene=scene_html,
        report=_report(run / "report.png"),
        film=_film(film or run / "film.mp4", is_named=film is not None),
    )


def read_scores(path: Path) -> list[Scores]:
    """Scores of the last evaluation; empty without one. Raises InputError for a damaged file."""
    try:
        datasets = json.loads(path.read_text(encoding="utf-8"))["datasets"]
        return [
            Scores(
                name,
                str(found.get("views", "")),
                *(_number(found.get(key), digits) for key, digits in (("psnr", 2), ("ssim", 3), ("lpips", 3))),
            )
            for name, found in datasets.items()
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected scores of an evaluation, got a damaged file ({error}); evaluate the run again") from error


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else ""


def _report(path: Path) -> str | None:
    """The contact sheet as JPEG in base64; None without one."""
    if not path.is_file():
        return None
    buffer = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.convert("RGB").save(buffer, format="JPEG", quality=_QUALITY)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a readable picture, got {error}; evaluate the run again") from error
    return base64.b64encode(buffer.getvalue()).decode()


def _film(path: Path, is_named: bool) -> str | None:
    """A film in base64; None where none is named and none is there."""
    if not path.is_file():
        if is_named:
            raise InputError(f"film={path}: no such file; correct the path, or render one with npbgpp render")
        return None
    if path.stat().st_size > _LARGEST_FILM:
        raise InputError(
            f"film={path}: expected at most {_LARGEST_FILM >> 20} MiB, got {path.stat().st_size >> 20}; render fewer or smaller frames"
        )
    return base64.b64encode(path.read_bytes()).decode()
