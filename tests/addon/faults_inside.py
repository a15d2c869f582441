"""All that goes wrong, in one real Blender without a window; prints what Blender said, and how long it took, as JSON.

blender -b -P faults_inside.py -- FOLDER
"""

import json
import subprocess
import sys
import time
import traceback
from pathlib import Path

import bpy
import numpy as np

HERE = Path(__file__).resolve().parent
FOLDER = Path(sys.argv[sys.argv.index("--") + 1])
PACKAGE = "bl_ext.user_default.mega_mesh_recovery"
SERVER = HERE / "plain_server.py"
preferences = bpy.context.preferences.addons[PACKAGE].preferences
picture = FOLDER / "park.png"
said: dict[str, dict] = {}


def people() -> int:
    return sum(o.type == "MESH" and o.mega.is_person for o in bpy.data.objects)


def attempt(name, action) -> None:
    """Do something that should fail, or go well; note what was said, how long it took, and who is in the scene."""
    bpy.ops.wm.read_homefile(use_empty=True)
    began = time.monotonic()
    error = ""
    try:
        action()
    except RuntimeError as caught:
        error = str(caught)
    except Exception:
        error = "FAULT OF OURS " + traceback.format_exc()
    board = sys.modules[f"{PACKAGE}.blender_addon.jobs"].board
    mend = board.problem.mend.operator if board.problem and board.problem.mend else ""
    said[name] = {"error": error, "seconds": time.monotonic() - began, "people": people(), "mend": mend}
    board.problem = None


def recover(**options):
    bpy.ops.mega.recover(filepath=str(picture), hypotheses=2, **options)


def local(die: int = 0) -> None:
    """A backend that Blender starts, from a Python that is a script."""
    (FOLDER / "die").write_text(str(die))
    python = FOLDER / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {SERVER} {FOLDER} "$@"\n')
    python.chmod(0o755)
    preferences.mode, preferences.python = "LOCAL", str(python)


def remote(url: str, token: str = "") -> None:
    preferences.mode, preferences.url, preferences.token = "REMOTE", url, token


def serve(*arguments: str) -> tuple[subprocess.Popen, str]:
    command = [sys.executable, str(SERVER), str(FOLDER), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process, next(line for line in process.stdout if "ready at" in line).split()[-1]


def small_disk(folder: Path, *options: str) -> Path:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(("size=64k", *options)), "tmpfs", str(folder)], check=True)
    return folder


local()
attempt("well", recover)
local(die=1)
attempt("killed once", recover)
local(die=2)
attempt("killed twice", recover)
local()
attempt("afterwards", recover)

process, url = serve("--token", "right")
remote(url, "wrong")
attempt("wrong token", recover)
remote(url, "right")
attempt("right token", recover)
process.kill()
attempt("remote gone", recover)
process, url = serve("--protocol", "99")
remote(url)
attempt("newer backend", recover)
process.kill()
process, url = serve("--protocol", "0")
remote(url)
attempt("older backend", recover)
process.kill()
remote("http://backend.example:8765")
attempt("no network", recover)
preferences.mode, preferences.python = "LOCAL", ""
attempt("no network for the set-up", bpy.ops.mega.set_up_backend)
attempt("not set up", recover)

local()
hidden = picture.rename(FOLDER / "elsewhere.png")
attempt("picture moved away", recover)
hidden.rename(picture)

full = read_only = None
try:
    full, read_only = small_disk(FOLDER / "full"), small_disk(FOLDER / "read_only", "ro")
except (OSError, subprocess.CalledProcessError) as error:
    said["no disks"] = {"error": str(error)}
if full is not None:
    try:
        (full / "filler").write_bytes(bytes(60 << 10))

        def painted() -> None:
            image = bpy.data.images.new("painted", 300, 200)
            image.pixels.foreach_set(np.random.default_rng(0).random(300 * 200 * 4, np.float32))
            module = sys.modules[f"{PACKAGE}.blender_addon.scene.images"]
            # Blender chooses its temporary folder when it starts.
            module._written(image, full / "painted.png")

        install = sys.modules[f"{PACKAGE}.blender_addon.backend.install"]
        jobs = sys.modules[f"{PACKAGE}.blender_addon.jobs"]
        command_line = sys.modules[f"{PACKAGE}.blender_addon.command_line"]
        root = sys.modules[f"{PACKAGE}.blender_addon.package"].FOLDER

        def set_up(folder: Path) -> None:
            request = install.Request(folder=folder / "backend", root=root, wheels=str(folder))
            *_, last = jobs.Job("Set Up Backend", install.run(request, folder / "setup.log")).run()
            raise RuntimeError(last.text)

        def headless(folder: Path) -> None:
            code = command_line.run(["--python", preferences.python, "recover", str(picture), "-n", "25", "-o",
                                     str(folder / "all.blend")])  # fmt: skip
            raise RuntimeError(f"exit code {code}")

        def painted_safely() -> None:
            try:
                painted()
            except ValueError as error:
                raise RuntimeError(str(error)) from error

        attempt("image on a full disk", painted_safely)
        attempt("set-up on a full disk", lambda: set_up(full))
        attempt("set-up in a read-only folder", lambda: set_up(read_only))
        attempt("saving on a full disk", lambda: headless(full))
        attempt("saving in a read-only folder", lambda: headless(read_only))
    finally:
        for disk in (full, read_only):
            subprocess.run(["umount", str(disk)], check=False)
print("SAID", json.dumps(said), flush=True)
