"""A scene in the layout of NPBG from photos, with Agisoft Metashape 1.6 or later (professional edition). Run it inside of Metashape:

    metashape.sh -r scripts/metashape_build_cloud.py my_scene

``my_scene/images`` holds the photos. Written beside it: ``project.psz``, ``point_cloud.ply``, ``cameras.xml``, ``images_undistorted/<label>.png`` and
``scene.yaml``. ``npbgpp train datasets=npbg_scenes`` and ``npbgpp prepare check`` read the folder. Existing files are kept unless ``--overwrite`` is given.
"""

import argparse
import sys
from pathlib import Path

import Metashape

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
RESULTS = ("project.psz", "point_cloud.ply", "cameras.xml", "images_undistorted", "scene.yaml")


def build(folder, suffix, cam_downscale, pc_downscale, overwrite):
    """Makes the scene; exits with a message for input that cannot be used.

    Args:
        folder: folder of the scene, with the photos in ``images``.
        suffix: of the photos; None takes all that are known.
        cam_downscale: photos are matched at 1/cam_downscale of their size.
        pc_downscale: depth maps have 1/pc_downscale of the size of the photos.
        overwrite: replace results of an earlier call.
    """
    suffixes = SUFFIXES if suffix is None else (f".{suffix.lower().lstrip('.')}",)
    images = folder / "images"
    photos = sorted(path for path in images.iterdir() if path.suffix.lower() in suffixes) if images.is_dir() else []
    if len(photos) < 2:
        sys.exit(f"error: {images}: expected at least 2 photos ({', '.join(suffixes)}), got {len(photos)}")
    existing = [name for name in RESULTS if (folder / name).exists()]
    if existing and not overwrite:
        sys.exit(f"error: {folder / existing[0]} exists; move it away, or call with --overwrite")

    document = Metashape.Document()
    chunk = document.addChunk()
    chunk.addPhotos([str(photo) for photo in photos])
    chunk.matchPhotos(downscale=cam_downscale, generic_preselection=True, reference_preselection=False)
    chunk.alignCameras(adaptive_fitting=True)
    aligned = [camera for camera in chunk.cameras if camera.transform is not None]
    if len(aligned) < 2:
        sys.exit(f"error: {images}: expected photos that overlap, Metashape aligned {len(aligned)} of {len(photos)}")
    chunk.buildDepthMaps(downscale=pc_downscale, filter_mode=Metashape.MildFiltering)
    if hasattr(chunk, "buildPointCloud"):  # since 2.0
        chunk.buildPointCloud()
        chunk.exportPointCloud(str(folder / "point_cloud.ply"), source_data=Metashape.PointCloudData)
    else:
        chunk.buildDenseCloud()
        chunk.exportPoints(str(folder / "point_cloud.ply"), source_data=Metashape.DenseCloudData)
    chunk.exportCameras(str(folder / "cameras.xml"))
    document.save(str(folder / "project.psz"))

    (folder / "images_undistorted").mkdir(exist_ok=True)
    size = None
    for camera in aligned:
        # the principal point in the centre and square pixels, as readers of cameras.xml expect
        image = camera.photo.image().undistort(camera.sensor.calibration, True, True)
        image.save(str(folder / "images_undistorted" / f"{camera.label}.png"))
        size = size or (image.width, image.height)
    lines = (
        f"viewport_size: [{size[0]}, {size[1]}]",
        "intrinsic_matrix: cameras.xml",
        "view_matrix: cameras.xml",
        "pointcloud: point_cloud.ply",
    )
    (folder / "scene.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(aligned)} of {len(photos)} photos aligned: {folder / 'scene.yaml'}")


def main():
    """The command."""
    parser = argparse.ArgumentParser(description="Makes a scene in the layout of NPBG from the photos in <in_dir>/images.")
    parser.add_argument("in_dir", type=Path, help="folder of the scene")
    parser.add_argument("--img_ext", help="suffix of the photos; all known ones without it")
    parser.add_argument("--cam_downscale", type=int, default=1, help="photos are matched at this fraction of their size (1, 2, 4, 8)")
    parser.add_argument(
        "--pc_downscale", type=int, default=1, help="depth maps have this fraction of the size of the photos (1, 2, 4, 8, 16)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results of an earlier call")
    arguments = parser.parse_args()
    build(arguments.in_dir.expanduser().resolve(), arguments.img_ext, arguments.cam_downscale, arguments.pc_downscale, arguments.overwrite)


if __name__ == "__main__":
    main()
