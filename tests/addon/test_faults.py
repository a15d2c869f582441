"""Faults in a real Blender: each has its own sentence, nothing is lost, nothing hangs or stays behind."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from real_blender import BLENDER, run

HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.blender


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("faults")
    Image.new("RGB", (80, 60), (120, 120, 120)).save(folder / "park.png")
    return folder


@pytest.fixture(scope="module")
def blender_said(installed, place):
    done = run(installed, "-b", "-P", str(HERE / "faults_inside.py"), "--python-exit-code", "3", "--", str(place))
    line = next(line for line in done.stdout.splitlines() if line.startswith("SAID"))
    return {**json.loads(line[5:]), "output": done.stdout + done.stderr}


@pytest.mark.parametrize("name", ["well", "killed once", "afterwards", "right token"])
def test_it_goes_well(blender_said, name):
    """kill -9 in the middle of a job: the backend is started again and the job goes on."""
    assert blender_said[name]["error"] == "" and blender_said[name]["people"] == 2


@pytest.mark.parametrize(
    ("name", "sentence", "mend"),
    [
        ("killed twice", "started again and stopped once more: it was killed .signal 9", "mega.show_log"),
        ("wrong token", "token is missing or wrong", "mega.preferences"),
        ("remote gone", "No backend answers at http", "mega.preferences"),
        ("newer backend", "protocol 99.*update the add-on", "mega.preferences"),
        ("older backend", "protocol 0.*update the backend", "mega.preferences"),
        ("no network", "may not use the network.*Online Access", "mega.allow_online"),
        ("no network for the set-up", "may not use the network.*folder of wheels", "mega.allow_online"),
        ("not set up", "No backend is set up.*Set Up Backend", "mega.set_up_backend"),
        ("picture moved away", r"There is no file .*park\.png.*choose the picture again", "mega.choose_picture"),
    ],
)
def test_it_fails_with_a_sentence_and_what_mends_it(blender_said, name, sentence, mend):
    said = blender_said[name]
    assert re.search(sentence, said["error"]), said
    assert said["people"] == 0 and said["seconds"] < 20 and said["mend"] == mend


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("image on a full disk", "painted cannot be written to Blender's temporary folder"),
        ("set-up on a full disk", "(?i)no space left"),
        ("set-up in a read-only folder", "(?i)read-only file system"),
        ("saving on a full disk", "exit code 1"),
        ("saving in a read-only folder", "exit code 1"),
    ],
)
def test_disks(blender_said, name, sentence):
    if "no disks" in blender_said:
        pytest.skip(f"needs the right to mount: {blender_said['no disks']['error']}")
    said = blender_said[name]
    assert re.search(sentence, said["error"]), said
    if name.startswith("saving"):
        assert said["people"] == 2 and "all.blend cannot be saved" in blender_said["output"]


def ids(place):
    return [int(line) for line in (place / "pids").read_text().split()] if (place / "pids").exists() else []


def is_alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


SLOW_JOB = """
import os, sys, bpy
python = {python!r}
with open(python, "w") as script:
    script.write('#!/bin/sh\\nexec ' + sys.executable + ' {server} {folder}\\n')
os.chmod(python, 0o755)
preferences = bpy.context.preferences.addons["bl_ext.user_default.mega_mesh_recovery"].preferences
preferences.mode, preferences.python = "LOCAL", python
bpy.ops.mega.recover(filepath="{folder}/park.png", steps=54)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_ending_blender_in_the_middle_leaves_no_process_behind(installed, tmp_path, how):
    from PIL import Image

    Image.new("RGB", (80, 60), (120, 120, 120)).save(tmp_path / "park.png")
    (tmp_path / "slow").touch()
    script = tmp_path / "work.py"
    python = tmp_path / "python"
    script.write_text(SLOW_JOB.format(python=str(python), server=str(HERE / "plain_server.py"), folder=str(tmp_path)))
    with open(tmp_path / "log", "w") as log:
        blender = subprocess.Popen(
            [BLENDER, "-b", "-P", str(script)], env=installed, stdout=log, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + 120
    while "step 1 of 54" not in (tmp_path / "log").read_text():
        assert blender.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.2)
    (backend,) = ids(tmp_path)
    assert is_alive(backend)
    os.kill(blender.pid, how)
    blender.wait(30)
    deadline = time.monotonic() + 20
    while is_alive(backend):
        assert time.monotonic() < deadline
        time.sleep(0.1)
