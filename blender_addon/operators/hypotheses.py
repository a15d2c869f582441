"""Stepping through the alternatives of the active person, keeping one, keyframing the choice."""

from __future__ import annotations

import bpy
from bpy.props import IntProperty

from ..scene import hypotheses


class PersonOperator:
    """An operator on the active person."""

    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        person = context.active_object
        if person is None or person.type != "MESH" or not person.mega.is_person:
            cls.poll_message_set("Select a recovered person")
            return False
        return True


class MEGA_OT_step(PersonOperator, bpy.types.Operator):
    """Show the next or the previous alternative"""

    bl_idname = "mega.step"
    bl_label = "Step Through Alternatives"

    step: IntProperty(name="Step", description="How many alternatives further; negative for back", default=1)

    def execute(self, context: bpy.types.Context) -> set[str]:
        person = context.active_object
        person.mega.hypothesis = (person.mega.hypothesis + self.step) % hypotheses.count(person)
        return {"FINISHED"}


class MEGA_OT_keep(PersonOperator, bpy.types.Operator):
    """Make what is shown the one shape of this mesh and remove the other alternatives"""

    bl_idname = "mega.keep"
    bl_label = "Keep This One"

    def execute(self, context: bpy.types.Context) -> set[str]:
        hypotheses.keep(context.active_object)
        return {"FINISHED"}


class MEGA_OT_keyframe(PersonOperator, bpy.types.Operator):
    """Set a keyframe for the alternative that is shown: the body morphs from one such frame to the next"""

    bl_idname = "mega.keyframe"
    bl_label = "Keyframe Alternative"

    def execute(self, context: bpy.types.Context) -> set[str]:
        hypotheses.keyframe(context.active_object, context.scene.frame_current)
        return {"FINISHED"}
