"""What travels of motion, beside `protocol`: clips in, the people of every frame out, and the rig under their meshes.

`POST /video` is sent as several messages: `video` with the parameters, then either `part` after `part` of a video file
(array `data`), or `picture` after `picture` of a sequence (field `index`, array `picture`: a picture file's bytes). The
answer:

    queued*  progress*  clip  (frame | build | progress)*  done | error

`clip` has what holds for all frames. `frame` has the people of one of them. `build` has the body that a track's
armature stands on: it comes before the track's first frame, and again where more frames have taught better.

`GET /rig` gives the bones and weights of the body as one message `rig`. `POST /pose` finds the rig in meshes
(`vertices` (N,V,3), camera space) and answers as for a clip of N frames with one person.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from .protocol import Message, ProtocolError, Sampling, bounded

SMOOTHING: Final = ("off", "light", "strong")
PART_BYTES: Final = 1 << 20
"""Of a video file in one message."""


@dataclass(frozen=True)
class VideoParameters(Sampling):
    """`POST /video`. Frames of a file count from 0: `start`, `stop` (0: to the end), `step`, as of a slice.

    Pictures of a sequence are all used, and are `rate` a second apart (0: what the file says, or 25). `focal_length` in
    pixels (0: a usual one). `meshes`: whether frames carry vertices; armatures do without.
    """

    hypotheses: int = bounded(5, 1, 1000)
    start: int = bounded(0, 0, 10**8)
    stop: int = bounded(0, 0, 10**8)
    step: int = bounded(1, 1, 10**6)
    rate: float = bounded(0.0, 0.0, 1000.0)
    focal_length: float = bounded(0.0, 0.0, 1e9)
    smoothing: str = field(default="light", metadata={"choices": SMOOTHING})
    meshes: bool = True


@dataclass(frozen=True)
class PoseParameters:
    """`POST /pose`: array `vertices` (N,V,3) float, meshes of the body in camera space."""


# ----------------------------------------------------------------------------------------------------------------------
# The clip, on its way in


def video_request(values: VideoParameters) -> Message:
    """The first message of a `POST /video`."""
    return Message("video", dataclasses.asdict(values))


def part(data: bytes) -> Message:
    """The next bytes of a video file."""
    return Message("part", arrays={"data": np.frombuffer(data, np.uint8)})


def picture(index: int, data: bytes) -> Message:
    """A picture file of a sequence; `index` is the number that its frame will have."""
    return Message("picture", {"index": index}, {"picture": np.frombuffer(data, np.uint8)})


def upload_bytes(message: Message, kind: str, name: str) -> bytes:
    """The bytes in a `part` or `picture` message. Raises ProtocolError where it is something else."""
    data = message.arrays.get(name)
    if message.kind != kind or data is None or data.dtype != np.uint8 or data.ndim != 1:
        raise ProtocolError(f"A clip is sent as 'part' messages or as 'picture' messages, not {message.kind[:40]!r}.")
    return data.tobytes()


# ----------------------------------------------------------------------------------------------------------------------
# Motion, on its way out


@dataclass(frozen=True)
class ClipFacts:
    """What holds for all frames of a clip: `size` (width, height) upright, focal length in pixels, frames a second of
    the clip itself, and how many frames will come (0 where the file does not say)."""

    size: tuple[int, int]
    focal_length: float
    rate: float
    count: int

    def message(self) -> Message:
        return Message("clip", dataclasses.asdict(self))

    @classmethod
    def of(cls, message: Message) -> ClipFacts:
        """Raises ProtocolError where the message does not hold together."""
        try:
            fields = message.fields
            width, height = (int(side) for side in fields["size"])
            return cls((width, height), float(fields["focal_length"]), float(fields["rate"]), int(fields["count"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError("The backend's description of the clip does not hold together.") from error


@dataclass(frozen=True)
class Moment:
    """The people P of a frame: its number in the clip, its time in seconds. Camera axes (x right, y down, z forward).

    track (P,) int32: each person's number. rotations (P,J,3,3): of the bones in the world, from the pose of the track's
    `Build`. root (P,3): where the root bone's head is. vertices (P,V,3), or (P,0,3) where none were asked for.
    box (P,4): NaN in a gap. hypothesis (P,): which one was chosen, −1 in a gap.
    """

    index: int
    time: float
    track: np.ndarray
    rotations: np.ndarray
    root: np.ndarray
    vertices: np.ndarray
    box: np.ndarray
    hypothesis: np.ndarray

    def message(self) -> Message:
        arrays = {name: getattr(self, name) for name in MOMENT_ARRAYS}
        return Message("frame", {"index": self.index, "time": self.time}, arrays)

    @classmethod
    def of(cls, message: Message) -> Moment:
        """Raises ProtocolError where the message does not hold together."""
        try:
            arrays = {name: message.arrays[name] for name in MOMENT_ARRAYS}
            if len({len(array) for array in arrays.values()}) > 1 or arrays["vertices"].shape[2:] != (3,):
                raise ValueError("sizes differ")
            return cls(int(message.fields["index"]), float(message.fields["time"]), **arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError("The backend's description of a frame does not hold together.") from error


MOMENT_ARRAYS: Final = tuple(entry.name for entry in dataclasses.fields(Moment))[2:]


@dataclass(frozen=True)
class Build:
    """A person's own body in the pose that it was skinned in, arms hanging away from it: vertices (V,3), heads of the
    bones (J,3). It faces +Z (y up, left = +X)."""

    track: int
    vertices: np.ndarray
    heads: np.ndarray

    def message(self) -> Message:
        return Message("build", {"track": self.track}, {"vertices": self.vertices, "heads": self.heads})

    @classmethod
    def of(cls, message: Message) -> Build:
        """Raises ProtocolError where the message does not hold together."""
        try:
            return cls(int(message.fields["track"]), message.arrays["vertices"], message.arrays["heads"])
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError("The backend's description of a body does not hold together.") from error


@dataclass(frozen=True)
class RigTopology:
    """The bones of a body and how its vertices hang on them.

    names (J), parents (J,) int32 (−1 for the root, parents first); joints (V,K) uint16 and weights (V,K) float32, each
    row summing to 1.
    """

    names: tuple[str, ...]
    parents: np.ndarray
    joints: np.ndarray
    weights: np.ndarray

    def message(self) -> Message:
        arrays = {"parents": self.parents, "joints": self.joints, "weights": self.weights}
        return Message("rig", {"names": list(self.names)}, arrays)

    @classmethod
    def of(cls, message: Message) -> RigTopology:
        """Raises ProtocolError where the message does not hold together."""
        try:
            names = tuple(str(name) for name in message.fields["names"])
            rig = cls(names, *(message.arrays[name] for name in ("parents", "joints", "weights")))
            before = (rig.parents < np.arange(len(names))).all() and len(rig.parents) == len(names)
            if not before or rig.joints.shape != rig.weights.shape or rig.joints.max(initial=0) >= len(names):
                raise ValueError("indices out of range")
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError("The backend's description of the rig does not hold together.") from error
        return rig


def rig_topology(body: Any, most: int = 8) -> RigTopology:
    """The rig of a `mega_backend.body.Body`; each vertex keeps its `most` largest weights."""
    weights = np.asarray(body.weights.cpu(), np.float32)
    order = np.argsort(-weights, axis=1, kind="stable")[:, :most]
    kept = np.take_along_axis(weights, order, axis=1)
    kept /= kept.sum(1, keepdims=True)
    return RigTopology(
        tuple(body.joint_names), np.array(body.parents, np.int32), order.astype(np.uint16), kept.astype(np.float32)
    )


def stacked(people: Sequence[dict[str, np.ndarray]], bones: int) -> dict[str, np.ndarray]:
    """Arrays of a `Moment` from those of its people; shapes hold for nobody too."""
    empty = {"track": ((), np.int32), "rotations": ((bones, 3, 3), np.float32), "root": ((3,), np.float32),
             "vertices": ((0, 3), np.float32), "box": ((4,), np.float32), "hypothesis": ((), np.int32)}  # fmt: skip
    return {
        name: np.stack([person[name] for person in people]).astype(dtype) if people else np.zeros((0, *shape), dtype)
        for name, (shape, dtype) in empty.items()
    }
