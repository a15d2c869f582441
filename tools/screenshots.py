"""The screenshots that the guides show, taken in a real Blender by the tests that work in its window.

    BLENDER=/path/to/blender python -m tools.screenshots [--picture examples/people.jpg --people 3]

Needs what those tests need (tests/addon/test_real_blender.py): a display or $MEGA_SCREEN, xdotool and scrot.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "images"
CROPS = {"0_preferences": (270, 240, 980, 436)}
"""What is kept of a screenshot, pixels."""
TESTS = (
    "tests/addon/test_real_blender.py::test_the_whole_way_with_the_mouse",
    "tests/addon/test_real_blender.py::test_escape_stops_errors_have_a_button_and_nothing_holds_the_interface_up",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, default=ROOT / "examples" / "people.jpg")
    parser.add_argument("--people", type=int, default=3, help="how many are in the picture")
    arguments = parser.parse_args()
    serve = [sys.executable, "-m", "mega_backend", "serve", "--port", "0", "--stop-with-stdin"]
    with (
        tempfile.TemporaryDirectory() as shots,
        subprocess.Popen(serve, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as backend,
    ):
        url = next(found.group(1) for line in backend.stdout if (found := re.search(r"ready at (\S+)", line)))
        settings = {
            "MEGA_BACKEND": url, "MEGA_PICTURE": str(arguments.picture.absolute()),
            "MEGA_PEOPLE": str(arguments.people), "MEGA_SCREENSHOTS": shots,
        }  # fmt: skip
        test = [sys.executable, "-m", "pytest", *TESTS]
        code = subprocess.run(test, cwd=ROOT, env={**os.environ, **settings}).returncode
        FOLDER.mkdir(parents=True, exist_ok=True)
        pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
        shown = {name for page in pages for name in re.findall(r"images/(\w+)\.jpg", page.read_text(encoding="utf-8"))}
        for shot in sorted(Path(shots).glob("*.png")):
            if shot.stem not in shown:
                continue
            target = FOLDER / f"{shot.stem}.jpg"
            picture = Image.open(shot).convert("RGB")
            picture.crop(CROPS.get(shot.stem, (0, 0, *picture.size))).save(target, quality=85, optimize=True)
            print(target)
        backend.stdin.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
