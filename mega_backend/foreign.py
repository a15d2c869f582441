"""Reading files that other programs wrote, without running any code that is in them.

A pickle is a program: unpickling one from a stranger can do anything. torch checkpoints are therefore read with
``weights_only=True``, arrays without object pickles, and SMPL's pickles (including those that hold chumpy objects, with
neither chumpy nor Python 2 around) by an unpickler that knows a handful of harmless names and refuses every other.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .checkpoint import CheckpointError

# How torch's old file format starts: its magic number, pickled.
_TORCH_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
# The two functions by which NumPy's pickles make arrays and scalars, and the modules where its releases keep them.
_reconstruct = np.zeros(0).__reduce__()[0]
_scalar = np.float64(0).__reduce__()[0]
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")


def kind_of(path: Path) -> str:
    """What a file is by its first bytes: "torch", "npz", "npy", "safetensors", "pickle"; "folder"; else "unknown"."""
    if path.is_dir():
        return "folder"
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile:
            raise CheckpointError(f"{path} is damaged or was not downloaded completely: download it again") from None
        if any(name.endswith("data.pkl") for name in names):
            return "torch"
        return "npz" if any(name.endswith(".npy") for name in names) else "unknown"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(_TORCH_LEGACY):
        return "torch"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "safetensors"
    # Protocols 2 and up say so; older pickles of a dictionary begin with a mark or an instance.
    if head[:1] == b"\x80" or head[:2] in (b"(d", b"cc", b"}q", b"(c", b"c_"):
        return "pickle"
    return "unknown"


# torch checkpoints


def read_torch(path: Path) -> Any:
    """The contents of a torch checkpoint, tensors on the CPU; refuses one that holds more than data."""
    import torch

    # Scores beside the weights are often NumPy scalars: data, though torch does not take them for that by itself.
    numpy_names = [
        *((_scalar, f"{module}.scalar") for module in _MULTIARRAY),
        *((_reconstruct, f"{module}._reconstruct") for module in _MULTIARRAY),
        np.ndarray,
        np.dtype,
        *(getattr(np.dtypes, name) for name in ("Float64DType", "Float32DType", "Int64DType", "Int32DType")),
        (_latin1, "_codecs.encode"),
    ]
    try:
        with torch.serialization.safe_globals(numpy_names):
            # Mapped, not read: the optimiser's state beside the weights is twice their size and never looked at.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused and nothing in it was run: it asks for {_offender(error)}, "
            "which no checkpoint of weights needs; get the file from its authors' page"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is not a readable torch checkpoint ({reason}): download it again") from None


def _offender(error: Exception) -> str:
    """What an unpickling error complains about, shortened to the name."""
    text = str(error)
    for marker in ("GLOBAL ", "Unsupported global: GLOBAL ", "Unsupported class "):
        if marker in text:
            return text.split(marker, 1)[1].split()[0].rstrip(".,")
    return "something"


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """What `_codecs.encode` is asked for in pickles of Python 3 under protocol 2: bytes written as latin-1 text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("GLOBAL _codecs.encode")
    return text.encode("latin1")


# Pickles


