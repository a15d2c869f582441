"""Foreign files are read without running anything in them."""

import builtins
import io
import os
import pickle
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from published_fixture import smpl_arrays, write_chumpy_pickle
from scipy import sparse

from mega_backend import foreign
from mega_backend.checkpoint import CheckpointError


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


ATTACKS = {
    "shell": lambda trap: Call(os.system, f"touch {trap}"),
    "subprocess": lambda trap: Call(subprocess.Popen, ["touch", str(trap)]),
    "eval": lambda trap: Call(eval, f"open({str(trap)!r}, 'w')"),
    "open": lambda trap: Call(open, str(trap), "w"),
    "getattr": lambda trap: Call(getattr, Call(__import__, "os"), "system"),
    "inside an array": lambda trap: np.array([Call(os.system, f"touch {trap}")], dtype=object),
    "inside a sparse matrix": lambda trap: _sparse_with(Call(os.system, f"touch {trap}")),
}


def _sparse_with(thing):
    matrix = sparse.csc_matrix(np.eye(2))
    matrix.extra = thing
    return matrix


def write_pickle(path, content, protocol=2):
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=protocol)
    return path


def write_object_npz(path, content):
    array = np.empty((), dtype=object)
    array[()] = content
    np.savez(path, v_template=array)
    return path


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("form", ["pickle", "pickle 0", "pickle 4", "torch", "legacy torch", "npz"])
def test_a_malicious_file_is_refused_and_does_nothing(tmp_path, form, attack):
    trap = tmp_path / "trap"
    content = ATTACKS[attack](trap)
    path = tmp_path / "file"
    with pytest.raises(CheckpointError, match="refused and nothing in it was run"):
        if form.startswith("pickle"):
            write_pickle(path, {"v_template": content}, int(form[7:] or 2))
            foreign.read_mapping(path)
        elif form == "npz":
            foreign.Archive(write_object_npz(tmp_path / "file.npz", content))["v_template"]
        else:
            torch.save({"model": content}, path, _use_new_zipfile_serialization=form == "torch")
            foreign.read_torch(path)
    assert not trap.exists()


def test_a_disguised_name_is_refused(tmp_path):
    """A name inside an allowed package is not allowed for that."""
    for line in (
        b"cnumpy\nsave\n",
        b"cnumpy.core.multiarray\nfrombuffer\n",
        b"cscipy.sparse\nload_npz\n",
        b"cos\nfork\n",
    ):
        path = tmp_path / "file.pkl"
        path.write_bytes(line + b".")
        with pytest.raises(CheckpointError, match="refused"), path.open("rb") as file:
            foreign.read_pickle(file, str(path))


def test_stand_ins_cannot_be_built_from_other_classes(tmp_path):
    path = write_pickle(tmp_path / "file.pkl", Call(builtins.object.__new__, dict))
    with pytest.raises(CheckpointError, match="refused"), path.open("rb") as file:
        foreign.read_pickle(file, str(path))


@pytest.mark.parametrize("protocol", range(5))
def test_plain_data_comes_through(tmp_path, protocol):
    content = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": [1, "two", None, np.float64(3)],
        "c": (np.array([True]), b"\xff"),
    }
    path = write_pickle(tmp_path / "file.pkl", content, protocol)
    read = foreign.read_mapping(path)
    np.testing.assert_array_equal(read["a"], content["a"])
    np.testing.assert_array_equal(read["c"][0], content["c"][0])
    assert read["b"] == content["b"]
    assert read["c"][1] == b"\xff"


@pytest.mark.parametrize("form", ["csc_matrix", "csr_matrix", "coo_matrix"])
def test_sparse_matrices_come_out_dense(tmp_path, form):
    matrix = np.diag([1.0, 2.0, 3.0])[:, ::-1]
    path = write_pickle(tmp_path / "file.pkl", {"m": getattr(sparse, form)(matrix)})
    np.testing.assert_array_equal(foreign.read_mapping(path)["m"], matrix)


def test_chumpy_pickles_are_read_without_chumpy(tmp_path):
    with pytest.raises(ImportError):
        import chumpy  # noqa: F401
    arrays = smpl_arrays()
    read = foreign.read_mapping(write_chumpy_pickle(tmp_path / "smpl.pkl", arrays))
    for name, value in arrays.items():
        np.testing.assert_array_equal(np.asarray(read[name]), value)


def test_chumpy_expressions_that_cannot_be_evaluated_are_named(tmp_path):
    path = tmp_path / "file.pkl"
    path.write_bytes(b"cchumpy.ch\nsum\n)\x81}b.")
    with pytest.raises(CheckpointError, match=r"holds a chumpy\.ch\.sum"), path.open("rb") as file:
        foreign.read_pickle(file, str(path))


def test_object_arrays_in_an_archive_are_read_by_the_restricted_reader(tmp_path):
    path = write_object_npz(tmp_path / "file.npz", {"a": np.ones(2)})
    np.testing.assert_array_equal(foreign.Archive(path)["v_template"]["a"], np.ones(2))
    assert foreign.kind_of(path) == "npz"


@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_with_numpy_scalars_are_read(tmp_path, legacy):
    path = tmp_path / "file"
    torch.save(
        {"model": {"a": torch.ones(2)}, "loss": np.float64(1.5)}, path, _use_new_zipfile_serialization=not legacy
    )
    assert foreign.kind_of(path) == "torch"
    content = foreign.read_torch(path)
    assert torch.equal(content["model"]["a"], torch.ones(2))
    assert content["loss"] == 1.5


def test_damaged_files_are_refused_in_words(tmp_path):
    whole = io.BytesIO()
    torch.save({"model": {"a": torch.ones(2000)}}, whole)
    cut = tmp_path / "cut"
    cut.write_bytes(whole.getvalue()[:500])
    with pytest.raises(CheckpointError, match="damaged or was not downloaded completely"):
        foreign.kind_of(cut)
    pickled = tmp_path / "cut.pkl"
    pickled.write_bytes(pickle.dumps({"a": np.ones(100)}, protocol=2)[:60])
    with pytest.raises(CheckpointError, match="download it again"):
        foreign.read_mapping(pickled)
    with pytest.raises(CheckpointError, match="no file"):
        foreign.kind_of(tmp_path / "nothing")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert foreign.kind_of(tmp_path / "other.zip") == "unknown"
    (tmp_path / "note.txt").write_text("(this is prose)")
    assert foreign.kind_of(tmp_path / "note.txt") in ("unknown", "pickle")
