"""`python -m train.evaluate video`: motion along time against frame by frame, on held-out actors' recordings.

A still camera sees recorded motion on held-out bodies. The detector's habits are those of `train.data.views`, frame by
frame as likely as there, but drawn so that they last: see `Lasting`. In the second setting the upper or the lower half
of the body is hidden in 30 % of the frames, for half a second at a time. Joints are the 14 of the standard protocol,
pelvis at the origin; foot sliding is how fast the toes move in space while those of the recording stand. Last comes how
far the rig, which becomes the armature, is off the mesh of each hypothesis.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.signal import lfilter
from torch import Tensor

import mega_backend
from mega_backend import camera
from mega_backend.body import Body
from mega_backend.people import visible_box
from mega_backend.people.landmarks import MIRRORED
from mega_backend.recovery import Recoverer
from mega_backend.rotations import about_axis
from mega_backend.video.motion import MotionOptions, MotionSolver, TrackedPerson
from mega_backend.video.recover import LONGEST_CHUNK
from mega_backend.video.tracking import Sighting
from train import metrics
from train.config import UserError
from train.data import mocap, shapes, views
from train.data.retarget import Retargeter

HELP = "motion over clips: the path chosen along time against hypothesis 0 of each frame"
SIZE = (1280, 720)
LSP14 = list(metrics.BODY22_TO_LSP14)
TOES = [10, 11]
STANDS = 0.15
"""Metres a second below which a recorded toe counts as standing."""
SETTINGS = {"whole": 0.0, "half hidden": 0.3}
"""Share of frames in which half of the body is hidden."""
RIGS = 4
"""Frames of each clip whose meshes are compared with their rigs."""
HIDDEN_FOR = 0.5
"""Seconds that half of the body stays hidden."""


def configure(cli: argparse.ArgumentParser) -> None:
    """The subcommand's arguments."""
    cli.add_argument("--model", default="default", help="model folder (default: the bundled one)")
    cli.add_argument("--mocap", type=Path, required=True, help="folder of motion capture with the held-out actors")
    cli.add_argument("--split", default="test", choices=("val", "test"))
    cli.add_argument("--clips", type=int, default=8)
    cli.add_argument("--frames", type=int, default=90, help="of each clip, at the recording's rate")
    cli.add_argument("--hypotheses", type=int, default=5)
    cli.add_argument("--smoothing", nargs="+", default=["light"], choices=("off", "light", "strong"))
    cli.add_argument("--only", nargs="+", choices=tuple(SETTINGS), default=tuple(SETTINGS))
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--device", default="cpu")
    cli.add_argument("-o", "--output", type=Path, help="write the numbers to this JSON file and a table beside it")


class Lasting(views._Random):
    """Draws whose first dimension is time: each entry has the distribution of `views`' own, and changes slowly.

    A normal number is the sum of a part that the clip keeps, one that fades over `time` seconds (Ornstein–Uhlenbeck)
    and one that every frame draws anew; uniform numbers and events follow from normal ones. Shares are of variance.
    They were measured: 60 rendered frames of two recordings, 10 a second, through the detector. Its errors correlated
    after 0.1, 0.2, 0.3 and 0.5 seconds by 0.60, 0.38, 0.22, 0.15 in the picture and by 0.75, 0.51, 0.34, 0.16 in space.

    Args:
        rate: frames a second.
    """

    kept, fading, time = 0.15, 0.8, 0.22

    def __init__(self, generator: torch.Generator, rate: float) -> None:
        super().__init__(generator)
        self.memory = math.exp(-1 / (rate * self.time))

    def normal(self, *shape: int) -> Tensor:
        kept = super().normal(1, *shape[1:]).expand(shape)
        steps = super().normal(*shape).double().numpy()
        steps[1:] *= math.sqrt(1 - self.memory**2)
        fading = torch.from_numpy(lfilter([1], [1, -self.memory], steps, axis=0)).float()
        fresh = super().normal(*shape)
        shares = (self.kept, self.fading, 1 - self.kept - self.fading)
        return sum(math.sqrt(share) * part for share, part in zip(shares, (kept, fading, fresh), strict=True))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.special.ndtr(self.normal(*shape))


@dataclass(frozen=True)
class Filmed:
    """A clip: sightings of its frames, times (F,) in seconds, true joints (F, 22, 3) in camera axes."""

    sightings: list[Sighting]
    times: np.ndarray
    joints: Tensor


