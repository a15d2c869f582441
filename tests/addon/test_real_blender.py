"""The zip in a real Blender: installed, used from the command line, from a script, and with the mouse in its window.

$BLENDER names the executable; for the window, $MEGA_SCREEN is a command that gives the following one a display, or
DISPLAY is set. $MEGA_SCREENSHOTS keeps screenshots. With $MEGA_BACKEND (a URL), $MEGA_PICTURE and $MEGA_PEOPLE the
window works with a real model instead of the fake one.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from window import Window

ROOT = Path(__file__).resolve().parents[2]
BLENDER = os.environ.get("BLENDER", "blender")
pytestmark = pytest.mark.blender


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a Blender that has the freshly built extension installed."""
    folder = tmp_path_factory.mktemp("blender")
    command = [sys.executable, "-m", "tools.build_extension", "--blender", BLENDER, "--output", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    archive = next(folder.glob("mega_mesh_recovery-*.zip"))
    environment = {**os.environ, "BLENDER_USER_RESOURCES": str(folder / "user")}
    run(environment, "--command", "extension", "install-file", "-r", "user_default", "--enable", str(archive))
    return environment


def run(environment, *arguments, check=True):
    done = subprocess.run([BLENDER, *arguments], env=environment, capture_output=True, text=True, timeout=240)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def read_back(environment, blend, tmp_path):
    """What a saved file has, as Blender sees it."""
    script = tmp_path / "read.py"
    script.write_text(
        "import bpy, json\n"
        "people = [o for o in bpy.data.objects if o.type == 'MESH' and o.mega.is_person]\n"
        "facts = [[o.users_collection[0].name, len(o.data.shape_keys.key_blocks)] for o in people]\n"
        "print('FACTS', json.dumps(facts))\n"
    )
    output = run(environment, "-b", str(blend), "-P", str(script)).stdout
    return json.loads(next(line for line in output.splitlines() if line.startswith("FACTS"))[6:])


def test_the_command_line_makes_one_file_of_several_pictures(installed, backend_url, photo, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"nothing")
    blend = tmp_path / "out" / "all.blend"
    done = run(installed, "-b", "--command", "mega", "--url", backend_url, "recover", str(photo), str(broken),
               "-n", "3", "-o", str(blend), check=False)  # fmt: skip
    assert done.returncode == 1 and "is not a picture" in done.stderr + done.stdout
    assert "1 of 2 pictures done" in done.stdout
    assert read_back(installed, blend, tmp_path) == [["park", 3]] * 2


def test_the_command_line_makes_random_people(installed, backend_url, tmp_path):
    blend = tmp_path / "crowd.blend"
    run(installed, "-b", "--command", "mega", "--url", backend_url, "random", "-n", "3", "-o", str(blend))
    assert read_back(installed, blend, tmp_path) == [["Random People", 1]] * 3


def test_a_script_in_background_mode(installed, backend_url, photo, tmp_path):
    blend = tmp_path / "script.blend"
    done = run(installed, "-b", "-P", str(ROOT / "examples" / "recover_folder.py"), "--python-exit-code", "3", "--",
               "--url", backend_url, "--hypotheses", "2", str(photo.parent), str(blend))  # fmt: skip
    assert blend.exists(), done.stdout + done.stderr
    assert read_back(installed, blend, tmp_path) == [["park", 2]] * 2


# Places in the sidebar, from its upper left corner, at the default scale.
RECOVER, NEXT, UNCERTAINTY, LOCK_LEFT_LEG, RE_ROLL = (136, 130), (243, 273), (136, 320), (90, 428), (136, 455)


@pytest.fixture
def window(installed, tmp_path):
    folder = tmp_path / "drive"
    folder.mkdir()
    opened = Window(folder, installed)
    yield opened
    opened.close()


@pytest.fixture
def scene(window, backend_url, tmp_path):
    """The window with the sidebar open: backend, picture and how many people are in it."""
    picture = Path(os.environ.get("MEGA_PICTURE", tmp_path / "park.png"))
    if not picture.exists():
        Image.new("RGB", (800, 600), (120, 130, 140)).save(picture)
    url, people = os.environ.get("MEGA_BACKEND", backend_url), int(os.environ.get("MEGA_PEOPLE", 2))
    window.ask(f"prepare({url!r}, {str(picture)!r}, 5)")
    window.wait_until("region().width > 50")
    window.move(*window.ask("middle()"))
    window.wait_until("show_tab()")
    return picture, people


def test_a_person_is_recovered_and_worked_on_with_the_mouse(window, scene, tmp_path):
    picture, people = scene
    window.screenshot("1_sidebar")
    window.ask("longest_gap()")
    window.click_in_sidebar(RECOVER, "people() or jobs()")
    window.wait_until(f"len(people()) == {people} and not jobs()", 200)
    print("longest pause of the interface:", window.ask("longest_gap()"), "s")
    window.screenshot("2_recovered")
    names = [f"Hypothesis {index}" for index in range(5)]
    assert window.ask("[keys(person) for person in people()]") == [names] * people
    assert window.ask("view().spaces.active.region_3d.view_perspective") == "CAMERA"
    assert window.ask("bpy.context.scene.camera.name") == f"{picture.stem} Camera"
    assert window.ask("bpy.context.scene.camera.data.background_images[0].image.name") == picture.name
    with Image.open(picture) as image:
        assert window.ask("[bpy.context.scene.render.resolution_x, bpy.context.scene.render.resolution_y]") == [
            *image.size
        ]

    window.key("ctrl+z")
    window.wait_until("not people()")
    window.key("ctrl+shift+z")
    window.wait_until(f"len(people()) == {people}")

    window.click_in_sidebar(NEXT, "bpy.context.object.mega.hypothesis == 1")
    window.screenshot("3_second_alternative")
    window.click_in_sidebar(UNCERTAINTY, "bpy.context.scene.mega.show_uncertainty")
    window.screenshot("4_uncertainty")
    window.click_in_sidebar(UNCERTAINTY, "not bpy.context.scene.mega.show_uncertainty")
    window.click_in_sidebar(LOCK_LEFT_LEG, "bpy.context.object.mega.lock_left_leg")
    seed = window.ask("bpy.context.object.mega.seed")
    window.click_in_sidebar(RE_ROLL, f"bpy.context.object.mega.seed == {seed + 1} or jobs()")
    window.wait_until(f"bpy.context.object.mega.seed == {seed + 1} and not jobs()", 200)
    window.screenshot("5_re_rolled")
    assert window.ask("[keys(person) for person in people()]") == [names] * people

    # Saved, opened again, re-rolled again; then people out of nothing beside them.
    name = window.ask("bpy.context.object.name")
    path = str(tmp_path / "people.blend")
    window.ask(f"list(bpy.ops.wm.save_as_mainfile(filepath={path!r}))")
    window.ask(f"list(bpy.ops.wm.open_mainfile(filepath={path!r}))")
    window.wait_until("bool(view()) and len(people()) > 0")
    window.ask(f"setattr(bpy.context.view_layer.objects, 'active', bpy.data.objects[{name!r}])")
    assert window.ask("bpy.context.object.mega.lock_left_leg")
    window.wait_until("show_tab()")
    window.click_in_sidebar(RE_ROLL, f"bpy.context.object.mega.seed == {seed + 2} or jobs()")
    window.wait_until(f"bpy.context.object.mega.seed == {seed + 2} and not jobs()", 200)
    window.ask("invoke(bpy.ops.mega.random, count=6, seed=1)")
    window.wait_until(f"len(people()) == {people + 6} and not jobs()", 200)
    window.ask("show_all('Random People')")
    window.screenshot("6_random_people")
    assert "Traceback" not in window.log


def test_escape_stops_and_the_interface_answers_meanwhile(window, scene):
    import threading

    import uvicorn
    from fake_recoverer import FakeRecoverer

    from mega_backend import server

    listener = socket.create_server(("127.0.0.1", 0))
    slow = FakeRecoverer(0.2)
    instance = uvicorn.Server(uvicorn.Config(server.create_app(slow), log_level="warning"))
    thread = threading.Thread(target=instance.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        window.ask(f"prepare('http://127.0.0.1:{listener.getsockname()[1]}', {str(scene[0])!r}, 5)")
        window.ask("setattr(bpy.context.scene.mega, 'steps', 54)")
        window.click_in_sidebar(RECOVER, "jobs() and 'step' in jobs()[0]")
        window.screenshot("7_working")
        window.key("Escape")
        window.wait_until("not jobs()")
        assert not window.ask("people()") and slow.steps_done < 54
    finally:
        instance.should_exit = True
        thread.join(10)
