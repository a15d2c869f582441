"""Recover Clip: the people of a movie or a picture sequence, in motion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bpy
from bpy.props import BoolProperty, CollectionProperty, FloatProperty, IntProperty, StringProperty

from ...mega_backend.protocol_motion import Build, ClipFacts, Moment, VideoParameters
from .. import clip_properties, package, session, tasks, tasks_clip
from ..jobs import Job
from ..scene import camera, movies
from ..scene.clip import ClipImporter, Options
from .job import JobOperator


class MEGA_OT_recover_clip(clip_properties.ClipOptions, JobOperator, bpy.types.Operator):
    """Follow every person through the clip: a moving mesh or an armature each, and a camera that matches"""

    bl_idname = "mega.recover_clip"
    bl_label = "Recover Clip"

    filepath: StringProperty(
        name="Clip", description="A movie, a folder of pictures, or one of a numbered sequence; empty for the panel's",
        subtype="FILE_PATH",
    )  # fmt: skip
    clip: StringProperty(name="Movie Clip", description="A movie clip that is open in Blender, in place of a file")
    directory: StringProperty(subtype="DIR_PATH", options={"SKIP_SAVE", "HIDDEN"})
    files: CollectionProperty(type=bpy.types.OperatorFileListElement, options={"SKIP_SAVE", "HIDDEN"})
    seed: IntProperty(
        name="Seed", description="The same seed gives the same motion again", default=0, min=0, max=2**31 - 1
    )
    rate: FloatProperty(
        name="Frames a Second", description="Of a picture sequence; 0 for the scene's", default=0.0, min=0.0, max=1000.0
    )
    cache: StringProperty(
        name="Cache", description="Folder for point caches; empty for that of the .blend", subtype="DIR_PATH"
    )
    look_through: BoolProperty(
        name="Look Through the Camera", description="Turn the 3D view to the clip's camera", default=True,
        options={"SKIP_SAVE"},
    )  # fmt: skip

    latest_problems = ()
    """Of the clip that was done last: an operator's result cannot carry them."""

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        if not (self.clip or self._files(context)):
            return bpy.ops.mega.choose_clip("INVOKE_DEFAULT", recover=True)
        return self.execute(context)

    def make_job(self, context: bpy.types.Context) -> Job:
        source = self._source(context)
        chosen = {name: self._value(context, name) for name in clip_properties.ClipOptions.__annotations__}
        start, step = chosen["start"] - 1, chosen["step"]
        stop = chosen["end"] or None
        if stop is not None and stop <= start:
            raise ValueError("The last frame lies before the first; choose another range.")
        rate = 0.0
        pictures: list[tuple[int, Path]] = []
        if source.movie is None:
            pictures = source.within(start, stop, step)
            if not pictures:
                raise ValueError(
                    f"There are no pictures from frame {start + 1} on; the sequence has {len(source.pictures)}."
                )
            # The backend sees the chosen pictures alone, a step apart.
            render = context.scene.render
            rate = (self.rate or render.fps / render.fps_base) / step
        rigged = chosen["output"] != "MESH"
        values = VideoParameters(
            seed=self._seed(context), steps=context.scene.mega.steps, temperature=context.scene.mega.temperature,
            hypotheses=chosen["hypotheses"], start=start, stop=stop or 0, step=step, rate=rate,
            smoothing=chosen["smoothing"], meshes=chosen["output"] != "ARMATURE",
        )  # fmt: skip
        shown = bpy.data.movieclips.get(self.clip) if self.clip else None
        first = float(shown.frame_start + start) if shown else float(context.scene.frame_start)
        folder, label = self._cache_folder()
        self._options = Options(
            chosen["output"], chosen["storage"], first, chosen["match"] == "SCENE", chosen["set_range"], folder, label
        )
        self._importer: ClipImporter | None = None
        self._topology = self._rig = None
        self._chosen, self._source_used, self._left, self._looked = chosen, source, None, False
        work = tasks_clip.recover_clip(session.ready_backend(), values, source.movie, pictures, rigged)
        return Job(source.name, work)

    def receive(self, context: bpy.types.Context, event: Any) -> None:
        match event:
            case tasks.BodyKnown(topology, _):
                self._topology = topology
            case tasks_clip.RigKnown(rig):
                self._rig = rig
            case ClipFacts():
                step = self._chosen["step"]
                if self._source_used.movie is None:
                    event = ClipFacts(event.size, event.focal_length, event.rate * step, event.count)
                clip = bpy.data.movieclips.get(self.clip) if self.clip else None
                self._importer = ClipImporter(
                    context.scene, self._source_used, self._topology, self._rig, event, step, self._options, clip
                )
            case Build():
                self._importer.build(event)
            case Moment():
                self._add(context, event)

    def _add(self, context: bpy.types.Context, moment: Moment) -> None:
        if self._job.cancelled.is_set() and self._problems:
            return
        try:
            self._importer.add(moment)
        except OSError as error:
            self.problem(
                f"The point cache cannot be written ({error.strerror}): {error.filename or self._options.cache}."
            )
            self._job.cancel()
            return
        if self.look_through and not self._looked and self._importer.people and not bpy.app.background:
            camera.look_through(context)
            self._looked = True

    def go_on(self, context: bpy.types.Context) -> bool:
        if self._importer is None or not self._importer.people:
            return False
        if self._left is None:
            self._left: Iterator[None] = self._importer.finish(context)
        if next(self._left, self) is not self:
            return True
        self._select(context)
        return False

    def anything(self) -> bool:
        return self._importer is not None and self._importer.people > 0

    def summary(self) -> str:
        if not self.anything():
            return f"Nobody was found in {self._source_used.name}"
        people = self._importer.people
        return f"{people} {'person' if people == 1 else 'people'} in {self._importer.frames} frames"

    def _end(self, cancelled: bool) -> set[str]:
        MEGA_OT_recover_clip.latest_problems = self._problems
        return super()._end(cancelled)

    def _select(self, context: bpy.types.Context) -> None:
        for other in context.view_layer.objects.selected:
            other.select_set(False)
        for name in self._importer.objects:
            made = bpy.data.objects.get(name)
            if made is not None and made.name in context.view_layer.objects:
                made.select_set(True)
                context.view_layer.objects.active = made

    def _value(self, context: bpy.types.Context, name: str) -> Any:
        """What the caller gave, else what the panel has."""
        return getattr(self if self.properties.is_property_set(name) else context.scene.mega_clip, name)

    def _seed(self, context: bpy.types.Context) -> int:
        return self.seed if self.properties.is_property_set("seed") else context.scene.mega.seed

    def _files(self, context: bpy.types.Context) -> list[Path]:
        if self.files:
            return [Path(bpy.path.abspath(self.directory)) / file.name for file in self.files if file.name]
        text = self.filepath or context.scene.mega_clip.clip
        return [Path(bpy.path.abspath(text))] if text else []

    def _source(self, context: bpy.types.Context) -> movies.Source:
        if self.clip:
            clip = bpy.data.movieclips.get(self.clip)
            if clip is None:
                raise ValueError(f"There is no movie clip {self.clip!r} in this file.")
            return movies.of_clip(clip)
        files = self._files(context)
        if not files:
            raise ValueError("Choose a clip first.")
        return movies.of_files(files)

    def _cache_folder(self) -> tuple[Path, str]:
        """Where point caches go, and what their names begin with: beside the .blend, or with the user's data."""
        if self.cache:
            return Path(bpy.path.abspath(self.cache)), ""
        if bpy.data.filepath:
            return Path(bpy.data.filepath).parent, f"{Path(bpy.data.filepath).stem}_"
        return package.user_folder("caches"), ""


