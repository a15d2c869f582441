"""The same scenario in every Blender that is at hand.

$MEGA_BLENDERS names them, separated by colons: Blender executables, and Pythons that have a `bpy` module.

    MEGA_BLENDERS=/opt/blender-4.3/blender:~/bpy-4.2/bin/python pytest tests/addon/test_every_blender.py
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from real_blender import build, install

HERE = Path(__file__).resolve().parent
BLENDERS = [name for name in os.environ.get("MEGA_BLENDERS", "").split(":") if name]
EXPECTED = {
    "found": 2, "found after a box": 3, "chosen": 2, "people": 4, "keys": 5, "valid": True, "smooth": True,
    "material": "MEGA Skin", "stepped": [0, 1, 0, 0, 0], "at frame 1": [0, 1, 0, 0, 0], "at frame 20": [0, 0, 1, 0, 0],
    "colours": "Uncertainty", "re-rolled": [4, 4], "random": [1, 4], "re-rolled after reopening": 77, "kept": 1,
}  # fmt: skip


@pytest.mark.skipif(not BLENDERS, reason="set MEGA_BLENDERS to Blender executables and Pythons with bpy, with colons")
@pytest.mark.parametrize("blender", BLENDERS or ["none"])
def test_the_whole_scenario(blender, backend_url, photo, tmp_path):
    blender = str(Path(blender).expanduser())
    arguments = ["--", backend_url, str(photo), str(tmp_path)]
    script = str(HERE / "scenario_inside.py")
    if Path(blender).name.startswith("python"):
        command = [blender, script, *arguments]
        environment = {**os.environ, "BLENDER_USER_RESOURCES": str(tmp_path / "user")}
    else:
        environment = install(build(tmp_path, blender), tmp_path / "user", blender)
        command = [blender, "-b", "-P", script, "--python-exit-code", "3", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FACTS")]
    assert lines, done.stdout + done.stderr
    facts = json.loads(lines[0][6:])
    print(facts.pop("version"))
    assert facts == EXPECTED
    assert "Traceback" not in done.stdout + done.stderr
