"""`blender -b --command mega …`: the add-on without a window.

blender -b --command mega recover FILES… [-n 5] [--seed 0] [-o OUT.blend | -o FOLDER]
blender -b --command mega video CLIP [--as armature] -o OUT.blend
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import bpy

from . import command_line_clip, package
from . import command_line_files as files

_handles: list = []
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="blender -b --command mega", description="People in pictures as meshes.")
    top.add_argument("--url", help="a backend that runs already; its token is read from MEGA_TOKEN")
    top.add_argument("--python", help="a Python that has the backend's packages, to start one")
    actions = top.add_subparsers(dest="action", required=True)
    recover = actions.add_parser("recover", help="the people in pictures")
    recover.add_argument("files", nargs="+", type=Path, metavar="FILE", help="pictures, or folders of them")
    recover.set_defaults(run=_recover)
    recover.add_argument("-n", "--hypotheses", type=int, default=5, help="meshes per person")
    recover.add_argument("--seed", type=int, default=0)
    recover.add_argument("--steps", type=int, default=5)
    recover.add_argument("--temperature", type=float, default=1.0)
    recover.add_argument("-o", "--output", type=Path, required=True,
                         help="a .blend for all of them, or a folder for one .blend per picture")  # fmt: skip
    random = actions.add_parser("random", help="people out of nothing")
    random.set_defaults(run=_random)
    random.add_argument("-n", "--count", type=int, default=5, help="how many")
    random.add_argument("--seed", type=int, default=0)
    random.add_argument("--animation", action="store_true", help="one body that morphs from one to the next")
    random.add_argument("-o", "--output", type=files.ending(".blend"), required=True, help="the .blend")
    command_line_clip.add(actions)
    return top


def pictures(files: list[Path]) -> list[Path]:
    """The pictures named, and those in folders named, in order."""
    found: list[Path] = []
    for file in files:
        if file.is_dir():
            found += sorted(each for each in file.iterdir() if each.suffix.lower() in SUFFIXES)
        else:
            found.append(file)
    return found


def run(argv: list[str]) -> int:
    """Do what the arguments say; 0 when all is done, 1 when something failed, 2 for wrong usage."""
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    _configure(arguments)
    return arguments.run(arguments)


def _configure(arguments: argparse.Namespace) -> None:
    preferences = package.preferences()
    if arguments.url:
        preferences.mode, preferences.url = "REMOTE", arguments.url
        preferences.token = os.environ.get("MEGA_TOKEN", "")
    elif arguments.python:
        preferences.mode, preferences.python = "LOCAL", arguments.python


def _recover(arguments: argparse.Namespace) -> int:
    found = pictures(arguments.files)
    if not found:
        print("mega: there are no pictures in what was named", file=sys.stderr)
        return 2
    single = arguments.output.suffix == ".blend"
    failures = done = 0
    taken: set[Path] = set()
    if single:
        files.empty()
    for picture in found:
        if not single:
            files.empty()
        try:
            result = bpy.ops.mega.recover(
                filepath=str(picture.absolute()), hypotheses=arguments.hypotheses, seed=arguments.seed,
                steps=arguments.steps, temperature=arguments.temperature,
            )  # fmt: skip
        except RuntimeError as error:
            print(f"mega: {picture}: {str(error).removeprefix('Error: ').strip()}", file=sys.stderr, flush=True)
            result = {"CANCELLED"}
        if "FINISHED" not in result:
            failures += 1
            continue
        if single or files.save(_place(arguments.output, picture, taken)):
            done += 1
        else:
            failures += 1
    saved = not (single and done) or files.save(arguments.output)
    print(f"mega: {done} of {len(found)} pictures done", flush=True)
    return 0 if saved and not failures else 1


def _place(folder: Path, picture: Path, taken: set[Path]) -> Path:
    """A picture's own .blend: two pictures of one name, from two folders or of two formats, do not share one."""
    path, number = folder / f"{picture.stem}.blend", 2
    while path in taken:
        path, number = folder / f"{picture.stem}_{number}.blend", number + 1
    taken.add(path)
    return path


def _random(arguments: argparse.Namespace) -> int:
    files.empty()
    arrange = "ANIMATION" if arguments.animation else "GRID"
    try:
        bpy.ops.mega.random(count=arguments.count, seed=arguments.seed, arrange=arrange)
    except RuntimeError as error:
        print(f"mega: {str(error).removeprefix('Error: ').strip()}", file=sys.stderr, flush=True)
        return 1
    return 0 if files.save(arguments.output) else 1


def register() -> None:
    _handles.append(bpy.utils.register_cli_command("mega", run))


def unregister() -> None:
    while _handles:
        bpy.utils.unregister_cli_command(_handles.pop())