class MEGA_OT_choose_clip(bpy.types.Operator):
    """Choose a movie, or the pictures of a sequence, in the file browser"""

    bl_idname = "mega.choose_clip"
    bl_label = "Choose Clip"

    filepath: StringProperty(name="Clip", description="A movie, or one of a sequence's pictures", subtype="FILE_PATH")
    filter_movie: BoolProperty(default=True, options={"HIDDEN"})
    filter_image: BoolProperty(default=True, options={"HIDDEN"})
    filter_folder: BoolProperty(default=True, options={"HIDDEN"})
    recover: BoolProperty(default=False, options={"HIDDEN", "SKIP_SAVE"})

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> set[str]:
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        context.scene.mega_clip.clip = self.filepath
        if self.recover:
            bpy.ops.mega.recover_clip("INVOKE_DEFAULT")
        return {"FINISHED"}


class MEGA_FH_clips(bpy.types.FileHandler):
    """Movies dropped onto a 3D view"""

    bl_idname = "MEGA_FH_clips"
    bl_label = "Recover Clip"
    bl_import_operator = "mega.recover_clip"
    bl_file_extensions = ";".join(movies.MOVIES)

    @classmethod
    def poll_drop(cls, context: bpy.types.Context) -> bool:
        return context.area is not None and context.area.type == "VIEW_3D"


CLASSES = (MEGA_OT_recover_clip, MEGA_OT_choose_clip, MEGA_FH_clips)
