"""A real Blender with the freshly built extension: $BLENDER names the executable."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLENDER = os.environ.get("BLENDER", "blender")


def install(folder: Path, blender: str) -> dict[str, str]:
    """Build the zip with a Blender, install it there, and give the environment in which it is installed."""
    command = [sys.executable, "-m", "tools.build_extension", "--blender", blender, "--output", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    archive = next(folder.glob("mega_mesh_recovery-*.zip"))
    environment = {**os.environ, "BLENDER_USER_RESOURCES": str(folder / "user")}
    add = ["--command", "extension", "install-file", "-r", "user_default", "--enable", str(archive)]
    run(environment, *add, blender=blender)
    return {**environment, "MEGA_ZIP": str(archive)}


def run(environment, *arguments, check=True, blender=BLENDER):
    done = subprocess.run([blender, *arguments], env=environment, capture_output=True, text=True, timeout=500)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
