"""Random People: bodies out of nothing, in a grid or as an animation that morphs from one to the next."""

from __future__ import annotations

from typing import Any

import bpy
import numpy as np
from bpy.props import BoolProperty, EnumProperty, IntProperty

from ...mega_backend.protocol import RandomParameters, ResampleParameters
from .. import properties, session, tasks
from ..jobs import Job
from ..scene import crowd, person
from ..scene.origin import Origin
from .job import JobOperator

STEPS, TEMPERATURE = 20, 1.3


class MEGA_OT_random(JobOperator, bpy.types.Operator):
    """Make random people, without any picture"""

    bl_idname = "mega.random"
    bl_label = "Random People"

    # Not kept from one call to the next: what is not given comes from the panel.
    count: IntProperty(
        name="People", description="How many random people to make", default=5, min=1, max=100, options={"SKIP_SAVE"}
    )
    seed: IntProperty(
        name="Seed", description="The same seed gives the same people", default=0, min=0, max=2**31 - 1,
        options={"SKIP_SAVE"},
    )  # fmt: skip
    arrange: EnumProperty(
        name="Arrange",
        description="How they are put into the scene",
        items=(
            ("GRID", "Grid", "Separate objects, side by side"),
            ("ANIMATION", "Animation", "One object that morphs from one person to the next"),
        ),
        options={"SKIP_SAVE"},
    )
    keep_locked: BoolProperty(
        name="Keep Locked Parts",
        description="Keep the locked parts of the active person in all of them",
        default=False,
        options={"SKIP_SAVE"},
    )

    def make_job(self, context: bpy.types.Context) -> Job:
        given = self.properties.is_property_set
        settings = context.scene.mega
        self._count = self.count if given("count") else settings.random_count
        self._seed = self.seed if given("seed") else settings.seed
        self._arrange = self.arrange if given("arrange") else settings.random_arrange
        self._topology, self._model, self._people = None, "", []
        self._made = 0
        backend = session.ready_backend()
        if not self.keep_locked:
            values = RandomParameters(seed=self._seed, steps=STEPS, temperature=TEMPERATURE, count=self._count)
            return Job("Random People", tasks.random(backend, values), queued=True)
        chosen = context.active_object
        if chosen is None or not chosen.mega.is_person:
            raise ValueError("Select the person whose locked parts are to be kept.")
        keep = properties.locked_parts(chosen.mega)
        values = ResampleParameters(
            seed=self._seed, steps=STEPS, temperature=TEMPERATURE, keep=keep, hypotheses=self._count
        )
        arrays = person.state(chosen, chosen.mega.hypothesis)
        # Nobody has seen these people: the model's idea of bodies alone completes what is kept.
        arrays["landmarks"] = np.zeros_like(arrays["landmarks"])
        arrays["landmarks_3d"] = np.full_like(arrays["landmarks_3d"], np.nan)
        return Job("Random People", tasks.resample(backend, arrays, values), queued=True)

    def receive(self, context: bpy.types.Context, event: Any) -> None:
        match event:
            case tasks.BodyKnown(topology, model):
                self._topology, self._model = topology, model
            case tasks.Received(message) if message.kind == "person":
                self._people.append(message.arrays)
                origin = Origin(self._seed, STEPS, TEMPERATURE, self._model)
                singles = [each for arrays in self._people for each in crowd.singles(arrays)]
                if len(singles) < self._count:
                    return
                made = crowd.add(context.scene, singles, self._topology, origin, self._arrange == "ANIMATION")
                self._made = len(singles)
                if context.mode == "OBJECT":
                    context.view_layer.objects.active = made[0]

    def anything(self) -> bool:
        return self._made > 0

    def summary(self) -> str:
        return f"{self._made} random {'person' if self._made == 1 else 'people'}"
