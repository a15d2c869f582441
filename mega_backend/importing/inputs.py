"""What a foreign file is, by what is in it: a checkpoint, connection matrices, a body, a regressor, an initial pose."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mega_backend import foreign, published, smpl
from mega_backend.checkpoint import CheckpointError

CONNECTION_FILE = re.compile(r"_(un)?pool\d+(?=\.npy$)")
H36M_JOINTS, SMPL_JOINTS = 17, (24, 52)


@dataclass
class Input:
    """One recognised input: its role, what it holds, and a line that says so."""

    path: Path
    role: str  # "tokenizer", "mega", "vqhps", "connections", "body", "h36m", "joints" or "initial pose"
    text: str
    content: Any


def recognise(path: Path) -> list[Input]:
    """What a file or folder is; an .npz of regressors may be several things. Raises CheckpointError if unknown."""
    kind = foreign.kind_of(path)
    if kind == "folder":
        return [_folder(path)]
    if kind == "torch":
        return [_checkpoint(path, foreign.read_torch(path))]
    if kind == "safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return [_checkpoint(path, load_file(path))]
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged ({error}): download it again") from None
    if kind == "npy":
        return [_array(path, foreign.read_npy(path), str(path))]
    if kind == "npz":
        archive = foreign.Archive(path)
        if "v_template" in archive:
            return [_body(path, archive)]
        if {"indptr", "indices", "data", "shape"} <= set(archive.names):
            return [_array(path, _sparse(path), str(path))]
        return [_array(path, np.asarray(archive[name]), f"{path} ({name})") for name in archive.names]
    if kind == "pickle":
        content = foreign.read_mapping(path)
        if isinstance(content, dict) and "v_template" in content:
            return [_body(path, content)]
        raise CheckpointError(f"{path} is a pickle, but not of an SMPL body: `mega import` has no use for it")
    raise CheckpointError(
        f"{path} is not a file that `mega import` knows: give checkpoints, the folder of connection matrices, "
        "an SMPL file or joint regressors"
    )


def _folder(path: Path) -> Input:
    matrices = {}
    for file in sorted(path.iterdir()):
        if match := CONNECTION_FILE.search(file.name):
            matrix = foreign.read_npy(file)
            if matrix.ndim != 2 or matrix.shape[1] < 3 or matrix.shape[1] % 2 == 0 or matrix.dtype.kind not in "iu":
                raise CheckpointError(f"{file} is not a connection matrix: rows of [n, id, ring, id, ring, …] integers")
            matrices[match[0]] = matrix
    if not matrices:
        raise CheckpointError(f"{path} is a folder without connection matrices (_pool0.npy …): give files one by one")
    return Input(path, "connections", f"connection matrices of {len(matrices)} layers", matrices)


def _checkpoint(path: Path, content: Any) -> Input:
    state = content
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            state = content[key]
            break
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no dictionary of weights: give one of the authors' checkpoints")
    state = published.strip_prefix(state)
    role = published.recognise(state)
    if role is None:
        some = ", ".join(sorted(state)[:3])
        raise CheckpointError(f"{path} is a checkpoint of an unknown model ({some}, …): give one of the authors'")
    text = {"tokenizer": "Mesh-VQ-VAE checkpoint", "mega": "MEGA checkpoint", "vqhps": "VQ-HPS checkpoint"}[role]
    return Input(path, role, text, state)


def _body(path: Path, source: Any) -> Input:
    config, state = smpl.read(source, str(path))
    name = "SMPL" if config["joints"] == 24 else "SMPL-H"
    return Input(
        path, "body", f"{name} body, {config['vertices']} vertices, {config['joints']} joints", (config, state)
    )


def _sparse(path: Path) -> np.ndarray:
    from scipy import sparse

    try:
        return sparse.load_npz(path).toarray()
    except (ValueError, KeyError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is not a readable sparse matrix ({error})") from None


def _array(path: Path, array: np.ndarray, where: str) -> Input:
    """A joint regressor or an initial pose, by its shape."""
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise CheckpointError(f"{where} is not an array of finite numbers")
    squeezed = array[0] if array.ndim == 3 and len(array) == 1 else array
    if squeezed.size == 51 and squeezed.shape in ((51,), (1, 51), (17, 3)):
        return Input(path, "initial pose", "initial pose, 17 joints", squeezed.reshape(17, 3).astype(np.float32))
    if squeezed.ndim == 2 and squeezed.shape[1] == 3 and len(squeezed) > 17:
        text = f"initial pose, a mesh of {len(squeezed)} vertices"
        return Input(path, "initial pose", text, squeezed.astype(np.float32))
    if squeezed.ndim == 2 and len(squeezed) == H36M_JOINTS:
        text = f"Human3.6M joint regressor, {squeezed.shape[1]} vertices"
        return Input(path, "h36m", text, squeezed.astype(np.float32))
    if squeezed.ndim == 2 and len(squeezed) in SMPL_JOINTS:
        text = f"SMPL joint regressor, {len(squeezed)} joints, {squeezed.shape[1]} vertices"
        return Input(path, "joints", text, squeezed.astype(np.float32))
    raise CheckpointError(
        f"{where} has shape {array.shape}, which is neither a joint regressor (17, 24 or 52 rows) nor an initial pose"
    )
