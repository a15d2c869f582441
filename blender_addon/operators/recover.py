"""Recover Mesh: the people of one or several pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import bpy
import numpy as np
from bpy.props import BoolProperty, CollectionProperty, EnumProperty, FloatProperty, IntProperty, StringProperty

from ...mega_backend.protocol import RecoverParameters
from .. import chooser, session, tasks
from ..jobs import Job, board
from ..mending import FIND, Trouble
from ..scene import camera, found
from ..scene.origin import Origin
from ..scene.recovery import Importer
from .job import JobOperator, call
from .source import Source, SourceOperator

EXTENSIONS = ".jpg;.jpeg;.png;.webp;.tif;.tiff;.bmp"


class MEGA_OT_recover(SourceOperator, JobOperator, bpy.types.Operator):
    """Make a mesh of every person in the picture, with alternatives as shape keys and a camera that matches"""

    bl_idname = "mega.recover"
    bl_label = "Recover Mesh"

    # Not kept from one call to the next: what is not given comes from the panel.
    hypotheses: IntProperty(
        name="Alternatives", description="Meshes per person", default=5, min=1, max=100, options={"SKIP_SAVE"}
    )
    seed: IntProperty(
        name="Seed", description="The same seed gives the same meshes", default=0, min=0, max=2**31 - 1,
        options={"SKIP_SAVE"},
    )  # fmt: skip
    steps: IntProperty(
        name="Steps", description="Sampling steps of the alternatives", default=5, min=1, max=54, options={"SKIP_SAVE"}
    )
    temperature: FloatProperty(
        name="Temperature", description="How far alternatives may lie from the best guess", default=1.0, min=0.0,
        max=10.0, options={"SKIP_SAVE"},
    )  # fmt: skip
    everybody: BoolProperty(
        name="Everybody", description="Also those of the found people who were left out", default=False,
        options={"SKIP_SAVE"},
    )  # fmt: skip
    look_through: BoolProperty(
        name="Look Through the Camera", description="Turn the 3D view to what the picture's camera sees", default=True,
        options={"SKIP_SAVE"},
    )  # fmt: skip

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        if not self.is_named(context):
            return call(self, bpy.ops.mega.choose_picture, "INVOKE_DEFAULT", then="RECOVER")
        return self.execute(context)

    def make_job(self, context: bpy.types.Context) -> Job:
        sources = self.sources(context)
        values = {name: self._value(context, name) for name in ("hypotheses", "seed", "steps", "temperature")}
        self._origin = Origin(values["seed"], values["steps"], values["temperature"])
        self._topology, self._importer, self._people, self._looked = None, None, 0, False
        self._images = {source.file: source.image for source in sources}
        title = sources[0].file.name if len(sources) == 1 else f"{len(sources)} pictures"
        pictures = [source.file for source in sources]
        people = self._chosen(context, sources)
        chooser.end()
        if len(sources) == 1:
            sources[0].show(context.scene.mega)
        work = tasks.recover(session.ready_backend(), pictures, RecoverParameters(**values), people)
        return Job(title, work, queued=True)

    def _chosen(self, context: bpy.types.Context, sources: list[Source]) -> dict[str, np.ndarray] | None:
        """Those of the people found before in this picture that are wanted; None for everybody."""
        settings = context.scene.mega
        if self.everybody or len(sources) != 1 or settings.found_in != sources[0].key or not len(settings.found):
            return None
        people = found.chosen(settings)
        if not len(people["boxes"]):
            raise Trouble("None of the found people is chosen; click at least one of them.")
        return people

    def receive(self, context: bpy.types.Context, event: Any) -> None:
        match event:
            case tasks.BodyKnown(topology, model):
                self._topology = topology
                self._origin = replace(self._origin, model=model)
            case tasks.Begun(picture):
                image = self._images[picture]
                self._importer = Importer(context.scene, self._topology, picture, self._origin, image)
            case tasks.Received(message):
                made = self._importer.receive(message)
                if made is not None:
                    self._made_person(context, made)
            case tasks.Ended(picture, 0):
                text = f"Nobody was found in {picture.name}; Find People lets you draw a box round each person."
                self.problem(text, FIND if len(self._images) == 1 else None)

    def anything(self) -> bool:
        return self._people > 0

    def summary(self) -> str:
        return f"{self._people} {'person' if self._people == 1 else 'people'} recovered"

    def _made_person(self, context: bpy.types.Context, made: bpy.types.Object) -> None:
        self._people += 1
        # The first one of a picture, the largest: whoever goes on with it is not interrupted when the others arrive.
        first = len(self._importer.objects) == 1
        if first and context.mode == "OBJECT":  # nor is somebody who works inside a mesh meanwhile
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


class MEGA_OT_choose_picture(bpy.types.Operator):
    """Choose a picture in a file browser; several are recovered one after the other"""

    bl_idname = "mega.choose_picture"
    bl_label = "Choose Picture"

    filepath: StringProperty(name="Picture", description="The picture", subtype="FILE_PATH")
    directory: StringProperty(subtype="DIR_PATH", options={"SKIP_SAVE", "HIDDEN"})
    files: CollectionProperty(type=bpy.types.OperatorFileListElement, options={"SKIP_SAVE", "HIDDEN"})
    filter_image: BoolProperty(default=True, options={"HIDDEN"})
    filter_folder: BoolProperty(default=True, options={"HIDDEN"})
    then: EnumProperty(
        name="Then",
        description="What follows",
        items=(
            ("NOTHING", "Nothing", "Show the picture in the panel"),
            ("FIND", "Find People", "Find the people in it"),
            ("RECOVER", "Recover Mesh", "Recover everybody in the pictures"),
        ),
        options={"HIDDEN", "SKIP_SAVE"},
    )

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> set[str]:
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        names = [file.name for file in self.files if file.name]
        if len(names) > 1:
            files = [{"name": name} for name in names]
            call(self, bpy.ops.mega.recover, "INVOKE_DEFAULT", directory=self.directory, files=files)
            return {"FINISHED"}
        settings = context.scene.mega
        settings.source, settings.picture = "FILE", self.filepath
        if self.then == "FIND":
            call(self, bpy.ops.mega.find_people, "INVOKE_DEFAULT")
        elif self.then == "RECOVER":
            call(self, bpy.ops.mega.recover, "INVOKE_DEFAULT")
        return {"FINISHED"}


class MEGA_OT_cancel(bpy.types.Operator):
    """Stop; what has arrived already is kept"""

    bl_idname = "mega.cancel"
    bl_label = "Stop"

    index: IntProperty(name="Index", description="Which of the jobs, from 0", default=0, options={"HIDDEN"})

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
