"""What came of a clip, inside any Blender; prints FACTS and JSON. With URL and CLIP it is recovered first.

blender -b [FILE.blend] -P clip_inside.py -- [URL CLIP]
python clip_inside.py -- URL CLIP            with the bpy module: the extension comes from the checkout
"""

import json
import sys
from pathlib import Path

import bpy
import numpy as np

ARGUMENTS = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []


def recover(url, clip):
    """The clip's people as meshes and armatures, in an empty scene."""
    found = [each.module for each in bpy.context.preferences.addons if each.module.endswith("mega_mesh_recovery")]
    if not found:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        from tools import extension_package

        found = [extension_package.enable().__name__]
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    if found[0] not in bpy.context.preferences.addons:
        bpy.context.preferences.addons.new().module = found[0]
    preferences = bpy.context.preferences.addons[found[0]].preferences
    preferences.mode, preferences.url = "REMOTE", url
    bpy.ops.mega.recover_clip(filepath=clip, output="BOTH")


if len(ARGUMENTS) == 2:
    recover(*ARGUMENTS)
scene = bpy.context.scene


def points(made, frame):
    scene.frame_set(frame)
    evaluated = made.evaluated_get(bpy.context.evaluated_depsgraph_get())
    values = np.empty(len(evaluated.data.vertices) * 3, np.float32)
    evaluated.data.vertices.foreach_get("co", values)
    matrix = np.array(made.matrix_world)
    return values.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]


facts = {"range": [scene.frame_start, scene.frame_end], "fps": scene.render.fps / scene.render.fps_base, "people": []}
for mesh in sorted((o for o in scene.objects if o.type == "MESH" and o.mega_motion.is_tracked), key=lambda o: o.name):
    keys = mesh.data.shape_keys
    person = {"name": mesh.name, "cache": [m.filepath for m in mesh.modifiers if m.type == "MESH_CACHE"]}
    if keys:
        bag = action = keys.animation_data.action
        if hasattr(action, "slots"):
            bag = action.layers[0].strips[0].channelbag(keys.animation_data.action_slot)
        person |= {"relative": keys.use_relative, "frames": [key.frame for key in keys.key_blocks]}
        person["curves"] = [[c.data_path, len(c.keyframe_points)] for c in bag.fcurves]
        first = round(mesh.animation_data.action.frame_range[0]) + 1
    skinned = bpy.data.objects.get(mesh.name + " Skinned")
    if keys and skinned:
        skinned.hide_viewport = False
        away = [
            np.linalg.norm(points(mesh, f) - points(skinned, f), axis=1)
            for f in (first, first + len(keys.key_blocks) // 2, first + len(keys.key_blocks) - 1)
        ]
        person["away"] = [[float(a.mean()), float(a.max())] for a in away]
    facts["people"].append(person)
facts["armatures"] = sorted(o.name for o in scene.objects if o.type == "ARMATURE")
background = scene.camera.data.background_images[0]
facts["behind"] = background.image.source
print("FACTS", json.dumps(facts))
