"""Where the extension is: its package name, which preferences go by, and its folders."""

from __future__ import annotations

from pathlib import Path

import bpy

ROOT = __package__.rpartition(".")[0]
"""`bl_ext.<repository>.mega_mesh_recovery` in Blender."""
FOLDER = Path(__file__).resolve().parent.parent
"""Holds `mega_backend`, the backend's code."""


def user_folder(name: str, create: bool = False) -> Path:
    """A folder of ours among the user's data, which survives updates of the extension."""
    if ROOT.startswith("bl_ext."):
        return Path(bpy.utils.extension_path_user(ROOT, path=name, create=create))
    # Run from a checkout (tests, the bpy module), where no extension repository owns such a folder.
    folder = Path(bpy.utils.resource_path("USER")) / "mega_mesh_recovery" / name
    if create:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def preferences() -> bpy.types.AddonPreferences:
    """The add-on's preferences in this Blender."""
    return bpy.context.preferences.addons[ROOT].preferences
