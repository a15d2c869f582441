"""What the commands without a window begin with and end with: an empty file, and one that is saved."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import bpy


def ending(*endings: str) -> Callable[[str], Path]:
    """What reads the argument of an output: a path with one of these endings."""

    def read(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() not in endings:
            raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(endings)}")
        return path

    return read


def empty() -> None:
    """Begin with an empty file."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=False)


def save(path: Path) -> bool:
    """Save the file; False, and why on standard error, where that does not work."""
    return write(path, lambda: bpy.ops.wm.save_as_mainfile(filepath=str(path.absolute()), check_existing=False))


def write(path: Path, how: Callable[[], object]) -> bool:
    """Let `how` write a file, its folder made before; False, and why on standard error, where that does not work."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        how()
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or str(error).removeprefix("Error: ").strip()
        print(f"mega: {path} cannot be saved ({why}); choose another place with -o", file=sys.stderr, flush=True)
        return False
    print(f"mega: {path}", flush=True)
    return True
