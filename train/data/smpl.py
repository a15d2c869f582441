"""SMPL and SMPL-H bodies for training and evaluation: model files of the user, posed in batches on the device.

The files are the released ones (`SMPL_NEUTRAL.pkl` or `.npz`, SMPL-H's `neutral/model.npz`), read without running any
code in them; nothing is downloaded. Poses follow the papers' data: 21 body joints as axis-angle, hands flat, 10 betas.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mega_backend import foreign
from mega_backend.checkpoint import CheckpointError
from mega_backend.smpl import SMPLBody, read
from train.config import UserError

GENDERS = ("neutral", "male", "female")
BETAS = 10
BODY_JOINTS = 21


class ModelFileError(UserError):
    """A body model file or joint regressor that cannot be used; the message says which and why."""


class SmplBodies(nn.Module):
    """Bodies of one topology in up to three genders.

    Attributes:
        faces (F, 3) int64. vertex_count. h36m (17, V): Human3.6M's joints in the order of the 17 annotated ones, where
        a regressor file was given. smpl24 (24, V): the model's own joints, regressed from posed vertices.
    """

    kind = "smpl"

    def __init__(self, models: Mapping[str, str | Path], h36m: str | Path | None = None) -> None:
        """
        Args:
            models: a file for each gender in use: "neutral", "male", "female".
            h36m: `J_regressor_h36m.npy` (17, V) in its released order.
        Raises:
            ModelFileError: a file is missing, is not a body model, or its topology differs from the others'.
        """
        super().__init__()
        unknown = sorted(set(models) - set(GENDERS))
        if unknown or not models:
            raise ModelFileError(f"Body models are given per gender ({', '.join(GENDERS)}), not for {unknown}.")
        self.models = nn.ModuleDict({gender: _load(Path(models[gender])) for gender in GENDERS if gender in models})
        sizes = {gender: model.vertex_count for gender, model in self.models.items()}
        if len(set(sizes.values())) > 1:
            raise ModelFileError(f"The body models have different numbers of vertices: {sizes}.")
        first = self._main()
        self.vertex_count = first.vertex_count
        self.register_buffer("faces", first.faces, persistent=False)
        self.register_buffer("smpl24", first.joint_regressor[:24], persistent=False)
        self.h36m: Tensor | None
        self.released_h36m: Tensor | None
        released = None if h36m is None else load_h36m(h36m, self.vertex_count)
        self.register_buffer("released_h36m", released, persistent=False)
        ordered = None if released is None else released[list(H36M_TO_ANNOTATED)]
        self.register_buffer("h36m", ordered, persistent=False)

    def check_genders(self, genders: np.ndarray | Tensor, where: str) -> None:
        """Raise ModelFileError unless there is a model for every gender code in `genders`."""
        missing = [GENDERS[code] for code in np.unique(np.asarray(genders)) if GENDERS[code] not in self.models]
        if missing:
            raise ModelFileError(f"{where} has {' and '.join(missing)} bodies: give the model file of that gender too.")

    def posed(self, root: Tensor, pose: Tensor, betas: Tensor, gender: Tensor) -> Tensor:
        """Vertices (B, V, 3), metres, root joint of the rest shape in place.

        Args:
            root: (B, 3) axis-angle. pose: (B, ≥63) axis-angle of the 21 body joints; what follows is left flat.
            betas: (B, ≥10). gender: (B) codes, indices into `GENDERS`.
        """
        result = betas.new_empty(len(betas), self.vertex_count, 3)
        for code in gender.unique().tolist():
            rows = (gender == code).nonzero()[:, 0]
            model = self.models[GENDERS[code]]
            result[rows] = model.posed(pose[rows, : 3 * BODY_JOINTS], betas[rows, :BETAS], root[rows])
        return result

    def canonical(self, pose: Tensor, betas: Tensor, gender: Tensor) -> Tensor:
        """Canonical vertices (B, V, 3): no root rotation, mean vertex at the origin."""
        vertices = self.posed(pose.new_zeros(len(pose), 3), pose, betas, gender)
        return vertices - vertices.mean(1, keepdim=True)

    def joints(self, vertices: Tensor, name: str = "h36m") -> Tensor:
        """Joints (…, J, 3) of vertices (…, V, 3): "h36m" (the 17 annotated ones) or "smpl24"."""
        return self.joint_matrix(name) @ vertices

    def joint_matrix(self, name: str = "h36m") -> Tensor:
        """The regressor (J, V) of a set of joints."""
        matrix = getattr(self, name)
        if matrix is None:
            raise ModelFileError("Human3.6M's joints need J_regressor_h36m.npy: give its path.")
        return matrix

    def initial_pose(self) -> list[float]:
        """What VQ-HPS starts rotation and camera from: Human3.6M's joints (51 numbers) of the template, not centred."""
        self.joint_matrix()
        return (self.released_h36m @ self._main().template).flatten().tolist()

    def exported(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Configuration and tensors of the body in a model folder: the neutral one where there is one."""
        body = self._main()
        config, state = {"kind": "smpl", **body.config}, {f"body.{k}": v for k, v in body.state_dict().items()}
        if self.released_h36m is not None:
            config["h36m"] = True
            state["body.h36m_regressor"] = self.released_h36m
        return config, state

    def _main(self) -> SMPLBody:
        return next(iter(self.models.values()))


# Order of Human3.6M's regressed joints that matches the 17 annotated ones.
H36M_TO_ANNOTATED = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10, 0, 7, 9)


def load_h36m(path: str | Path, vertex_count: int) -> Tensor:
    """Regressor (17, V) of Human3.6M's joints in their released order."""
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"No joint regressor at {path}: give the path of J_regressor_h36m.npy.")
    matrix = np.load(path, allow_pickle=False)
    if matrix.shape != (17, vertex_count):
        raise ModelFileError(f"{path} is {matrix.shape}: a Human3.6M regressor for this body is (17, {vertex_count}).")
    return torch.from_numpy(matrix.astype(np.float32))


def _load(path: Path) -> SMPLBody:
    if not path.is_file():
        raise ModelFileError(f"No body model at {path}: give the path of a released SMPL or SMPL-H file.")
    try:
        config, state = read(foreign.read_mapping(path), str(path))
    except (CheckpointError, OSError) as error:
        raise ModelFileError(f"{path} cannot be read as a body model: {error}") from error
    config.pop("kind")
    body = SMPLBody.from_config(config)
    body.load_state_dict(state)
    return body
