"""Requests on their way through the service: a bounded queue, and threads that each carry one request through."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from typing import Any

from fastapi import HTTPException

from mega_backend import Cancelled, protocol, turns
from mega_backend.batching import Batcher, OutOfMemory, is_out_of_memory, release_memory
from mega_backend.protocol import Message, ProtocolError
from mega_backend.service import logs
from mega_backend.service.limits import busy

Progress = Callable[[float, str], None]
Work = Callable[[Any, Progress], Iterator[Message]]

PROGRESS_INTERVAL = 0.05
"""Seconds between two progress messages of one request; more often only costs."""
AHEAD = 8
"""Messages that may wait for a client to read them, before the work waits too."""

_numbers = count(1)


class Job:
    """One request; its encoded messages arrive on the event loop that made it.

    Args:
        endpoint: for the log.
        work: gets the recoverer and a progress callback, gives messages; runs on a thread.
        release: called once at the very end.
    """

    def __init__(self, endpoint: str, work: Work, release: Callable[[], None] = lambda: None) -> None:
        self.number = next(_numbers)
        self.requester = turns.Requester()
        self.endpoint, self.work = endpoint, work
        self.end = "waiting"
        self.people = 0
        self.cancelled = threading.Event()
        self.finished = False
        self._why: Message | None = None
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = threading.Semaphore(AHEAD)

    def put(self, message: Message) -> None:
        """From the work's thread; waits while the client is far behind. Raises Cancelled."""
        data = protocol.encode(message)
        while not self._room.acquire(timeout=0.2):
            if self.cancelled.is_set():
                raise Cancelled
        self._send(data)

    def tell(self, message: Message) -> None:
        """A message that may be left out where the client is far behind."""
        if self._room.acquire(blocking=False):
            self._send(protocol.encode(message))

    def cancel(self, why: Message | None = None) -> None:
        """Stop the work; `why` is what the client reads last, where it still reads."""
        self._why = why
        self.cancelled.set()

    def finish(self, end: str, last: Message | None = None) -> None:
        """The last message, if any, and the end of the stream."""
        self.end, self.finished = end, True
        last = last if last is not None else self._why
        if last is not None:
            self._send(protocol.encode(last))
        self._send(None)
        self._release()

    async def messages(self) -> AsyncIterator[bytes]:
        while (data := await self._messages.get()) is not None:
            self._room.release()
            yield data

    def _send(self, data: bytes | None) -> None:
        # The loop may be closed by now: nobody listens any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._messages.put_nowait, data)


class Jobs:
    """`active` threads that carry jobs through; at most `waiting` wait for one of them."""

    def __init__(self, recoverer: Callable[[], Any], batcher: Batcher, active: int, waiting: int) -> None:
        self._recoverer, self._batcher = recoverer, batcher
        self._most_waiting = waiting
        self._queue: deque[Job] = deque()
        self._running: set[Job] = set()
        self._changed = threading.Condition()
        self._draining = self._stopping = False
        self._threads = [threading.Thread(target=self._run, name=f"mega-job-{n}", daemon=True) for n in range(active)]
        self.last_active = time.monotonic()
        self.ended: Callable[[Job], None] = lambda _: None

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def idle(self) -> bool:
        return not self._running and not self.waiting

    def submit(self, job: Job) -> None:
        """Queue a job. Raises the 503 of `busy` where too much waits."""
        if self._draining:
            raise busy("The backend is stopping; start it again.", 10)
        with self._changed:
            before = len(self._queue)
            if before >= self._most_waiting:
                raise busy("The backend has too much waiting already; try again in a few seconds.")
            self._queue.append(job)
            if len(self._running) + before >= len(self._threads):
                job.tell(Message("queued", {"before": before}))
            self._changed.notify()

    def cancel(self, job: Job, why: Message | None = None) -> None:
        """Stop a job, on the device too, within one batch."""
        job.cancel(why)
        with self._changed:
            waited = job in self._queue
            if waited:
                self._queue.remove(job)
            elif job in self._running and not job.finished:
                self._batcher.cancel(job.requester)
        if waited:
            job.finish("cancelled")
            self.ended(job)

    async def drain(self, seconds: float) -> None:
        """Take no more jobs, wait so long for those there are, then cancel them and tell their clients."""
        self._draining = True
        end = time.monotonic() + seconds
        while not self.idle and time.monotonic() < end:
            await asyncio.sleep(0.05)
        text = "The backend was stopped before this was done; start it again and repeat the request."
        why = Message("error", {"status": 503, "text": text})
        with self._changed:
            left = [*self._queue, *self._running]
        for job in left:
            self.cancel(job, why)
        end = time.monotonic() + 2
        while self._running and time.monotonic() < end:
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """End the threads once they are idle; call after `drain`."""
        with self._changed:
            self._draining = self._stopping = True
            self._changed.notify_all()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                end, last = self._do(job)
                job.finish(end, last)
            finally:
                # Counted before it is over: who sees the queue idle finds the numbers complete.
                self.last_active = time.monotonic()
                self.ended(job)
                with self._changed:
                    self._running.discard(job)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping)
            if self._stopping:
                return None
            job = self._queue.popleft()
            self._running.add(job)
            return job

    def _do(self, job: Job) -> tuple[str, Message | None]:
        """Carry one job through; how it ended, and its last message."""
        latest = 0.0

        def progress(fraction: float, text: str = "") -> None:
            nonlocal latest
            if job.cancelled.is_set():
                raise Cancelled
            now = time.monotonic()
            if now - latest >= PROGRESS_INTERVAL or fraction >= 1:
                latest = now
                job.tell(Message("progress", {"fraction": min(1.0, max(0.0, float(fraction))), "text": str(text)}))

        started = time.monotonic()
        try:
            progress(0.0, "")
            with turns.request(job.requester):
                for message in job.work(self._recoverer(), progress):
                    job.people += message.kind == "person"
                    job.put(message)
            return "done", Message("done", {"seconds": time.monotonic() - started})
        except Cancelled:
            return "cancelled", None
        except HTTPException as error:
            return "refused", _error(error.status_code, error.detail)
        except OutOfMemory as error:
            return "failed", _error(503, sentence(error))
        except (ValueError, ProtocolError) as error:
            return "refused", _error(422, sentence(error))
        except Exception as error:
            if is_out_of_memory(error):
                # Outside of shared batches, or of the machine itself.
                logs.event("out of memory", logging.WARNING, request=job.number, endpoint=job.endpoint)
                release_memory()
                return "failed", _error(503, sentence(OutOfMemory()))
            # Whatever one request does, the server stays up; the cause goes to the log, not to the client.
            logs.log.exception("request failed", extra={"mega": {"request": job.number, "endpoint": job.endpoint}})
            return "failed", _error(500, "The backend failed on this request; its log has the cause.")


def _error(status: int, text: str) -> Message:
    return Message("error", {"status": status, "text": text})


def sentence(error: Exception) -> str:
    """An error's text as one sentence."""
    text = str(error).strip() or type(error).__name__
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
