"""Recover Mesh: the people of one or several pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import bpy
from bpy.props import BoolProperty, CollectionProperty, FloatProperty, IntProperty, StringProperty

from ...mega_backend.protocol import RecoverParameters
from .. import session, tasks
from ..jobs import Job, board
from ..scene import camera, images
from ..scene.origin import Origin
from ..scene.recovery import Importer
from .job import JobOperator

EXTENSIONS = ".jpg;.jpeg;.png;.webp;.tif;.tiff;.bmp"


class MEGA_OT_recover(JobOperator, bpy.types.Operator):
    """Make a mesh of every person in the picture, with alternatives as shape keys and a camera that matches"""

    bl_idname = "mega.recover"
    bl_label = "Recover Mesh"

    filepath: StringProperty(name="Picture", description="The picture; empty for the panel's", subtype="FILE_PATH")
    image: StringProperty(name="Image", description="An image that is open in Blender, in place of a file")
    directory: StringProperty(subtype="DIR_PATH", options={"SKIP_SAVE", "HIDDEN"})
    files: CollectionProperty(type=bpy.types.OperatorFileListElement, options={"SKIP_SAVE", "HIDDEN"})
    hypotheses: IntProperty(name="Alternatives", description="Meshes per person", default=5, min=1, max=100)
    seed: IntProperty(name="Seed", default=0, min=0, max=2**31 - 1)
    steps: IntProperty(name="Steps", default=5, min=1, max=54)
    temperature: FloatProperty(name="Temperature", default=1.0, min=0.0, max=10.0)
    look_through: BoolProperty(name="Look Through the Camera", default=True, options={"SKIP_SAVE"})

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        if not (self.image or self._pictures(context)):
            return bpy.ops.mega.choose_picture("INVOKE_DEFAULT", recover=True)
        return self.execute(context)

    def make_job(self, context: bpy.types.Context) -> Job:
        pictures = self._pictures(context)
        if not pictures:
            raise ValueError("Choose a picture first.")
        missing = next((picture for picture in pictures if not picture.exists()), None)
        if missing and len(pictures) == 1:
            raise ValueError(f"There is no file {missing}; choose the picture again.")
        values = {name: self._value(context, name) for name in ("hypotheses", "seed", "steps", "temperature")}
        self._origin = Origin(values["seed"], values["steps"], values["temperature"])
        self._topology, self._importer, self._people, self._looked = None, None, 0, False
        title = pictures[0].name if len(pictures) == 1 else f"{len(pictures)} pictures"
        return Job(title, tasks.recover(session.ready_backend(), pictures, RecoverParameters(**values)))

    def receive(self, context: bpy.types.Context, event: Any) -> None:
        match event:
            case tasks.BodyKnown(topology, model):
                self._topology = topology
                self._origin = replace(self._origin, model=model)
            case tasks.Begun(picture):
                self._importer = Importer(context.scene, self._topology, picture, self._origin, self.image)
            case tasks.Received(message):
                made = self._importer.receive(message)
                if made is not None:
                    self._made_person(context, made)
            case tasks.Ended(picture, 0):
                self.problem(f"Nobody was found in {picture.name}.")

    def anything(self) -> bool:
        return self._people > 0

    def summary(self) -> str:
        return f"{self._people} {'person' if self._people == 1 else 'people'} recovered"

    def _made_person(self, context: bpy.types.Context, made: bpy.types.Object) -> None:
        self._people += 1
        for other in context.view_layer.objects.selected:
            other.select_set(False)
        made.select_set(True)
        context.view_layer.objects.active = made
        if self.look_through and not self._looked and not bpy.app.background:
            camera.look_through(context)
            self._looked = True

    def _value(self, context: bpy.types.Context, name: str) -> Any:
        """What the caller gave, else what the panel has."""
        return getattr(self if self.properties.is_property_set(name) else context.scene.mega, name)

    def _pictures(self, context: bpy.types.Context) -> list[Path]:
        if self.image:
            image = bpy.data.images.get(self.image)
            if image is None:
                raise ValueError(f"There is no image {self.image!r} in this file.")
            return [images.file_of(image)]
        if self.files:
            return [Path(bpy.path.abspath(self.directory)) / file.name for file in self.files if file.name]
        text = self.filepath or context.scene.mega.picture
        return [Path(bpy.path.abspath(text))] if text else []


class MEGA_OT_choose_picture(bpy.types.Operator):
    """Choose the picture in a file browser"""

    bl_idname = "mega.choose_picture"
    bl_label = "Choose Picture"

    filepath: StringProperty(subtype="FILE_PATH")
    filter_image: BoolProperty(default=True, options={"HIDDEN"})
    filter_folder: BoolProperty(default=True, options={"HIDDEN"})
    recover: BoolProperty(default=False, options={"HIDDEN", "SKIP_SAVE"})

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> set[str]:
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        context.scene.mega.picture = self.filepath
        if self.recover:
            bpy.ops.mega.recover("INVOKE_DEFAULT")
        return {"FINISHED"}


class MEGA_OT_cancel(bpy.types.Operator):
    """Stop; what has arrived already is kept"""

    bl_idname = "mega.cancel"
    bl_label = "Stop"

    index: IntProperty(default=0, options={"HIDDEN"})

    def execute(self, _context: bpy.types.Context) -> set[str]:
        if self.index < len(board.jobs):
            board.jobs[self.index].cancel()
        return {"FINISHED"}


class MEGA_FH_pictures(bpy.types.FileHandler):
    """Pictures dropped onto a 3D view"""

    bl_idname = "MEGA_FH_pictures"
    bl_label = "Recover Mesh"
    bl_import_operator = "mega.recover"
    bl_file_extensions = EXTENSIONS

    @classmethod
    def poll_drop(cls, context: bpy.types.Context) -> bool:
        return context.area is not None and context.area.type == "VIEW_3D"
