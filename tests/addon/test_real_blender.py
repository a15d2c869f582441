"""The zip in a real Blender: installed, used from the command line, from a script, and with the mouse in its window.

$BLENDER names the executable; for the window, $MEGA_SCREEN is a command that gives the following one a display, or
DISPLAY is set. $MEGA_ZIP names a zip that is built already; $MEGA_PATIENCE multiplies all waiting, for busy machines.
$MEGA_SCREENSHOTS keeps screenshots. With $MEGA_BACKEND (a URL), $MEGA_PICTURE and $MEGA_PEOPLE the
window works with a real model instead of the fake one.
"""

import json
import os
import socket
import threading
from pathlib import Path

import pytest
import uvicorn
from fake_recoverer import FakeBody, FakeRecoverer
from PIL import Image
from real_blender import ROOT, run
from window import Window

from mega_backend import server

pytestmark = pytest.mark.blender


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


def test_a_folder_of_fifty_pictures_with_a_bad_one_among_them(installed, backend_url, tmp_path):
    folder, output = tmp_path / "pictures", tmp_path / "blends"
    folder.mkdir()
    for number in range(49):
        Image.new("RGB", (80, 60), (60 + number,) * 3).save(folder / f"{number:02}.png")
    (folder / "17b.jpg").write_bytes(b"no picture")
    done = run(installed, "-b", "--command", "mega", "--url", backend_url, "recover", str(folder), "-n", "2",
               "-o", str(output), check=False)  # fmt: skip
    assert done.returncode == 1 and "49 of 50 pictures done" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mega: ")]
    assert "17b.jpg" in line and "not a picture" in line
    assert sorted(path.name for path in output.iterdir()) == [f"{number:02}.blend" for number in range(49)]
    assert read_back(installed, output / "48.blend", tmp_path) == [["48", 2]] * 2


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


# Places in the sidebar, from its upper left corner, at the default scale, while nobody is found (a row for three lowers
# all that is below it).
FIND, RECOVER = (136, 148), (136, 180)
NEXT, KEYFRAME, UNCERTAINTY, LOCK_LEFT_LEG, LOCK_RIGHT_LEG, RE_ROLL = (
    (243, 325), (200, 345), (136, 372), (74, 480), (195, 480), (136, 507),
)  # fmt: skip


@pytest.fixture
def window(installed, tmp_path):
    folder = tmp_path / "drive"
    folder.mkdir()
    opened = Window(folder, installed)
    yield opened
    opened.close()


@pytest.fixture
def fresh_window(archive, tmp_path):
    """A Blender that has never seen the extension."""
    folder = tmp_path / "drive"
    folder.mkdir()
    opened = Window(folder, {**os.environ, "BLENDER_USER_RESOURCES": str(tmp_path / "user")})
    yield opened
    opened.close()


def connected(window, backend_url, tmp_path):
    """Connect it, open the sidebar and choose the picture; gives the picture and how many people are in it."""
    picture = Path(os.environ.get("MEGA_PICTURE", tmp_path / "park.png"))
    if not picture.exists():
        Image.new("RGB", (800, 600), (120, 130, 140)).save(picture)
    url, people = os.environ.get("MEGA_BACKEND", backend_url), int(os.environ.get("MEGA_PEOPLE", 2))
    window.ask(f"prepare({url!r}, {str(picture)!r}, 5)")
    window.wait_until("region().width > 50")
    window.move(*window.ask("middle()"))
    window.wait_until("show_tab()")
    return picture, people


