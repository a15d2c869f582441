"""The process's memory: kept from one request to the next while there is work, given back once there is none.

What glibc does by itself makes a server of many threads breathe: what lies free below the last block of a heap goes
back to the system when that block is freed, hundreds of megabytes at a time, and is asked for again, zeroed page by
page, a moment later. Kept instead, the process stays as large as its busiest moment was, which costs nothing as long as
there is work; at rest all that is free goes back, that of the device too.

One thing still gives it back in between: a library of the detector (protobuf, in which MediaPipe's answers come,
imports `malloc_trim`) trims the whole heap once in some 1,100 looks at a person. The process is a tenth smaller for
seconds then.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time

from mega_backend.batching import release_memory
from mega_backend.service.jobs import Jobs

REST = 5.0
"""Seconds without work after which free memory is given back."""
# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
"""oneDNN compiles each matrix product for its number of rows (0.3 ms), and keeps the last 1024 programs; torch's layer
above it keeps as many again. With batches of ever other sizes that grows for an hour, by half a gigabyte."""
_LARGEST = 32 << 20
"""Larger blocks come from the system and go back to it one by one: where they would leave holes, little else fits."""


def keep() -> bool:
    """Let this process keep what it frees, in one heap; call before torch is imported.

    What grows with use is bounded too. False where the heap cannot be kept: another C library than glibc, or settings
    of the user's own in the environment.
    """
    for name, value in _CACHES.items():
        os.environ.setdefault(name, value)
    libc = _glibc()
    if libc is None or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    # Heaps of threads are given back whole whatever the threshold.
    wanted = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, 2**31 - 1))
    return all([libc.mallopt(name, value) for name, value in wanted])


def give_back() -> None:
    """Give what is free back to the system and to the device's other programs."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)
    release_memory()


async def give_back_at_rest(jobs: Jobs) -> None:
    """Give memory back after each time of work, until cancelled."""
    given_back = jobs.last_active
    while True:
        await asyncio.sleep(REST / 5)
        active = jobs.last_active
        if jobs.idle and active != given_back and time.monotonic() - active > REST:
            await asyncio.to_thread(give_back)
            given_back = active


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