def film(recording: mocap.Recording, body: Body, frames: int, generator: torch.Generator, hidden: float) -> Filmed:
    """The middle of a recording on a held-out body, as a still camera and the detector see it.

    hidden: share of frames in which the upper or the lower half of the body is hidden.
    """
    start = (len(recording.quaternions) - frames) // 2
    take = slice(start, start + frames)
    rotations = Retargeter(body)(recording.quaternions[take])
    shape = shapes.sample(body, 1, generator, "test").expand(frames, -1)
    heading = 2 * math.pi * torch.rand((), generator=generator)
    pitch = torch.deg2rad(6 + 10 * torch.randn((), generator=generator))
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    turn = about_axis(0, pitch) @ flip @ about_axis(1, heading)
    moved = recording.positions[take] - recording.positions[take].mean(0)
    focal = camera.default_focal_length(SIZE)
    # As far away that the whole clip fits into the picture.
    reach = 1.2 + (moved @ turn.T).abs().amax(0)
    distance = (focal * reach[:2] / (torch.tensor(SIZE) / 2)).amax() + reach[2]
    place = moved @ turn.T + torch.tensor([0.0, 0.0, 1.0]) * distance
    joints = body.skin_joints(rotations, shape, "body22")
    origin = joints[:, :1]
    points = (body.skin_joints(rotations, shape, "mediapipe33") - origin) @ turn.T
    sightings = see(points, place, focal, Lasting(generator, recording.fps), hidden, recording.fps)
    return Filmed(sightings, np.arange(frames) / recording.fps, (joints - origin) @ turn.T + place[:, None])


def see(points: Tensor, place: Tensor, focal: float, random: Lasting, hidden: float, rate: float) -> list[Sighting]:
    """What the detector says of landmarks points (F, 33, 3) round place (F, 3), camera axes."""
    frames = len(points)
    options = views.ViewOptions(cut_off=0.0, occluded=0.0, missing=0.0, has_estimate=1.0)
    size = (points.amax(1) - points.amin(1)).amax(-1)
    whole = points + place[:, None]
    # Metres at the depth of the pelvis, in which the detector's errors are given.
    scale = (focal / place[:, 2])[:, None, None]
    flat = focal * whole[..., :2] / whole[..., 2:] / scale
    unseen = views.behind_torso(points, flat, random)
    # What is covered is guessed as badly as what lies beyond the frame: where a board hid the legs in those rendered
    # frames, the detector put knees and ankles 0.10 and 0.13 of the body's size away, with visibilities of 0.3.
    covered = half_hidden(frames, hidden, random.generator, rate) if hidden else torch.zeros_like(unseen)
    worse = torch.where(random.happens(options.poor, frames), random.uniform(frames, low=1.0, high=3.5), 1.0)
    visibility = views.reported_visibility(unseen, covered, random)
    noisy = views.detector_noise(flat, size, unseen, covered, visibility, worse, random, options)
    space = views.detector_estimate(points, noisy, unseen | covered, worse, random, options)
    swap = views.swapped_sides(random, frames, options)
    # Now and then a back is taken for a front for a while.
    around = random.happens(options.turned_around, frames)[:, None]
    swap = torch.where(around, torch.tensor(MIRRORED), swap)
    space[..., 2] = torch.where(around, -space[..., 2], space[..., 2])
    pixels = torch.gather(noisy, 1, swap[..., None].expand(-1, -1, 2)) * scale + torch.tensor(SIZE) / 2
    landmarks = torch.cat([pixels, visibility.gather(1, swap)[..., None]], -1).numpy().astype(np.float32)
    space = torch.gather(space, 1, swap[..., None].expand(-1, -1, 3)).numpy().astype(np.float32)
    return [Sighting(visible_box(seen, SIZE), seen, deep) for seen, deep in zip(landmarks, space, strict=True)]


def half_hidden(frames: int, share: float, generator: torch.Generator, rate: float) -> Tensor:
    """Which landmarks (F, 33) are hidden when, `share` of the frames, the upper or the lower half of the body is."""
    length = max(1, round(HIDDEN_FOR * rate))
    upper = torch.arange(33) < 23
    result = torch.zeros(frames, 33, dtype=torch.bool)
    period = length / share
    for number in range(math.ceil(frames / period)):
        begin = round((number + 0.5) * period - length / 2)
        result[begin : begin + length] |= upper if torch.rand((), generator=generator) < 0.5 else ~upper
    return result


def errors(joints: Tensor, truth: Tensor, times: np.ndarray) -> dict[str, float]:
    """mm, m/s² and m/s of joints (F, 22, 3) against the truth."""
    rate = (len(times) - 1) / (times[-1] - times[0])
    ours, true = joints - joints[:, :1], truth - truth[:, :1]
    acceleration = [(part[2:] - 2 * part[1:-1] + part[:-2])[:, LSP14] * rate**2 for part in (ours, true)]
    speed = [rate * part[:, TOES].diff(dim=0).norm(dim=-1) for part in (joints, truth)]
    stands = speed[1] < STANDS
    return {
        "mpjpe": metrics.distances(ours[:, LSP14], true[:, LSP14]).mean().item(),
        "pa_mpjpe": metrics.aligned_distances(ours[:, LSP14], true[:, LSP14]).mean().item(),
        "acceleration": (acceleration[0] - acceleration[1]).norm(dim=-1).mean().item(),
        "sliding": speed[0][stands].mean().item() if stands.any() else float("nan"),
    }


