"""Requests in, streams out: uploads within bounds of size and time, answers for as long as somebody reads them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from fastapi import HTTPException, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from mega_backend import protocol
from mega_backend.protocol import Message, ProtocolError
from mega_backend.service import logs
from mega_backend.service.jobs import Job, Work
from mega_backend.service.limits import Lease

if TYPE_CHECKING:
    from mega_backend.service.app import State


class Upload:
    """One request's body, read within bounds of size and time; what it holds is released when its answer ends."""

    def __init__(self, request: Request, state: State) -> None:
        self.request, self.state = request, state
        self.lease: Lease = state.held.lease()
        self._handed_on = False

    async def __aenter__(self) -> Upload:
        self.state.model.check()
        self.state.uploads += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.state.uploads -= 1
        if not self._handed_on:
            self.lease.release()

    async def message(self, kind: str) -> Message:
        """The request's one message."""
        limits = self.state.limits
        try:
            async with asyncio.timeout(limits.upload_seconds):
                data = await self._read()
        except ClientDisconnect:
            raise HTTPException(400, "The connection ended in the middle of the request.") from None
        except TimeoutError:
            raise HTTPException(
                408, f"The upload took over {limits.upload_seconds:.0f} s; send a smaller picture."
            ) from None
        message = protocol.decode(data, limits.body_bytes)
        if message.kind != kind:
            raise ProtocolError(f"A message of kind {kind!r} belongs here, not {message.kind[:40]!r}.")
        return message

    async def messages(self, most: int) -> AsyncIterator[Message]:
        """The request's messages as they arrive, of together at most so many bytes; a message at most `body_bytes`."""
        limits = self.state.limits
        buffer, total, ready, started = bytearray(), 0, 0, time.monotonic()
        chunks = self.request.stream().__aiter__()
        try:
            while True:
                async with asyncio.timeout(limits.stall_seconds):
                    chunk = await anext(chunks, None)
                buffer += chunk or b""
                total += len(chunk or b"")
                if total > most:
                    raise HTTPException(413, f"The clip is over {most >> 20} MiB; send a shorter or smaller one.")
                if time.monotonic() - started > limits.upload_seconds + total / limits.slowest:
                    raise HTTPException(408, "The upload is too slow; send a smaller clip.")
                self.lease.resize(len(buffer))
                # Looking reads the header anew: not with every chunk of a large message.
                if chunk is None or len(buffer) >= ready:
                    while (message := protocol.take(buffer, limits.body_bytes)) is not None:
                        yield message
                    ready = len(buffer) * 9 // 8
                if chunk is None:
                    break
        except ClientDisconnect:
            raise HTTPException(400, "The connection ended in the middle of the request.") from None
        except TimeoutError:
            text = f"Nothing came for {limits.stall_seconds:.0f} s; send the clip again."
            raise HTTPException(408, text) from None
        if buffer:
            raise ProtocolError("The request ended in the middle of a message.")
        self.lease.resize(0)

    async def _read(self) -> bytes:
        most = self.state.limits.body_bytes
        too_large = HTTPException(413, f"The request is over {most >> 20} MiB; send a smaller picture.")
        announced = self.request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > most:
            raise too_large
        data = bytearray()
        async for chunk in self.request.stream():
            data += chunk
            if len(data) > most:
                raise too_large
            self.lease.resize(len(data))
        return bytes(data)

    def answer(self, work: Work, release: Callable[[], None] = lambda: None) -> Response:
        """Queue the work and stream its messages; `release` is called at the very end."""

        def end() -> None:
            self.lease.release()
            release()

        job = Job(self.request.scope["path"].rsplit("/", 1)[-1], work, end)
        self.state.jobs.submit(job)
        self._handed_on = True
        return MessageStream(job, self.state)


class MessageStream(Response):
    """A job's messages as they come. When the client leaves, or reads nothing for long, the job is cancelled."""

    media_type = protocol.CONTENT_TYPE

    def __init__(self, job: Job, state: State) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.job, self.state = job, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.create_task(self._cancel_when_gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for data in self.job.messages():
                async with asyncio.timeout(self.state.limits.stall_seconds):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            logs.event("client does not read", request=self.job.number)
        finally:
            watcher.cancel()
            self.state.jobs.cancel(self.job)
            self.state.metrics.people.inc(self.job.people)

    async def _cancel_when_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self.state.jobs.cancel(self.job)
