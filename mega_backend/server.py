"""`mega serve`: the life of the backend as a program, from its options to its exit code.

The application itself is `mega_backend.service.app`. The program answers at once; the weights load in the background,
with progress on standard output, and `mega serve: ready at URL` follows when requests are taken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mega_backend.batching import Batcher
from mega_backend.protocol import is_sendable
from mega_backend.service import logs, memory
from mega_backend.service.app import State, create_app
from mega_backend.service.gate import is_loopback
from mega_backend.service.limits import Limits
from mega_backend.service.model import Model, Progress, loader

__all__ = ["Limits", "add_arguments", "create_app", "main", "serve"]

GRACE = 10.0
"""Seconds that running requests may take when the server is told to stop."""


def read_token(file: str | None) -> str:
    """The token from a file, or else from MEGA_TOKEN; never from the command line, which other users can see."""
    if file is None:
        return _sendable(os.environ.get("MEGA_TOKEN", "").strip(), "MEGA_TOKEN")
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        # The name is not repeated: somebody may have given the token in its place.
        raise SystemExit(f"mega serve: the file of --token-file cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise SystemExit(
            "mega serve: the file of --token-file is no text; write a long random token into it."
        ) from error
    if not token:
        raise SystemExit("mega serve: the file of --token-file is empty; write a long random token into it.")
    return _sendable(token, "the file of --token-file")


def _sendable(token: str, where: str) -> str:
    """A token, where a header can carry it."""
    if not is_sendable(token):
        raise SystemExit(f"mega serve: the token in {where} must be one line of ASCII letters, digits and signs.")
    return token


def sleep_while_waiting() -> None:
    """Let torch's threads sleep while they wait for one another; call before torch is imported.

    Requests, the detector and other programs want the same cores, and spinning threads would take them for nothing: on
    a busy machine that made sampling several times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def bounded_protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's HTTP protocol, with bounds on connections: their number, and how long they may say or read nothing."""

    class Bounded(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _reading: asyncio.TimerHandle | None = None
        _unread = 0

        @property
        def _waits(self) -> bool:
            """For (the rest of) a request's headers; the application bounds the time of what follows them."""
            return self.cycle is None or self.cycle.response_complete

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                text = b'{"detail":"The backend has too many connections; try again in a few seconds."}'
                head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\n" \
                       f"Connection: close\r\nContent-Length: {len(text)}\r\n\r\n"  # fmt: skip
                transport.write(head.encode() + text)
                transport.close()
                return
            self._timer = self.loop.call_later(limits.idle_seconds, self._give_up)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self._waits and self._timer is not None:
                self._timer.cancel()
                self._timer = None
            elif self._waits and self._timer is None:
                self._timer = self.loop.call_later(limits.idle_seconds, self._give_up)

        def _give_up(self) -> None:
            self._timer = None
            if self._waits:
                self._close()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._close()

        def _close(self) -> None:
            self.transport.close()
            # Closing waits until the client has read what was sent: not for ever.
            self.loop.call_later(limits.stall_seconds, self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.transport.get_write_buffer_size()
            self._reading = self.loop.call_later(limits.stall_seconds, self._check_reading)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._reading is not None:
                self._reading.cancel()
                self._reading = None

        def _check_reading(self) -> None:
            left = self.transport.get_write_buffer_size()
            if left >= self._unread:
                logs.event("client does not read", unread=left)
                self.transport.abort()
                return
            self._unread = left
            self._reading = self.loop.call_later(limits.stall_seconds, self._check_reading)

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._timer, self._reading):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

    return Bounded


class _Server(uvicorn.Server):
    """Ends when it was idle for long, when its parent is gone or when it is told to, in order."""

    def __init__(self, config: uvicorn.Config, state: State, idle_timeout: float, grace: float) -> None:
        super().__init__(config)
        self.state, self.idle_timeout, self.grace = state, idle_timeout, grace

    async def on_tick(self, counter: int) -> bool:
        jobs = self.state.jobs
        if self.state.model.status != "ready" or self.state.uploads:
            jobs.last_active = time.monotonic()
        idle = time.monotonic() - jobs.last_active
        if self.idle_timeout > 0 and jobs.idle and idle > self.idle_timeout:
            logs.event("idle: stopping", seconds=idle)
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.state.jobs.drain(0 if self.force_exit else self.grace)
        await super().shutdown(sockets)


def serve(
    model: Any, host: str = "127.0.0.1", port: int = 8765, token: str = "", idle_timeout: float = 0.0,
    stop_with_stdin: bool = False, limits: Limits | None = None, grace: float = GRACE, device: str = "cpu",
) -> int:  # fmt: skip
    """Serve until told to stop; returns the exit code.

    Args:
        model: a recoverer, or a function that loads one (given a progress callback), which is called in the background.
        port: 0 takes a free one.
        idle_timeout: stop after so many seconds without work; 0 never.
        stop_with_stdin: end when standard input closes: a parent that dies, however it dies, leaves nothing behind.
        grace: seconds that running requests may take when told to stop; then they are cancelled.
        device: what the model runs on; decides how many rows share a batch.

    Prints `mega serve: listening at URL`, progress, and `mega serve: ready at URL` once requests are taken.
    """
    if not is_loopback(host) and not token:
        print("mega serve: other machines may only connect with a token; give --token-file or set MEGA_TOKEN.",
              file=sys.stderr)  # fmt: skip
        return 2
    listener = _listen(host, port)
    if listener is None:
        return 2
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{listener.getsockname()[1]}"
    limits = limits or Limits()
    server: _Server
    failures: list[Exception] = []

    def report(fraction: float, text: str) -> None:
        print(f"mega serve: ready at {url}" if fraction >= 1 else f"mega serve: {fraction:4.0%} {text}", flush=True)

    def failed(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    batcher = Batcher(64 if device == "cpu" else 1024)
    load: Callable[[Progress], Any] = model if callable(model) else lambda _: model
    app = create_app(
        Model(load, batcher, report, failed), token=token, loopback=is_loopback(host), limits=limits, batcher=batcher
    )
    config = uvicorn.Config(
        app, http=bounded_protocol(limits), ws="none", loop="asyncio", log_config=None, access_log=False,
        server_header=False, timeout_keep_alive=int(limits.idle_seconds), timeout_graceful_shutdown=3,
    )  # fmt: skip
    server = _Server(config, app.state.mega, idle_timeout, 0.0 if stop_with_stdin else grace)
    # uvicorn raises the signal again after an orderly end; with these in place that is exit code 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    if stop_with_stdin:
        threading.Thread(target=_stop_with_stdin, args=(server,), daemon=True).start()
    print(f"mega serve: listening at {url}", flush=True)
    server.run(sockets=[listener])
    if failures:
        print(f"mega serve: the model could not be loaded: {failures[0]}", file=sys.stderr, flush=True)
        return 1
    return 0


def _listen(host: str, port: int) -> socket.socket | None:
    """A socket bound to the address, or None after saying why there is none."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Before the weights load: a second instance must fail at once, not after half a minute.
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        if isinstance(error, OverflowError):
            text, todo = "there is no such port", "choose a --port from 0 to 65535"
        elif isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            text, todo = error.strerror, "give --host an address of this machine"
        elif error.errno == errno.EACCES and port < 1024:
            text, todo = error.strerror, "choose a --port from 1024 on"
        else:
            text, todo = error.strerror, "is a backend running already? Choose another --port"
        print(f"mega serve: {host}:{port} cannot be used ({text}); {todo}.", file=sys.stderr)
        listener.close()
        return None
    return listener


def _stop_with_stdin(server: uvicorn.Server) -> None:
    # Not through sys.stdin: its lock, held by this thread to the end, would abort the interpreter's shutdown.
    with contextlib.suppress(OSError):  # there was none from the start
        while os.read(0, 1):
            continue
    server.should_exit = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mega serve`."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (other than loopback: with a token)")
    parser.add_argument("--port", type=int, default=8765, help="port; 0 takes a free one and prints it")
    parser.add_argument("--model", default="default", help='"default" or a model folder')
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--token-file", help="file with the token that clients must send (or MEGA_TOKEN)")
    parser.add_argument("--idle-timeout", type=float, default=0.0, metavar="SECONDS", help="stop when idle for so long")
    parser.add_argument("--grace", type=float, default=GRACE, metavar="SECONDS", help="for running requests at the end")
    parser.add_argument("--log", choices=("text", "json"), default="text", help="form of the log on standard error")
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when standard input closes")


def main(arguments: argparse.Namespace) -> int:
    """`mega serve`."""
    sleep_while_waiting()
    memory.keep()
    logs.configure(arguments.log)
    return serve(
        loader(arguments.model, arguments.device), arguments.host, arguments.port, read_token(arguments.token_file),
        arguments.idle_timeout, arguments.stop_with_stdin, grace=arguments.grace, device=arguments.device,
    )  # fmt: skip
