"""Images that are open in Blender, as picture files to send."""

from __future__ import annotations

from pathlib import Path

import bpy


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
        copy.write_bytes(image.packed_file.data)
        return copy
    if not image.has_data and image.source == "FILE":
        raise ValueError(f"The file of the image {image.name!r} is gone; choose it again.")
    copy = Path(bpy.app.tempdir) / f"{name}.png"
    image.save(filepath=str(copy), save_copy=True)
    return copy
