"""What the service holds: `python -m benchmarks.service [throughput overhead cancel malformed load] [--model FOLDER]`.

Starts `mega serve` as a process of its own and talks to it over loopback. Without names, everything runs; `load` takes
`--seconds` (600), the rest a minute or so.

throughput  the same pictures one after another, and from 16 clients at once, in one run
fairness    a picture alone, and beside a running video
overhead    what HTTP and the protocol add to a request for 25 hypotheses
cancel      how long the device works on after the connection of a 500-frame video was closed
malformed   10,000 malformed requests (`--examples`), property-based
load        64 clients, mixed requests, every result checked against that of the same request alone; memory
"""

from __future__ import annotations

import argparse
import io
import itertools
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import malformed
from mega_backend import protocol, protocol_motion
from mega_backend.client import BackendError, Client, Stopped, Stream
from mega_backend.protocol import Message, RandomParameters, RecoverParameters, ResampleParameters
from mega_backend.protocol_motion import VideoParameters
from mega_backend.service.memory import REST

CLIENTS = 64
CONCURRENT = 16


class Server:
    """A running `mega serve`."""

    def __init__(self, process: subprocess.Popen, url: str) -> None:
        self.process, self.url = process, url
        self.client = Client(url, timeout=120)

    def resident(self, kind: str = "VmRSS") -> float:
        """Resident memory in MiB; of kind `RssAnon` without pages of files, which the system drops as it likes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{kind}:\s+(\d+)", status).group(1)) / 1024

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        import urllib.request

        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))


@contextmanager
def serving(options: argparse.Namespace) -> Iterator[Server]:
    command = [sys.executable, "-m", "mega_backend", "serve", "--port", "0", "--model", options.model]
    # It ends with this program, however this program ends.
    command += ["--device", options.device, "--stop-with-stdin"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    started = time.monotonic()
    try:
        for line in process.stdout:
            if "ready at" in line:
                break
        else:
            raise SystemExit("the server did not start: run `mega serve` to see why")
        print(f"server ready after {time.monotonic() - started:.1f} s, {options.device}")
        yield Server(process, line.split()[-1])
    finally:
        process.terminate()
        print(f"server ended with exit code {process.wait(30)}")


def pictures_of(options: argparse.Namespace) -> list[bytes]:
    """Encoded pictures: those given, or one drawn person in several places and sizes."""
    if options.pictures:
        return [Path(name).read_bytes() for name in options.pictures]
    from benchmarks.recover import drawn_person

    made = []
    for number, (width, height) in enumerate([(900, 700), (640, 480), (700, 900), (1200, 900)]):
        image = Image.fromarray(np.roll(drawn_person(width, height), 40 * number, axis=1))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


def clip_of(picture: bytes, frames: int, side: int = 320) -> list[Message]:
    """Somebody who drifts through a sequence of small pictures."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail((side, side))
    made = []
    for number in range(frames):
        buffer = io.BytesIO()
        moved = np.roll(np.asarray(image), round(0.1 * side * np.sin(number / 15)), axis=1)
        Image.fromarray(moved).save(buffer, "JPEG", quality=85)
        made.append(protocol_motion.picture(number, buffer.getvalue()))
    return made


@dataclass(frozen=True)
class Question:
    """A request, and what is sent after it."""

    request: Message
    more: Sequence[Message] = ()

    def answer(self, client: Client, opened: Callable[[Stream], None] = lambda _: None) -> list[dict[str, np.ndarray]]:
        """The arrays of each person, or of each frame of a clip. `opened` gets the stream, which it may close."""
        stream = client.stream(self.request, self.more)
        opened(stream)
        return [message.arrays for message in stream if message.kind in ("person", "frame")]


def people_of(messages: Iterator[Message]) -> list[dict[str, np.ndarray]]:
    return [message.arrays for message in messages if message.kind == "person"]


