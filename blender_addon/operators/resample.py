"""Re-roll: other alternatives of the active person, with the locked parts as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bpy
from bpy.props import EnumProperty, IntProperty

from ...mega_backend.protocol import PARTS, ResampleParameters
from .. import properties, session, tasks
from ..jobs import Job
from ..scene import hypotheses, person, uncertainty
from .hypotheses import PersonOperator
from .job import JobOperator


class MEGA_OT_resample(JobOperator, PersonOperator, bpy.types.Operator):
    """Sample the body parts again that are not locked, from the alternative that is shown"""

    bl_idname = "mega.resample"
    bl_label = "Re-Roll"

    seed: IntProperty(
        name="Seed", description="-1 takes the next one", default=-1, min=-1, max=2**31 - 1, options={"SKIP_SAVE"}
    )
    hypotheses: IntProperty(
        name="Alternatives", description="How many; the panel's number where none is given", default=5, min=1, max=100,
        options={"SKIP_SAVE"},
    )  # fmt: skip
    keep: EnumProperty(
        name="Keep",
        description="Body parts to keep, in place of those locked on the person",
        items=[(part, part.replace("_", " ").title(), "") for part in PARTS],
        options={"ENUM_FLAG", "SKIP_SAVE"},
    )

    def make_job(self, context: bpy.types.Context) -> Job:
        chosen = context.active_object
        note = chosen.mega
        self._name, self._done = chosen.name, False
        keep = properties.locked_parts(note)
        if self.properties.is_property_set("keep"):
            keep = tuple(part for part in PARTS if part in self.keep)
        self._seed = self.seed if self.seed >= 0 else (note.seed + 1) % 2**31
        given = self.properties.is_property_set("hypotheses")
        values = ResampleParameters(
            seed=self._seed, steps=note.steps, temperature=note.temperature, keep=keep,
            hypotheses=self.hypotheses if given else context.scene.mega.hypotheses, focal_length=note.focal_length,
            picture_width=note.picture_size[0], picture_height=note.picture_size[1],
        )  # fmt: skip
        arrays = person.state(chosen, note.hypothesis)
        picture = Path(bpy.path.abspath(note.picture)) if note.picture else None
        return Job(
            f"Re-roll {chosen.name}", tasks.resample(session.ready_backend(), arrays, values, picture), queued=True
        )

    def receive(self, _context: bpy.types.Context, event: Any) -> None:
        if not isinstance(event, tasks.Received) or event.message.kind != "person":
            return
        chosen = bpy.data.objects.get(self._name)
        if chosen is None:
            self.problem(f"{self._name} was removed in the meantime.")
            return
        person.replace(chosen, event.message.arrays)
        chosen.mega.seed = self._seed
        hypotheses.show(chosen, 0)
        if bpy.context.scene.mega.show_uncertainty:
            uncertainty.paint(chosen)
        self._done = True

    def anything(self) -> bool:
        return self._done

    def summary(self) -> str:
        return f"{self._name} re-rolled with seed {self._seed}"
