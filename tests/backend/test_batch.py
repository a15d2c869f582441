"""Batches of files: complete, resumable, whole results or none, whatever happens in the middle."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fake_recoverer import FakeRecoverer
from PIL import Image
from waiting import program, until

from mega_backend import batch, cli, export, files
from mega_backend.batch import BatchError, Item, Settings
from mega_backend.result import Recovery

ROOT = Path(__file__).resolve().parents[2]


class Reading(FakeRecoverer):
    """A fake that takes files, whose results tell which one."""

    def recover(self, picture, **options) -> Recovery:
        from mega_backend import pictures

        image = pictures.read(picture)
        recovery = super().recover(image, **options)
        for person in recovery.people:
            person.log_probability[:] = image[0, 0, 0]
        return recovery


@pytest.fixture
def folder(tmp_path) -> Path:
    for number in range(12):
        path = tmp_path / "in" / f"day{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (100 + number,) * 3).save(path)
    return tmp_path / "in"


def check(folder: Path, results: Path) -> int:
    """How many results there are, each checked against its own picture; nothing else lies there."""
    found = [path for path in results.rglob("*") if path.is_file() and path.name != batch.SETTINGS]
    for path in found:
        assert path.suffix == ".npz", f"{path} was left behind"
        picture = folder / path.relative_to(results).with_suffix("")
        recovery = Recovery.load(path)
        grey = np.asarray(Image.open(picture))[0, 0, 0]
        assert all((person.log_probability == grey).all() for person in recovery.people) and recovery.people
    return len(found)


def test_every_picture_has_its_own_result_and_a_second_run_has_nothing_to_do(folder, tmp_path):
    settings, results = Settings(hypotheses=2), tmp_path / "out"
    items, done = batch.plan(folder, results, settings)
    assert (len(items), done) == (12, 0)
    outcomes = list(batch.run_here(items, settings, Reading, together=3))
    assert sorted(outcome.source for outcome in outcomes) == sorted(item.source for item in items)
    assert check(folder, results) == 12
    assert batch.plan(folder, results, settings) == ([], 12)
    changed = folder / "day0" / "0.png"
    os.utime(changed, (time.time() + 5, time.time() + 5))
    assert [item.source for item in batch.plan(folder, results, settings)[0]] == [str(changed)]


def test_what_was_interrupted_goes_on(folder, tmp_path):
    settings, results = Settings(), tmp_path / "out"
    items, _ = batch.plan(folder, results, settings)
    running = batch.run_here(items, settings, Reading, together=1)
    for _ in range(3):
        next(running)
    running.close()
    for thread in threading.enumerate():
        if thread.name.startswith("mega-batch"):  # the picture that was in work is finished
            thread.join(30)
    there = check(folder, results)
    assert 3 <= there < 12
    items, done = batch.plan(folder, results, settings)
    assert done == there
    assert batch.report(batch.run_here(items, settings, Reading, together=2), len(items), done) == 0
    assert check(folder, results) == 12


def test_broken_pictures_and_a_full_disk_are_told_and_tried_again(folder, tmp_path, monkeypatch, capsys):
    settings, results = Settings(), tmp_path / "out"
    (folder / "broken.jpg").write_bytes(b"no picture")
    items, done = batch.plan(folder, results, settings)
    real = files.os.replace

    def full(source, target):
        if "day1" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    assert batch.report(batch.run_here(items, settings, Reading, together=1), len(items), done) == 1
    text = capsys.readouterr().err
    assert "No space left on device" in text and "broken.jpg" in text and "5 of 13 files have no result" in text
    assert check(folder, results) == 8
    monkeypatch.setattr(files.os, "replace", real)
    items, done = batch.plan(folder, results, settings)
    assert (len(items), done) == (5, 8)
    list(batch.run_here(items, settings, Reading, together=1))
    assert check(folder, results) == 12


def test_results_of_other_settings_are_not_mixed(folder, tmp_path):
    batch.plan(folder, tmp_path / "out", Settings(seed=1))
    with pytest.raises(BatchError, match="made with seed 1, not 2: choose another folder"):
        batch.plan(folder, tmp_path / "out", Settings(seed=2))
    with pytest.raises(BatchError, match="no folder"):
        batch.plan(tmp_path / "none", tmp_path / "out", Settings())
    (tmp_path / "empty").mkdir()
    with pytest.raises(BatchError, match="no pictures"):
        batch.plan(tmp_path / "empty", tmp_path / "out", Settings())


def test_damaged_settings_and_workers_that_cannot_be_are_sentences(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    for text in ("[1]", "{"):
        (tmp_path / "out" / batch.SETTINGS).write_text(text)
        with pytest.raises(BatchError, match="is damaged: remove it"):
            batch.plan(folder, tmp_path / "out", Settings())
    assert cli.main(["batch", str(folder), "-o", str(tmp_path / "out"), "--workers", "-2"]) == 2
    assert "--workers -2 cannot be" in capsys.readouterr().err


def test_what_killed_batches_left_half_written_is_swept_away(folder, tmp_path, monkeypatch, capsys):
    results = tmp_path / "out"
    command = ["batch", str(folder), "-o", str(results)]
    (results / "day1").mkdir(parents=True)
    ours = [
        results / ".batch.json.abcdefgh",
        results / "day1" / ".1.png.npz.a1_b2c3d",
        results / "day1" / f".{'x' * files._NAME}.a1b2c3d4",  # the name is cut off
    ]
    others = [
        results / ".notes.npz",
        results / ".notes.txt.abcdefgh",
        results / "1.png.npz.a1b2c3d4",
        results / "day1" / ".1.png.glb.a1b2c3d4",  # of a batch of another format
    ]
    young = results / "day1" / ".4.png.npz.a1b2c3d4"
    for path in (*ours, *others, young):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - files.ABANDONED - 5,) * 2)
    os.utime(young)
    monkeypatch.setattr(batch.mega_backend, "load", lambda *_, **__: Reading())
    assert cli.main(command) == 0
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in (*others, young)), "others' files, or what is being written"
    os.utime(young, (time.time() - files.ABANDONED - 5,) * 2)
    assert cli.main(command) == 0 and not young.exists(), "where nothing is left to do, too"


def test_a_scratch_file_is_known_by_its_name(tmp_path):
    for name in ("a.npz", f"{'long' * 40}.npz"):
        with files.replacing(tmp_path / name) as scratch:
            os.utime(scratch, (0, 0))
            assert files.sweep(tmp_path, ".npz") == [Path(scratch)]
            Path(scratch).touch()


def test_results_inside_the_folder_are_not_taken_for_pictures(folder):
    items, _ = batch.plan(folder, folder / "results", Settings())
    assert len(items) == 12
    Image.new("RGB", (4, 4)).save(folder / "results" / "overlay.png")
    assert len(batch.plan(folder, folder / "results", Settings())[0]) == 12


SCRIPT = """
import sys; sys.path[:0] = ["tests", "tests/backend"]
from pathlib import Path
from mega_backend import batch
from test_batch import Reading
settings = batch.Settings()
items, done = batch.plan(Path(sys.argv[1]), Path(sys.argv[2]), settings)
sys.exit(batch.report(batch.run_here(items, settings, lambda: Reading(0.05), 2), len(items), done))
"""


def test_a_killed_batch_leaves_whole_results_and_goes_on(folder, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "out")]
    with program(command, cwd=ROOT):
        until(lambda: len(list((tmp_path / "out").rglob("*.npz"))) >= 2)
    # A write that was cut leaves at most a hidden scratch file, never a half result.
    for scratch in (tmp_path / "out").rglob(".*"):
        scratch.unlink()
    assert 2 <= check(folder, tmp_path / "out") < 12
    assert subprocess.run(command, cwd=ROOT, timeout=120).returncode == 0
    assert check(folder, tmp_path / "out") == 12


@pytest.mark.parametrize("kind", [ending[1:] for ending in export.FORMATS])
def test_every_format_resumes(folder, tmp_path, kind):
    settings = Settings(format=kind)
    items, _ = batch.plan(folder, tmp_path / "out", settings)
    for item in items[:2]:
        assert not batch.FileRecovery(settings, Reading)(item).error
    assert batch.plan(folder, tmp_path / "out", settings)[1] == 2


# Videos


def film(path: Path) -> Path:
    """Somebody who moves to the left: 10 frames, 5 a second."""
    import cv2

    picture = cv2.resize(cv2.imread(str(ROOT / "examples" / "people.jpg")), (640, 480), interpolation=cv2.INTER_AREA)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (320, 480))
    for index in range(10):
        writer.write(picture[:, 8 * index : 8 * index + 320])
    writer.release()
    return path


@pytest.fixture
def looked_at(monkeypatch) -> list[int]:
    """The first frames of the chunks that were looked at."""
    from mega_backend.video import recover

    noted, watch = [], recover.Watcher.watch

    def noting(self, frames, *others):
        noted.append(frames[0].index)
        return watch(self, frames, *others)

    monkeypatch.setattr(recover.Watcher, "watch", noting)
    return noted


def test_videos_lie_among_the_pictures_and_go_on_in_the_middle(tmp_path, tiny, looked_at):
    film(tmp_path / "in" / "walk.avi")
    Image.open(ROOT / "examples" / "people.jpg").resize((160, 120)).save(tmp_path / "in" / "people.jpg")
    settings = Settings(steps=1)
    whole, _ = batch.plan(tmp_path / "in", tmp_path / "whole", settings)
    assert [outcome.error for outcome in batch.run_here(whole, settings, lambda: tiny, together=2)] == ["", ""]
    assert batch.plan(tmp_path / "in", tmp_path / "whole", settings) == ([], 2)

    items, _ = batch.plan(tmp_path / "in", tmp_path / "parts", settings)
    (video,) = [item for item in items if item.is_video]
    work = batch.FileRecovery(settings, lambda: tiny)
    looked_at.clear()
    assert work(video, stopped=lambda: bool(looked_at)) is None
    assert not Path(video.output).exists() and Path(video.output + ".part").is_dir()
    assert video in batch.plan(tmp_path / "in", tmp_path / "parts", settings)[0]
    assert not work(video).error
    # What was done is not looked at again; what was looked at ahead of the bodies is.
    assert sorted(set(looked_at)) == [0, 5] and looked_at.count(0) == 1
    assert not Path(video.output + ".part").exists()
    with np.load(tmp_path / "whole" / "walk.avi.npz") as one, np.load(video.output) as other:
        assert len(one["frame"]) > 5
        for name in one.files:
            assert np.array_equal(one[name], other[name], equal_nan=True), name


def test_what_is_left_of_another_video_of_that_name_is_not_gone_on_with(tmp_path, tiny, looked_at):
    film(tmp_path / "in" / "walk.avi")
    settings = Settings(steps=1)
    (item,), _ = batch.plan(tmp_path / "in", tmp_path / "out", settings)
    work = batch.FileRecovery(settings, lambda: tiny)
    assert work(item, stopped=lambda: True) is None
    os.utime(item.source, (time.time() + 5, time.time() + 5))
    assert work(item, stopped=lambda: True) is None
    assert looked_at.count(0) == 2


def test_broken_videos_and_formats_that_they_do_not_have_are_sentences(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.mp4").write_bytes(b"no video")
    (item,), _ = batch.plan(tmp_path / "in", tmp_path / "out", Settings())
    assert "convert it to MP4" in batch.FileRecovery(Settings(), Reading)(item).error
    with pytest.raises(BatchError, match=r"cannot become \.obj: take npz or glb"):
        batch.plan(tmp_path / "in", tmp_path / "other", Settings(format="obj"))


def test_a_picture_on_which_the_model_fails_does_not_end_the_batch(folder, tmp_path, caplog):
    class Failing(Reading):
        def recover(self, picture, **options):
            if Path(picture).name == "4.png":
                raise RuntimeError("an index is out of bounds")
            return super().recover(picture, **options)

    items, _ = batch.plan(folder, tmp_path / "out", Settings())
    outcomes = list(batch.run_here(items, Settings(), Failing, together=2))
    (failed,) = [outcome for outcome in outcomes if outcome.error]
    assert failed.source.endswith("4.png") and "unexpectedly (RuntimeError: an index is out" in failed.error
    assert "Traceback" in caplog.text and check(folder, tmp_path / "out") == 11


def test_an_item_outside_is_a_sentence(tmp_path):
    outcome = batch.FileRecovery(Settings(), Reading)(Item(str(tmp_path / "gone.png"), str(tmp_path / "x.npz")))
    assert "no file" in outcome.error


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
def test_a_disk_that_gets_full_in_the_middle_is_one_sentence(tmp_path):
    script = (
        "import sys, resource, signal; sys.path.insert(0, 'tests')\n"
        "from fake_recoverer import FakeRecoverer\n"
        "made = FakeRecoverer().random(4)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: made.save(sys.argv[1])\n"
        "except OSError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "one.npz")], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "one.npz' cannot be written" in done.stdout
    assert done.stderr == "" and list(tmp_path.iterdir()) == []
