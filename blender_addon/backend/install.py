"""Set up the backend: an environment of its own with a fitting Python and everything that the backend needs.

Blender's Python may be too new for the backend, so that nothing goes into it. `uv` makes the environment and, where no
fitting Python is found, brings one; where `uv` is missing it is fetched from the package registry first. With a folder
of wheels no network is used. What was fetched stays in uv's cache: an interrupted set-up goes on where it was.

The steps are plain commands, worked out by `plan` and carried out by `run` on a job's thread. No bpy here.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...mega_backend.client import BackendError
from .. import mending
from ..jobs import Job, Progress
from ..mending import Trouble
from .process import environment

PYTHONS = ("3.11", "3.12")
"""What the backend's packages are made for; the first is preferred."""
CHECK = "import torch, mediapipe, cv2, fastapi, uvicorn, prometheus_client, safetensors; print(torch.__version__)"
COMPLETE = "complete"
"""A file in the environment's folder that says that the set-up came to its end, and with which packages."""


@dataclass(frozen=True)
class Request:
    """What to set up, and where."""

    folder: Path
    """The environment's folder; everything that is made lies in it."""
    root: Path
    """The extension, whose pyproject.toml names what is needed."""
    python: str = ""
    """A Python 3.11 or 3.12 to build on; empty to find or fetch one."""
    wheels: str = ""
    """A folder of wheels to install from, without network; empty for the package registry."""
    device: str = "cpu"
    own_python: str = sys.executable
    """Blender's Python, which fetches uv."""


@dataclass(frozen=True)
class Step:
    """One command. `share` is its part of the progress; `otherwise` is tried where it fails."""

    title: str
    command: tuple[str, ...]
    share: float
    otherwise: tuple[str, ...] = ()


