"""What is set in the panel (on the scene) and what is known of a recovered person (on its object)."""

from __future__ import annotations

import bpy
from bpy.props import (
    BoolProperty,
    CollectionProperty,
    EnumProperty,
    FloatProperty,
    FloatVectorProperty,
    IntProperty,
    IntVectorProperty,
    PointerProperty,
    StringProperty,
)

from .scene import hypotheses


def _get_hypothesis(self: MegaPerson) -> int:
    return hypotheses.number(self.id_data)


def _set_hypothesis(self: MegaPerson, value: int) -> None:
    hypotheses.show(self.id_data, value)


class MegaFound(bpy.types.PropertyGroup):
    """Somebody who was found in the panel's picture."""

    box: FloatVectorProperty(
        name="Box", description="Left, top, right and bottom in pixels of the upright picture", size=4
    )
    chosen: BoolProperty(name="Chosen", description="Whether Recover Mesh makes a mesh of this person", default=True)
    drawn: BoolProperty(name="Drawn", description="Whether the box was drawn by hand", default=False)
    landmarks: StringProperty(name="Landmarks", description="What the detector saw, as base64", default="")


class MegaSettings(bpy.types.PropertyGroup):
    """Settings of the panel, saved with the scene."""

    source: EnumProperty(
        name="Source",
        description="Where the picture comes from",
        items=(
            ("FILE", "File", "A picture file"),
            ("IMAGE", "Image", "An image that is open in Blender"),
        ),
    )
    image: PointerProperty(name="Image", description="An image in this file, with people in it", type=bpy.types.Image)
    found: CollectionProperty(
        type=MegaFound, name="Found People", description="Who was found in the picture, to choose from"
    )
    found_in: StringProperty(name="Found In", description="The picture in which they were found", default="")
    found_size: IntVectorProperty(
        name="Picture Size", description="Width and height of that picture in pixels", size=2, default=(1, 1)
    )
    picture: StringProperty(
        name="Picture", description="A photograph with people in it", subtype="FILE_PATH", default=""
    )
    hypotheses: IntProperty(
        name="Alternatives",
        description="How many meshes per person: the best guess and random alternatives, as shape keys",
        default=5, min=1, soft_max=25, max=100,
    )  # fmt: skip
    seed: IntProperty(
        name="Seed", description="The same seed gives the same alternatives again", default=0, min=0, max=2**31 - 1
    )
    steps: IntProperty(
        name="Steps", description="Sampling steps: more follow the picture more closely", default=5, min=1, max=54
    )
    temperature: FloatProperty(
        name="Temperature", description="How far alternatives may lie from the best guess", default=1.0, min=0.0,
        soft_max=2.0, max=10.0,
    )  # fmt: skip
    random_count: IntProperty(
        name="People", description="How many random people to make", default=5, min=1, soft_max=25, max=100
    )
    random_arrange: EnumProperty(
        name="Arrange",
        description="How random people are put into the scene",
        items=(
            ("GRID", "Grid", "Separate objects, side by side"),
            ("ANIMATION", "Animation", "One object that morphs from one person to the next"),
        ),
    )
    show_uncertainty: BoolProperty(
        name="Show Uncertainty", description="Whether people are coloured by how unsure the model is", default=False
    )


class MegaPerson(bpy.types.PropertyGroup):
    """What is known of a recovered person; its arrays are the custom properties `mega_…` of the same object."""

    is_person: BoolProperty(name="Recovered Person", description="Whether MEGA made this mesh", default=False)
    hypothesis: IntProperty(
        name="Alternative", description="Which alternative is shown; 0 is the best guess", min=0,
        get=_get_hypothesis, set=_set_hypothesis,
    )  # fmt: skip
    picture: StringProperty(name="Picture", description="The picture this person was recovered from", default="")
    picture_size: IntVectorProperty(
        name="Picture Size", description="Width and height of the picture in pixels", size=2, default=(1, 1)
    )
    focal_length: FloatProperty(name="Focal Length", description="Of the picture, in pixels", default=1000.0)
    seed: IntProperty(name="Seed", description="With which the alternatives were sampled", default=0)
    steps: IntProperty(name="Steps", description="In which the alternatives were sampled", default=5)
    temperature: FloatProperty(name="Temperature", description="At which they were sampled", default=1.0)
    model: StringProperty(name="Model", description="The model that made this mesh", default="")
    body: StringProperty(name="Body", description="The kind of body", default="")

    lock_head: BoolProperty(name="Head", description="Keep the head when the rest is sampled again")
    lock_torso: BoolProperty(name="Torso", description="Keep the torso when the rest is sampled again")
    lock_left_arm: BoolProperty(name="Left Arm", description="Keep the left arm and hand")
    lock_right_arm: BoolProperty(name="Right Arm", description="Keep the right arm and hand")
    lock_left_leg: BoolProperty(name="Left Leg", description="Keep the left leg and foot")
    lock_right_leg: BoolProperty(name="Right Leg", description="Keep the right leg and foot")


LOCKS = {
    "lock_head": ("head",),
    "lock_torso": ("torso",),
    "lock_left_arm": ("left_arm", "left_hand"),
    "lock_right_arm": ("right_arm", "right_hand"),
    "lock_left_leg": ("left_leg", "left_foot"),
    "lock_right_leg": ("right_leg", "right_foot"),
}
"""The locks of a person and the body parts that each keeps."""


def locked_parts(person: MegaPerson) -> tuple[str, ...]:
    return tuple(part for name, parts in LOCKS.items() if getattr(person, name) for part in parts)


CLASSES = (MegaFound, MegaSettings, MegaPerson)


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)
    bpy.types.Scene.mega = PointerProperty(type=MegaSettings)
    bpy.types.Object.mega = PointerProperty(type=MegaPerson)


def unregister() -> None:
    del bpy.types.Object.mega
    del bpy.types.Scene.mega
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
