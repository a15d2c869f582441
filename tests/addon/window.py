"""A real Blender on a display, driven with the mouse and the keyboard from outside (xdotool)."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

PATIENCE = float(os.environ.get("MEGA_PATIENCE", 1))
"""How many times longer to wait for everything: a busy machine starts and draws late."""
DRIVER = Path(__file__).with_name("drive_window.py")
START = (
    'echo "$DISPLAY" > "$MEGA_DRIVE/display"; exec "$BLENDER" --gpu-backend opengl -p 0 0 1280 800 -P "$MEGA_DRIVER"'
)


class Window:
    """One Blender window. `ask` evaluates an expression inside; everything else is what a hand would do."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        for tool in ("xdotool", "scrot"):
            if shutil.which(tool) is None:
                pytest.skip(f"needs {tool}")
        screen = shlex.split(os.environ.get("MEGA_SCREEN", ""))
        if not screen and not os.environ.get("DISPLAY"):
            pytest.skip("needs a display: set DISPLAY, or MEGA_SCREEN to a command that makes one")
        self.folder, self._questions = folder, 0
        self.environment = {**environment, "MEGA_DRIVE": str(folder), "MEGA_DRIVER": str(DRIVER)}
        with open(folder / "blender.log", "w") as log:
            self._process = subprocess.Popen([*screen, "bash", "-c", START], env=self.environment, stdout=log,
                                             stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        try:
            self.ask("True", patience=150)
            self.environment["DISPLAY"] = (folder / "display").read_text().strip()
            self._window = self._xdotool("search", "--onlyvisible", "--name", "Blender").split()[-1]
        except BaseException:
            self.close()
            raise

    def ask(self, expression: str, patience: float = 60):
        """The value of a Python expression inside."""
        self._questions += 1
        question = self.folder / f"{self._questions}.ask"
        part = question.with_suffix(".new")
        part.write_text(expression)
        part.rename(question)
        answer = question.with_suffix(".answer")
        deadline = time.monotonic() + PATIENCE * patience
        while not answer.exists():
            assert self._process.poll() is None, f"Blender ended\n{self.log}"
            assert time.monotonic() < deadline, f"no answer to {expression}\n{self.log}"
            time.sleep(0.05)
        found = json.loads(answer.read_text())
        assert "error" not in found, found
        return found["value"]

    def wait_until(self, expression: str, patience: float = 90) -> None:
        """Until an expression inside is true."""
        deadline = time.monotonic() + PATIENCE * patience
        while not self.ask(expression):
            assert time.monotonic() < deadline, f"never true: {expression}\n{self.log}"
            time.sleep(0.2)

    def click(self, x: float, y: float) -> None:
        self.move(x, y)
        self._xdotool("click", "1")
        time.sleep(0.6)

    def move(self, x: float, y: float) -> None:
        self._xdotool("mousemove", "--window", self._window, str(round(x)), str(round(y)))
        time.sleep(0.6)

    def click_in_sidebar(self, place: tuple[float, float], until: str, patience: float = 10) -> None:
        """At a place in pixels from the sidebar's upper left corner, until it had its effect.

        A busy machine draws late, and a click before a button is drawn hits nothing: then it is clicked again.
        """
        for _ in range(6):
            left, top = self.ask("corner()")
            self.click(left + place[0], top + place[1])
            deadline = time.monotonic() + PATIENCE * patience
            while time.monotonic() < deadline:
                if self.ask(until):
                    return
                time.sleep(0.2)
        raise AssertionError(f"never true: {until}\n{self.log}")

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """With the left button, as slowly as a hand: Blender must see it move."""
        self.move(*start)
        self._xdotool("mousedown", "1")
        time.sleep(0.4)
        for part in (0.3, 0.7, 1.0):
            self.move(*(a + part * (b - a) for a, b in zip(start, end, strict=True)))
        self._xdotool("mouseup", "1")
        time.sleep(0.6)

    def key(self, name: str) -> None:
        """A key with the pointer over the 3D view."""
        self.move(*self.ask("middle()"))
        self._xdotool("key", name)
        time.sleep(0.6)

    def screenshot(self, name: str) -> None:
        """Kept in $MEGA_SCREENSHOTS, where that is set."""
        folder = os.environ.get("MEGA_SCREENSHOTS")
        if folder:
            self.ask("draw()")
            time.sleep(0.5)
            subprocess.run(["scrot", "-o", str(Path(folder) / f"{name}.png")], env=self.environment, check=True)

    @property
    def log(self) -> str:
        return (self.folder / "blender.log").read_text()

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(20)

    def _xdotool(self, *arguments: str) -> str:
        done = subprocess.run(["xdotool", *arguments], env=self.environment, capture_output=True, text=True, check=True)
        return done.stdout
