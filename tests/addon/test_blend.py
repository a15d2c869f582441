"""A result file becomes a .blend without a Blender."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from fake_recoverer import FakeRecoverer
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys; sys.path.insert(0, "tests")
from pathlib import Path
from fake_recoverer import FakeRecoverer
from mega_backend import protocol
from mega_backend.result import Recovery
from tools import blend
folder = Path(sys.argv[1])
body = protocol.topology_of(FakeRecoverer().body)
blend.write(Recovery.load(folder / "park.npz"), body, folder / "park.png", folder / "park.blend")
"""


def test_a_result_file_becomes_a_blend(blender, photo):
    recovery = FakeRecoverer().recover(np.asarray(Image.open(photo)), hypotheses=3, seed=2)
    recovery.save(photo.with_suffix(".npz"))
    subprocess.run([sys.executable, "-c", SCRIPT, str(photo.parent)], cwd=ROOT, check=True, timeout=240)
    blender.ops.wm.open_mainfile(filepath=str(photo.with_suffix(".blend")))
    people = [o for o in blender.data.objects if o.type == "MESH"]
    assert [len(p.data.shape_keys.key_blocks) for p in people] == [3, 3]
    assert people[0].mega.seed == 2 and people[0].mega.model == "fake"
    background = blender.context.scene.camera.data.background_images[0].image
    assert Path(blender.path.abspath(background.filepath)) == photo
