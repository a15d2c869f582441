"""Concurrent requests share the device: calls of the model's row functions merge into batches.

A *row function* maps tensors with a common leading dimension to tensors with that dimension, each row by itself:
MEGA's logits, the mesh decoder. Every request runs the ordinary pipeline on a thread of its own; where it calls a row
function, its rows wait until the device loop takes them, together with those of other requests, whatever step each of
these is at. So people and samples of all requests fill the same batches, step by step.

`Scheduler` decides which rows run next, and knows nothing of devices, threads or tensors. `Batcher` is the device loop.
Nothing here imports torch before the first call.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from mega_backend import Cancelled, turns
from mega_backend.turns import Requester, Turns

log = logging.getLogger("mega.batching")

GROW_AFTER = 64
"""So many full batches double a limit that had been halved because the device ran out of memory."""
SECONDS = 0.5
"""A batch that takes longer has fewer rows next time: cancelling waits for it, and whoever comes meanwhile."""
SHARED_SECONDS = 0.1
"""The same while several requests are there: each of them waits for the batches of the others, step after step."""
CROWD_SECONDS = 1.0
"""So long after the last change from one request to another there are several."""


class OutOfMemory(RuntimeError):
    """Something does not fit on the device even by itself. The text is one sentence for the user."""

    def __init__(self) -> None:
        super().__init__(
            "The device has too little free memory for this; close other programs that use it, or ask for less."
        )


# ----------------------------------------------------------------------------------------------------------------------
# Which rows run next


@dataclass(eq=False)
class Call:
    """One call of a row function by one request.

    `kind` is equal for calls that may share a batch. Rows `taken`… are still to be run.
    """

    request: Hashable
    kind: Hashable
    rows: int
    payload: Any = None
    taken: int = 0

    @property
    def left(self) -> int:
        return self.rows - self.taken


class Slice(NamedTuple):
    """Rows start…stop - 1 of a call."""

    call: Call
    start: int
    stop: int


class Scheduler:
    """Requests take turns (`turns`); whoever was served goes to the back, and a batch is shared evenly.

    A request with thousands of rows therefore delays another one by at most the batch that runs when it comes.
    """

    def __init__(self) -> None:
        self._queues: OrderedDict[Hashable, deque[Call]] = OrderedDict()
        self._turns = Turns()

    def __bool__(self) -> bool:
        return bool(self._queues)

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return sum(call.left for queue in self._queues.values() for call in queue)

    def add(self, call: Call) -> None:
        if call.rows < 1:
            raise ValueError("a call needs at least one row")
        self._queues.setdefault(call.request, deque()).append(call)

    def drop(self, request: Hashable) -> list[Call]:
        """Forget a request; returns its calls that had waited."""
        return list(self._queues.pop(request, ()))

    def batch(self, limit: Callable[[Hashable], int]) -> list[Slice]:
        """The next at most `limit(kind)` rows, all of the kind of the request whose turn it is. Empty if none waits."""
        if not self._queues:
            return []
        kind = self._queues[self._turns.next(self._queues)][0].kind
        self._turns.taken()
        heads = [queue[0] for queue in self._queues.values() if queue[0].kind == kind]
        shares = even_shares([call.left for call in heads], limit(kind))
        slices = []
        for call, share in zip(heads, shares, strict=True):
            if share:
                slices.append(Slice(call, call.taken, call.taken + share))
                call.taken += share
                self._served(call)
        return slices

    def give_back(self, slices: Sequence[Slice]) -> None:
        """Undo the last `batch`: its rows run again, and first."""
        for call, start, _ in reversed(slices):
            call.taken = start
            queue = self._queues.setdefault(call.request, deque())
            if not queue or queue[0] is not call:
                queue.appendleft(call)
            self._queues.move_to_end(call.request, last=False)

    def _served(self, call: Call) -> None:
        queue = self._queues[call.request]
        if not call.left:
            queue.popleft()
        if queue:
            self._queues.move_to_end(call.request)
        else:
            del self._queues[call.request]


def even_shares(wants: Sequence[int], limit: int) -> list[int]:
    """Divide `limit` among claims: equally, what one does not need going to the others; leftovers to the first."""
    shares = [0] * len(wants)
    left = min(limit, sum(wants))
    while left:
        open_claims = [i for i, want in enumerate(wants) if shares[i] < want]
        each = max(left // len(open_claims), 1)
        for i in open_claims:
            share = min(each, wants[i] - shares[i], left)
            shares[i] += share
            left -= share
    return shares


# ----------------------------------------------------------------------------------------------------------------------
# Calls in one another's batches


@dataclass(eq=False)
class _Waiting:
    """What a request's thread waits for."""

    function: Callable
    arguments: tuple
    options: dict[str, Any]
    parts: list[tuple[int, Any]] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class Batcher:
    """The device loop: one thread that runs the rows of everybody.

    Args:
        rows: most rows in one batch. The limit of a function is halved when the device runs out of memory and lowered
            when batches take long, and grows again after a while.
        observe: called after each batch with (function's name, rows, requests, seconds).
    """

    def __init__(self, rows: int = 256, observe: Callable[[str, int, int, float], None] | None = None) -> None:
        self.rows = rows
        self.limits: dict[Callable, Limit] = {}
        self.observe = observe or (lambda *_: None)
        self.out_of_memory = 0
        self._scheduler = Scheduler()
        self._ready = threading.Condition()
        self._latest: Requester | None = None
        self._crowded = 0.0
        self._stopping = self._left_memory = False
        self._thread = threading.Thread(target=self._loop, name="mega-device", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the loop after the batch that runs; who waits gets `Cancelled`."""
        with self._ready:
            self._stopping = True
            self._ready.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    @property
    def waiting_rows(self) -> int:
        with self._ready:
            return self._scheduler.rows

    def rows_of(self, function: Callable) -> Callable:
        """A row function whose calls on threads of a `request` are shared; elsewhere it runs as it is.

        Keyword arguments are constants: only calls with the same ones share a batch.
        """

        def shared(*arguments: Any, **options: Any) -> Any:
            requester = turns.current()
            if requester is None:
                return function(*arguments, **options)
            return self.call(requester, function, arguments, options)

        return shared

    def call(
        self, requester: Requester, function: Callable, arguments: tuple,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:  # fmt: skip
        """Run the rows of one call among those of others; waits. Raises Cancelled when the request is cancelled."""
        kind, count = _signature(arguments)
        if not count:
            return function(*arguments, **options)
        kind = (kind, tuple(sorted(options.items())))
        waiting = _Waiting(function, arguments, dict(options))
        with self._ready:
            if requester.cancelled or self._stopping:
                raise Cancelled
            if requester is not self._latest:
                if self._latest is not None and not self._latest.over:
                    self._crowded = time.monotonic() + CROWD_SECONDS
                self._latest = requester
            self._scheduler.add(Call(requester, (function, kind), count, waiting))
            self._ready.notify_all()
        waiting.done.wait()
        if waiting.error is not None:
            raise waiting.error
        waiting.parts.sort(key=lambda part: part[0])
        return _joined([part for _, part in waiting.parts])

    def cancel(self, requester: Requester) -> None:
        """Nothing is done for this requester after the current batch."""
        with self._ready:
            requester.cancelled = self._left_memory = True
            dropped = self._scheduler.drop(requester)
        for call in dropped:
            _fail(call, Cancelled())

    def _loop(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._scheduler or self._stopping)
                if self._stopping:
                    break
                patience = SHARED_SECONDS if time.monotonic() < self._crowded else SECONDS
                slices = self._scheduler.batch(lambda kind: self._limit(kind[0]).rows(patience))  # noqa: B023
            self._run(slices)
            if self._left_memory and not self._scheduler:
                # What a cancelled request needed is for others now, outside of this process too.
                self._left_memory = False
                release_memory()
        while slices := self._scheduler.batch(lambda _: 1 << 30):
            for call, _, _ in slices:
                _fail(call, Cancelled())

    def _run(self, slices: list[Slice]) -> None:
        started = time.perf_counter()
        waiting: _Waiting = slices[0].call.payload
        try:
            parts = _apply(waiting.function, slices, waiting.options)
        except Exception as error:
            self._failed(slices, error)
            return
        for (call, start, _), part in zip(slices, parts, strict=True):
            call.payload.parts.append((start, part))
            if sum(_rows(part) for _, part in call.payload.parts) == call.rows:
                call.payload.done.set()
        size = sum(stop - start for _, start, stop in slices)
        seconds = time.perf_counter() - started
        for call, start, stop in slices:
            call.request.used += seconds * (stop - start) / size
        self._limit(waiting.function).went_well(size, seconds)
        self.observe(_name(waiting.function), size, len({call.request for call, _, _ in slices}), seconds)

    def _failed(self, slices: list[Slice], error: Exception) -> None:
        size = sum(stop - start for _, start, stop in slices)
        if is_out_of_memory(error):
            self.out_of_memory += 1
            release_memory()
            if size > 1:
                self._limit(slices[0].call.payload.function).did_not_fit(size)
                log.warning("the device ran out of memory with %d rows: going on with %d", size, size // 2)
                with self._ready:
                    self._scheduler.give_back([part for part in slices if not part.call.request.cancelled])
                for call in {part.call for part in slices if part.call.request.cancelled}:
                    _fail(call, Cancelled())
                return
            error = OutOfMemory()
        if len(slices) > 1:
            # One request's rows must not fail the others': each by itself shows whose they are.
            for part in slices:
                self._run([part])
            return
        call = slices[0].call
        with self._ready:
            self._scheduler.drop(call.request)
        _fail(call, error)

    def _limit(self, function: Callable) -> Limit:
        return self.limits.setdefault(function, Limit(self.rows))


class Limit:
    """How many rows of one function may share a batch: what memory and patience allow."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.memory = most
        """Rows that are believed to fit."""
        self._pace = 0.0
        self._full = 0

    def rows(self, seconds: float = SECONDS) -> int:
        """So many, where the batch should take at most this time."""
        fast_enough = self.most if self._pace * self.most <= seconds else max(1, int(seconds / self._pace))
        return min(self.memory, fast_enough)

    def did_not_fit(self, rows: int) -> None:
        """The device ran out of memory."""
        self.memory, self._full = max(1, rows // 2), 0

    def went_well(self, rows: int, seconds: float) -> None:
        """A batch of so many rows took so long. What each batch costs whatever its size makes this a careful guess."""
        self._pace = seconds / rows
        if rows >= self.memory < self.most:
            self._full += 1
            if self._full >= GROW_AFTER:
                self.memory, self._full = min(2 * self.memory, self.most), 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left; torch has an error type of its own only for some devices."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def release_memory() -> None:
    """Give back what the device keeps for later."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _fail(call: Call, error: BaseException) -> None:
    call.payload.error = error
    call.payload.done.set()


def _name(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _apply(function: Callable, slices: list[Slice], options: dict[str, Any]) -> list[Any]:
    """Run the slices as one batch; what each of them gets."""
    import torch

    taken = [_cut(call.payload.arguments, start, stop) for call, start, stop in slices]
    with torch.no_grad():
        result = function(*_joined(taken), **options)
    places, parts = 0, []
    for _, start, stop in slices:
        parts.append(_cut(result, places, places + stop - start))
        places += stop - start
    return parts


# Arguments and results are tensors, None, equal constants, or (named) tuples of these.


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "new_empty")


def _like(value: tuple, parts: list) -> tuple:
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def _signature(value: Any) -> tuple[Hashable, int]:
    """What must be equal for two values to be joined, and the number of rows (0 where there is no tensor)."""
    if _is_tensor(value):
        return ("tensor", tuple(value.shape[1:]), value.dtype, value.device), len(value)
    if isinstance(value, tuple):
        kinds, counts = zip(*(_signature(part) for part in value), strict=True) if value else ((), ())
        different = {count for count in counts if count}
        if len(different) > 1:
            raise ValueError(f"the arguments of a row function have different numbers of rows: {sorted(different)}")
        return (type(value), kinds), max(different, default=0)
    return ("constant", value), 0


def _rows(value: Any) -> int:
    if _is_tensor(value):
        return len(value)
    return next((count for part in value if (count := _rows(part))), 0) if isinstance(value, tuple) else 0


def _cut(value: Any, start: int, stop: int) -> Any:
    if _is_tensor(value):
        return value[start:stop]
    return _like(value, [_cut(part, start, stop) for part in value]) if isinstance(value, tuple) else value


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if len(values) == 1:
        return first
    if _is_tensor(first):
        import torch

        return torch.cat(values)
    return (
        _like(first, [_joined(list(parts)) for parts in zip(*values, strict=True)])
        if isinstance(first, tuple)
        else first
    )
