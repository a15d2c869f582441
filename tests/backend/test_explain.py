"""`mega explain`: the generation it shows is the one that samples, and its sheets are written."""

import itertools

import numpy as np
import pytest
from people_fixture import SIZE, detections

from mega_backend import cli, explain, people, pictures


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch):
    found = detections(1)
    monkeypatch.setattr(people, "find", lambda *_, **__: found)
    return found[0]


PICTURE = np.full((SIZE[1], SIZE[0], 3), 200, np.uint8)


def test_the_generation_shown_is_the_first_sample(tiny, one):
    path = tiny.generation(PICTURE, one, seed=4, steps=5)
    known = [int(moment.known.sum()) for moment in path]
    assert known[0] == 0 and known[-1] == len(path[0].known) and known == sorted(known)
    for before, after in itertools.pairwise(path):
        assert (after.tokens[before.known] == before.tokens[before.known]).all()
    samples = tiny.recover(PICTURE, 2, seed=4, found=[one]).people[0]
    assert np.array_equal(samples.tokens[1], path[-1].tokens)
    # What is not drawn yet is shown as the model would answer now: at first, its one best answer.
    assert np.array_equal(samples.tokens[0], path[0].tokens)


def test_the_cover_hides_legs_and_nothing_else(one):
    hidden, without = explain.covered(PICTURE, one)
    changed = (hidden != PICTURE).any(-1)
    ankle, nose = one.landmarks[27], one.landmarks[0]
    assert changed[int(ankle[1]), int(ankle[0])] and not changed[int(nose[1]), int(nose[0])]
    assert (without.landmarks[list(explain.BELOW_HIPS), 2] < 0).all()
    assert np.array_equal(without.landmarks[:25], one.landmarks[:25])
    assert (PICTURE == 200).all() and (one.landmarks[:, 2] >= 0).all()


def test_sheets_are_written(tiny_model, one, tmp_path, capsys):
    import cv2

    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), PICTURE)
    out = tmp_path / "sheets"
    assert cli.main(["explain", str(picture), "-o", str(out), "-n", "3", "--model", str(tiny_model)]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {f"person_1_{kind}.png" for kind in ("iterations", "samples", "spread")}
    assert all(pictures.read(path).std() > 5 for path in out.iterdir())
    assert "3 sheets" in capsys.readouterr().out
    assert cli.main(["explain", str(picture), "-o", str(out), "--person", "2", "--model", str(tiny_model)]) == 2
    assert "choose 1 to 1" in capsys.readouterr().err
