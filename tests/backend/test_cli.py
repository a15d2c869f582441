"""The command line: what it writes, says and returns."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from people_fixture import SIZE, detections
from PIL import Image

from mega_backend import people
from mega_backend.cli import main
from mega_backend.result import Recovery


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "someone.png"
    Image.new("RGB", SIZE, "grey").save(path)
    return path


@pytest.fixture(autouse=True)
def two_people(monkeypatch):
    monkeypatch.setattr(people, "find", lambda picture, smallest: detections(2))


def mega(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("ending", ["npz", "obj", "glb", "ply"])
def test_recover_writes_what_is_asked_for(tiny_model, picture, tmp_path, capsys, ending):
    out = tmp_path / "out" / f"result.{ending}"
    assert mega("recover", picture, "-n", 2, "-o", out, "--overlay", tmp_path / "over.png", "--model", tiny_model) == 0
    assert out.stat().st_size > 1000
    assert Image.open(tmp_path / "over.png").size == SIZE
    assert "2 people" in capsys.readouterr().out
    if ending == "npz":
        recovery = Recovery.load(out)
        assert recovery.people[0].vertices.shape == (2, 13718, 3)
        assert recovery.meta["picture"] == "someone.png" and recovery.meta["seed"] == 0


def test_seed_makes_the_result(tiny_model, picture, tmp_path):
    results = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / f"{name}.npz"
        assert mega("recover", picture, "-n", 3, "--seed", seed, "-o", out, "--model", tiny_model) == 0
        results.append(Recovery.load(out).people[0].tokens)
    assert np.array_equal(results[0], results[1]) and not np.array_equal(results[0], results[2])


def test_meshes_as_the_tokens_say(tiny_model, tiny, picture, tmp_path):
    assert mega("recover", picture, "--no-refine", "-o", tmp_path / "a.npz", "--model", tiny_model) == 0
    person = Recovery.load(tmp_path / "a.npz").people[0]
    canonical = (person.vertices - person.translation[:, None]) @ person.rotation
    assert np.allclose(canonical, tiny.decode(person.tokens), atol=1e-4)


def test_in_a_batch_the_others_still_finish(tiny_model, picture, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    again = tmp_path / "twin" / "someone.png"
    again.parent.mkdir()
    again.write_bytes(picture.read_bytes())
    out, drawn = tmp_path / "out", tmp_path / "drawn"
    bad = [tmp_path / "text.jpg", tmp_path / "empty.jpg", tmp_path, tmp_path / "missing.jpg"]
    code = mega("recover", bad[0], picture, *bad[1:], again, "-o", out, "--overlay", drawn, "--model", tiny_model)
    assert code == 2
    assert sorted(path.name for path in out.iterdir()) == ["someone.npz", "someone_2.npz"]
    assert sorted(path.name for path in drawn.iterdir()) == ["someone.png", "someone_2.png"]
    complaints = capsys.readouterr().err.strip().splitlines()
    assert len(complaints) == 4 and all(line.startswith("mega: ") for line in complaints)


def test_nobody_is_a_result(tiny_model, picture, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(people, "find", lambda picture, smallest: [])
    assert mega("recover", picture, "-o", tmp_path / "a.npz", "--model", tiny_model) == 0
    assert "no person found" in capsys.readouterr().out
    assert Recovery.load(tmp_path / "a.npz").people == []


def test_report(tiny_model, picture, capsys):
    assert mega("recover", picture, "-n", 2, "--report", "--model", tiny_model) == 0
    assert capsys.readouterr().out.count("% of the box side") == 2


def test_random_and_resample(tiny_model, tmp_path):
    out = tmp_path / "random.npz"
    assert mega("random", "-n", 3, "--seed", 4, "-o", out, "--overlay", tmp_path / "r.png", "--model", tiny_model) == 0
    assert len(Recovery.load(out).people) == 3
    again = tmp_path / "again.npz"
    assert mega("resample", out, "--keep", "legs,head", "-n", 2, "-o", again, "--model", tiny_model) == 0
    assert Recovery.load(again).people[2].hypotheses == 2


def test_info(tiny_model, capsys):
    assert mega("info", "--model", tiny_model) == 0
    assert "13718 vertices" in capsys.readouterr().out
    assert mega("info") == 0
    told = capsys.readouterr().out
    assert "MODEL_CARD.md" in told and max(map(len, told.splitlines())) < 200


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["recover", "PICTURE"], "give -o OUT"),
        (["recover", "PICTURE", "-o", "a.fbx"], "must end in"),
        (["recover", "PICTURE", "PICTURE", "-o", "a.npz"], "need a folder"),
        (["recover", "PICTURE", "-o", "a.npz", "--overlay", "a.svg"], "must end in .png"),
        (["recover", "PICTURE", "-o", "a.npz", "--model", "nowhere"], "no model folder"),
        (["recover", "nothing.png", "-o", "a.npz", "--model", "MODEL"], "no file 'nothing.png'"),
        (["recover", "PICTURE", "-o", "a.npz", "--model", "MODEL", "--device", "toaster"], "no device 'toaster'"),
        (["resample", "nothing.npz", "-o", "a.npz"], "no file 'nothing.npz'"),
        (["random", "-o", "FILE/a.npz", "--model", "MODEL"], "cannot be written"),
    ],
)
def test_mistakes_get_one_sentence(tiny_model, picture, tmp_path, capsys, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    names = {"PICTURE": str(picture), "MODEL": str(tiny_model), "FILE/a.npz": str(tmp_path / "file" / "a.npz")}
    assert main([names.get(argument, argument) for argument in arguments]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("mega: ") and complaint.count("\n") == 1 and sentence in complaint


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["recover", "a", "-n", "0"], ["recover", "a", "--temperature", "hot"]]
)
def test_wrong_options_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "mega_backend", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("mega ")
