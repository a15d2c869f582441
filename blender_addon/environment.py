"""The backend's own Python environment: where it is."""

from __future__ import annotations

import sys
from pathlib import Path

from . import package


def folder() -> Path:
    """Where *Set Up Backend* puts it."""
    return package.user_folder("backend")


def python() -> Path | None:
    """The environment's Python, or None where it is not set up (completely)."""
    path = folder() / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    return path if path.exists() and (folder() / "complete").exists() else None
