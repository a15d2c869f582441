"""All hypotheses of every sighting, as poses of the rig on their landmarks: the costly part of a clip, kept small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mega_backend import camera
from mega_backend.people import square_crop
from mega_backend.recovery import Recoverer
from mega_backend.recovery.placing import onto_landmarks
from mega_backend.refinement import Evidence, Framing, landmark_trust
from mega_backend.rig import Pose

from .tracking import Sighting

ROWS = 40
"""Hypotheses that are decoded and refined together: bounds memory."""
FIT_STEPS, REFINE_STEPS = 2, 3
"""A step fewer each than for photographs: joints differ by less than a millimetre against the pelvis, and bodies are
placed later anyway."""
STRAYED = 1.0
"""How unlikely it is that a sample is nearer to the truth than the expected answer: of five, the nearest is by 4 %."""
_PARTS = ("rotations", "shape", "translation", "joints", "unlikeliness")
_LIMB_JOINTS = [18, 19, 20, 21, 4, 5, 7, 8]
_LIMB_LANDMARKS = [13, 14, 15, 16, 25, 26, 27, 28]


@dataclass
class Row:
    """One person in one frame.

    index, time: of the frame. N hypotheses: rotations (N, J, 3, 3), shape (N, S), translation (N, 3) as of `rig.Pose`,
    joints (N, 22, 3), unlikeliness (N,). hypothesis: the chosen one, −1 while the choice is open.
    """

    index: int
    time: float
    sighting: Sighting
    rotations: np.ndarray
    shape: np.ndarray
    translation: np.ndarray
    joints: np.ndarray
    unlikeliness: np.ndarray
    hypothesis: int = -1


Seen = tuple[int, int, float, Sighting]
"""Track, frame's index and time, and what was seen."""


