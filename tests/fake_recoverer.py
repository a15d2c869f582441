"""A recoverer without a model: a ball for a body, so that what carries results can be tested in milliseconds.

`python -m tests.fake_recoverer [PORT]` serves it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from mega_backend.result import Person, Recovery

PARTS = ["head", "torso", "left_arm", "right_arm", "left_hand", "right_hand", "left_leg", "right_leg", "left_foot",
         "right_foot"]  # fmt: skip
AROUND, RINGS = 16, 9


@dataclass
class FakeBody:
    """A capsule 1.7 m tall, of quads with UVs."""

    quads: np.ndarray
    uv: np.ndarray
    face_uv: np.ndarray
    vertex_part: np.ndarray
    part_names: list[str]
    vertices: np.ndarray

    @classmethod
    def make(cls, around: int = AROUND, rings: int = RINGS) -> FakeBody:
        ring, column = np.meshgrid(np.arange(rings), np.arange(around), indexing="ij")
        angle, height = 2 * np.pi * column / around, ring / (rings - 1)
        radius = 0.25 * np.sqrt(1 - (1.9 * (height - 0.5)) ** 2)
        vertices = np.stack([radius * np.sin(angle), 1.7 * (height - 0.5), radius * np.cos(angle)], -1).reshape(-1, 3)
        at = lambda r, c: r * around + c % around  # noqa: E731
        faces = [
            (at(r, c), at(r, c + 1), at(r + 1, c + 1), at(r + 1, c)) for r in range(rings - 1) for c in range(around)
        ]
        quads = np.array(faces, np.int64)
        uv = np.stack([column / around, height], -1).reshape(-1, 2).astype(np.float32)
        parts = np.minimum(np.arange(len(vertices)) * len(PARTS) // len(vertices), len(PARTS) - 1)
        return cls(quads, uv, quads, parts, list(PARTS), vertices.astype(np.float32))


class FakeRecoverer:
    """Two people side by side in any picture; a black picture has nobody. `delay` seconds pass for each step."""

    device = "cpu"

    def __init__(self, delay: float = 0.0, body: FakeBody | None = None):
        self.body = body or FakeBody.make()
        self.delay = delay
        self.card = {"name": "fake"}
        self.steps_done = 0

    @property
    def rig(self):
        raise ValueError("this model's body has no rig")

    def find(self, picture, boxes=None, smallest=0.0, progress=None):
        """The two people, left and right; in a box, whoever is drawn round more than 4 pixels."""
        height, width = picture.shape[:2]
        self._work(2, progress)
        if boxes is None:
            halves = [[0.1, 0.1, 0.45, 0.95], [0.55, 0.1, 0.9, 0.95]]
            boxes = np.array(halves if picture.max() else []).reshape(-1, 4) * [width, height, width, height]
        elif (boxes[:, 2:] - boxes[:, :2] < 4).any():
            raise ValueError("nobody is recognised in box 1: draw it round one whole person")
        return [
            SimpleNamespace(box=box, landmarks=np.full((33, 3), n + 0.5), landmarks_3d=np.zeros((33, 3)), score=1.0)
            for n, box in enumerate(boxes)
        ]

    def recover(self, picture, hypotheses=5, seed=0, steps=5, temperature=1.0, progress=None, boxes=None, found=None):
        height, width = picture.shape[:2]
        self._work(steps, progress)
        chosen = found if boxes is None else boxes
        people = 0 if picture.max() == 0 else 2 if chosen is None else len(chosen)
        focal = 1000 / 224 * max(width, height)
        offsets = np.array([[0.6 * (2 * i - people + 1), 0.1 * i, 8.0 + i] for i in range(people)])
        return self._recovery((width, height), focal, offsets, hypotheses, seed)

    def resample(self, recovery, keep=(), hypothesis=0, hypotheses=5, seed=0, steps=5, temperature=1.0, progress=None,
                 picture=None):  # fmt: skip
        self._work(steps, progress)
        offsets = np.stack([person.translation[hypothesis] for person in recovery.people])
        return self._recovery(recovery.picture_size, recovery.focal_length, offsets, hypotheses, seed)

    def random(self, count, seed=0, steps=20, temperature=1.3, progress=None):
        self._work(steps, progress)
        return self._recovery((1, 1), 1000.0, np.zeros((count, 3)), 1, seed)

    def _work(self, steps, progress) -> None:
        for step in range(steps):
            if progress is not None:
                progress(step / steps, f"step {step + 1} of {steps}")
            time.sleep(self.delay)
            self.steps_done += 1

    def _recovery(self, size, focal, offsets, count, seed) -> Recovery:
        people = []
        for index, offset in enumerate(offsets):
            generator = np.random.default_rng((seed, index))
            bend = np.concatenate([[0.0], generator.normal(0, 0.1, count - 1)])
            canonical = np.repeat(self.body.vertices[None], count, 0)
            canonical[:, :, 0] += bend[:, None] * canonical[:, :, 1] ** 2
            rotation = np.repeat(np.diag([1.0, -1.0, -1.0]).astype(np.float32)[None], count, 0)
            translation = np.repeat(np.asarray(offset, np.float32)[None], count, 0)
            vertices = (canonical @ rotation[0].T + translation[:, None]).astype(np.float32)
            people.append(
                Person(
                    box=np.array([10, 10, 60, 90], np.float32),
                    landmarks=np.full((33, 3), 0.5, np.float32),
                    landmarks_3d=np.zeros((33, 3), np.float32),
                    tokens=generator.integers(0, 512, (count, 54)).astype(np.uint16),
                    log_probability=-np.arange(count, dtype=np.float32),
                    rotation=rotation,
                    translation=translation,
                    vertices=vertices,
                    joints=vertices[:, :17],
                    spread=canonical.std(0).max(-1).astype(np.float32),
                )
            )
        faces = self.body.quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3).astype(np.int32)
        meta = {"model": "fake", "seed": seed, "hypotheses": count, "token_count": 54, "joint_names": ["j"] * 17}
        return Recovery(tuple(size), float(focal), people, faces, meta)


if __name__ == "__main__":
    from mega_backend import server

    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8765
    delay = float(sys.argv[2]) if len(sys.argv) > 2 else 0.1
    sys.exit(server.serve(FakeRecoverer(delay), port=port))
