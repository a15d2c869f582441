"""Import the add-on from a checkout, as Blender does from an installed extension: as one package around both halves."""

from __future__ import annotations

import atexit
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
NAME = "mega_mesh_recovery"


def load() -> ModuleType:
    """The extension's package; needs `bpy`. Not yet registered."""
    if NAME in sys.modules:
        return sys.modules[NAME]
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


def enable() -> ModuleType:
    """The extension's package, registered in this process's Blender, with preferences."""
    import bpy

    module = load()
    if NAME not in bpy.context.preferences.addons:
        bpy.context.preferences.addons.new().module = NAME
        module.register()
        # The bpy module crashes on exit while classes are still registered.
        atexit.register(module.unregister)
    return module
