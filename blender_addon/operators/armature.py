"""Add Armature: the shape that a recovered person shows now, on bones."""

from __future__ import annotations

from typing import Any

import bpy
import numpy as np
from mathutils import Matrix

from ...mega_backend.protocol_motion import Build, Moment
from .. import session, tasks, tasks_clip
from ..jobs import Job
from ..scene import axes, hypotheses
from ..scene.armature import Motion, Rigger
from .hypotheses import PersonOperator
from .job import JobOperator


class MEGA_OT_add_armature(JobOperator, PersonOperator, bpy.types.Operator):
    """Give the alternative that is shown an armature in its pose, and a mesh with the person's shape skinned to it"""

    bl_idname = "mega.add_armature"
    bl_label = "Add Armature"
    bl_options = {"UNDO"}

    def make_job(self, context: bpy.types.Context) -> Job:
        chosen = context.active_object
        if "mega_origin" not in chosen:
            raise ValueError(f"{chosen.name} has lost what it was made from; recover it from the picture again.")
        self._name, self._made, self._left, self._build, self._moment = chosen.name, "", None, None, None
        self._shown = hypotheses.shown(chosen) + np.array(chosen["mega_origin"], np.float32)
        work = tasks_clip.pose(session.ready_backend(), axes.to_camera(self._shown).astype(np.float32))
        return Job(f"Armature of {chosen.name}", work)

    def receive(self, _context: bpy.types.Context, event: Any) -> None:
        match event:
            case tasks.BodyKnown(topology, _):
                self._topology = topology
            case tasks_clip.RigKnown(rig):
                self._rig = rig
            case Build():
                self._build = event
            case Moment():
                self._moment = event

    def go_on(self, context: bpy.types.Context) -> bool:
        if self._moment is None:
            return False
        chosen = bpy.data.objects.get(self._name)
        if chosen is None:
            self.problem(f"{self._name} was removed in the meantime.")
            self._moment = None
            return False
        if self._left is None:
            collection = next(iter(chosen.users_collection), context.scene.collection)
            self._rigger = Rigger(chosen.name, self._rig, self._build, self._topology, collection.name)
            motion = Motion(np.zeros(1), self._moment.rotations[:1], self._moment.root[:1])
            self._left = self._rigger.steps(context, motion, animate=False)
        if next(self._left, self) is not self:
            return True
        self._place(context, chosen)
        return False

    def _place(self, context: bpy.types.Context, chosen: bpy.types.Object) -> None:
        """Where the person is now, whatever it was moved by; the mesh of before steps aside."""
        armature = bpy.data.objects[self._rigger.armature]
        context.view_layer.update()
        stands = Matrix.Translation(np.array(armature.location) - np.array(chosen["mega_origin"]))
        armature.parent = chosen.parent
        armature.matrix_world = chosen.matrix_world @ stands
        chosen.select_set(False)
        chosen.hide_viewport = chosen.hide_render = True
        armature.select_set(True)
        context.view_layer.objects.active = armature
        self._made = armature.name

    def anything(self) -> bool:
        return bool(self._made)

    def summary(self) -> str:
        if not self._made:
            return f"{self._name} has got no armature"
        away = np.linalg.norm(axes.to_blender(self._moment.vertices[0]) - self._shown, axis=1).mean()
        return f"{self._made}: its mesh lies {1000 * away:.0f} mm from the recovered one on average"


CLASSES = (MEGA_OT_add_armature,)
