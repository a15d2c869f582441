"""Whose turn it is, where many want what few can have: the device, the networks that find people.

Work is done for *requesters*. Who has had little so far goes before who has had much, so that a picture beside a
running video takes hardly longer than alone; every fourth turn goes to whoever has waited longest, so that the video
goes on.
"""

from __future__ import annotations

import contextvars
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from mega_backend import Cancelled

YOUNG = 2.0
"""Seconds of use up to which all are equal; from then on each doubling puts a requester behind others."""
EVERY = 4
"""One turn of so many goes to whoever has waited longest, whatever they have had."""

T = TypeVar("T")


@dataclass(eq=False)
class Requester:
    """Somebody that work is done for.

    Attributes:
        used: seconds of what is scarce that were spent on them.
        cancelled: nothing more is done for them: who waits for a turn gets `Cancelled`.
        over: nothing more is asked for.
    """

    used: float = 0.0
    cancelled: bool = False
    over: bool = False


_current: contextvars.ContextVar[Requester | None] = contextvars.ContextVar("mega_requester", default=None)


def current() -> Requester | None:
    """Whom this thread works for; None outside of any request."""
    return _current.get()


@contextmanager
def request(requester: Requester) -> Iterator[None]:
    """What this thread does, and threads that run in its context (`in_context`), is done for this requester."""
    token = _current.set(requester)
    try:
        yield
    finally:
        requester.over = True
        _current.reset(token)


def in_context(function: Callable[..., T]) -> Callable[..., T]:
    """The function, to be called once on another thread, for the requester of this one."""
    return partial(contextvars.copy_context().run, function)


class Turns:
    """Decides who is next."""

    def __init__(self) -> None:
        self._taken = 0

    def next(self, waiting: Iterable[T], requester: Callable[[T], Any] = lambda one: one) -> T:
        """One of those that wait; `waiting` in the order of waiting, the longest first. Does not count as taken."""
        ranked = list(waiting)
        if self._taken % EVERY == EVERY - 1:
            return ranked[0]
        return min(ranked, key=lambda one: _rank(requester(one)))

    def taken(self) -> None:
        """The one that was next had its turn."""
        self._taken += 1


def _rank(requester: Any) -> int:
    return int(math.log2(1 + getattr(requester, "used", 0.0) / YOUNG))


class Pool(Generic[T]):
    """Things of which one user has one at a time."""

    def __init__(self, things: Iterable[T]) -> None:
        self._free = list(things)
        self._waiting: list[object] = []
        self._turns = Turns()
        self._changed = threading.Condition()

    @contextmanager
    def one(self) -> Iterator[T]:
        """A free thing, for the time of a `with`; waits for its turn. The time counts as use. Raises Cancelled."""
        who = current()
        ticket = (who, object())
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._free and self._turns.next(self._waiting, lambda t: t[0]) is ticket)
            self._waiting.remove(ticket)
            if who is not None and who.cancelled:
                self._changed.notify_all()
                raise Cancelled
            self._turns.taken()
            thing = self._free.pop()
            if self._free:
                self._changed.notify_all()
        started = time.perf_counter()
        try:
            yield thing
        finally:
            with self._changed:
                if who is not None:
                    who.used += time.perf_counter() - started
                self._free.append(thing)
                self._changed.notify_all()
