"""Clips: ranges and steps, rotation flags, uneven frame rates, sequences, damaged frames."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from mega_backend.video.clips import Clip, ClipError


def grey(index: int) -> np.ndarray:
    return np.full((48, 64, 3), 8 * index, np.uint8)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Twenty frames, each of another grey, 10 a second."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 48))
    for index in range(20):
        writer.write(grey(index))
    writer.release()
    return path


def test_frames_in_order_with_their_times(video):
    clip = Clip(video)
    frames = list(clip)
    assert (clip.size, clip.rate, clip.count) == ((64, 48), 10.0, 20)
    assert [frame.index for frame in frames] == list(range(20)) and not clip.problems
    assert np.allclose([frame.time for frame in frames], np.arange(20) / 10, atol=0.02)
    assert np.allclose([frame.picture.mean() for frame in frames], 8 * np.arange(20), atol=3)


def test_range_and_step(video):
    clip = Clip(video, start=3, stop=15, step=4)
    assert [frame.index for frame in clip] == [3, 7, 11] and clip.count == 3
    assert np.allclose([frame.picture.mean() for frame in clip], [24, 56, 88], atol=3)  # a second pass is the same


def test_picture_sequence_in_natural_order(tmp_path):
    for index in (1, 2, 9, 10, 11):
        cv2.imwrite(str(tmp_path / f"frame_{index}.png"), grey(index))
    for source in (tmp_path, tmp_path / "frame_%d.png", tmp_path / "frame_*.png"):
        clip = Clip(source, rate=5)
        assert [int(frame.picture.mean()) for frame in clip] == [8, 16, 72, 80, 88]
        assert [frame.time for frame in clip] == [0, 0.2, 0.4, 0.6, 0.8]


def test_unreadable_frames_are_reported_and_bridged(tmp_path):
    for index in range(4):
        cv2.imwrite(str(tmp_path / f"{index}.png"), grey(index + 1))
    (tmp_path / "2.png").write_bytes(b"no picture")
    clip = Clip(tmp_path)
    frames = list(clip)
    assert [frame.picture is None for frame in frames] == [False, False, True, False]
    assert clip.problems == ["frame 2 could not be read and is bridged"]


def test_clips_that_cannot_be_used(tmp_path, video):
    (tmp_path / "text.mp4").write_text("no video")
    for source in (tmp_path / "none.mp4", tmp_path / "text.mp4", tmp_path / "nobody_%d.png"):
        with pytest.raises(ClipError):
            Clip(source)
    with pytest.raises(ClipError, match="only 20 frames"):
        Clip(video, start=30)
    with pytest.raises(ValueError, match="start < stop"):
        Clip(video, start=5, stop=5)


def test_a_video_cut_short_gives_what_it_has(tmp_path):
    whole, short = tmp_path / "whole.avi", tmp_path / "short.avi"
    writer = cv2.VideoWriter(str(whole), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 48))
    for index in range(20):
        writer.write(np.random.default_rng(index).integers(0, 255, (48, 64, 3), np.uint8))
    writer.release()
    data = whole.read_bytes()
    short.write_bytes(data[: len(data) * 2 // 3])
    frames = [frame for frame in Clip(short) if frame.picture is not None]
    assert 5 <= len(frames) < 20


def mp4(path: Path, count: int = 12) -> bytearray:
    """A clip of 64 × 48 whose upper left quarter is white, 10 frames a second, as bytes; its index lies at the end."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (64, 48))
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = 255
    for _ in range(count):
        writer.write(picture)
    writer.release()
    return bytearray(path.read_bytes())


def test_clips_that_lie_on_their_side_are_turned_upright(tmp_path):
    path = tmp_path / "phone.mp4"
    data = mp4(path)
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    clip = Clip(path)
    picture = next(iter(clip)).picture
    assert clip.size == (48, 64) and picture.shape == (64, 48, 3)
    assert picture[:28, 28:].mean() > 200 and picture[36:].mean() < 50  # clockwise: the corner is now upper right


def test_uneven_frame_rates_give_the_times_that_the_file_says(tmp_path):
    path = tmp_path / "uneven.mp4"
    data = mp4(path)
    at = data.index(b"stts")
    count, duration = struct.unpack_from(">ii", data, at + 12)
    assert struct.unpack_from(">i", data, at + 8) == (1,) and count == 12
    # The second half of the frames last three times as long.
    data[at + 8 : at + 20] = struct.pack(">5i", 2, count // 2, duration, count // 2, 3 * duration)
    for name in (b"stts", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        start = data.rindex(name, 0, at + 4) - 4
        data[start : start + 4] = struct.pack(">i", struct.unpack_from(">i", data, start)[0] + 8)
    listed = data.index(b"elst") + 12  # what of the clip is shown: now twice as long
    data[listed : listed + 4] = struct.pack(">i", 2 * struct.unpack_from(">i", data, listed)[0])
    path.write_bytes(data)
    times = [frame.time for frame in Clip(path)]
    steps = np.diff(times)
    assert len(times) == 12 and np.allclose(steps[:5], 0.1, atol=0.01) and np.allclose(steps[7:], 0.3, atol=0.01)


def test_going_on_behind_a_frame(video):
    clip = Clip(video, start=2, step=3)
    assert [frame.index for frame in clip.behind(8)] == [11, 14, 17]
    again = list(clip.behind(8))
    assert np.allclose([frame.time for frame in again], [1.1, 1.4, 1.7], atol=0.02)
    assert np.allclose([frame.picture.mean() for frame in again], [88, 112, 136], atol=3)
