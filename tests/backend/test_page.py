"""The page that the server gives: complete, self-contained, and working in a real browser."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import re
import socket
import struct
import threading
import time
from pathlib import Path

import browser
import numpy as np
import pytest
import uvicorn
from fake_recoverer import FakeRecoverer
from PIL import Image

from mega_backend import server
from mega_backend.service import page

ROOT = Path(__file__).resolve().parents[2]


class Serving:
    """A server with a fake model in a thread of this process, which remembers what it was asked."""

    def __init__(self, token: str = "") -> None:
        self.kept: list[list[str]] = []
        self.delay = 0.01
        """Seconds that each of its steps takes."""

        class Recoverer(FakeRecoverer):
            # The server works with copies of what it is given.
            delay = property(lambda _: self.delay, lambda *_: None)

            def resample(recoverer, recovery, keep=(), **options):
                self.kept.append(list(keep))
                return super().resample(recovery, keep=keep, **options)

        self.recoverer = Recoverer()
        self._listener = socket.create_server(("127.0.0.1", 0))
        app = server.create_app(self.recoverer, token=token)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self._thread.start()
        self.port = self._listener.getsockname()[1]

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        answer = response.status, dict(response.getheaders()), response.read()
        connection.close()
        return answer

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def serving():
    started = []

    def start(token: str = "") -> Serving:
        started.append(Serving(token))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def test_built_files_are_those_of_the_sources():
    hashed = hashlib.sha256()
    for name in ("index.html", "package-lock.json", "tsconfig.json", "vite.config.ts", "src"):
        path = ROOT / "web" / name
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            hashed.update(f"{file.relative_to(ROOT / 'web').as_posix()}\0".encode() + file.read_bytes() + b"\0")
    built = (page.FOLDER / "sources.sha256").read_text().strip()
    assert built == hashed.hexdigest(), "the page is older than its sources: make web"


def test_the_page_in_development_reaches_every_endpoint():
    text = (ROOT / "web" / "vite.config.ts").read_text(encoding="utf-8")
    proxied = re.findall(r'"([\w.]+)"', text[text.index("proxy:") :].split("]")[0])
    served = {route.path[1:] for route in server.create_app(FakeRecoverer()).routes}
    assert set(proxied) == served - {path[1:] for path in page.files()}


def test_nothing_is_fetched_from_elsewhere(serving):
    served = serving()
    status, headers, html = served.get("/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    references = re.findall(r'(?:src|href)="([^"]+)"', html.decode())
    assert len(references) == 3
    for reference in references:
        if reference.startswith("data:"):
            continue
        assert reference.startswith("./")
        assert served.get(reference.removeprefix("."))[0] == 200
    for path in page.FOLDER.iterdir():
        if path.suffix in (".js", ".css", ".html", ".svg"):
            hosts = set(re.findall(r"(?:https?:)?//([a-z0-9.-]+\.[a-z]{2,})", path.read_text("utf-8")))
            assert hosts <= {"www.w3.org"}, path.name


def test_files_are_kept_by_the_browser_until_they_change(serving):
    served = serving()
    _, headers, data = served.get("/app.js")
    assert headers["content-type"].startswith("text/javascript") and headers["x-content-type-options"] == "nosniff"
    assert served.get("/app.js", **{"If-None-Match": headers["etag"]})[0] == 304
    _, zipped_headers, zipped = served.get("/app.js", **{"Accept-Encoding": "gzip"})
    assert zipped_headers["content-encoding"] == "gzip" and len(zipped) < len(data) / 2


def test_a_link_elsewhere_leads_to_the_page_and_to_nothing_else(serving):
    served = serving()
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert served.get("/", **followed)[0] == 200
    assert served.get("/", **{**followed, "Sec-Fetch-Dest": "iframe"})[0] == 403
    assert served.get("/health", **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "empty"})[0] == 403


def test_the_page_asks_for_the_token_as_a_password(serving):
    served = serving("s3cret")
    status, headers, _ = served.get("/", Accept="text/html")
    assert status == 401 and headers["www-authenticate"].startswith("Basic")
    assert served.get("/health")[1]["www-authenticate"] == "Bearer"
    for path in ("/", "/app.js", "/health", "/metrics"):
        assert served.get(path)[0] == 401
        assert served.get(path, Authorization="Basic OnMzY3JldA==")[0] == 200  # ":s3cret"
        assert served.get(path, Authorization="Basic !!")[0] == 401
        assert served.get(path, Authorization="Basic czNjcmV0")[0] == 401  # the token as user name


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory):
    if not browser.available():
        pytest.skip("needs chromium and chromedriver")
    folder = tmp_path_factory.mktemp("browser")
    opened = browser.Browser(folder)
    opened.folder = folder
    yield opened
    opened.close()


READY = "document.querySelector('#status').dataset.state === 'ready'"
SHOWN = "!document.querySelector('#controls').hidden && document.querySelector('#work').hidden"
WHICH = "document.querySelector('#which').textContent"


def look(window: browser.Browser) -> bytes:
    """What the view shows now."""
    time.sleep(0.3)
    path = window.folder / "view.png"
    window.screenshot(path)
    box = window.run("const b = document.querySelector('#view').getBoundingClientRect();"
                     "return [b.left, b.top, b.right, b.bottom]")  # fmt: skip
    left, top, right, bottom = (int(side) for side in box)
    return Image.open(path).crop((left + 8, top + 8, right - 8, bottom - 8)).tobytes()  # without the focus ring


def problems(window: browser.Browser) -> list[str]:
    # Software rendering grumbles about screenshots.
    return [text for text in window.problems() if "GL Driver Message" not in text]


@pytest.fixture
def opened(window, serving, tmp_path):
    """The page with the people of a picture."""
    served = serving()
    buffer = io.BytesIO()
    Image.new("RGB", (320, 240), (90, 120, 150)).save(buffer, "JPEG")
    (tmp_path / "picture.jpg").write_bytes(buffer.getvalue())
    window.open(f"http://127.0.0.1:{served.port}/")
    window.wait(READY)
    window.type("#file", str(tmp_path / "picture.jpg"))
    window.wait(SHOWN)
    yield served
    window.open("about:blank")  # before its server goes
    window.problems()


def test_people_appear_and_turn_under_mouse_and_keys(window, opened):
    assert window.run("return document.querySelectorAll('#people input').length") == 2
    first = look(window)
    assert len(set(first)) > 50, "the view is empty"
    window.drag((750, 400), (120, 30))
    turned = look(window)
    assert turned != first
    window.run("document.querySelector('#view').focus()")
    window.keys("\ue012", "\ue012")  # left arrow
    assert look(window) != turned
    window.keys("0")
    back = np.frombuffer(look(window), np.uint8).astype(int) - np.frombuffer(first, np.uint8)
    assert np.abs(back).max() <= 4  # the ground's shading is not drawn alike each time
    assert problems(window) == []


def test_people_lie_over_the_picture_until_they_are_turned(window, opened):
    """The meshes are drawn where the picture's camera saw them: the capsules stand where the projection says."""
    free = look(window)
    window.keys("p")
    assert not window.run("return document.querySelector('#backdrop').hidden")
    behind = look(window)
    assert behind != free
    people = opened.recoverer.recover(np.zeros((240, 320, 3), np.uint8) + 90, hypotheses=1).people
    focal = 1000 / 224 * 320
    window.run("document.querySelector('#backdrop').style.visibility = 'hidden';"
               "document.querySelector('#stage').style.background = '#f0f'")  # fmt: skip
    box = window.run("const b = document.querySelector('#view').getBoundingClientRect();"
                     "return [b.left, b.top, b.width, b.height]")  # fmt: skip
    path = window.folder / "over.png"
    time.sleep(0.3)
    window.screenshot(path)
    shown = np.asarray(Image.open(path).convert("RGB")).astype(int)
    scale = min(box[2] / 320, box[3] / 240)
    for person in people:
        points = person.vertices[0][:, :2] / person.vertices[0][:, 2:] * focal * scale
        middle = (points.max(0) + points.min(0)) / 2 + [box[0] + box[2] / 2, box[1] + box[3] / 2]
        half = (points.max(0) - points.min(0)) / 2
        for direction in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            for share, inside in ((0.9, True), (1.15, False)):
                x, y = middle + share * half * direction
                if 0 < x - box[0] < box[2] and 0 < y - box[1] < box[3]:
                    different = np.abs(shown[int(y), int(x)] - [255, 0, 255]).max() > 60
                    assert different == inside, (direction, share)
    window.drag((750, 400), (120, 30))
    assert window.run("return document.querySelector('#backdrop').hidden"), "turned people lie over the picture"
    assert window.run("return document.querySelector('input[name=look][value=turn]').checked")
    assert problems(window) == []


