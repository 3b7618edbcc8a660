"""What a folder holds that is a scene of none of the layouts: for the message that says how to go on."""

from pathlib import Path

from npbgpp.data import IMAGE_SUFFIXES
from npbgpp.errors import listing

_VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm")
_CLOUDS = (".ply", ".pcd", ".las", ".laz", ".xyz", ".e57", ".pts")
_MOST = 10_000  # files that are looked at
# patterns of files of other programs, what they are, and what to do
_OTHERS = (
    ("sfm_data*.json", "OpenMVG", "export to COLMAP (openMVG_main_openMVG2Colmap)"),
    ("*.sfm", "Meshroom (AliceVision)", "export to COLMAP (aliceVision_exportColmap)"),
    ("*.nvm", "VisualSFM", "open it with COLMAP, or reconstruct the photos with COLMAP"),
    ("bundle*.out", "perhaps Bundler, but not in its version 0.3", "export it again, or reconstruct the photos with COLMAP"),
    ("*.psx", "a Metashape project", "export cameras (File > Export > Export Cameras, XML) and a cloud"),
    ("cameras.xml", "perhaps cameras of Metashape, but without a chunk", "export the cameras again (File > Export > Export Cameras, XML)"),
    ("*.csv", "no camera parameters of RealityCapture", "export Registration > Internal/External camera parameters, or COLMAP's format"),
    ("*.rcproj", "a RealityCapture project", "export the registration in COLMAP's format"),
    ("*.r3d", "Record3D", "convert it with ns-process-data record3d"),
    ("keyframes", "Polycam", "convert it with ns-process-data polycam"),
    ("database.db", "a COLMAP database without a model", "finish the reconstruction: colmap mapper"),
    ("*.zip", "an archive", "unpack it"),
)


def found_in(root: Path) -> str:
    """One sentence on the files of a folder, with the next step."""
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        return f"the folder cannot be read ({error.strerror}): correct the path"
    if not entries:
        return "the folder is empty: correct the path"
    for pattern, what, remedy in _OTHERS:
        names = sorted(path.name for path in root.glob(pattern))
        if names:
            return f"there is {names[0]} ({what}), which is not read: {remedy}"
    for folder in (root, root / "images", root / "input", root / "frames"):
        if folder.is_dir():
            files = [path for _, path in zip(range(_MOST), folder.iterdir(), strict=False)]
            photos = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in files)
            videos = [path.name for path in files if path.suffix.lower() in _VIDEOS]
            place = "" if folder == root else f" in {folder.name}"
            if photos:
                return f"there are {photos} photos{place} without poses: reconstruct them with COLMAP into {root / 'sparse'} (docs/datasets.md)"
            if videos:
                return f"there is a video ({listing(videos)}){place}: save its frames as photos and reconstruct them with COLMAP, or see npbgpp prepare monocular"
    clouds = [path.name for path in entries if path.suffix.lower() in _CLOUDS]
    if clouds:
        return f"there are clouds ({listing(clouds)}), but neither photos nor poses: add them"
    folders = [path for path in entries if path.is_dir()]
    scenes = [path.name for path in folders if (path / "images").is_dir() or any(path.glob("transforms*.json"))]
    if scenes:
        return f"there are scenes in it ({listing(scenes)}): choose one of them"
    return f"there is {listing(path.name for path in entries)}: correct the path, or reconstruct the photos with COLMAP"
