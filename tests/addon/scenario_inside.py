"""One whole scenario inside any Blender, without a window; prints FACTS and JSON at its end.

blender -b -P scenario_inside.py -- URL PICTURE FOLDER     the extension is installed
python scenario_inside.py -- URL PICTURE FOLDER            with the bpy module: the extension comes from the checkout
"""

import json
import sys
from pathlib import Path

import bpy

URL, PICTURE, FOLDER = sys.argv[sys.argv.index("--") + 1 :][:3]
ROOT = Path(__file__).resolve().parents[2]
installed = [each.module for each in bpy.context.preferences.addons if each.module.endswith(".mega_mesh_recovery")]
if installed:
    PACKAGE = installed[0]
else:
    sys.path.insert(0, str(ROOT))
    from tools import extension_package

    PACKAGE = extension_package.enable().__name__


def people():
    return sorted((o for o in bpy.data.objects if o.type == "MESH" and o.mega.is_person), key=lambda o: o.name)


def values(person):
    return [round(key.value, 3) for key in person.data.shape_keys.key_blocks]


def connect():
    preferences = bpy.context.preferences.addons[PACKAGE].preferences
    preferences.mode, preferences.url = "REMOTE", URL


facts = {"version": bpy.app.version_string}
bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
if PACKAGE not in bpy.context.preferences.addons:
    bpy.context.preferences.addons.new().module = PACKAGE
connect()
scene = bpy.context.scene

bpy.ops.mega.find_people(filepath=PICTURE)
facts["found"] = len(scene.mega.found)
bpy.ops.mega.add_box(box=(5, 5, 30, 55))
facts["found after a box"] = len(scene.mega.found)
scene.mega.found[0].chosen = False
bpy.ops.mega.recover(hypotheses=5, seed=3)
facts["chosen"] = len(people())

bpy.ops.mega.forget_people()
bpy.ops.mega.recover(filepath=PICTURE, hypotheses=5, seed=3)
facts["people"] = len(people())
person = bpy.context.active_object
facts["keys"] = len(values(person))
facts["valid"] = not any(each.data.validate() for each in people())
facts["smooth"] = all(polygon.use_smooth for polygon in person.data.polygons)
facts["material"] = person.data.materials[0].name

bpy.ops.mega.step(step=1)
facts["stepped"] = values(person)
bpy.ops.mega.keyframe()
scene.frame_set(20)
bpy.ops.mega.step(step=1)
bpy.ops.mega.keyframe()
scene.frame_set(1)
facts["at frame 1"] = values(person)
scene.frame_set(20)
facts["at frame 20"] = values(person)

bpy.ops.mega.show_uncertainty(show=True)
facts["colours"] = person.data.color_attributes.active_color.name
person.mega.lock_left_leg = person.mega.lock_right_leg = True
bpy.ops.mega.resample(hypotheses=4)
facts["re-rolled"] = [len(values(person)), person.mega.seed]

bpy.ops.mega.random(count=4, seed=2, arrange="GRID")
bpy.ops.mega.random(count=4, seed=2, arrange="ANIMATION")
facts["random"] = sorted(len(each.objects) for each in bpy.data.collections if each.name.startswith("Random"))

name = people()[0].name
path = str(Path(FOLDER) / "scenario.blend")
bpy.ops.wm.save_as_mainfile(filepath=path)
bpy.ops.wm.open_mainfile(filepath=path)
connect()
bpy.context.view_layer.objects.active = bpy.data.objects[name]
bpy.ops.mega.resample(keep={"torso"}, seed=77)
facts["re-rolled after reopening"] = bpy.data.objects[name].mega.seed
bpy.ops.mega.keep()
facts["kept"] = len(values(bpy.data.objects[name]))
print("FACTS", json.dumps(facts), flush=True)
