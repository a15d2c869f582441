"""Only the largest person of each picture of a folder, each into its own .blend, in a Blender without a window.

    blender -b -P examples/largest_person.py -- [--url http://127.0.0.1:8765] FOLDER OUTPUT_FOLDER

Shows how to choose: find the people first, leave some out, then recover.
"""

import argparse
import sys
from pathlib import Path

import bpy

parser = argparse.ArgumentParser()
parser.add_argument("--url", help="a backend that runs already")
parser.add_argument("folder", type=Path)
parser.add_argument("output", type=Path)
arguments = parser.parse_args(sys.argv[sys.argv.index("--") + 1 :])

addon = next(each for each in bpy.context.preferences.addons if each.module.endswith(".mega_mesh_recovery"))
if arguments.url:
    addon.preferences.mode, addon.preferences.url = "REMOTE", arguments.url

arguments.output.mkdir(parents=True, exist_ok=True)
for picture in sorted(arguments.folder.glob("*.*")):
    if picture.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp"):
        continue
    bpy.ops.wm.read_homefile(use_empty=True)
    try:
        bpy.ops.mega.find_people(filepath=str(picture.absolute()))
        found = bpy.context.scene.mega.found
        areas = [(person.box[2] - person.box[0]) * (person.box[3] - person.box[1]) for person in found]
        for person, area in zip(found, areas, strict=True):
            person.chosen = area == max(areas)
        bpy.ops.mega.recover(hypotheses=5)
    except RuntimeError as error:  # an operator's error report
        print(f"{picture.name}: {error}")
        continue
    bpy.ops.wm.save_as_mainfile(filepath=str((arguments.output / f"{picture.stem}.blend").absolute()))
    print(f"{picture.name}: 1 of {len(areas)} people")
