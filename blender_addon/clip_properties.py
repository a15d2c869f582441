"""What is set in the panel *Clip* (on the scene), and what marks the objects that were made of one."""

from __future__ import annotations

import bpy
from bpy.props import BoolProperty, EnumProperty, IntProperty, PointerProperty, StringProperty

OUTPUTS = (
    ("MESH", "Mesh", "A mesh for each person, moved by absolute shape keys or a point cache"),
    ("ARMATURE", "Armature", "An armature with an action for each person, and a mesh skinned to it"),
    ("BOTH", "Both", "The moving mesh, and the armature beside it"),
)
STORAGES = (
    ("AUTO", "Automatic", "Shape keys for short clips, a point cache for long ones"),
    ("KEYS", "Shape Keys", "A shape key for each frame, in the .blend itself"),
    ("CACHE", "Point Cache", "A PC2 file for each person, beside the .blend"),
)
SMOOTHINGS = (
    ("off", "Off", "As recovered from each frame"),
    ("light", "Light", "Takes the jitter out"),
    ("strong", "Strong", "Slow motion only"),
)
RATES = (
    ("SCENE", "Scene to Clip", "The scene takes the clip's frame rate; every frame is kept as it is"),
    ("CLIP", "Clip to Scene", "The scene keeps its frame rate; the motion is timed to it"),
)


class ClipOptions:
    """What the panel and the operator both ask for. Mix in before a Blender type."""

    start: IntProperty(name="First Frame", description="Of the clip, which counts from 1", default=1, min=1)
    end: IntProperty(name="Last Frame", description="Of the clip; 0 for its end", default=0, min=0)
    step: IntProperty(name="Step", description="Take every so many frames", default=1, min=1, soft_max=10)
    hypotheses: IntProperty(
        name="Alternatives", description="Meshes to choose from in each frame: the motion is a path through them",
        default=5, min=1, soft_max=25, max=100,
    )  # fmt: skip
    smoothing: EnumProperty(name="Smoothing", description="Of the motion", items=SMOOTHINGS, default="light")
    output: EnumProperty(name="Output", description="What is made of each person", items=OUTPUTS)
    storage: EnumProperty(name="Storage", description="How meshes move", items=STORAGES)
    match: EnumProperty(name="Frame Rate", description="What follows where clip and scene differ", items=RATES)
    set_range: BoolProperty(name="Set Scene Range", description="Let the scene play just the clip", default=True)


class MegaClip(ClipOptions, bpy.types.PropertyGroup):
    """Settings of the panel, saved with the scene."""

    clip: StringProperty(
        name="Clip", description="A movie file, a folder of pictures, or a picture of a numbered sequence",
        subtype="FILE_PATH", default="",
    )  # fmt: skip


class MegaMotion(bpy.types.PropertyGroup):
    """What is known of an object that was made of a clip."""

    is_tracked: BoolProperty(name="Tracked Person", description="Whether it came of a clip", default=False)
    clip: StringProperty(name="Clip", description="The clip this person was recovered from", default="")


CLASSES = (MegaClip, MegaMotion)


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)
    bpy.types.Scene.mega_clip = PointerProperty(type=MegaClip)
    bpy.types.Object.mega_motion = PointerProperty(type=MegaMotion)


def unregister() -> None:
    del bpy.types.Object.mega_motion
    del bpy.types.Scene.mega_clip
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
