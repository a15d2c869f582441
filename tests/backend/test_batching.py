"""Requests share batches fairly, get their own rows back, and neither errors nor full memory of one hurt the others."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import until

from mega_backend import Cancelled, batching
from mega_backend.batching import Batcher, Call, Limit, OutOfMemory, Scheduler, even_shares
from mega_backend.turns import Pool, Requester, Turns, in_context, request


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 100))
def test_shares_use_the_limit_and_are_even(wants, limit):
    shares = even_shares(wants, limit)
    assert sum(shares) == min(limit, sum(wants))
    assert all(0 <= share <= want for share, want in zip(shares, wants, strict=True))
    unmet = [share for share, want in zip(shares, wants, strict=True) if share < want]
    assert not unmet or max(shares) - min(unmet) <= 1 or max(shares) <= min(unmet) + 1


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ab"), st.integers(1, 20)), max_size=30), st.integers(1, 16)
)
def test_every_row_runs_once_in_batches_of_one_kind(calls, limit):
    scheduler = Scheduler()
    entries = [Call(request, kind, rows) for request, kind, rows in calls]
    for call in entries:
        scheduler.add(call)
    ran: dict[Call, list[int]] = {call: [] for call in entries}
    while slices := scheduler.batch(lambda _: limit):
        assert len({part.call.kind for part in slices}) == 1
        assert 0 < sum(part.stop - part.start for part in slices) <= limit
        for part in slices:
            ran[part.call] += range(part.start, part.stop)
    assert all(rows == list(range(call.rows)) for call, rows in ran.items())


def test_a_long_video_does_not_starve_a_picture():
    scheduler = Scheduler()
    scheduler.add(Call("video", "logits", 12_500))
    scheduler.batch(lambda _: 256)
    scheduler.add(Call("picture", "logits", 5))
    assert "picture" in {part.call.request for part in scheduler.batch(lambda _: 256)}
    scheduler.add(Call("picture", "decode", 5))
    kinds = [scheduler.batch(lambda _: 256)[0].call.kind for _ in range(2)]
    assert "decode" in kinds


def test_what_is_given_back_runs_again_first():
    scheduler = Scheduler()
    for name in "abc":
        scheduler.add(Call(name, "k", 4))
    slices = scheduler.batch(lambda _: 6)
    before = {part.call.request: (part.start, part.stop) for part in slices}
    scheduler.give_back(slices)
    assert {part.call.request: (part.start, part.stop) for part in scheduler.batch(lambda _: 6)} == before


class Pair(NamedTuple):
    value: torch.Tensor
    scale: torch.Tensor | None


class Device:
    """A row function that remembers its batches and has so much memory."""

    def __init__(self, memory: int = 10**9, seconds: float = 0.0):
        self.memory, self.seconds, self.sizes = memory, seconds, []

    def double(self, pair: Pair, offset: torch.Tensor, extra: int = 0) -> Pair:
        self.sizes.append(len(offset))
        if len(offset) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if bool((offset < 0).any()):
            raise ValueError("negative")
        time.sleep(self.seconds)
        return Pair(pair.value * 2 + offset[:, None] + extra, pair.scale)


@pytest.fixture
def batcher():
    batcher = Batcher(rows=16)
    batcher.start()
    yield batcher
    batcher.stop()


def ask(batcher: Batcher, device: Device, name, rows: int, extra: int = 0) -> None:
    """Many calls of one request, each checked against its own input."""
    with request(Requester()):
        for number in range(4):
            value = torch.full((rows, 3), float(hash(name) % 1000 + number))
            offset = torch.arange(rows, dtype=torch.float32)
            result = batcher.rows_of(device.double)(Pair(value, None), offset, extra=extra)
            torch.testing.assert_close(result.value, value * 2 + offset[:, None] + extra)
            assert result.scale is None


def test_concurrent_requests_share_batches_and_get_their_own_rows(batcher):
    device = Device(seconds=0.005)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda n: ask(batcher, device, f"r{n}", 1 + n % 5, n % 2), range(12)))
        ask(batcher, device, "long", 100)
    assert max(device.sizes) <= 16
    assert len(device.sizes) < sum(4 for _ in range(12)) + 4 * 7


def test_without_a_request_functions_run_as_they_are(batcher):
    device = Device()
    batcher.rows_of(device.double)(Pair(torch.zeros(100, 3), None), torch.zeros(100))
    assert device.sizes == [100]


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 16))
def test_out_of_memory_halves_the_batch_and_goes_on(memory):
    batcher, device = Batcher(rows=16), Device(memory)
    batcher.start()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda n: ask(batcher, device, f"r{n}", 20), range(3)))
    batcher.stop()
    assert (batcher.out_of_memory > 0) == (memory < 16)


def test_one_row_too_many_is_an_error_of_that_request_alone(batcher):
    with pytest.raises(OutOfMemory, match="memory"), request(Requester()):
        batcher.rows_of(Device(0).double)(Pair(torch.zeros(2, 3), None), torch.zeros(2))
    ask(batcher, Device(), "b", 5)


def test_limits_follow_memory_and_time():
    limit = Limit(64)
    limit.did_not_fit(16)
    for _ in range(batching.GROW_AFTER):
        assert limit.rows() == 8
        limit.went_well(8, 0.001)
    assert limit.rows() == 16
    limit.went_well(16, 4 * batching.SECONDS)
    assert limit.rows() == 4
    assert limit.rows(batching.SECONDS / 2) == 2
    limit.went_well(4, 0.001)
    assert limit.rows() == 16


def test_an_error_of_one_request_is_not_that_of_another(batcher):
    device = Device(seconds=0.01)
    errors = []

    def bad() -> None:
        with request(Requester()):
            try:
                batcher.rows_of(device.double)(Pair(torch.zeros(3, 3), None), torch.tensor([0.0, -1.0, 0.0]))
            except ValueError as error:
                errors.append(error)

    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(ask, batcher, device, f"r{n}", 3) for n in range(6)]
        pool.submit(bad).result(60)
        for future in good:
            future.result(60)
    assert [str(error) for error in errors] == ["negative"]


def test_cancel_stops_within_one_batch(batcher):
    device, requester = Device(seconds=0.05), Requester()
    seen = threading.Event()

    def long() -> None:
        with request(requester), pytest.raises(Cancelled):
            seen.set()
            batcher.rows_of(device.double)(Pair(torch.zeros(10_000, 3), None), torch.zeros(10_000))

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(long)
        assert seen.wait(60)
        time.sleep(0.12)
        batcher.cancel(requester)
        before = len(device.sizes)
        future.result(timeout=0.2)
        time.sleep(0.15)
    assert len(device.sizes) <= before + 1
    with request(requester), pytest.raises(Cancelled):
        batcher.rows_of(device.double)(Pair(torch.zeros(1, 3), None), torch.zeros(1))
    ask(batcher, device, "another", 3)


def test_stopping_cancels_who_waits():
    batcher, device = Batcher(rows=1), Device(seconds=0.05)
    batcher.start()

    def work() -> None:
        with request(Requester()), pytest.raises(Cancelled):
            batcher.rows_of(device.double)(Pair(torch.zeros(50, 3), None), torch.zeros(50))

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        time.sleep(0.1)
        batcher.stop()
        future.result(timeout=2)


# Turns


def test_who_has_had_little_goes_first_and_nobody_starves():
    video, picture = Requester(used=100.0), Requester()
    served, choice = [], Turns()
    for _ in range(40):
        served.append(choice.next([video, picture]))
        choice.taken()
    assert served.count(picture) == 30 and served.count(video) == 10


def test_a_picture_gets_its_turns_beside_a_video():
    """On one lane that a video keeps busy with six threads, a picture's looks wait for hardly more than one each."""
    pool = Pool(["lane"])
    video, picture, stop = Requester(used=60.0), Requester(), threading.Event()
    looks: list[Requester] = []

    def look(who: Requester) -> None:
        with pool.one():
            looks.append(who)
            time.sleep(0.002)

    def watch() -> None:
        while not stop.is_set():
            look(video)

    with ThreadPoolExecutor(6) as threads:
        with request(video):
            watching = [threads.submit(in_context(watch)) for _ in range(6)]
        until(lambda: len(looks) >= 20, pause=0.001)
        with request(picture):
            before = len(looks)
            for _ in range(20):
                look(picture)
            during = looks[before:].count(video)
        stop.set()
        for one in watching:
            one.result(60)
    # Each finds one of the video's running, and every fourth turn is the video's; first come, first served: 120.
    assert during <= 60, "a picture waited for everybody before it"
    assert picture.used > 0 and video.used > 60