def solved(recoverer: Recoverer, filmed: Filmed, options: Sequence[MotionOptions]) -> list[list[TrackedPerson]]:
    """The person of each frame, in each of several ways that share their hypotheses; frames come in as a clip's do."""
    frames = [(n, t, [(1, seen)]) for n, (t, seen) in enumerate(zip(filmed.times, filmed.sightings, strict=True))]
    rows = MotionSolver(recoverer, SIZE, options=options[0]).hypotheses(frames)
    result = []
    for way in options:
        solver, done = MotionSolver(recoverer, SIZE, options=way), []
        for start in range(0, len(frames), LONGEST_CHUNK):
            chunk = slice(start, start + LONGEST_CHUNK)
            done += solver.add(frames[chunk], rows[chunk])
        result.append([frame.people[0] for frame in done + solver.finish()])
    return result


def rig_errors(recoverer: Recoverer, filmed: Filmed, options: MotionOptions) -> np.ndarray:
    """Millimetres (n, N) between rig and mesh, mean over vertices, of all hypotheses of a few frames."""
    hypothesiser = MotionSolver(recoverer, SIZE, options=options).hypothesiser
    frames = np.linspace(0, len(filmed.times) - 1, RIGS).astype(int)
    seen = [(1, int(n), float(filmed.times[n]), filmed.sightings[n]) for n in frames]
    return 1000 * hypothesiser.rig_errors(seen)


def rig_table(off: np.ndarray) -> dict[str, float]:
    """Means of millimetres (n, N): of hypothesis 0, and of the samples, whose meshes are less of a piece."""
    groups = {"hypothesis 0": off[:, :1], "samples": off[:, 1:]}
    return {name: float(part.mean()) for name, part in groups.items() if part.size}


def pick(folder: Path, split: str, clips: int, frames: int) -> list[mocap.Recording]:
    """Recordings that are long enough, evenly spread.

    Raises:
        SystemExit: there is none.
    """
    fitting = [r for r in mocap.recordings(folder, split) if len(r.quaternions) >= frames]
    if not fitting:
        raise UserError(f"No recording of {folder} has {frames} frames: ask for fewer.")
    return [fitting[i] for i in np.linspace(0, len(fitting) - 1, min(clips, len(fitting))).astype(int)]


@torch.no_grad()
def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate and print; returns the numbers."""
    recoverer = mega_backend.load(args.model, args.device)
    body = Body.bundled()
    recordings = pick(args.mocap, args.split, args.clips, args.frames)
    off: list[np.ndarray] = []
    results: dict[str, Any] = {"model": recoverer.card["name"], "split": args.split, "hypotheses": args.hypotheses}
    for setting in args.only:
        found: dict[str, list[dict[str, float]]] = {}
        for number, recording in enumerate(recordings):
            generator = torch.Generator().manual_seed(args.seed * 1000 + number)
            filmed = film(recording, body, args.frames, generator, SETTINGS[setting])
            options = [MotionOptions(args.hypotheses, args.seed, smoothing=smoothing) for smoothing in args.smoothing]
            people = solved(recoverer, filmed, options)
            ways = {"frame by frame": [person.alternatives[0] for person in people[0]]}
            for smoothing, moving in zip(args.smoothing, people, strict=True):
                ways[f"along time, {smoothing}"] = [person.joints for person in moving]
            for way, joints in ways.items():
                joints = torch.from_numpy(np.stack(joints)).float()
                found.setdefault(way, []).append(errors(joints, filmed.joints, filmed.times))
            off.append(rig_errors(recoverer, filmed, options[0]))
        results[setting] = {way: _mean(rows) for way, rows in found.items()}
        print(table({setting: results[setting]}, header=setting == args.only[0]))
    results["rig"] = rig_table(np.concatenate(off))
    print("\nrig against mesh, mean vertex distance:")
    for name, value in results["rig"].items():
        print(f"  {name} {value:.1f} mm")
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")
        rows = {setting: results[setting] for setting in args.only}
        args.output.with_suffix(".md").write_text(table(rows, header=True) + "\n")
    return results


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.nanmean([row[key] for row in rows])) for key in rows[0]}


def table(results: dict[str, dict[str, dict[str, float]]], header: bool) -> str:
    """A Markdown table: a row for each setting and way, changes against frame by frame in brackets."""
    lines = []
    if header:
        lines += [
            "| frames | motion | MPJPE, mm | PA-MPJPE, mm | acceleration error, m/s² | foot sliding, m/s |",
            "|---|---|---|---|---|---|",
        ]
    for setting, ways in results.items():
        before = ways["frame by frame"]
        for way, row in ways.items():
            cells = []
            for key, digits in (("mpjpe", 1), ("pa_mpjpe", 1), ("acceleration", 2), ("sliding", 2)):
                change = "" if row is before else f" ({100 * (row[key] / before[key] - 1):+.0f} %)"
                cells.append(f"{row[key]:.{digits}f}{change}")
            lines.append(f"| {setting} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)
