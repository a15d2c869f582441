"""Find People: who is in the picture, to choose from; and a box drawn by hand round one whom the detector missed."""

from __future__ import annotations

from typing import Any

import bpy
import numpy as np
from bpy.props import FloatVectorProperty, IntProperty

from ...mega_backend.protocol import FindParameters
from .. import chooser, session, tasks
from ..jobs import Job
from ..mending import FIND, Trouble
from ..scene import found
from .job import JobOperator, call
from .source import SourceOperator

FEWEST_PIXELS = 8
"""A drag over fewer pixels of the screen is a click."""


class MEGA_OT_find_people(SourceOperator, JobOperator, bpy.types.Operator):
    """Find the people in the picture and choose whom to recover, before any mesh is made"""

    bl_idname = "mega.find_people"
    bl_label = "Find People"

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        if not self.is_named(context):
            return call(self, bpy.ops.mega.choose_picture, "INVOKE_DEFAULT", then="FIND")
        return self.execute(context)

    def make_job(self, context: bpy.types.Context) -> Job:
        sources = self.sources(context)
        if len(sources) != 1:
            raise Trouble("People are found in one picture at a time; choose one.")
        self._source, self._found = sources[0], None
        work = tasks.find(session.ready_backend(), self._source.file, FindParameters())
        return Job(f"Find People in {self._source.file.name}", work)

    def receive(self, context: bpy.types.Context, event: Any) -> None:
        settings = context.scene.mega
        self._source.show(settings)
        found.begin(settings, self._source.key, event.picture_size)
        found.add(settings, event.people)
        self._found = len(settings.found)

    def anything(self) -> bool:
        return self._found is not None

    def summary(self) -> str:
        if not self._found:
            return "Nobody was found; draw a box round each person"
        return f"{self._found} {'person' if self._found == 1 else 'people'} found"

    def finish(self, context: bpy.types.Context) -> None:
        if context.area is not None and context.area.type in ("VIEW_3D", "IMAGE_EDITOR"):
            values = {"filepath": str(self._source.file), "image": self._source.image}
            call(self, bpy.ops.mega.choose_people, "INVOKE_DEFAULT", **values)


class MEGA_OT_add_box(SourceOperator, JobOperator, bpy.types.Operator):
    """Look for one more person, in a box of the picture, and choose them"""

    bl_idname = "mega.add_box"
    bl_label = "Add Person in Box"

    box: FloatVectorProperty(
        name="Box", description="Left, top, right and bottom in pixels of the upright picture", size=4
    )

    def make_job(self, context: bpy.types.Context) -> Job:
        settings, sources = context.scene.mega, self.sources(context)
        if len(sources) != 1:
            raise Trouble("A box belongs to one picture; choose one.")
        (self._source,) = sources
        if settings.found_in and settings.found_in != self._source.key:
            raise Trouble("Other people were found in another picture; find those of this one first.", FIND)
        self._box, self._added = tuple(self.box), 0
        if self._box[2] - self._box[0] < 2 or self._box[3] - self._box[1] < 2:
            raise Trouble("This box is empty; draw it from one corner to the other, round a whole person.")
        work = tasks.find(session.ready_backend(), self._source.file, FindParameters(), np.array([self._box]))
        chooser.state.looking.append(self._box)
        return Job("Look into the box", work)

    def receive(self, context: bpy.types.Context, event: Any) -> None:
        settings = context.scene.mega
        if not settings.found_in:
            found.begin(settings, self._source.key, event.picture_size)
        if found.already(settings, event.people["boxes"][0]):
            self.problem("The person in this box is there already.")
            return
        found.add(settings, event.people, drawn=True)
        self._added += 1

    def ended(self) -> None:
        if self._box in chooser.state.looking:
            chooser.state.looking.remove(self._box)

    def anything(self) -> bool:
        return self._added > 0

    def summary(self) -> str:
        return "One more person"


