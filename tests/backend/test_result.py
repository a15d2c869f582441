"""Results: what is saved comes back, what is not a result is refused with a sentence."""

import json

import numpy as np
import pytest

from mega_backend.files import OutputError, atomic_write
from mega_backend.result import Person, Recovery, ResultError

ARRAYS = {
    "box", "landmarks", "tokens", "log_probability", "vertices", "joints", "rotation", "translation", "spread",
    "focal_length", "picture_size", "faces", "meta",
}  # fmt: skip


def somebody(seed: int = 0, hypotheses: int = 3) -> Person:
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    n = hypotheses
    tokens = random.integers(0, 512, (n, 54)).astype(np.uint16)
    shapes = {
        "box": (4,), "landmarks": (33, 3), "log_probability": (n,), "rotation": (n, 3, 3), "translation": (n, 3),
        "vertices": (n, 8, 3), "joints": (n, 22, 3), "spread": (8,), "landmarks_3d": (33, 3),
    }  # fmt: skip
    return Person(tokens=tokens, **{name: draw(*shape) for name, shape in shapes.items()})


def a_recovery(people: int = 2) -> Recovery:
    faces = np.array([[0, 1, 2], [5, 6, 7]], np.int32)
    meta = {"model": "x", "seed": 3, "hypotheses": 3, "token_count": 54, "joint_names": [str(i) for i in range(22)]}
    return Recovery((640, 480), 1234.5, [somebody(i) for i in range(people)], faces, meta)


@pytest.mark.parametrize("people", [0, 1, 2])
def test_round_trip(tmp_path, people):
    saved = a_recovery(people)
    loaded = Recovery.load(saved.save(tmp_path / "new" / "a.npz"))
    assert loaded.picture_size == (640, 480) and loaded.focal_length == 1234.5 and loaded.meta == saved.meta
    assert np.array_equal(loaded.faces, saved.faces) and len(loaded.people) == people
    for a, b in zip(saved.people, loaded.people, strict=True):
        for name in a.__dataclass_fields__:
            assert np.array_equal(getattr(a, name), getattr(b, name)), name
            assert getattr(a, name).dtype == getattr(b, name).dtype, name


@pytest.mark.parametrize("people", [0, 2])
def test_the_file_holds_what_is_promised(tmp_path, people):
    a_recovery(people).save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file.files) == ARRAYS | {"landmarks_3d", "joint_spread"}
        shapes = {name: file[name].shape for name in file.files}
        assert json.loads(str(file["meta"]))["model"] == "x"
    p, n, v = people, 3, 8
    assert shapes["vertices"] == (p, n, v, 3) and shapes["tokens"] == (p, n, 54) and shapes["spread"] == (p, v)
    assert shapes["rotation"] == (p, n, 3, 3) and shapes["translation"] == (p, n, 3) and shapes["box"] == (p, 4)
    assert shapes["landmarks"] == (p, 33, 3) and shapes["joints"] == (p, n, 22, 3)


def test_the_detectors_3d_estimate_may_be_missing():
    arrays = {name: array for name, array in a_recovery().arrays().items() if name != "landmarks_3d"}
    assert np.isnan(Recovery.from_arrays(arrays).people[0].landmarks_3d).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokens": None}, "lacks tokens"),
        ({"tokens": np.zeros((1, 3, 54))}, "different numbers of people"),
        ({"vertices": np.zeros((2, 3, 8, 2))}, "vertices has shape"),
        ({"spread": np.zeros((2, 9))}, "spread has shape"),
        ({"rotation": np.zeros((2, 4, 3, 3))}, "rotation has shape"),
        ({"faces": np.array([[0, 1, 99]])}, "vertices that do not exist"),
        ({"faces": np.zeros(3)}, "faces has shape"),
        ({"meta": np.array("{")}, "no JSON"),
        ({"meta": np.array("[]")}, "no JSON object"),
        ({"box": np.float32(3)}, "different numbers of people"),
        ({"picture_size": np.zeros(3)}, "picture_size has shape"),
        ({"focal_length": np.zeros(3)}, "focal_length"),
    ],
)
def test_damaged_arrays(change, sentence):
    arrays = a_recovery().arrays() | change
    with pytest.raises(ResultError, match=sentence):
        Recovery.from_arrays({name: array for name, array in arrays.items() if array is not None})


def test_files_that_are_no_result(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.save(tmp_path / "array.npy", np.zeros(3))
    whole = a_recovery().save(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("text.npz", "empty.npz", "other.npz", "array.npy", "cut.npz", "missing.npz", "."):
        with pytest.raises(ResultError):
            Recovery.load(tmp_path / name)


def test_pickles_are_never_opened(tmp_path):
    np.savez(tmp_path / "evil.npz", **(a_recovery().arrays() | {"box": np.array([object()])}))
    with pytest.raises(ResultError):
        Recovery.load(tmp_path / "evil.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(stream):
        stream.write(b"half")
        raise RuntimeError("full")

    with pytest.raises(RuntimeError):
        atomic_write(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError, match="is a folder"):
        atomic_write(tmp_path, lambda stream: None)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        atomic_write(tmp_path / "file" / "a", lambda stream: None)
