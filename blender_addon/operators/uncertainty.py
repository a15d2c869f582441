"""Show Uncertainty: colours where the alternatives differ, on and off."""

from __future__ import annotations

import bpy
from bpy.props import BoolProperty

from ..scene import person, shading, uncertainty


class MEGA_OT_show_uncertainty(bpy.types.Operator):
    """Colour all recovered people by how unsure the model is, or stop doing so"""

    bl_idname = "mega.show_uncertainty"
    bl_label = "Show Uncertainty"
    bl_options = {"REGISTER", "UNDO"}

    show: BoolProperty(name="Show", description="Whether to show the colours or the materials", default=True)

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if not person.people(context.scene.objects):
            cls.poll_message_set("There are no recovered people in this scene")
            return False
        return True

    def execute(self, context: bpy.types.Context) -> set[str]:
        context.scene.mega.show_uncertainty = self.show
        if self.show:
            painted = [uncertainty.paint(each) for each in person.people(context.scene.objects)]
            if not any(painted):
                self.report({"WARNING"}, "These people have no alternatives that could differ")
        shading.follow(context.scene)
        return {"FINISHED"}
