"""Build the Blender extension: dist/mega_mesh_recovery-<version>.zip.

    python -m tools.build_extension [--blender EXECUTABLE] [--output FOLDER] [--index]

What git knows (tracked, or new and not ignored) less what the manifest excludes goes in. With a Blender at hand
($BLENDER, or `blender` on the path) its own `extension build` makes the zip and `extension validate` checks it; without
one this script writes the same files itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def manifest() -> dict:
    return tomllib.loads((ROOT / "blender_manifest.toml").read_text(encoding="utf-8"))


def excluded(path: str, patterns: list[str]) -> bool:
    """Whether a path relative to the root, with slashes, is excluded; patterns are those of .gitignore."""
    parts = path.split("/")
    for pattern in patterns:
        anchored, folder = pattern.startswith("/"), pattern.endswith("/")
        core = pattern.strip("/")
        candidates = parts[:1] if anchored else parts
        if folder:
            candidates = candidates if len(parts) > 1 and anchored else candidates[:-1]
            if anchored and len(parts) == 1:
                candidates = []
        if any(Path(name).match(core) for name in candidates):
            return True
    return False


def files() -> list[str]:
    """What belongs into the zip, relative to the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    patterns = manifest()["build"]["paths_exclude_pattern"]
    chosen = sorted({path for path in listed if path and not excluded(path, patterns)})
    return [path for path in chosen if (ROOT / path).is_file()]


def build(output: Path, blender: str | None) -> Path:
    """Write the zip; gives its path."""
    info = manifest()
    output.mkdir(parents=True, exist_ok=True)
    target = output / f"{info['id']}-{info['version']}.zip"
    with tempfile.TemporaryDirectory(dir=output) as folder:
        source = Path(folder) / info["id"]
        for path in files():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, source / path)
        if blender:
            run = [blender, "--command", "extension"]
            _blender([*run, "build", "--source-dir", str(source), "--output-filepath", str(target)])
            _blender([*run, "validate", str(target)])
        else:
            _zip(source, target)
    return target


def _zip(source: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(source).as_posix())


def _blender(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command[1:4])} failed:\n{done.stdout}{done.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blender", default=os.environ.get("BLENDER") or shutil.which("blender"))
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--index", action="store_true", help="also write index.json: a static repository to host")
    arguments = parser.parse_args()
    if arguments.index and not arguments.blender:
        parser.error("--index needs a Blender: name one with --blender")
    target = build(arguments.output, arguments.blender)
    how = "built and validated by Blender" if arguments.blender else "built without a Blender"
    print(f"{target} ({target.stat().st_size / 1e6:.1f} MB, {how})")
    if arguments.index:
        folder = ["--repo-dir", str(arguments.output)]
        _blender([arguments.blender, "--command", "extension", "server-generate", *folder])
        print(f"{arguments.output / 'index.json'}: put the folder on a web server; artists add its URL as a repository")
    return 0


if __name__ == "__main__":
    sys.exit(main())
