"""Which pictures an operator is about: those that its caller names, else the panel's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import bpy
from bpy.props import CollectionProperty, StringProperty

from ..mending import PICTURE, Trouble
from ..scene import images


@dataclass(frozen=True)
class Source:
    """A picture: its file, and the image's name where it is open in Blender."""

    file: Path
    image: str = ""

    @property
    def key(self) -> str:
        """What it is remembered by: people that were found in it belong to no other."""
        return f"image:{self.image}" if self.image else str(self.file)

    def show(self, settings: bpy.types.PropertyGroup) -> None:
        """Make it the panel's picture."""
        if self.image:
            settings.source, settings.image = "IMAGE", bpy.data.images[self.image]
            return
        settings.source = "FILE"
        if Path(bpy.path.abspath(settings.picture)) != self.file:  # a relative path is left as it is
            settings.picture = str(self.file)


class SourceOperator:
    """Mix in before bpy.types.Operator."""

    filepath: StringProperty(
        name="Picture", description="The picture; empty for the panel's", subtype="FILE_PATH", options={"SKIP_SAVE"}
    )
    image: StringProperty(
        name="Image", description="An image that is open in Blender, in place of a file", options={"SKIP_SAVE"}
    )
    directory: StringProperty(subtype="DIR_PATH", options={"SKIP_SAVE", "HIDDEN"})
    files: CollectionProperty(type=bpy.types.OperatorFileListElement, options={"SKIP_SAVE", "HIDDEN"})

    def is_named(self, context: bpy.types.Context) -> bool:
        """Whether there is anything to read, by the caller or in the panel."""
        settings = context.scene.mega
        shown = settings.image is not None if settings.source == "IMAGE" else settings.picture
        return bool(self.image or self.files or self.filepath or shown)

    def sources(self, context: bpy.types.Context) -> list[Source]:
        """The pictures. Raises ValueError or Trouble with a sentence where one alone is meant that is not there."""
        settings = context.scene.mega
        if self.image:
            image = bpy.data.images.get(self.image)
            if image is None:
                raise ValueError(f"There is no image {self.image!r} in this file.")
            return [_of_image(image)]
        named = [file.name for file in self.files if file.name]
        if named:
            found = [Path(bpy.path.abspath(self.directory)) / name for name in named]
        elif self.filepath:
            found = [Path(bpy.path.abspath(self.filepath))]
        elif settings.source == "IMAGE":
            if settings.image is None:
                raise Trouble("Choose an image first.")
            return [_of_image(settings.image)]
        elif settings.picture:
            found = [Path(bpy.path.abspath(settings.picture))]
        else:
            raise Trouble("Choose a picture first.", PICTURE)
        if len(found) == 1 and not found[0].exists():
            text = f"There is no file {found[0]}; it was moved or removed: choose the picture again."
            raise Trouble(text, PICTURE)
        return [Source(file) for file in found]


def _of_image(image: bpy.types.Image) -> Source:
    return Source(images.file_of(image), image.name)