def test_what_is_cancelled_gets_no_turn():
    pool, requester = Pool(["lane"]), Requester()
    with request(requester):
        with pool.one():
            pass
        requester.cancelled = True
        with pytest.raises(Cancelled), pool.one():
            pass
    with pool.one() as lane:
        assert lane == "lane"


class Slow(Device):
    """A row takes 10 ms."""

    def double(self, pair: Pair, offset: torch.Tensor, extra: int = 0) -> Pair:
        time.sleep(0.01 * len(offset))
        return super().double(pair, offset, extra)


def test_requests_one_after_another_have_the_device_for_themselves():
    batcher, device = Batcher(rows=40), Slow()
    batcher.start()
    for _ in range(2):
        with request(Requester()):
            batcher.rows_of(device.double)(Pair(torch.zeros(40, 3), None), torch.zeros(40))
    batcher.stop()
    assert device.sizes[1] > 2 * batching.SHARED_SECONDS / 0.01, "there is nobody to leave room for"


def test_a_short_request_does_not_wait_for_full_batches_of_a_long_one():
    """Step after step, each of its calls waits for at most a short batch."""
    batcher, device = Batcher(rows=64), Slow()
    batcher.start()
    long = Requester(used=30.0)

    def video() -> None:
        with request(long), pytest.raises(Cancelled):
            while True:
                batcher.rows_of(device.double)(Pair(torch.zeros(40, 3), None), torch.zeros(40))

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(video)
        until(lambda: len(device.sizes) >= 2)
        with request(Requester()):
            ran = []
            for _ in range(6):
                before = len(device.sizes)
                batcher.rows_of(device.double)(Pair(torch.zeros(2, 3), None), torch.zeros(2))
                ran.append(sum(device.sizes[before:]))
        batcher.cancel(long)
        running.result(timeout=5)
    batcher.stop()
    # A full batch of the video would take 0.4 s, step after step.
    assert max(ran[1:]) <= 3 * batching.SHARED_SECONDS / 0.01, ran