class _Inert:
    """Stands for an object of a library that is not installed: keeps its state, does nothing."""

    state: dict[str, Any]

    def __new__(cls, *arguments: Any) -> _Inert:
        made = super().__new__(cls)
        made.state = {}
        return made

    def __init__(self, *arguments: Any):
        """Whatever it is made from."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2:  # state and slots
            state = {**(state[0] or {}), **(state[1] or {})}
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"GLOBAL {type(self).__name__}")
        self.state = state


class _Sparse(_Inert):
    """A scipy sparse matrix, of any release."""


def _new(kind: type, base: type = object, state: Any = None) -> Any:
    """`copy_reg._reconstructor` for the stand-ins only."""
    if not (isinstance(kind, type) and issubclass(kind, _Inert)):
        raise pickle.UnpicklingError("GLOBAL copy_reg._reconstructor")
    return kind()


def _harmless() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): _latin1,
        ("copy_reg", "_reconstructor"): _new,
        ("copyreg", "_reconstructor"): _new,
    }
    for kind in (object, set, frozenset):
        names["__builtin__", kind.__name__] = names["builtins", kind.__name__] = kind
    for module in _MULTIARRAY:
        names[module, "_reconstruct"] = _reconstruct
        names[module, "scalar"] = _scalar
    return names


class _Reader(pickle.Unpickler):
    """An unpickler that can only make data."""

    names = _harmless()

    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) in self.names:
            return self.names[module, name]
        package = module.split(".")[0]
        if package == "chumpy":
            return type(f"{module}.{name}", (_Inert,), {})
        if module.startswith("scipy.sparse") and name.endswith("_matrix"):
            return type(name, (_Sparse,), {})
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, identifier: Any) -> Any:
        raise pickle.UnpicklingError("GLOBAL persistent_id")


def read_pickle(file: BinaryIO, where: str) -> Any:
    """A pickle of plain data and arrays; chumpy objects and sparse matrices come out as arrays."""
    try:
        return plain(_Reader(file, encoding="latin1").load(), where)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise CheckpointError(
                f"{where} was refused and nothing in it was run: its pickle asks for {_offender(error)}, "
                "which no body model needs; get the file from its authors' page"
            ) from None
        raise CheckpointError(f"{where} is not a readable pickle ({error}): download it again") from None
    except (EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError, OverflowError) as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{where} is damaged ({reason}): download it again") from None


def plain(value: Any, where: str) -> Any:
    """Stand-ins in a structure replaced by the arrays they mean."""
    if isinstance(value, dict):
        return {key: plain(entry, where) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(entry, where) for entry in value)
    if isinstance(value, _Sparse):
        return _dense(value, where)
    if isinstance(value, _Inert):
        return _chumpy(value, where)
    if isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 0:
        return plain(value.item(), where)
    return value


def _chumpy(value: _Inert, where: str) -> np.ndarray:
    """The array behind a chumpy leaf or selection."""
    name, state = type(value).__name__, value.state
    if "x" in state:  # chumpy.ch.Ch
        return np.asarray(plain(state["x"], where))
    if name.endswith(".Select") and {"a", "idxs"} <= set(state):
        chosen = np.asarray(plain(state["a"], where)).ravel()[np.asarray(state["idxs"]).ravel()]
        shape = state.get("preferred_shape")
        return chosen if shape is None else chosen.reshape(shape)
    raise CheckpointError(f"{where} holds a {name}, which this program cannot evaluate: save the file without chumpy")


def _dense(value: _Sparse, where: str) -> np.ndarray:
    """A csc, csr or coo matrix as a dense array."""
    from scipy import sparse

    state = value.state
    shape = state.get("_shape", state.get("shape"))
    form = type(value).__name__.removesuffix("_matrix")
    try:
        if form in ("csc", "csr"):
            parts = (state["data"], state["indices"], state["indptr"])
            matrix = (sparse.csc_matrix if form == "csc" else sparse.csr_matrix)(parts, shape=shape)
        elif form == "coo":
            row, column = (state["row"], state["col"]) if "row" in state else state["coords"]
            matrix = sparse.coo_matrix((state["data"], (row, column)), shape=shape)
        else:
            raise CheckpointError(f"{where} holds a sparse matrix of kind {form}, which is not supported")
        if form != "coo":
            matrix.check_format()
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{where} holds a damaged sparse matrix ({error}): download it again") from None
    return matrix.toarray()


# Arrays


def read_npy(path: Path) -> np.ndarray:
    """One array; refuses arrays of Python objects."""
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable array of numbers ({error})") from None


class Archive:
    """The arrays of an .npz file, read one by one when asked for; object arrays through the restricted reader."""

    def __init__(self, path: Path):
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self.names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Any:
        where = f"{self.path} ({name})"
        try:
            with zipfile.ZipFile(self.path) as archive:
                data = archive.read(f"{name}.npy")
        except (zipfile.BadZipFile, OSError, KeyError, NotImplementedError) as error:
            raise CheckpointError(f"{where} is damaged ({error}): download it again") from None
        try:
            return np.load(io.BytesIO(data), allow_pickle=False)
        except ValueError as error:
            if "Object arrays" not in str(error):
                raise CheckpointError(f"{where} is damaged ({error}): download it again") from None
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        reader(file)
        return read_pickle(file, where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array without reading it."""
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return reader(file)[0]


def read_mapping(path: Path) -> Any:
    """A .pkl dictionary, or an .npz archive as a lazy mapping."""
    if kind_of(path) == "npz":
        return Archive(path)
    with open(os.fspath(path), "rb") as file:
        return read_pickle(file, str(path))