def throughput(server: Server, options: argparse.Namespace) -> None:
    pictures = pictures_of(options)
    values = RecoverParameters(hypotheses=options.hypotheses)
    work = [pictures[n % len(pictures)] for n in range(options.repeat * CONCURRENT)]

    def one(picture: bytes) -> None:
        list(server.client.recover(picture, values))

    one(pictures[0])
    seconds = {}
    # Twice in turn, so that a machine that gets slower or faster in the meantime shows.
    for label, together in [("one after another", 1), (f"{CONCURRENT} at once", CONCURRENT)] * 2:
        rows, batches = server.metric("mega_batch_rows_sum"), server.metric("mega_batch_rows_count")
        with ThreadPoolExecutor(together) as pool:
            started = time.perf_counter()
            list(pool.map(one, work))
            took = time.perf_counter() - started
        rows, batches = server.metric("mega_batch_rows_sum") - rows, server.metric("mega_batch_rows_count") - batches
        seconds.setdefault(together, []).append(took)
        print(f"  {label:<18} {len(work) / took:6.2f} pictures/s   {rows / batches:5.1f} rows in a batch")
    gain = statistics.mean(seconds[1]) / statistics.mean(seconds[CONCURRENT])
    print(f"  {CONCURRENT} clients at once: {gain:.2f} times the throughput")


def overhead(server: Server, options: argparse.Namespace) -> None:
    picture = pictures_of(options)[0]
    values = RecoverParameters(hypotheses=25)
    shares, sizes = [], []
    for _ in range(options.repeat + 4):
        started = time.perf_counter()
        messages = list(server.client.recover(picture, values))
        total = time.perf_counter() - started
        shares.append((total - messages[-1].fields["seconds"]) / total)
        sizes.append(sum(len(protocol.encode(message)) for message in messages))
    started = time.perf_counter()
    data = [protocol.encode(message) for message in messages]
    encode = time.perf_counter() - started
    started = time.perf_counter()
    for one in data:
        protocol.decode(one)
    decode = time.perf_counter() - started
    print(f"  25 hypotheses: {total:.2f} s, answer of {sizes[-1] / 1e6:.1f} MB")
    print(f"  outside of the work: {100 * statistics.median(shares):.1f} % of the time (median of {len(shares)})")
    print(f"  encoding {1000 * encode:.1f} ms, decoding {1000 * decode:.1f} ms: "
          f"{100 * (encode + decode) / total:.1f} %")  # fmt: skip


@contextmanager
def running_video(server: Server, frames: int, options: argparse.Namespace) -> Iterator[Stream]:
    """A long video, several frames of which are done; closed at the end."""
    clip = clip_of(pictures_of(options)[0], frames)
    stream = server.client.video(VideoParameters(hypotheses=options.hypotheses), clip)
    begun, over = threading.Event(), threading.Event()

    def read() -> None:
        try:
            for message in stream:
                if message.kind == "progress" and message.fields["fraction"] > 8 / frames:
                    begun.set()
        except Stopped:
            pass
        finally:
            over.set()
            begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        begun.wait()
        if over.is_set():
            raise SystemExit("the video was over before anything could be measured: take a longer one")
        yield stream
    finally:
        stream.close()
        reader.join()


def fairness(server: Server, options: argparse.Namespace) -> None:
    picture, values = pictures_of(options)[0], RecoverParameters(hypotheses=options.hypotheses)

    def times() -> list[float]:
        taken = []
        for _ in range(options.repeat + 3):
            started = time.perf_counter()
            list(server.client.recover(picture, values))
            taken.append(time.perf_counter() - started)
        return taken

    times()
    # Alone before and after, so that a machine that gets slower or faster in the meantime shows.
    alone = times()
    with running_video(server, 2000, options):
        beside = times()
    settle(server)
    alone += times()
    middle, other = statistics.median(alone), statistics.median(beside)
    print(f"  a picture alone {middle:.2f} s, beside a running video {other:.2f} s: {other / middle:.2f} times")


def settle(server: Server) -> None:
    while server.client.health()["running"]:
        time.sleep(0.005)


def cancel(server: Server, options: argparse.Namespace) -> None:
    times, work = [], []
    for _ in range(3):
        with running_video(server, 500, options) as stream:
            used, closed = server.metric("process_cpu_seconds_total"), time.monotonic()
            stream.close()
        settle(server)
        times.append(time.monotonic() - closed)
        # Where other programs have the cores, this says more.
        work.append(server.metric("process_cpu_seconds_total") - used)
        batches = server.metric("mega_batch_rows_count")
        time.sleep(1)
        assert server.metric("mega_batch_rows_count") == batches, "the device goes on"
    print("  a video of 500 frames, closed in the middle: idle after " + ", ".join(f"{t:.2f}" for t in times) + " s")
    print("  processor time until then " + ", ".join(f"{t:.2f}" for t in work) + " s")


