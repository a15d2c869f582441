"""The fake model behind a server of the standard library alone, so that Blender's own Python can run it as a backend.

    python plain_server.py FOLDER [--protocol N] [--token T] [arguments of `mega serve`, which are not looked at]

FOLDER/die holds how many times to end as by kill -9 in the middle of an answer; FOLDER/pids gets the process's id;
FOLDER/slow makes every step take a second.
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fake_recoverer import FakeRecoverer  # noqa: E402

from mega_backend import protocol  # noqa: E402
from mega_backend.protocol import Message  # noqa: E402

FOLDER = Path(sys.argv[1])


def option(name: str, default: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


TOKEN = option("--token", os.environ.get("MEGA_TOKEN", ""))
PROTOCOL = int(option("--protocol", str(protocol.PROTOCOL)))


def die_if_told() -> None:
    order = FOLDER / "die"
    left = int(order.read_text()) if order.exists() else 0
    if left:
        order.write_text(str(left - 1))
        os.kill(os.getpid(), signal.SIGKILL)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if not self._may_enter():
            return
        if self.path == "/health":
            health = {"protocol": PROTOCOL, "version": "0", "status": "ready", "device": "cpu", "reads": "landmarks",
                      "model": {"name": "fake"}}  # fmt: skip
            self._send(json.dumps(health).encode())
        else:
            self._send(protocol.encode(protocol.topology_of(FakeRecoverer().body).message()))

    def do_POST(self) -> None:
        if not self._may_enter():
            return
        request = protocol.decode(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        slow = FakeRecoverer(1.0 if (FOLDER / "slow").exists() else 0.0)
        values = {name: value for name, value in request.fields.items() if name != "smallest"}

        def progress(fraction: float, text: str) -> None:
            self.wfile.write(protocol.encode(Message("progress", {"fraction": fraction, "text": text})))
            die_if_told()

        picture = np.full((60, 80, 3), 99, np.uint8)
        recovery = slow.recover(picture, **values, progress=progress)
        for message in (protocol.scene_message(recovery), *map(protocol.person_message, (0, 1), recovery.people)):
            self.wfile.write(protocol.encode(message))
        self.wfile.write(protocol.encode(Message("done", {})))

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _may_enter(self) -> bool:
        if TOKEN and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(json.dumps({"detail": "The token is missing or wrong."}).encode(), 401)
            return False
        return True

    def _send(self, data: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    with open(FOLDER / "pids", "a") as pids:
        pids.write(f"{os.getpid()}\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=end_with_parent, daemon=True).start()
    print(f"mega serve: ready at http://127.0.0.1:{server.server_address[1]}", flush=True)
    if "--hold" in sys.argv:
        time.sleep(float(option("--hold", "0")))
    server.serve_forever()
