"""`mega video` from end to end on a tiny model: a pan over the example picture, stopped and gone on with."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from mega_backend import cli
from mega_backend.video import recover
from mega_backend.video.clips import Clip
from mega_backend.video.journal import Journal

PICTURE = Path(__file__).parents[2] / "examples" / "people.jpg"


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Somebody who moves to the left and is gone for a moment: 30 frames, 15 a second."""
    path = tmp_path_factory.mktemp("clip") / "pan.avi"
    picture = cv2.resize(cv2.imread(str(PICTURE)), (640, 480), interpolation=cv2.INTER_AREA)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 15.0, (320, 480))
    for index in range(30):
        writer.write(picture[:, 4 * index : 4 * index + 320])
    writer.release()
    return path


def video(clip: Path, model: Path, *outputs: Path) -> int:
    words = [word for output in outputs for word in ("-o", str(output))]
    return cli.main(["video", str(clip), *words, "--model", str(model), "-n", "2", "--steps", "1"])


def test_going_on_equals_an_uninterrupted_run(clip, tiny_model, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole.npz", tmp_path / "parts.npz"
    assert video(clip, tiny_model, whole) == 0
    looked_at = []
    watch = recover.Watcher.watch

    def failing(self, frames, *others):
        if len(looked_at) == 1:
            raise KeyboardInterrupt
        looked_at.append(frames[0].index)
        return watch(self, frames, *others)

    monkeypatch.setattr(recover.Watcher, "watch", failing)
    assert video(clip, tiny_model, parts) == 130
    assert not parts.exists() and (tmp_path / "parts.npz.part").is_dir()
    looked_at.append(None)
    assert video(clip, tiny_model, parts) == 0
    assert looked_at == [0, None, 15]  # nothing was looked at twice
    assert not (tmp_path / "parts.npz.part").exists()
    with np.load(whole) as one, np.load(parts) as other:
        assert len(one["frame"]) > 20
        for name in one.files:
            assert np.array_equal(one[name], other[name], equal_nan=True), name


def test_other_settings_do_not_go_on(clip, tiny_model, tmp_path, capsys):
    output = tmp_path / "out.npz"
    Journal(tmp_path / "out.npz.part", {"clip": "another"})
    assert video(clip, tiny_model, output) == cli.BAD_INPUT
    assert "other settings" in capsys.readouterr().err


def test_what_is_done_when_stopped_is_whole(clip, tiny):
    calls = []
    frames = list(recover.recover_video(tiny, Clip(clip), stopped=lambda: calls.append(1) or True))
    assert [frame.index for frame in frames] == list(range(15)) and len(calls) == 1


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_overlay_and_glb(clip, tiny_model, tmp_path, name, capfd):
    words = ["video", str(clip), "-o", str(tmp_path / "a.glb"), "--overlay", str(tmp_path / name)]
    assert cli.main([*words, "--model", str(tiny_model), "-n", "1", "--stop", "8"]) == 0
    assert (tmp_path / "a.glb").read_bytes()[:4] == b"glTF"
    drawn = list(Clip(tmp_path / name))
    assert len(drawn) == 8 and drawn[0].picture.shape == (480, 320, 3)
    modes = {(tmp_path / each).stat().st_mode for each in ("a.glb", name)}
    assert len(modes) == 1, "whoever may read one may read the other"
    assert "FFMPEG" not in capfd.readouterr().err, "no chatter of the encoder"


def test_endings_are_checked_before_anything_is_loaded(clip, tmp_path, capsys):
    assert cli.main(["video", str(clip), "-o", str(tmp_path / "a.fbx")]) == cli.BAD_INPUT
    assert cli.main(["video", str(clip)]) == cli.BAD_INPUT
    assert cli.main(["video", str(clip), "--overlay", "a.gif"]) == cli.BAD_INPUT
    errors = capsys.readouterr().err
    assert "must end in .npz" in errors and "nothing to write" in errors and "must end in .webm or .mp4" in errors
