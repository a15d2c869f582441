"""`blender -b --command mega video CLIP -o OUT.blend|.abc`: the people of a clip, without a window."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import bpy

from . import command_line_files as files
from .operators.clip import MEGA_OT_recover_clip


def add(actions: Any) -> None:
    """The action and its arguments."""
    video = actions.add_parser("video", help="the people of a clip, in motion")
    video.set_defaults(run=_video)
    video.add_argument("clip", type=Path, metavar="CLIP", help="a movie, a folder of pictures, or one of a sequence")
    video.add_argument("--start", type=int, default=1, help="first frame (1)")
    video.add_argument("--end", type=int, default=0, help="last frame (the end)")
    video.add_argument("--step", type=int, default=1, help="take every so many frames (1)")
    video.add_argument("--rate", type=float, default=0.0, help="frames a second, of pictures (the scene's)")
    video.add_argument(
        "--as", choices=("mesh", "armature", "both"), default="mesh", dest="kind", help="what moves (mesh)"
    )
    video.add_argument("--storage", choices=("auto", "keys", "cache"), default="auto", help="how meshes move (auto)")
    video.add_argument("--smoothing", choices=("off", "light", "strong"), default="light")
    video.add_argument("--keep-scene-rate", action="store_true", help="time the motion to the scene's frame rate")
    video.add_argument("-n", "--hypotheses", type=int, default=5, help="to choose from in each frame (5)")
    video.add_argument("--seed", type=int, default=0)
    video.add_argument(
        "-o", "--output", type=files.ending(".blend", ".abc"), required=True,
        help="a .blend (point caches lie beside it), or Alembic, .abc",
    )  # fmt: skip


def _video(arguments: argparse.Namespace) -> int:
    files.empty()
    output = arguments.output.absolute()
    if output.suffix.lower() != ".abc":
        return _recover(arguments, output, str(output.parent))
    if not bpy.app.build_options.alembic:
        print("mega: this build of Blender has no Alembic: write a .blend, or take another build", file=sys.stderr)
        return 1
    # Alembic holds every frame itself: caches on the way there are nobody's.
    with tempfile.TemporaryDirectory() as caches:
        return _recover(arguments, output, caches)


def _recover(arguments: argparse.Namespace, output: Path, caches: str) -> int:
    try:
        bpy.ops.mega.recover_clip(
            filepath=str(arguments.clip.absolute()), start=max(arguments.start, 1), end=max(arguments.end, 0),
            step=max(arguments.step, 1), rate=arguments.rate, hypotheses=arguments.hypotheses, seed=arguments.seed,
            output=arguments.kind.upper(), storage=arguments.storage.upper(), smoothing=arguments.smoothing,
            match="CLIP" if arguments.keep_scene_rate else "SCENE", set_range=True, cache=caches,
        )  # fmt: skip
    except RuntimeError as error:
        print(f"mega: {arguments.clip}: {str(error).removeprefix('Error: ').strip()}", file=sys.stderr, flush=True)
        return 1
    if not any(each.mega_motion.is_tracked for each in bpy.data.objects):
        return 1
    if output.suffix.lower() == ".abc":
        saved = files.write(output, lambda: write_alembic(output))
    else:
        for each in bpy.data.objects:
            for modifier in each.modifiers:
                if modifier.type == "MESH_CACHE":
                    modifier.filepath = "//" + Path(modifier.filepath).name
        saved = files.save(output)
    for problem in MEGA_OT_recover_clip.latest_problems:
        print(f"mega: {problem}", file=sys.stderr, flush=True)
    return 0 if saved and not MEGA_OT_recover_clip.latest_problems else 1


def write_alembic(path: Path) -> None:
    """Everything in the scene, over its frame range, as Alembic."""
    scene = bpy.context.scene
    bpy.ops.wm.alembic_export(
        filepath=str(path), check_existing=False, start=scene.frame_start, end=scene.frame_end, as_background_job=False
    )
