"""A .blend of a result, made by the add-on's own code in the bpy module, without a Blender.

    python -m tools.blend RESULT.npz OUT.blend [--picture PICTURE]

`mega recover PICTURE -o RESULT.npz` writes such results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mega_backend import protocol
from mega_backend.body import Body
from mega_backend.result import Recovery


def write(recovery: Recovery, topology: protocol.BodyTopology, picture: Path | None, output: Path) -> None:
    """Save a scene with a mesh per person, alternatives as shape keys, and the camera that matches the picture."""
    import bpy

    from tools import extension_package

    extension_package.enable()
    from mega_mesh_recovery.blender_addon.scene.origin import Origin
    from mega_mesh_recovery.blender_addon.scene.recovery import Importer

    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    meta = recovery.meta
    origin = Origin(meta.get("seed", 0), meta.get("steps", 5), meta.get("temperature", 1.0), meta.get("model", ""))
    importer = Importer(bpy.context.scene, topology, picture, origin)
    importer.receive(protocol.scene_message(recovery))
    for index, person in enumerate(recovery.people):
        importer.receive(protocol.person_message(index, person))
    output.parent.mkdir(parents=True, exist_ok=True)
    bpy.ops.wm.save_as_mainfile(filepath=str(output.absolute()), check_existing=False, compress=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--picture", type=Path, help="the picture it was recovered from, for the background")
    arguments = parser.parse_args()
    picture = arguments.picture.absolute() if arguments.picture else None
    write(Recovery.load(arguments.result), protocol.topology_of(Body.bundled()), picture, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
