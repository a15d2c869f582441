"""Clips in a real Blender: the command line, a script, and the window, with what is in the scene afterwards.

As `test_real_blender`; $MEGA_CLIP_BACKEND (a URL) takes a backend that runs already for the clip of real people.
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import uvicorn
from fake_motion import FakeMotion
from movies import movie
from real_blender import ROOT, install, run
from test_every_blender import BLENDERS
from window import Window

from mega_backend import server

INSIDE = Path(__file__).with_name("clip_inside.py")
pytestmark = pytest.mark.blender


@pytest.fixture(scope="module")
def motion_url():
    listener = socket.create_server(("127.0.0.1", 0))
    instance = uvicorn.Server(uvicorn.Config(server.create_app(FakeMotion()), log_level="warning"))
    thread = threading.Thread(target=instance.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    instance.should_exit = True
    thread.join(10)
    listener.close()


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return movie(tmp_path_factory.mktemp("film") / "walk.mp4")


def look(environment, blend):
    return facts_in(run(environment, "-b", str(blend), "-P", str(INSIDE)).stdout)


def facts_in(output):
    return json.loads(next(line for line in output.splitlines() if line.startswith("FACTS"))[6:])


def test_the_command_line_makes_keys_and_armatures(installed, motion_url, film, tmp_path):
    blend = tmp_path / "out" / "walk.blend"
    done = run(installed, "-b", "--command", "mega", "--url", motion_url, "video", str(film), "--as", "both",
               "-o", str(blend))  # fmt: skip
    assert re.search(r"mega: +\d+% \d+ frames, 9.0 a second, \d s left", done.stdout)
    facts = look(installed, blend)
    assert facts["range"] == [1, 12] and facts["fps"] == pytest.approx(12.5) and facts["behind"] == "MOVIE"
    assert facts["armatures"] == ["walk Person 1 Rig", "walk Person 2 Rig"]
    first, second = facts["people"]
    assert not first["relative"] and first["curves"] == [["eval_time", 2]]
    assert first["frames"] == pytest.approx(range(12)) and second["frames"] == pytest.approx(range(8))
    assert max(furthest for person in facts["people"] for _, furthest in person["away"]) < 0.002


@pytest.mark.skipif(not BLENDERS, reason="set MEGA_BLENDERS to Blender executables and Pythons with bpy, with colons")
@pytest.mark.parametrize("blender", BLENDERS or ["none"])
def test_keys_and_armatures_in_every_blender(blender, motion_url, film, tmp_path):
    """Actions have layers since 4.4, and lost their curves in 5.0."""
    environment = {**os.environ, "BLENDER_USER_RESOURCES": str(tmp_path / "user")}
    command = [blender, str(INSIDE), "--", motion_url, str(film)]
    if not Path(blender).name.startswith("python"):
        environment = install(tmp_path, blender)
        command[1:2] = ["-b", "-P", str(INSIDE), "--python-exit-code", "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert "FACTS" in done.stdout and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    facts = facts_in(done.stdout)
    assert facts["range"] == [1, 12] and len(facts["armatures"]) == len(facts["people"]) == 2
    for person in facts["people"]:
        assert not person["relative"] and person["curves"] == [["eval_time", 2]]
        assert max(furthest for _, furthest in person["away"]) < 0.002


def test_the_command_line_keeps_point_caches_beside_the_file(installed, motion_url, film, tmp_path):
    blend = tmp_path / "walk.blend"
    run(installed, "-b", "--command", "mega", "--url", motion_url, "video", str(film), "--storage", "cache",
        "--start", "3", "--end", "9", "--step", "2", "-o", str(blend))  # fmt: skip
    facts = look(installed, blend)
    assert facts["people"][0]["cache"] == ["//walk_Person_1.pc2"] and (tmp_path / "walk_Person_1.pc2").is_file()
    assert facts["range"] == [1, 7]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    done = run(installed, "-b", "--command", "mega", "--url", motion_url, "video", str(broken), "-o",
               str(tmp_path / "b.blend"), check=False)  # fmt: skip
    assert done.returncode == 1 and "convert it to MP4" in done.stdout + done.stderr
    assert not (tmp_path / "b.blend").exists()


def test_alembic_is_written_or_its_lack_is_a_sentence(installed, motion_url, film, tmp_path):
    """Builds of Linux distributions come without; tests/addon/test_clip.py reads what is written."""
    path = tmp_path / "out" / "walk.abc"
    done = run(installed, "-b", "--command", "mega", "--url", motion_url, "video", str(film), "--storage", "cache",
               "-o", str(path), check=False)  # fmt: skip
    written = [each.name for each in path.parent.glob("*")]  # nothing where the folder was not even made
    if done.returncode:
        assert "no Alembic: write a .blend" in done.stderr and not written
    else:
        assert written == ["walk.abc"]


def test_a_script_makes_an_armature(installed, motion_url, film, tmp_path):
    blend = tmp_path / "script.blend"
    done = run(installed, "-b", "-P", str(ROOT / "examples" / "clip_to_armature.py"), "--python-exit-code", "3", "--",
               "--url", motion_url, str(film), str(blend))  # fmt: skip
    assert "walk Person 1 Rig: frames 1 to 12" in done.stdout
    assert look(installed, blend)["armatures"] == ["walk Person 1 Rig", "walk Person 2 Rig"]


@pytest.mark.slow
def test_real_people_of_a_real_clip(installed, shared, tmp_path):
    """The bundled model, from the movie file to keys and armatures that agree."""
    url, backend = os.environ.get("MEGA_CLIP_BACKEND"), None
    if url is None:
        serve = [sys.executable, "-m", "mega_backend", "serve", "--port", "0", "--stop-with-stdin"]
        backend = subprocess.Popen(serve, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        url = next(found.group(1) for line in backend.stdout if (found := re.search(r"ready at (\S+)", line)))
    try:
        blend = Path(os.environ.get("MEGA_SCREENSHOTS", tmp_path)) / "real_walk.blend"
        clip = shared / "photos" / "walking_intel_ccby.mp4"
        command = ["-b", "--command", "mega", "--url", url, "video", str(clip), "--start", "433", "--end", "444",
                   "--as", "both", "-n", "3", "-o", str(blend)]  # fmt: skip
        done = subprocess.run(
            [os.environ["BLENDER"], *command], env=installed, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout + done.stderr
        print(done.stdout)
    finally:
        if backend is not None:
            backend.stdin.close()
            backend.wait(30)
    facts = look(installed, blend)
    print(json.dumps(facts, indent=1))
    assert facts["range"] == [1, 12] and len(facts["people"]) >= 1
    for person in facts["people"]:
        assert not person["relative"] and person["curves"] == [["eval_time", 2]]
        assert all(mean < 0.01 for mean, _ in person["away"])


@pytest.fixture
def window(installed, tmp_path):
    folder = tmp_path / "drive"
    folder.mkdir()
    opened = Window(folder, installed)
    yield opened
    opened.close()


class Slow:
    """A backend that takes a tenth of a second for each frame."""

    def __init__(self):
        self.motion = FakeMotion(0.1)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._instance = uvicorn.Server(uvicorn.Config(server.create_app(self.motion), log_level="warning"))
        self._thread = threading.Thread(target=self._instance.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def stop(self):
        self._instance.should_exit = True
        self._thread.join(10)


def test_in_the_window_nothing_blocks_escape_keeps_frames_and_undo_is_one_step(window, tmp_path):
    slow, film = Slow(), movie(tmp_path / "walk.mp4", 30)
    tracked = "[o.name for o in bpy.context.scene.objects if o.mega_motion.is_tracked]"
    keys = "len(bpy.data.objects['walk Person 1'].data.shape_keys.key_blocks)"
    try:
        window.ask(f"prepare({slow.url!r}, '', 5)")
        window.wait_until("region().width > 50")
        window.move(*window.ask("middle()"))
        window.wait_until("show_tab()")
        window.ask("watch_ours()")
        window.ask("longest_gap()")
        # As Blender calls it when a movie is dropped onto the view.
        dropped = f"directory={str(film.parent)!r}, files=[{{'name': {film.name!r}}}]"
        window.ask(f"invoke(bpy.ops.mega.recover_clip, {dropped}, output='BOTH')")
        window.wait_until(f"len({tracked}) > 0")
        window.screenshot("clip_working")
        window.wait_until("not jobs()", 400)
        print("longest calls of ours:", window.ask("[longest_calls(), Ours.clock]"), "gap", window.ask("longest_gap()"))
        assert len(window.ask(tracked)) == 4 and window.ask(keys) == 30
        assert window.ask("view().spaces.active.region_3d.view_perspective") == "CAMERA"
        window.key("ctrl+z")
        window.wait_until(f"not {tracked}")
        window.key("ctrl+shift+z")
        window.wait_until(f"len({tracked}) == 4")
        window.key("ctrl+z")
        window.wait_until(f"not {tracked}")

        slow.motion.frames = 0
        window.ask(f"invoke(bpy.ops.mega.recover_clip, {dropped}, output='MESH')")
        window.wait_until(f"len({tracked}) > 0")
        window.key("Escape")
        window.wait_until("not jobs()", 200)
        assert 0 < window.ask(keys) < 30 and slow.motion.frames < 30
        assert window.ask("[bpy.context.scene.frame_start, bpy.context.scene.frame_end]") == [1, window.ask(keys)]
        assert "Traceback" not in window.log
    finally:
        slow.stop()
