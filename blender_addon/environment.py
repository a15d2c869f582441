"""The backend's own Python environment: where it is, and the request to set it up as the preferences say."""

from __future__ import annotations

from pathlib import Path

import bpy

from . import package
from .backend import install


def folder() -> Path:
    """Where *Set Up Backend* puts it."""
    return package.user_folder("backend")


def python() -> Path | None:
    """The environment's Python, or None where it is not set up, or for an older version of the extension."""
    return install.python_of(folder() / "environment") if install.is_complete(folder(), package.FOLDER) else None


def request() -> install.Request:
    """What *Set Up Backend* has to do."""
    preferences = package.preferences()
    return install.Request(
        folder=folder(),
        root=package.FOLDER,
        python=bpy.path.abspath(preferences.base_python) if preferences.base_python else "",
        wheels=bpy.path.abspath(preferences.wheels) if preferences.wheels else "",
        device=preferences.device,
    )


def log() -> Path:
    """The log of the last set-up."""
    return package.user_folder("logs", create=True) / "setup.log"
