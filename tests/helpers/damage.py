"""Damage to files of a scene, for tables of refused input: each function returns what is to be done to the folder of a scene."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Damage = Callable[[Path], Any]


def remove(name: str) -> Damage:
    """Removes a file or a folder."""
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def clear(name: str, pattern: str = "*", keep: int = 0) -> Damage:
    """Removes the files of a folder but the first ones."""
    return lambda folder: [path.unlink() for path in sorted((folder / name).glob(pattern))[keep:]]


def put(name: str, content: str | bytes) -> Damage:
    """Writes a file."""
    return lambda folder: (folder / name).write_bytes(content.encode("latin-1") if isinstance(content, str) else content)


def edit(name: str, old: str, new: str, count: int = -1) -> Damage:
    """Replaces text in a file, which must contain it."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_text()
        assert old in content
        (folder / name).write_text(content.replace(old, new, count))

    return damage


def line(name: str, number: int, text: str | None) -> Damage:
    """Replaces a line of a file, or removes it."""

    def damage(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        lines[number : number + 1] = [] if text is None else [text]
        (folder / name).write_text("\n".join(lines))

    return damage


def cut(name: str, share: float = 0.6) -> Damage:
    """Truncates a file."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return damage


def loop(name: str) -> Damage:
    """Replaces a file or a folder by a link to itself."""
    return chain(remove(name), lambda folder: (folder / name).symlink_to(folder / name))


def folder_at(name: str) -> Damage:
    """Replaces a file by a folder."""
    return chain(remove(name), lambda folder: (folder / name).mkdir())


def copy(name: str, new: str | bytes) -> Damage:
    """Copies a file."""
    return lambda folder: shutil.copy(folder / name, bytes(folder) + b"/" + new if isinstance(new, bytes) else folder / new)


def move(name: str, new: str) -> Damage:
    """Renames a file or folder."""
    return lambda folder: (folder / name).rename(folder / new)


def image(name: str, size: tuple[int, int], mode: str = "RGB") -> Damage:
    """Writes a black image of this (height, width)."""
    return lambda folder: Image.new(mode, size[::-1]).save(folder / name)


def array(name: str, change: Callable[[np.ndarray], Any]) -> Damage:
    """Replaces an array, in .npy or as text, by the result of a function, or changes it in place if that is None."""

    def damage(folder: Path) -> None:
        binary = name.endswith(".npy")
        values = np.load(folder / name) if binary else np.loadtxt(folder / name)
        changed = change(values)
        (np.save if binary else np.savetxt)(folder / name, values if changed is None else changed)

    return damage


def entry(name: str, index: tuple[int, ...], value: float) -> Damage:
    """Sets one number of an array."""
    return array(name, lambda values: values.__setitem__(index, value))


def archive(name: str, key: str, change: Callable[[np.ndarray], Any]) -> Damage:
    """Replaces an array of an .npz file by the result of a function, or removes it if that is None."""

    def damage(folder: Path) -> None:
        with np.load(folder / name) as file:
            arrays = dict(file)
        changed = change(arrays.pop(key))
        np.savez(folder / name, **arrays, **({} if changed is None else {key: changed}))

    return damage


def chain(*damages: Damage) -> Damage:
    """Several of them."""
    return lambda folder: [damage(folder) for damage in damages]
