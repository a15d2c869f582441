"""The people of a clip as armatures with actions, in a Blender without a window.

    blender -b -P examples/clip_to_armature.py -- [--url http://127.0.0.1:8765] [--start 1] [--end 0] CLIP OUT.blend

CLIP is a movie, a folder of pictures, or one picture of a numbered sequence. Needs the extension "MEGA Mesh Recovery";
without --url it uses the backend of the extension's preferences. In background mode the operator returns when it is
done. The bones are called as retargeting tools expect: Hips, Spine, LeftUpLeg, LeftArm…
"""

import argparse
import sys
from pathlib import Path

import bpy

parser = argparse.ArgumentParser()
parser.add_argument("--url", help="a backend that runs already")
parser.add_argument("--start", type=int, default=1, help="first frame of the clip")
parser.add_argument("--end", type=int, default=0, help="last frame of the clip; 0 for its end")
parser.add_argument("clip", type=Path)
parser.add_argument("output", type=Path)
arguments = parser.parse_args(sys.argv[sys.argv.index("--") + 1 :])

addon = next(each for each in bpy.context.preferences.addons if each.module.endswith(".mega_mesh_recovery"))
if arguments.url:
    addon.preferences.mode, addon.preferences.url = "REMOTE", arguments.url

bpy.ops.wm.read_homefile(use_empty=True)
bpy.ops.mega.recover_clip(
    filepath=str(arguments.clip.absolute()), start=arguments.start, end=arguments.end, output="ARMATURE"
)
scene = bpy.context.scene
for made in scene.objects:
    if made.type == "ARMATURE":
        print(f"{made.name}: frames {scene.frame_start} to {scene.frame_end}")
bpy.ops.wm.save_as_mainfile(filepath=str(arguments.output.absolute()))
