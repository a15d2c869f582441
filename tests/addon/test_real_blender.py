"""The zip in a real Blender: installed, used from the command line, from a script, and by a mouse click in its window.

$BLENDER names the executable; for the window, $MEGA_SCREEN is a command that gives the following one a display, or
DISPLAY is set. $MEGA_SCREENSHOTS keeps the screenshots.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

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


def test_a_script_in_background_mode(installed, backend_url, photo, tmp_path):
    blend = tmp_path / "script.blend"
    done = run(installed, "-b", "-P", str(ROOT / "examples" / "recover_folder.py"), "--python-exit-code", "3", "--",
               "--url", backend_url, "--hypotheses", "2", str(photo.parent), str(blend))  # fmt: skip
    assert blend.exists(), done.stdout + done.stderr
    assert read_back(installed, blend, tmp_path) == [["park", 2]] * 2


def display_command():
    if shutil.which("xdotool") is None:
        pytest.skip("needs xdotool")
    if os.environ.get("MEGA_SCREEN"):
        return shlex.split(os.environ["MEGA_SCREEN"])
    if not os.environ.get("DISPLAY"):
        pytest.skip("needs a display: set DISPLAY, or MEGA_SCREEN to a command that makes one")
    return []


WINDOW = """
"$BLENDER" --gpu-backend opengl -p 0 0 1280 800 -P {driver} > "$MEGA_DRIVE/blender.log" 2>&1 &
blender=$!
wait_for() {{
  for _ in $(seq 1 {patience}); do [ -e "$MEGA_DRIVE/$1" ] && return; sleep 0.5; done
  kill $blender; exit 9
}}
wait_for button.json
window=$(xdotool search --onlyvisible --name Blender | tail -1)
read -r x y < <(tr -d '[],' < "$MEGA_DRIVE/button.json")
xdotool mousemove --window "$window" "$x" "$y"; sleep 1
xdotool click 1; sleep 1
command -v scrot > /dev/null && scrot -o "$MEGA_DRIVE/clicked.png"
wait_for scene.json
sleep 2
command -v scrot > /dev/null && scrot -o "$MEGA_DRIVE/recovered.png"
kill $blender; wait $blender; exit 0
"""


def test_recover_mesh_is_clicked_in_the_window(installed, backend_url, tmp_path):
    """Picture chosen, button clicked with the mouse, one mesh per person with N alternatives, camera view."""
    screen = display_command()
    picture = Path(os.environ.get("MEGA_PICTURE", tmp_path / "park.png"))
    if not picture.exists():
        Image.new("RGB", (800, 600), (120, 130, 140)).save(picture)
    url, people = os.environ.get("MEGA_BACKEND", backend_url), int(os.environ.get("MEGA_PEOPLE", 2))
    settings = {"url": url, "picture": str(picture), "hypotheses": 5, "people": people}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    script = WINDOW.format(driver=ROOT / "tests" / "addon" / "drive_window.py", patience=240)
    environment = {**installed, "MEGA_DRIVE": str(tmp_path), "BLENDER": BLENDER}
    started = time.monotonic()
    done = subprocess.run([*screen, "bash", "-c", script], env=environment, timeout=280)
    for shot in tmp_path.glob("*.png"):
        if os.environ.get("MEGA_SCREENSHOTS"):
            shutil.copy(shot, os.environ["MEGA_SCREENSHOTS"])
    log = (tmp_path / "blender.log").read_text()
    assert done.returncode == 0, log
    facts = json.loads((tmp_path / "scene.json").read_text())
    print(facts, time.monotonic() - started)
    assert len(facts["people"]) == people
    for person in facts["people"]:
        assert person["keys"] == [f"Hypothesis {i}" for i in range(5)]
        assert person["collection"] == picture.stem
    assert facts["view"] == "CAMERA" and facts["camera"] == f"{picture.stem} Camera"
    assert facts["background"] == [picture.name]
    with Image.open(picture) as image:
        assert facts["resolution"] == list(image.size)
    assert "Traceback" not in log