def malformed_requests(server: Server, options: argparse.Namespace) -> None:
    from hypothesis import HealthCheck, given, settings

    port = int(server.url.rsplit(":", 1)[1])
    statuses: Counter[int | None] = Counter()
    resident = [server.resident()]

    @settings(max_examples=options.examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(malformed.attempts())
    def attack(attempt: malformed.Attempt) -> None:
        statuses[malformed.send(port, attempt)] += 1
        if sum(statuses.values()) >= len(resident) * options.examples // 5:
            resident.append(server.resident())

    started = time.monotonic()
    attack()
    assert server.client.health()["status"] == "ready"
    told = ", ".join(f"{status or 'closed'} × {count}" for status, count in statuses.most_common())
    print(f"  {sum(statuses.values())} requests in {time.monotonic() - started:.0f} s: {told}")
    print("  memory before, and after each fifth of them: " + ", ".join(f"{each:.0f}" for each in resident) + " MiB")


def load(server: Server, options: argparse.Namespace) -> None:
    asked = list(itertools.islice(mixed(pictures_of(options), server), options.distinct))
    expected = [question.answer(server.client) for question in asked]
    before = at_rest(server)
    counts: Counter[str] = Counter()
    problems: list[str] = []
    end = time.monotonic() + options.seconds
    memory: list[tuple[float, float, float]] = []
    lock = threading.Lock()

    streams: dict[int, Stream] = {}

    def client(number: int) -> None:
        choice = random.Random(number)
        mine = Client(server.url, timeout=120)

        def opened(stream: Stream) -> None:
            streams[number] = stream
            if time.monotonic() >= end:
                stream.close()

        while time.monotonic() < end:
            which = choice.randrange(len(asked))
            try:
                outcome = compare(asked[which].answer(mine, opened), expected[which])
            except Stopped:
                outcome = "not done at the end"
            except BackendError as error:
                outcome = f"refused {error.status}" if error.status == 503 else f"failed: {error}"
                if error.status == 503:
                    time.sleep(choice.uniform(1, 3))
            with lock:
                counts[outcome] += 1
                if outcome.startswith(("failed", "mixed")):
                    problems.append(f"{asked[which].request.kind}: {outcome}")

    def watch() -> None:
        while time.monotonic() < end:
            memory.append((time.monotonic() - started, server.resident(), server.resident("RssAnon")))
            time.sleep(1)
        for stream in list(streams.values()):
            stream.close()

    started = time.monotonic()
    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)] + [threading.Thread(target=watch)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"  {CLIENTS} clients, {options.seconds:.0f} s: " + ", ".join(f"{k} × {n}" for k, n in counts.most_common()))
    for problem in sorted(set(problems))[:5]:
        print(f"  PROBLEM {problem}")
    warm = np.array([sample for sample in memory if sample[0] > options.seconds * 0.3])
    for name, column in (("all", 1), ("without pages of files", 2)):
        print(f"  memory after warm-up, {name}")
        for line in memory_report(warm[:, [0, column]]):
            print(f"    {line}")
    print(f"  at rest {before:.0f} MiB before all this, {at_rest(server):.0f} MiB after it")


def at_rest(server: Server) -> float:
    """Resident memory in MiB once nothing is worked on."""
    settle(server)
    time.sleep(REST + 3)  # when it has given back what it does not need
    return server.resident()


