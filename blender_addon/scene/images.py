"""Images that are open in Blender, as picture files to send."""

from __future__ import annotations

from pathlib import Path

import bpy
import numpy as np


def file_of(image: bpy.types.Image) -> Path:
    """A file with what the image shows: its own where that is current, else a copy in Blender's temporary folder.

    Raises ValueError where there is nothing to see.
    """
    own = Path(bpy.path.abspath(image.filepath_from_user())) if image.filepath else None
    if image.source == "FILE" and not image.packed_file and not image.is_dirty and own and own.is_file():
        return own
    name = bpy.path.clean_name(Path(image.name).stem)
    if image.packed_file and not image.is_dirty:
        copy = Path(bpy.app.tempdir) / f"{name}{own.suffix if own and own.suffix else '.png'}"
        try:
            copy.write_bytes(image.packed_file.data)
        except OSError as error:
            raise _unwritten(image, str(error.strerror)) from error
        return copy
    if not image.has_data and image.source == "FILE":
        raise ValueError(f"The file of the image {image.name!r} is gone; choose it again.")
    return _written(image, Path(bpy.app.tempdir) / f"{name}.png")


def _unwritten(image: bpy.types.Image, why: str) -> ValueError:
    return ValueError(
        f"{image.name} cannot be written to Blender's temporary folder ({why}); make room there, or choose "
        "another in the preferences' File Paths."
    )


def _written(image: bpy.types.Image, path: Path) -> Path:
    """What the image shows now, as an 8-bit file; the image itself stays as it is."""
    values = np.empty(len(image.pixels), np.float32)
    image.pixels.foreach_get(values)
    if image.is_float:  # linear light; files of 8 bits hold sRGB
        colour = values.reshape(-1, image.channels)[:, :3].clip(0, 1)
        colour[:] = np.where(colour <= 0.0031308, colour * 12.92, 1.055 * colour ** (1 / 2.4) - 0.055)
        values.reshape(-1, image.channels)[:, :3] = colour
    copy = bpy.data.images.new(path.stem, *image.size, alpha=image.channels == 4)
    try:
        pixels = np.ones((image.size[0] * image.size[1], 4), np.float32)
        if image.channels < 3:
            pixels[:, :3] = values.reshape(-1, image.channels)[:, :1]
        else:
            pixels[:, : image.channels] = values.reshape(-1, image.channels)
        copy.pixels.foreach_set(pixels.ravel())
        copy.filepath_raw, copy.file_format = str(path), "PNG"
        copy.save()
        # Blender does not always notice that a disk is full.
        if path.read_bytes()[-8:-4] != b"IEND":
            raise RuntimeError("the disk is full")
    except (OSError, RuntimeError) as error:
        raise _unwritten(image, str(error).strip()) from error
    finally:
        bpy.data.images.remove(copy)
    return path
