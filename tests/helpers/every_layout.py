"""The drawn scene in every layout."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from npbgpp.data import CloudFile, Scene
from npbgpp.parsers import read_scene

from .layouts import camera_files, colmap, dtu, h3ds, llff, monocular, nerf_synthetic, nerfstudio, npbg, npcr, scannet, scannet_raw

# name -> (layout, writer, its cloud)
WRITTEN: dict[str, tuple[str, Callable[..., None], str]] = {
    "nerf_synthetic": ("nerf_synthetic", nerf_synthetic.write, "mvs_pc.ply"),
    "scannet": ("scannet", scannet.write, "full.ply"),
    "scannet_raw": ("scannet", scannet_raw.write, "full.ply"),
    "dtu": ("dtu", dtu.write, "mvs_pc.ply"),
    "h3ds": ("h3ds", h3ds.write, "mvs_pc.ply"),
    "llff": ("llff", llff.write, "mvs_pc.ply"),
    "colmap": ("colmap", colmap.write, "mvs_pc.ply"),
    "colmap_text": ("colmap", partial(colmap.write, text=True), "mvs_pc.ply"),
    "colmap_distorted": ("colmap", partial(colmap.write, model="OPENCV"), "mvs_pc.ply"),
    "nerfstudio": ("nerfstudio", nerfstudio.write, "mvs_pc.ply"),
    "nerfstudio_distorted": ("nerfstudio", partial(nerfstudio.write, model="OPENCV"), "mvs_pc.ply"),
    "nerfstudio_fisheye": ("nerfstudio", partial(nerfstudio.write, model="OPENCV_FISHEYE"), "mvs_pc.ply"),
    "npbg": ("npbg", partial(npbg.write, paths=True), "point_cloud.ply"),
    "npbg_text": ("npbg", partial(npbg.write, text=True, paths=True), "point_cloud.ply"),
    "monocular": ("monocular", monocular.write, "mvs_pc.ply"),
    "bundler": ("bundler", camera_files.write_bundler, "mvs_pc.ply"),
    "bundler_distorted": ("bundler", partial(camera_files.write_bundler, distorted=True), "mvs_pc.ply"),
    "reality_capture": ("reality_capture", camera_files.write_reality_capture, "mvs_pc.ply"),
    "reality_capture_distorted": ("reality_capture", partial(camera_files.write_reality_capture, distorted=True), "mvs_pc.ply"),
    "metashape": ("metashape", camera_files.write_metashape, "mvs_pc.ply"),
    "metashape_distorted": ("metashape", partial(camera_files.write_metashape, distorted=True), "mvs_pc.ply"),
    "npcr": ("npcr", npcr.write, "pointclouds/frame1.xzy"),
}


def write_layout(name: str, folder: Path, views: int = 8, size: tuple[int, int] = (48, 64)) -> Path:
    """Writes the scene; returns its folder."""
    WRITTEN[name][1](folder, views, size)
    return folder


def read_layout(name: str, folder: Path, scene: str = "scene", **choices: Any) -> Scene:
    """Parses the scene."""
    layout, _, cloud = WRITTEN[name]
    return read_scene(layout, folder, folder, scene, CloudFile(folder / cloud), choices)