def test_alternatives_and_people_step_by_key(window, opened):
    assert window.run(f"return {WHICH}").startswith("1 of 5, the single best guess")
    before = look(window)
    window.keys(".", ".")
    assert window.run(f"return {WHICH}").startswith("3 of 5")
    assert look(window) != before
    window.keys(",", ",", ",")
    assert window.run(f"return {WHICH}").startswith("5 of 5")
    window.keys("]")
    assert window.run("return document.querySelectorAll('#people input')[1].checked")


def test_parts_are_kept_when_the_rest_is_rolled_again(window, opened):
    window.run("const parts = document.querySelectorAll('#parts input'); parts[0].click(); parts[6].click()")
    window.keys("r")
    window.wait("!document.querySelector('#undo').disabled && document.querySelector('#work').hidden")
    assert opened.kept == [["head", "left_leg"]]
    assert window.run("return document.querySelectorAll('#parts input')[6].checked")
    window.run("document.querySelector('#undo').click()")
    assert "best guess" in window.run(f"return {WHICH}")
    window.run("document.querySelector('input[value=uncertainty]').click()")
    assert not window.run("return document.querySelector('#scale').hidden")
    assert problems(window) == []


def test_a_download_is_a_glb_with_everybody(window, opened):
    window.run("document.querySelector('#download').click()")
    path = window.folder / "people.glb"
    end = time.monotonic() + 10
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.1)
    data = path.read_bytes()
    magic, version, size, length = struct.unpack("<4sIII", data[:16])
    document = json.loads(data[20 : 20 + length])
    assert (magic, version, size) == (b"glTF", 2, len(data))
    assert len(document["meshes"]) == 2 and len(document["meshes"][0]["extras"]["targetNames"]) == 4
    path.unlink()


def test_work_can_be_cancelled_and_errors_are_told(window, opened, tmp_path):
    opened.delay = 2.0
    window.run("document.querySelector('#random').click()")
    window.wait("!document.querySelector('#work').hidden")
    window.keys("\ue00c")  # Escape
    window.wait("document.querySelector('#work').hidden")
    end = time.monotonic() + 20
    while json.loads(opened.get("/health")[2])["running"] and time.monotonic() < end:
        time.sleep(0.05)
    assert not json.loads(opened.get("/health")[2])["running"]
    opened.delay = 0.01
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    window.type("#file", str(tmp_path / "broken.jpg"))
    assert "damaged" in window.wait("document.querySelector('#message').textContent")
    window.problems()  # the refusal's status, which the browser notes


def test_the_page_works_behind_a_token(window, serving):
    served = serving("s3cret")
    window.open(f"http://anybody:s3cret@127.0.0.1:{served.port}/")
    window.wait(READY)
    window.run("document.querySelector('#random').click()")
    window.wait(SHOWN)
    assert problems(window) == []
    window.open("about:blank")
