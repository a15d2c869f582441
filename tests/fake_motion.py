"""A recoverer that knows the bundled body's rig and makes motion up: clips and armatures without a model.

`python -m tests.fake_motion [PORT] [DELAY]` serves it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from fake_recoverer import FakeRecoverer
from scipy.spatial.transform import Rotation

from mega_backend.body import Body
from mega_backend.rig import Rig
from mega_backend.video.clips import Clip
from mega_backend.video.motion import FrameResult, TrackedPerson

UPRIGHT = np.diag([1.0, -1.0, -1.0])
"""Body axes to camera axes: facing the camera."""


class FakeMotion(FakeRecoverer):
    """Two people in every clip: the first walks to the right, the second is away in the first two and last two frames.

    Its single pictures have the bundled body too. `frames` counts the frames that were worked on.
    """

    def __init__(self, delay: float = 0.0):
        super().__init__(delay)
        self._ball = FakeRecoverer()
        self.body = Body.bundled()
        self._rig = Rig(self.body)
        self.frames = 0

    @property
    def rig(self) -> Rig:
        return self._rig

    def recover_video(self, clip: Clip, options=None, focal_length=None, progress=None) -> Iterator[FrameResult]:
        count = clip.count
        for number, frame in enumerate(clip):
            if progress is not None:
                progress(number / count, f"{number} frames, 9.0 a second, {(count - number) / 9:.0f} s left")
            time.sleep(self.delay)
            self.frames += 1
            tracks = [1] if number < 2 or number >= count - 2 else [1, 2]
            yield FrameResult(frame.index, frame.time, [self._person(track, frame.index) for track in tracks])

    def _person(self, track: int, index: int) -> TrackedPerson:
        rotations = pose(self.body, track, index)
        shape = np.zeros(self.body.shape_count, np.float32)
        shape[:3] = (0.8, -0.5, 0.3) if track == 1 else (-1.0, 0.6, 0.0)
        translation = np.array([0.9 * (track - 1.5) + 0.02 * index, 0.1, 6.0 + track], np.float32)
        nothing = np.zeros((22, 3), np.float32)
        box = np.array([10, 10, 60, 90], np.float32)
        return TrackedPerson(
            track, rotations, shape, translation, nothing, box, np.zeros((33, 3), np.float32), 0, nothing[None]
        )

    def _recovery(self, size, focal, offsets, count, seed):
        recovery = self._ball._recovery(size, focal, offsets, count, seed)
        for index, (person, offset) in enumerate(zip(recovery.people, offsets, strict=True)):
            rotations = np.stack([pose(self.body, index + 1, seed + each) for each in range(count)])
            shape = torch.zeros(count, self.body.shape_count)
            shape[:, 0] = 0.7
            with torch.no_grad():
                posed = self.body.skin(torch.as_tensor(rotations), shape).numpy() + np.asarray(offset, np.float32)
            person.vertices, person.spread = posed.astype(np.float32), posed.std(0).max(-1).astype(np.float32)
            person.joints = person.vertices[:, :17]
        recovery.faces = self.body.faces.numpy().astype(np.int32)
        return recovery


def pose(body: Body, track: int, index: int) -> np.ndarray:
    """World rotations (J,3,3) from the T-pose: a believable swing of every bone, different for each track and frame."""
    local = np.random.default_rng(track).normal(0, 0.25, (body.joint_count, 3)) * np.sin(0.4 * index + track)
    turns = Rotation.from_rotvec(local).as_matrix()
    world = np.empty_like(turns)
    for joint, parent in enumerate(body.parents):
        world[joint] = (UPRIGHT if parent < 0 else world[parent]) @ turns[joint]
    return world.astype(np.float32)


if __name__ == "__main__":
    from mega_backend import server

    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8765
    delay = float(sys.argv[2]) if len(sys.argv) > 2 else 0.1
    sys.exit(server.serve(FakeMotion(delay), port=port))