def memory_report(samples: np.ndarray) -> list[str]:
    """Lines about samples (N,2) of seconds and MiB: does memory stay as it is?

    Single samples first, which is the strictest; then medians and highest values of half minutes and of quarters, and
    the trend (the median of all slopes between two samples), in which growth would show whatever single samples do.
    """
    times, values = samples.T
    middle = np.median(values)

    def around(numbers: Sequence[float]) -> str:
        return f"{100 * (min(numbers) / middle - 1):+.1f} % {100 * (max(numbers) / middle - 1):+.1f} %"

    minutes = np.floor((times - times[0]) / 30)
    halves = [values[minutes == each] for each in np.unique(minutes)]
    quarters = np.array_split(values, 4)
    first, second = np.triu_indices(len(times), 1)
    slope = np.median((values[second] - values[first]) / (times[second] - times[first]))
    lines = [f"single samples {min(values):.0f} to {max(values):.0f} MiB ({around(values)})"]
    for label, parts in (("half minutes", halves), ("quarters", quarters)):
        medians, highest = [np.median(part) for part in parts], [np.max(part) for part in parts]
        numbers = ", ".join(f"{value:.0f}" for value in medians)
        lines.append(f"medians of {label} {around(medians)}, highest values {around(highest)}: {numbers} MiB")
    return [*lines, f"trend {600 * slope:+.0f} MiB in ten minutes"]


def mixed(pictures: list[bytes], server: Server) -> Iterator[Question]:
    """Different requests of all kinds, no two the same."""
    for seed in itertools.count():
        picture = np.frombuffer(pictures[seed % len(pictures)], np.uint8)
        yield Question(protocol.request(RecoverParameters(hypotheses=1 + seed % 6, seed=seed), picture=picture))
        yield Question(protocol.request(RandomParameters(count=1 + seed % 3, seed=seed, steps=5)))
        person = people_of(server.client.recover(picture.tobytes(), RecoverParameters(hypotheses=1, seed=seed)))
        if person:
            state = {name: person[0][name] for name in protocol.PERSON_STATE}
            values = ResampleParameters(hypotheses=2, keep=("torso",), seed=seed, picture_width=900, picture_height=700)
            yield Question(protocol.request(values, **state))
        if seed % 2:
            clip = clip_of(pictures[seed % len(pictures)], 6 + 2 * (seed % 5))
            yield Question(protocol_motion.video_request(VideoParameters(hypotheses=2, seed=seed)), clip)


def compare(people: list[dict], expected: list[dict]) -> str:
    """Whether a result is that of its own request.

    Rounding in another batch may tip a drawn token; a result of another request has other people in other places.
    """
    if len(people) != len(expected):
        return "mixed up: another number of people"
    outcomes = {
        (same_frame if "track" in other else same_person)(one, other)
        for one, other in zip(people, expected, strict=True)
    }
    return max(outcomes, key=("right", TIPPED).index) if outcomes <= {"right", TIPPED} else min(outcomes - {"right"})


TIPPED = "right but for a token"


def same_person(one: dict, other: dict) -> str:
    if one["tokens"].shape != other["tokens"].shape or np.abs(one["box"] - other["box"]).max() > 1e-2:
        return "mixed up: other people"
    same = (one["tokens"] == other["tokens"]).mean()
    if same < 0.5:
        return f"mixed up: {same:.0%} of the tokens agree"
    if same < 1:
        return TIPPED
    return "right" if np.abs(one["vertices"] - other["vertices"]).max() <= 1e-3 else "mixed up: other vertices"


def same_frame(one: dict, other: dict) -> str:
    if one["track"].tolist() != other["track"].tolist():
        return "mixed up: other tracks"
    if np.abs(np.nan_to_num(one["box"] - other["box"])).max(initial=0) > 1e-2:
        return "mixed up: other boxes"
    apart = np.abs(one["vertices"] - other["vertices"]).max(initial=0)
    # A tipped token moves a hand's breadth at most; people of another clip stand elsewhere.
    return "right" if apart <= 1e-3 else TIPPED if apart < 0.3 else "mixed up: other people in the frame"


SECTIONS: dict[str, Callable[[Server, argparse.Namespace], None]] = {
    "throughput": throughput,
    "fairness": fairness,
    "overhead": overhead,
    "cancel": cancel,
    "malformed": malformed_requests,
    "load": load,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pictures", nargs="*", default=[])
    parser.add_argument("--hypotheses", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--distinct", type=int, default=24, help="different requests of the load")
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    with serving(options) as server:
        for name in options.sections or SECTIONS:
            print(f"\n{name}")
            SECTIONS[name](server, options)


if __name__ == "__main__":
    main()
