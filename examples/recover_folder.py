"""All pictures of a folder into one .blend, in a Blender without a window.

    blender -b -P examples/recover_folder.py -- [--url http://127.0.0.1:8765] [--hypotheses 5] FOLDER OUT.blend

Needs the extension "MEGA Mesh Recovery"; without --url it uses the backend of the extension's preferences. In
background mode the operator returns when it is done.
"""

import argparse
import sys
from pathlib import Path

import bpy

parser = argparse.ArgumentParser()
parser.add_argument("--url", help="a backend that runs already")
parser.add_argument("--hypotheses", type=int, default=5)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("folder", type=Path)
parser.add_argument("output", type=Path)
arguments = parser.parse_args(sys.argv[sys.argv.index("--") + 1 :])

addon = next(each for each in bpy.context.preferences.addons if each.module.endswith(".mega_mesh_recovery"))
if arguments.url:
    addon.preferences.mode, addon.preferences.url = "REMOTE", arguments.url

bpy.ops.wm.read_homefile(use_empty=True)
for picture in sorted(arguments.folder.glob("*.*")):
    if picture.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp"):
        continue
    try:
        bpy.ops.mega.recover(filepath=str(picture), hypotheses=arguments.hypotheses, seed=arguments.seed)
    except RuntimeError as error:  # an operator's error report
        print(f"{picture.name}: {error}")

for person in bpy.data.objects:
    if person.mega.is_person:
        print(f"{person.name}: {len(person.data.shape_keys.key_blocks)} alternatives")
bpy.ops.wm.save_as_mainfile(filepath=str(arguments.output.absolute()))
