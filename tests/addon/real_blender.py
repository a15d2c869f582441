"""A real Blender with the freshly built extension: $BLENDER names the executable."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLENDER = os.environ.get("BLENDER", "blender")


def build(folder: Path, blender: str) -> Path:
    """The zip, built and validated by a Blender; $MEGA_ZIP names one that is built already."""
    if os.environ.get("MEGA_ZIP"):
        return Path(os.environ["MEGA_ZIP"])
    command = [sys.executable, "-m", "tools.build_extension", "--blender", blender, "--output", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=900)
    return next(folder.glob("mega_mesh_recovery-*.zip"))


def install(archive: Path, user: Path, blender: str) -> dict[str, str]:
    """Install a zip into a Blender with user files of its own; gives the environment in which it is installed."""
    environment = {**os.environ, "BLENDER_USER_RESOURCES": str(user)}
    add = ["--command", "extension", "install-file", "-r", "user_default", "--enable", str(archive)]
    run(environment, *add, blender=blender)
    return environment


def run(environment, *arguments, check=True, blender=BLENDER):
    done = subprocess.run([blender, *arguments], env=environment, capture_output=True, text=True, timeout=900)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