class MEGA_OT_choose_people(SourceOperator, bpy.types.Operator):
    """Show the picture and who was found in it: click to choose or leave out, drag a box round one who is missing"""

    bl_idname = "mega.choose_people"
    bl_label = "Choose People"
    bl_options = {"UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if not context.scene.mega.found_in:
            cls.poll_message_set("Find the people in a picture first")
            return False
        return context.area is not None and context.area.type in ("VIEW_3D", "IMAGE_EDITOR")

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> set[str]:
        settings = context.scene.mega
        if chooser.state.area == context.area.as_pointer():
            chooser.end()
            context.area.tag_redraw()
            return {"FINISHED"}
        try:
            (source,) = self.sources(context)
            if source.key != settings.found_in:
                raise Trouble("These people were found in another picture; find those of this one first.", FIND)
            chooser.begin(context.area, source.file, source.image)
        except (ValueError, RuntimeError, Trouble) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        self._filepath, self._image = str(source.file), source.image
        self._area, self._start = context.area, None
        context.window_manager.modal_handler_add(self)
        self._area.header_text_set(
            "Click people to choose them or leave them out, drag a box round somebody who is missing.  "
            "X removes a drawn box, A takes all or none.  Enter recovers, Esc closes"
        )
        context.area.tag_redraw()
        return {"RUNNING_MODAL"}

    def modal(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        settings = context.scene.mega
        gone = not any(area == self._area for area in context.window.screen.areas)
        if gone or not found.is_current(settings) or chooser.state.area != self._area.as_pointer():
            return self._close(context, gone)
        if event.type == "ESC" and event.value == "PRESS":
            return self._close(context)
        if event.type in ("RET", "NUMPAD_ENTER") and event.value == "PRESS":
            self._close(context)
            values = {"image": self._image} if self._image else {"filepath": self._filepath}
            call(self, bpy.ops.mega.recover, "INVOKE_DEFAULT", **values)
            return {"FINISHED"}
        point = self._point(event)
        if point is None and self._start is None:
            context.window.cursor_modal_restore()
            return {"PASS_THROUGH"}
        if event.type == "MOUSEMOVE":
            context.window.cursor_modal_set("CROSSHAIR")
            if self._start is not None:
                chooser.state.drag = (self._mapping().to_picture(*self._start), self._at(event))
                self._area.tag_redraw()
                return {"RUNNING_MODAL"}
            return {"PASS_THROUGH"}
        if event.type == "LEFTMOUSE":
            return self._press(context, event)
        if event.type in ("X", "DEL") and event.value == "PRESS":
            number = found.at(settings, *self._at(event))
            if number is not None and settings.found[number].drawn:
                settings.found.remove(number)
            elif number is not None:
                settings.found[number].chosen = False
            self._area.tag_redraw()
            return {"RUNNING_MODAL"}
        if event.type == "A" and event.value == "PRESS":
            everybody = all(person.chosen for person in settings.found)
            for person in settings.found:
                person.chosen = not everybody
            session.redraw()
            return {"RUNNING_MODAL"}
        # The image editor's own zoom and pan go on; nothing happens to the 3D view behind the picture unseen.
        passed = event.ctrl or event.oskey or event.type in ("N", "T", "F3") or not _is_input(event)
        return {"PASS_THROUGH"} if passed or self._area.type == "IMAGE_EDITOR" else {"RUNNING_MODAL"}

    def _press(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        settings = context.scene.mega
        if event.value == "PRESS":
            self._start = self._point(event)
            return {"RUNNING_MODAL"}
        if event.value != "RELEASE" or self._start is None:
            return {"RUNNING_MODAL"}
        start, self._start, chooser.state.drag = self._start, None, None
        here = event.mouse_x - self._window().x, event.mouse_y - self._window().y
        first, last = self._mapping().to_picture(*start), self._at(event)
        if max(abs(here[0] - start[0]), abs(here[1] - start[1])) < FEWEST_PIXELS:
            number = found.at(settings, *last)
            if number is not None:
                settings.found[number].chosen = not settings.found[number].chosen
        else:
            low, high = np.minimum(first, last), np.maximum(first, last)
            values = {"image": self._image} if self._image else {"filepath": self._filepath}
            call(self, bpy.ops.mega.add_box, "EXEC_DEFAULT", **values, box=(*low.tolist(), *high.tolist()))
        session.redraw()
        return {"RUNNING_MODAL"}

    def cancel(self, context: bpy.types.Context) -> None:
        """Blender ends it itself: another file is opened."""
        self._close(context, gone=True)

    def _close(self, context: bpy.types.Context, gone: bool = False) -> set[str]:
        chooser.end()
        if context.window is not None:
            context.window.cursor_modal_restore()
        if not gone:
            self._area.header_text_set(None)
        session.redraw()
        return {"FINISHED"}

    def _window(self) -> bpy.types.Region:
        return next(region for region in self._area.regions if region.type == "WINDOW")

    def _mapping(self) -> chooser.Mapping:
        return chooser.Mapping(self._area, tuple(bpy.context.scene.mega.found_size))

    def _point(self, event: bpy.types.Event) -> tuple[float, float] | None:
        """The pointer in the region; None over something else, panels over the view included."""
        x, y = event.mouse_x, event.mouse_y
        for region in self._area.regions:
            inside = region.x <= x < region.x + region.width and region.y <= y < region.y + region.height
            if inside and region.type != "WINDOW" and min(region.width, region.height) > 1:
                return None
        window = self._window()
        inside = window.x <= x < window.x + window.width and window.y <= y < window.y + window.height
        return (x - window.x, y - window.y) if inside else None

    def _at(self, event: bpy.types.Event) -> tuple[float, float]:
        """The pointer in pixels of the picture."""
        window = self._window()
        return self._mapping().to_picture(event.mouse_x - window.x, event.mouse_y - window.y)


def _is_input(event: bpy.types.Event) -> bool:
    """Whether it is a key or a button, which a 3D view would do something with."""
    return not event.type.startswith(("TIMER", "WINDOW", "MOUSEMOVE", "INBETWEEN", "NONE"))


class MEGA_OT_forget_people(bpy.types.Operator):
    """Forget who was found: Recover Mesh finds everybody itself again"""

    bl_idname = "mega.forget_people"
    bl_label = "Forget Found People"
    bl_options = {"UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return bool(context.scene.mega.found_in)

    def execute(self, context: bpy.types.Context) -> set[str]:
        found.clear(context.scene.mega)
        chooser.end()
        session.redraw()
        return {"FINISHED"}


class MEGA_OT_remove_box(bpy.types.Operator):
    """Remove one of the found people from the list"""

    bl_idname = "mega.remove_box"
    bl_label = "Remove Found Person"
    bl_options = {"UNDO"}

    index: IntProperty(name="Index", description="Number of the person in the list, from 0", default=0, min=0)

    def execute(self, context: bpy.types.Context) -> set[str]:
        settings = context.scene.mega
        if self.index >= len(settings.found):
            self.report({"ERROR"}, f"There are only {len(settings.found)} found people.")
            return {"CANCELLED"}
        settings.found.remove(self.index)
        session.redraw()
        return {"FINISHED"}


CLASSES = (
    MEGA_OT_find_people,
    MEGA_OT_add_box,
    MEGA_OT_choose_people,
    MEGA_OT_forget_people,
    MEGA_OT_remove_box,
)
