"""Which hypothesis of every frame: the path of least cost through time, decided with a bounded look-ahead.

Dynamic programming over pairs of neighbouring hypotheses (Viterbi of second order), because acceleration takes three
frames: cost = unlikeliness + motion of the joints + change of that motion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PathOptions:
    """What things cost. speed: metres a second, acceleration: metres a second², that cost as much as one unit of
    unlikeliness; look_ahead: frames after which a choice is final."""

    speed: float = 12.0
    acceleration: float = 200.0
    look_ahead: int = 12


class PathFinder:
    """Chooses hypotheses as frames come in. All frames have N hypotheses; a new finder for every unbroken stretch."""

    def __init__(self, options: PathOptions | None = None) -> None:
        self.options = options or PathOptions()
        self._joints: list[np.ndarray] = []
        self._times: list[float] = []
        self._cost: np.ndarray | None = None  # (N, N) of the best path that ends with these two
        self._back: list[np.ndarray] = []  # (N, N) what came before each pair, for the open frames but the last two
        self._open = 0  # frames without a choice

    def push(self, unlikeliness: np.ndarray, joints: np.ndarray, time: float) -> list[int]:
        """Add a frame; returns the choices that have become final: none, or that of the oldest open frame.

        Args:
            unlikeliness: (N,) of each hypothesis, about 1 apart where it matters.
            joints: (N, J, 3) metres.
            time: seconds, growing.
        """
        self._joints.append(np.asarray(joints, np.float64))
        self._times.append(time)
        self._open += 1
        first = np.asarray(unlikeliness, np.float64)
        if len(self._joints) == 1:
            self._cost = first[None]  # one imaginary predecessor
            return []
        before, now = self._joints[-2:]
        step = max(time - self._times[-2], 1e-3)
        velocity = (now[None] - before[:, None]) / step  # (N, N, J, 3) from each to each
        motion = np.square(velocity / self.options.speed).sum(-1).mean(-1)
        if len(self._joints) == 2:
            self._cost = self._cost[0][:, None] + motion + first
            return self._final()
        earlier = max(self._times[-2] - self._times[-3], 1e-3)
        incoming = (before[None] - self._joints[-3][:, None]) / earlier
        # (N of two frames ago, N before, N now); the squared difference is expanded so that no joints are repeated.
        a, b = incoming / self.options.acceleration, velocity / self.options.acceleration
        joint_count = a.shape[2]
        span = (step + earlier) / 2
        square = (
            np.square(a).sum((-1, -2))[:, :, None]
            + np.square(b).sum((-1, -2))[None]
            - 2 * np.einsum("ijkx,jlkx->ijl", a, b)
        ) / (joint_count * span**2)
        total = self._cost[:, :, None] + square
        self._back.append(total.argmin(0))
        self._cost = total.min(0) + motion + first
        self._joints = self._joints[-3:]
        self._times = self._times[-3:]
        return self._final()

    def finish(self) -> list[int]:
        """The choices of all frames that are still open; the finder is used up."""
        if self._cost is None:
            return []
        return self._trace()

    def _trace(self) -> list[int]:
        """The best path's choices for the open frames."""
        one, two = np.unravel_index(self._cost.argmin(), self._cost.shape)
        path = [int(two), int(one)]
        for back in reversed(self._back):
            path.append(int(back[path[-1], path[-2]]))
        return path[: self._open][::-1]

    def _final(self) -> list[int]:
        if self._open > 1:
            self._back = self._back[max(0, len(self._back) - self._open + 2) :]
        if self._open <= self.options.look_ahead:
            return []
        chosen = self._trace()[0]
        # Paths that went elsewhere in the decided frame are given up, so that later choices follow from this one.
        self._cost = np.where(self._origin() == chosen, self._cost, np.inf)
        self._back = self._back[1:]
        self._open -= 1
        return [chosen]

    def _origin(self) -> np.ndarray:
        """From which choice in the oldest open frame the best path to each pair (N, N) at the end comes."""
        rows = np.arange(self._cost.shape[0])[:, None]
        origin = np.broadcast_to(rows, self._cost.shape)
        for number, back in enumerate(self._back):
            # The pair (b, c) comes from (back[b, c], b).
            origin = back if number == 0 else origin[back, rows]
        return origin
