"""`make demo`: the people of a picture as a .blend with shape keys, and an overlay to look at first.

python -m tools.demo PICTURE FOLDER [-n 5] [--seed 0]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-n", "--hypotheses", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    result, overlay, blend = (arguments.folder / f"{arguments.picture.stem}{end}" for end in (".npz", ".png", ".blend"))
    recover = ["mega_backend", "recover", arguments.picture, "-n", arguments.hypotheses, "--seed", arguments.seed,
               "-o", result, "--overlay", overlay]  # fmt: skip
    # Two processes: Blender's module and the backend's libraries carry different versions of the same native code.
    for step in (recover, ["tools.blend", result, blend, "--picture", arguments.picture]):
        code = subprocess.run([sys.executable, "-m", *map(str, step)]).returncode
        if code != 0:
            return code
    print(f"\nFor Blender, with alternatives as shape keys: {blend}\nThe meshes over the picture: {overlay}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