def test_the_whole_way_with_the_mouse(fresh_window, archive, backend_url, tmp_path):
    window = fresh_window
    assert window.ask(f"install({str(archive)!r})", 200)
    picture, people = connected(window, backend_url, tmp_path)
    window.ask("show_preferences()")
    window.screenshot("0_preferences")
    window.ask("show_preferences(False)")
    window.ask("invoke(bpy.ops.mega.test_backend)")
    window.wait_until("backend() == 'ready' and not jobs()")
    window.screenshot("1_sidebar")

    # Who is in the picture: leave one out and take him in again, draw a box round another.
    window.click_in_sidebar(FIND, "jobs() or chosen()")
    window.wait_until(f"len(chosen()) == {people} and not jobs()", 200)
    window.wait_until("module('chooser').state.area != 0")
    window.screenshot("2_found")
    window.click(*window.ask("spot(1)"))
    window.wait_until(f"chosen() == {[True, False] + [True] * (people - 2)}")
    window.screenshot("3_left_out")
    window.click(*window.ask("spot(1)"))
    window.wait_until("all(chosen())")
    x0, y0, x1, y1 = window.ask("list(bpy.context.scene.mega.found[0].box)")
    window.ask("list(bpy.ops.mega.remove_box(index=0))")
    window.drag(window.ask(f"on_picture({x0}, {y0})"), window.ask(f"on_picture({x1}, {y1})"))
    window.wait_until(f"len(chosen()) == {people} and not jobs()", 200)
    assert window.ask(f"bpy.context.scene.mega.found[{people - 1}].drawn")
    window.screenshot("4_box_drawn")

    window.key("Return")
    window.wait_until(f"len(people()) == {people} and not jobs()", 200)
    assert window.ask("module('chooser').state.area") == 0
    window.screenshot("5_recovered")
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
    window.ask("list(bpy.ops.mega.forget_people())")

    window.click_in_sidebar(NEXT, "bpy.context.object.mega.hypothesis == 1")
    window.screenshot("6_second_alternative")
    window.click_in_sidebar(UNCERTAINTY, "bpy.context.scene.mega.show_uncertainty")
    window.screenshot("7_uncertainty")
    window.click_in_sidebar(UNCERTAINTY, "not bpy.context.scene.mega.show_uncertainty")
    window.click_in_sidebar(LOCK_LEFT_LEG, "bpy.context.object.mega.lock_left_leg")
    window.click_in_sidebar(LOCK_RIGHT_LEG, "bpy.context.object.mega.lock_right_leg")
    seed = window.ask("bpy.context.object.mega.seed")
    window.click_in_sidebar(RE_ROLL, f"bpy.context.object.mega.seed == {seed + 1} or jobs()")
    window.wait_until(f"bpy.context.object.mega.seed == {seed + 1} and not jobs()", 200)
    assert window.ask("[keys(person) for person in people()]") == [names] * people
    window.click_in_sidebar(NEXT, "bpy.context.object.mega.hypothesis == 1")
    window.screenshot("8_re_rolled")
    window.click_in_sidebar(KEYFRAME, "bpy.context.object.data.shape_keys.animation_data is not None")

    # People out of nothing, in a grid and as an animation.
    window.ask("invoke(bpy.ops.mega.random, count=6, seed=1, arrange='GRID')")
    window.wait_until(f"len(people()) == {people + 6} and not jobs()", 200)
    window.ask("show_all('Random People')")
    window.screenshot("9_random_people")
    window.ask("invoke(bpy.ops.mega.random, count=4, seed=1, arrange='ANIMATION')")
    window.wait_until(f"len(people()) == {people + 7} and not jobs()", 200)

    # Saved, opened again, re-rolled again.
    name = f"{picture.stem} Person 1"
    path = str(tmp_path / "people.blend")
    window.ask(f"list(bpy.ops.wm.save_as_mainfile(filepath={path!r}))")
    window.ask(f"list(bpy.ops.wm.open_mainfile(filepath={path!r}))")
    window.wait_until("bool(view()) and len(people()) > 0")
    window.ask(f"setattr(bpy.context.view_layer.objects, 'active', bpy.data.objects[{name!r}])")
    seed = window.ask("bpy.context.object.mega.seed")
    window.wait_until("show_tab()")
    window.click_in_sidebar(RE_ROLL, f"bpy.context.object.mega.seed == {seed + 1} or jobs()")
    window.wait_until(f"bpy.context.object.mega.seed == {seed + 1} and not jobs()", 200)
    assert "Traceback" not in window.log


@pytest.fixture
def serve():
    """Starts a backend around a recoverer; gives its address."""
    running = []

    def start(recoverer):
        listener = socket.create_server(("127.0.0.1", 0))
        instance = uvicorn.Server(uvicorn.Config(server.create_app(recoverer), log_level="warning"))
        thread = threading.Thread(target=instance.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((instance, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for instance, thread in running:
        instance.should_exit = True
        thread.join(10)


def test_escape_stops_errors_have_a_button_and_nothing_holds_the_interface_up(window, serve, backend_url, tmp_path):
    picture, _ = connected(window, backend_url, tmp_path)
    slow = FakeRecoverer(2.0)
    window.ask(f"prepare({serve(slow)!r}, {str(picture)!r}, 5)")
    window.ask("setattr(bpy.context.scene.mega, 'steps', 54)")
    window.click_in_sidebar(RECOVER, "jobs() and 'step' in jobs()[0]")
    window.ask("invoke(bpy.ops.mega.random, count=2, seed=1)")
    window.wait_until("len(jobs()) == 2 and 'waits for' in jobs()[1]")
    window.screenshot("10_working")
    window.key("Escape")
    window.key("Escape")
    window.wait_until("not jobs()")
    assert not window.ask("people()") and slow.steps_done < 54

    window.ask(f"prepare('http://127.0.0.1:1', {str(picture)!r}, 5)")
    window.click_in_sidebar(RECOVER, "module('jobs').board.problem is not None")
    assert "No backend answers" in window.ask("module('jobs').board.problem.text")
    window.screenshot("11_error")

    # A hundred pictures, and one person of full size with 25 alternatives: how long do we keep the main thread?
    window.ask("setattr(bpy.context.scene.mega, 'steps', 1)")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(100):
        Image.new("RGB", (80, 60), (60 + number,) * 3).save(folder / f"{number:03}.png")
    names = [{"name": f"{number:03}.png"} for number in range(100)]
    window.ask(f"prepare({serve(FakeRecoverer())!r}, {str(picture)!r}, 1)")
    window.ask("watch_ours()")
    window.ask(f"invoke(bpy.ops.mega.recover, directory={str(folder)!r}, files={names!r})")
    window.wait_until("len(people()) == 200 and not jobs()", 400)
    calls = window.ask("longest_calls()")
    print("longest calls of ours, 100 pictures:", calls, "by the clock:", window.ask("Ours.clock"))
    assert max(calls["operator"], calls["panels"], calls["status"]) <= 0.05

    full_size = FakeRecoverer(body=FakeBody.make(38, 361))
    window.ask(f"prepare({serve(full_size)!r}, {str(picture)!r}, 25)")
    window.ask("invoke(bpy.ops.mega.recover)")
    window.wait_until("len(people()) == 202 and not jobs()", 200)
    calls = window.ask("longest_calls()")
    print("longest calls of ours, 25 keys of 13,718 vertices:", calls, "by the clock:", window.ask("Ours.clock"))
    assert calls["import"] <= 0.1
