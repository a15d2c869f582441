"""Clips: ranges and steps, rotation, sequences, damaged frames, and memory that does not grow."""

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
