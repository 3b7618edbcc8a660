"""``npbgpp prepare resize``: reduced copies of the images of a folder; the originals stay."""

import logging
from pathlib import Path

from PIL import Image

from npbgpp.data import in_8_bits, list_images, open_image
from npbgpp.errors import InputError
from npbgpp.prepare.photo_import import write_image
from npbgpp.prepare.settings import ResizeSettings

log = logging.getLogger("npbgpp.prepare")


def resize_images(settings: ResizeSettings) -> Path:
    """Writes the copies, under the names of the originals; returns their folder.

    Raises:
        InputError: no images, one that cannot be read, existing files without ``overwrite``, or a folder that cannot be written.
    """
    source = settings.dir.expanduser().absolute()
    images = list_images(source)
    suffix = f"{settings.max_size}px" if settings.factor is None else f"{1 / settings.factor:g}"
    out = source.with_name(f"{source.name}_{suffix}") if settings.out is None else settings.out.expanduser().absolute()
    if out == source:
        raise InputError(f"out={settings.out}: expected another folder than that of the images, which are kept; choose another")
    existing = [path.name for path in images if (out / path.name).exists()]
    if existing and not settings.overwrite:
        raise InputError(f"out={out}: {existing[0]} exists; choose another folder, or overwrite=true")
    for path in images:
        with open_image(path) as file:
            factor = min(1.0, settings.max_size / max(file.size)) if settings.max_size is not None else settings.factor
            assert factor is not None
            exif = file.getexif()
            image = in_8_bits(path, file)
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        if path.suffix.lower() != ".png":
            image = image.convert("RGB")
        write_image(out / path.name, image.resize(size, Image.Resampling.LANCZOS), exif)
    log.info("%d images: %s", len(images), out)
    return out
