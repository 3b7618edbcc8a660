"""``npbgpp export weights|cloud|splats|mesh|volume|cameras|page <run> [key=value ...]``: files of a run for other programs.

The same as ``python -m npbgpp.export``.
"""

import sys
from typing import Any

from npbgpp.cli.command import Command, read_subcommand, user_errors
from npbgpp.cli.settings import CameraExport, CroppedExport, MeshExport, PageExport, SplatExport, VolumeExport, WeightsExport


def _command(name: str, summary: str, schema: type, example: str, config_keys: bool = True) -> Command[Any]:
    return Command(f"export {name}", summary, schema, ("run",), config_keys, example)


COMMANDS = {
    "weights": _command(
        "weights",
        "Writes the weights of a checkpoint as .safetensors, which weights_path accepts; of methods with descriptors one .zip file, which renders the scene "
        "(npbgpp render <file>.zip), or .safetensors without descriptors.",
        WeightsExport,
        "experiments/demo/npbg",
        config_keys=False,
    ),
    "cloud": _command(
        "cloud",
        "Writes the points of a scene in the colours of their descriptors, or its gaussians as points in their mean colours.",
        CroppedExport,
        "experiments/demo/npbg",
    ),
    "splats": _command(
        "splats",
        "Writes the gaussians of a scene as .ply of 3D Gaussian Splatting, .splat or .glb (glTF).",
        SplatExport,
        "experiments/gaussians_still_life out=still_life.splat",
    ),
    "mesh": _command(
        "mesh",
        "Writes the coloured surface of a radiance field, or fuses it from the depth maps of methods whose depth is dense.",
        MeshExport,
        "experiments/nerf_lego n_grid=128 sigma_threshold=10",
    ),
    "volume": _command("volume", "Writes the voxels of a radiance field.", VolumeExport, "experiments/nerf_lego n_grid=128"),
    "cameras": _command(
        "cameras", "Writes the cameras of a path as CamPose.inf and Intrinsic.inf of NPCR.", CameraExport, "experiments/npcr_hair path=turn"
    ),
    "page": _command(
        "page",
        "Writes a run as one HTML page: scores, the scene in 3D, contact sheet and film. Needs the extra viewer.",
        PageExport,
        "experiments/demo/gaussians",
    ),
}


def main() -> None:
    """The command."""
    name, settings, overrides = read_subcommand("export", "Writes files of a trained run for other programs.", COMMANDS, sys.argv[1:])
    # torch is imported once the arguments are accepted
    from npbgpp.cli import export
    from npbgpp.core.cpu_share import CpuShare
    from npbgpp.engine.run import configure_logging

    configure_logging()
    with user_errors(), CpuShare():
        if name == "weights":
            export.weights(settings)
        elif name == "cloud":
            export.cloud(settings, overrides)
        elif name == "splats":
            export.splats(settings, overrides)
        elif name == "mesh":
            export.extract_mesh(settings, overrides)
        elif name == "volume":
            export.extract_volume(settings, overrides)
        elif name == "page":
            export.page(settings, overrides)
        else:
            export.cameras(settings, overrides)


if __name__ == "__main__":
    main()