class Hypothesiser:
    """Recovers sightings.

    Args:
        recoverer: with a rig and a model that reads landmarks. size: width, height of the pictures. focal_length: in
        pixels. count: N. seed, steps, temperature: of the sampling.
    """

    def __init__(
        self,
        recoverer: Recoverer,
        size: tuple[int, int],
        focal_length: float,
        count: int,
        seed: int,
        steps: int,
        temperature: float,
    ) -> None:
        self.recoverer, self.size, self.focal_length = recoverer, size, focal_length
        self.count, self.seed, self.steps, self.temperature = count, seed, steps, temperature
        self.refiner = recoverer.refiner
        self.body = self.refiner.rig.body

    @torch.no_grad()
    def rows(self, seen: Sequence[Seen]) -> list[Row]:
        """All hypotheses of sightings, each on its landmarks."""
        done: list[Row] = []
        each = max(1, ROWS // self.count)
        for start in range(0, len(seen), each):
            done += self._together(seen[start : start + each])
        return done

    def _together(self, seen: Sequence[Seen]) -> list[Row]:
        count = self.count
        sightings = [sighting for *_, sighting in seen]
        vertices, log_probability, token_count = self._meshes(seen)
        pose = self.refiner.rig.fit(tensor(vertices.reshape(-1, *vertices.shape[2:])), steps=FIT_STEPS)
        evidence = self.evidence([sighting for sighting in sightings for _ in range(count)])
        pose = self.refiner.refine(pose, evidence, steps=REFINE_STEPS)
        joints = posed_joints(self.body, pose).reshape(len(seen), count, -1, 3)
        result = []
        for i, (_, index, time, sighting) in enumerate(seen):
            own = slice(i * count, (i + 1) * count)
            unlikely = (log_probability[i].max() - log_probability[i]) / token_count
            unlikely = 0.3 * unlikely + self._misfit(joints[i], sighting) + STRAYED * (np.arange(count) > 0)
            parts = (part[own].cpu().numpy() for part in (pose.rotations, pose.shape, pose.translation))
            result.append(Row(index, time, sighting, *parts, joints[i], unlikely))
        return result

    def _meshes(self, seen: Sequence[Seen]) -> tuple[np.ndarray, np.ndarray, int]:
        """What the model says: vertices (P, N, V, 3) in space, log-probabilities (P, N), tokens of a mesh."""
        recoverer, count = self.recoverer, self.count
        sightings = [sighting for *_, sighting in seen]
        crops = [square_crop(sighting.landmarks, self.size) for sighting in sightings]
        features = recoverer.features(None, crops, sightings)
        best = recoverer.model.best(features)
        tokens, log_probability = best.tokens[:, None], best.log_probability[:, None]
        # The same noise in every frame of a person: hypothesis n of neighbouring frames then is the same idea.
        seeds = [self.seed * 1_000_003 + track for track, *_ in seen]
        if count > 1:
            drawn = recoverer.model.draw(features, count - 1, self.steps, self.temperature, generator=seeds)
            tokens = torch.cat([tokens, drawn.tokens], dim=1)
            log_probability = torch.cat([log_probability, drawn.log_probability], dim=1)
        tokens, log_probability = tokens.cpu().numpy(), log_probability.float().cpu().numpy()
        rotation, weak = recoverer.poses(features, tokens, seeds)
        canonical = recoverer.decode(tokens.reshape(-1, tokens.shape[-1]))
        canonical = canonical.reshape(len(seen), count, *canonical.shape[1:])
        vertices = []
        for i, (sighting, crop) in enumerate(zip(sightings, crops, strict=True)):
            turn, start = recoverer.place(rotation[i], weak[i], crop, self.focal_length, self.size)
            turned = canonical[i] @ turn.transpose(0, 2, 1).astype(np.float32)
            framing = Framing(crop, self.focal_length, self.size)
            translation = onto_landmarks(recoverer.joints(turned, "coco17"), sighting.landmarks, framing, start)
            vertices.append(turned + translation[:, None].astype(np.float32))
        return np.stack(vertices), log_probability, tokens.shape[-1]

    @torch.no_grad()
    def rig_errors(self, seen: Sequence[Seen]) -> np.ndarray:
        """Metres (P, N) that the rig is off the mesh it is fitted to, mean over vertices; landmarks move it later."""
        vertices = tensor(self._meshes(seen)[0])
        flat = vertices.flatten(0, 1)
        pose = self.refiner.rig.fit(flat, steps=FIT_STEPS)
        rigged = self.body.skin(pose.rotations, pose.shape) + pose.translation[:, None]
        return (rigged - flat).norm(dim=-1).mean(-1).reshape(vertices.shape[:2]).numpy()

    def evidence(self, sightings: Sequence[Sighting]) -> Evidence:
        """What the refiner reads of sightings."""
        landmarks = np.stack([sighting.landmarks for sighting in sightings])
        trust = np.stack([landmark_trust(sighting.landmarks, self.size) for sighting in sightings])
        sides = np.array([square_crop(sighting.landmarks, self.size).side for sighting in sightings])
        pixels = landmarks[..., :2] - np.array(self.size) / 2
        return Evidence(tensor(pixels), tensor(trust), self.focal_length, tensor(sides))

    def _misfit(self, joints: np.ndarray, sighting: Sighting) -> np.ndarray:
        """(N,) how far elbows, wrists, knees and ankles lie from the landmarks, in twentieths of the box side."""
        points = camera.project(joints[:, _LIMB_JOINTS], self.focal_length, self.size)
        marks = sighting.landmarks[_LIMB_LANDMARKS]
        trust = landmark_trust(marks, self.size)
        side = max(sighting.box[2] - sighting.box[0], sighting.box[3] - sighting.box[1], 1.0)
        return (np.linalg.norm(points - marks[:, :2], axis=-1) * trust).sum(1) / max(trust.sum(), 1.0) / side * 20


def tensor(array: np.ndarray) -> torch.Tensor:
    """Any array as float32."""
    return torch.as_tensor(np.asarray(array, np.float32))


def posed_joints(body, pose: Pose, name: str = "body22") -> np.ndarray:
    """Joints (B, K, 3) of poses, in space."""
    return (body.skin_joints(pose.rotations, pose.shape, name) + pose.translation[:, None]).cpu().numpy()


def packed(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """What was worked out for rows, as arrays that `unpacked` reads; sightings are left out."""
    return {name: np.stack([getattr(row, name) for row in rows]) for name in _PARTS} if rows else {}


def unpacked(arrays: Mapping[str, np.ndarray], seen: Sequence[Seen]) -> list[Row]:
    """Rows of sightings from `packed` arrays."""
    return [
        Row(index, time, sighting, *(arrays[name][number] for name in _PARTS))
        for number, (_, index, time, sighting) in enumerate(seen)
    ]
