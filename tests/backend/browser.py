"""A headless Chromium under WebDriver, in the standard library: just what the page's tests need."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from waiting import line_with

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def available() -> bool:
    return bool(shutil.which("chromedriver") and (shutil.which("chromium") or shutil.which("google-chrome")))


class Browser:
    """One window. `folder` takes the profile and downloads."""

    def __init__(self, folder: Path, size: tuple[int, int] = (1360, 860), dark: bool = False) -> None:
        self._driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        deadline = threading.Timer(60, self._driver.kill)
        deadline.start()
        line = line_with("started successfully on port", self._driver)
        deadline.cancel()
        self._url = "http://127.0.0.1:" + line.strip().rstrip(".").rsplit(" ", 1)[1]
        flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}"]
        if dark:
            flags.append("--blink-settings=preferredColorScheme=0")
        options = {
            "binary": shutil.which("chromium") or shutil.which("google-chrome"),
            "args": flags,
            "prefs": {"download.default_directory": str(folder), "download.prompt_for_download": False},
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{session['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
            return json.loads(response.read())["value"]

    def open(self, url: str) -> None:
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that JavaScript returns."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, seconds: float = 20.0) -> Any:
        """The first true value of an expression."""
        end = time.monotonic() + seconds
        while not (value := self.run(f"return {script}")):
            if time.monotonic() > end:
                raise AssertionError(f"never became true: {script}")
            time.sleep(0.1)
        return value

    def type(self, selector: str, text: str) -> None:
        found = self._call("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        self._call("POST", f"{self._session}/element/{found[ELEMENT]}/value", {"text": text})

    def keys(self, *keys: str) -> None:
        """Press keys where the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        self._call("POST", f"{self._session}/actions", {"actions": [source]})

    def drag(self, start: tuple[int, int], by: tuple[int, int]) -> None:
        """Press the mouse in the window, move, release."""
        move = {"type": "pointerMove", "duration": 60, "origin": "viewport"}
        actions = [
            {**move, "x": start[0], "y": start[1]},
            {"type": "pointerDown", "button": 0},
            {**move, "x": start[0] + by[0], "y": start[1] + by[1]},
            {"type": "pointerUp", "button": 0},
        ]
        self._call(
            "POST", f"{self._session}/actions", {"actions": [{"type": "pointer", "id": "m", "actions": actions}]}
        )

    def problems(self) -> list[str]:
        """Errors and warnings of the page's console, violations of its policy among them."""
        entries = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", f"{self._session}/screenshot")))

    def close(self) -> None:
        try:
            self._call("DELETE", self._session)
        finally:
            self._driver.terminate()
            self._driver.wait(10)
