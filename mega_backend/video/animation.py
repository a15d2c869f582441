"""The motion of each person over a clip as one table, in the axes of the formats that take it: y up, metres."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from .smoothing import nearest_rotations

if TYPE_CHECKING:
    from mega_backend.body import Body

    from .motion import FrameResult

TO_Y_UP = np.diag([1.0, -1.0, -1.0])
"""Camera axes (x right, y down, z forward) to x right, y up, z towards the viewer."""


@dataclass(frozen=True)
class Animation:
    """One person from the first frame that shows them to the last; while they are away they stay as they were.

    track: the person's number. times (F,) seconds from the first frame of the clip. present (F,) bool. rotations
    (F, J, 3, 3) in the world from the T-pose, translation (F, 3): as of `rig.Pose`, camera axes; shape (S,).
    """

    track: int
    times: np.ndarray
    present: np.ndarray
    rotations: np.ndarray
    translation: np.ndarray
    shape: np.ndarray

    @property
    def name(self) -> str:
        """The person's name in files."""
        return f"person_{self.track}"

    def evenly(self, rate: float) -> Animation:
        """The same motion at `rate` frames a second, for formats that know no other: blended between its frames."""
        moments = np.arange(self.times[0], self.times[-1] + 0.5 / rate, 1 / rate)
        if len(moments) == len(self.times) and np.abs(moments - self.times).max() < 0.1 / rate:
            return self
        after = np.searchsorted(self.times, moments).clip(1, max(len(self.times) - 1, 1))
        after = np.minimum(after, len(self.times) - 1)
        before = np.maximum(after - 1, 0)
        span = np.maximum(self.times[after] - self.times[before], 1e-6)
        share = ((moments - self.times[before]) / span).clip(0, 1)

        def blended(values: np.ndarray) -> np.ndarray:
            weight = share.reshape(-1, *[1] * (values.ndim - 1))
            return (1 - weight) * values[before] + weight * values[after]

        return replace(
            self,
            times=moments,
            present=np.where(share < 0.5, self.present[before], self.present[after]),
            rotations=nearest_rotations(blended(self.rotations.astype(np.float64))).astype(np.float32),
            translation=blended(self.translation).astype(np.float32),
        )

    def skeleton(self, body: Body) -> Skeleton:
        """The body's own bones moving, y up."""
        shape = torch.as_tensor(self.shape)[None]
        with torch.no_grad():
            rest, heads = body.rest(shape)
            t_pose = body.t_pose(heads)[0].double().numpy()
        heads = heads[0].double().numpy()
        turned = TO_Y_UP @ self.rotations.astype(np.float64) @ t_pose
        parents = np.maximum(body.parents, 0)
        local = np.swapaxes(turned[:, parents], -1, -2) @ turned
        local[:, 0] = turned[:, 0]
        offsets = heads - heads[parents]
        offsets[0] = heads[0]
        return Skeleton(
            rest=rest[0].double().numpy(),
            heads=heads,
            offsets=offsets,
            local=np.swapaxes(np.stack([steady(q) for q in np.swapaxes(_quaternions(local), 0, 1)]), 0, 1),
            root=(heads[0] + self.translation) @ TO_Y_UP.T,
        )

    def vertices(self, body: Body, together: int = 32) -> Iterator[np.ndarray]:
        """Vertices (V, 3) float32 of each frame, y up."""
        shape = torch.as_tensor(self.shape)[None]
        for start in range(0, len(self.times), together):
            rotations = torch.as_tensor(self.rotations[start : start + together])
            with torch.no_grad():
                posed = body.skin(rotations, shape.expand(len(rotations), -1)).numpy()
            yield from ((posed + self.translation[start : start + together, None]) @ TO_Y_UP.T).astype(np.float32)


@dataclass(frozen=True)
class Skeleton:
    """Linear blend skinning as file formats have it: bones unturned at rest, local turns and a moving root.

    rest (V, 3) vertices and heads (J, 3), offsets (J, 3) from the parents' heads (the root's from the origin): the body
    at rest. local (F, J, 4) quaternions x, y, z, w against the parents; root (F, 3) place of the root.
    """

    rest: np.ndarray
    heads: np.ndarray
    offsets: np.ndarray
    local: np.ndarray
    root: np.ndarray


def animations(results: Sequence[FrameResult]) -> list[Animation]:
    """Everybody in a clip's results, by number. The last entry's body shape is that of all frames."""
    found: dict[int, dict[int, object]] = {}
    for number, frame in enumerate(results):
        for person in frame.people:
            found.setdefault(person.track, {})[number] = person
    result = []
    for track, seen in sorted(found.items()):
        first, last = min(seen), max(seen)
        held, people, present = seen[first], [], []
        for number in range(first, last + 1):
            held = seen.get(number, held)
            people.append(held)
            present.append(number in seen)
        result.append(
            Animation(
                track,
                np.array([frame.time for frame in results[first : last + 1]]) - results[0].time,
                np.array(present),
                np.stack([person.rotations for person in people]).astype(np.float32),
                np.stack([person.translation for person in people]).astype(np.float32),
                np.asarray(people[-1].shape, np.float32),
            )
        )
    return result


def steady(quaternions: np.ndarray) -> np.ndarray:
    """The same turns (F, 4), each with the sign that is nearer to the one before: players blend between frames."""
    turns_over = (quaternions[1:] * quaternions[:-1]).sum(-1) < 0
    signs = np.concatenate([[1.0], np.where(np.cumsum(turns_over) % 2, -1.0, 1.0)])
    return quaternions * signs[:, None]


def _quaternions(matrices: np.ndarray) -> np.ndarray:
    """x, y, z, w (F, J, 4) of rotations (F, J, 3, 3)."""
    return Rotation.from_matrix(matrices.reshape(-1, 3, 3)).as_quat().reshape(*matrices.shape[:2], 4)