def python_of(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def is_complete(folder: Path, root: Path) -> bool:
    """Whether the set-up in this folder came to its end, with the packages that this version of the extension needs."""
    mark = folder / COMPLETE
    if not (mark.is_file() and python_of(folder / "environment").exists()):
        return False
    return mark.read_text(encoding="utf-8").split("\n") == requirements(root)


@functools.lru_cache
def requirements(root: Path) -> list[str]:
    """The backend's dependencies, as the extension's pyproject.toml names them."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["dependencies"])


def plan(request: Request, uv: str | None) -> list[Step]:
    """The commands that set the backend up; `uv` is one that the machine has already, or None."""
    steps = []
    offline = ("--no-index", "--find-links", request.wheels) if request.wheels else ()
    if uv is None:
        tools = request.folder / "tools"
        own = str(python_of(tools))
        steps.append(Step("Preparing", (request.own_python, "-m", "venv", str(tools)), 0.03))
        fetch = (own, "-m", "pip", "install", "--disable-pip-version-check", *offline, "uv")
        steps.append(Step("Fetching uv", fetch, 0.05))
        uv = str(python_of(tools).with_name("uv.exe" if sys.platform == "win32" else "uv"))
    place = request.folder / "environment"
    target = str(python_of(place))
    base = request.python or PYTHONS[0]
    make = (uv, "venv", "--allow-existing", "--python", base, *(("--offline",) if offline else ()), str(place))
    steps.append(Step("Making the environment", make, 0.07))
    install = (uv, "pip", "install", "--python", target, *offline, *requirements(request.root))
    if offline:
        steps.append(Step("Installing packages", install, 0.75))
    else:
        # PyTorch's own index has the build for this machine; that of the registry works too, but on Linux it carries
        # gigabytes for GPUs, and on Windows it knows none.
        build = (*install, "--torch-backend", "cpu" if request.device == "cpu" else "auto")
        steps.append(Step("Installing packages", build, 0.75, otherwise=install))
    steps.append(Step("Trying it", (target, "-c", CHECK), 0.1))
    return steps


def run(request: Request, log: Path):
    """Work for a job: carry out the plan. Yields Progress, then the path of the environment's Python."""

    def work(job: Job) -> Iterator[Progress | Path]:
        try:
            request.folder.mkdir(parents=True, exist_ok=True)
            (request.folder / COMPLETE).unlink(missing_ok=True)
            with open(log, "w", encoding="utf-8") as file:
                yield from _carry_out(job, plan(request, shutil.which("uv")), request, file)
            if job.cancelled.is_set():
                return
            (request.folder / COMPLETE).write_text("\n".join(requirements(request.root)), encoding="utf-8")
        except OSError as error:
            why = f"({error.strerror}); make room there, or make it writable"
            text = f"The backend cannot be set up in {request.folder} {why}."
            raise Trouble(text, mending.SET_UP_LOG) from error
        yield python_of(request.folder / "environment")

    return work


def _carry_out(job: Job, steps: Sequence[Step], request: Request, log) -> Iterator[Progress]:
    done = 0.0
    for step in steps:
        yield Progress(done, step.title)
        lines: list[str] = []
        for command in filter(None, (step.command, step.otherwise)):
            lines.clear()
            log.write(f"$ {' '.join(command)}\n")
            for line in _lines(job, command, request):
                log.write(line + "\n")
                log.flush()
                lines.append(line)
                # Packages arrive one by one; how many there will be is not known, so that the bar only creeps.
                what = step.title if NOISE.match(line) else f"{step.title}: {_short(line)}"
                yield Progress(done + step.share * (1 - 0.97 ** len(lines)), what)
            if job.cancelled.is_set():
                return
            if not (lines and lines[-1].startswith(FAILED)):
                break
        else:
            raise Trouble(f"{step.title} failed: {_reason(lines[:-1])}.", mending.SET_UP_LOG)
        done += step.share


FAILED = "exit code "


def _lines(job: Job, command: Sequence[str], request: Request) -> Iterator[str]:
    """A command's output line by line; where it fails, the last line is FAILED and the code. Cancelling kills it."""
    flags = subprocess.CREATE_NO_WINDOW if sys.platform == "win32" else 0
    variables = {**environment(request.root), "UV_CACHE_DIR": str(request.folder / "cache"), "NO_COLOR": "1",
                 "UV_PYTHON_INSTALL_DIR": str(request.folder / "python")}  # fmt: skip
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=variables,
            text=True, encoding="utf-8", errors="replace", creationflags=flags, cwd=request.folder,
        )  # fmt: skip
    except OSError as error:
        yield f"{command[0]} cannot be run ({error.strerror})"
        yield f"{FAILED}127"
        return
    job.on_cancel = child.kill
    try:
        if job.cancelled.is_set():
            child.kill()
        for line in child.stdout:
            if line.strip():
                yield line.rstrip()
        code = child.wait()
        if code != 0 and not job.cancelled.is_set():
            yield f"{FAILED}{code}"
    finally:
        job.on_cancel = None
        child.kill()
        child.wait()


def _short(line: str) -> str:
    return re.sub(r"\s+", " ", line).strip()[:60]


NOISE = re.compile(r"\s*(warning|error|exit code|could not fetch)", re.IGNORECASE)
"""Lines that are no progress: what they are about is said at the end, if it was in the way."""
HINTS = (
    (r"no space left", "the disk is full (no space left on device); make room and set up again"),
    (r"certificate", "the package registry's certificate is not trusted here, as behind the proxy of some networks; "
                     "start Blender with SSL_CERT_FILE and PIP_CERT set to that network's certificates, "
                     "or give a folder of wheels"),
    (r"name resolution|dns error|network is unreachable|failed to resolve",
     "the package registry cannot be reached; connect to the network, or give a folder of wheels"),
)  # fmt: skip
"""Causes that have a remedy."""
CAUSES = (
    r"failed to fetch|read-only|permission denied",
    r"^\s*error",
    r"error",
)
"""What a line that names the cause looks like, the most telling first."""


def _reason(lines: Sequence[str]) -> str:
    """Why a command failed: a remedy where one is known, else the line that says most, else the last one."""
    for pattern, hint in HINTS:
        if any(re.search(pattern, line, re.IGNORECASE) for line in lines):
            return hint
    for pattern in CAUSES:
        for line in lines:
            if re.search(pattern, line, re.IGNORECASE):
                return re.sub(r"\s+", " ", line).strip()[:300].rstrip(".")
    return _short(lines[-1]) if lines else "it said nothing"


def remove(folder: Path) -> None:
    """Take the environment away, with all that was fetched for it. Raises BackendError where that does not work."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BackendError(f"{folder} cannot be removed ({error.strerror}); stop the backend and try again.") from error
