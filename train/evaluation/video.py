"""`python -m train.evaluate video`: motion along time against frame by frame, on held-out actors' recordings.

A still camera sees the recorded motion. The detector's habits of `train.data.views` are drawn only now and then and
blended in between, as its errors last from frame to frame. In the second setting half of the body is hidden in 30 %
of the frames, for half a second at a time. Joints are the 14 of the standard protocol, pelvis at the origin.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import mega_backend
from mega_backend import camera
from mega_backend.people import visible_box
from mega_backend.rotations import about_axis
from mega_backend.video.motion import MotionOptions, MotionSolver
from mega_backend.video.tracking import Sighting
from train import metrics
from train.data import mocap, shapes, views
from train.data.retarget import Retargeter

HELP = "motion over clips: chosen and smoothed path against hypothesis 0 of each frame"
SIZE = (1280, 720)
LSP14 = list(metrics.BODY22_TO_LSP14)


def configure(cli: argparse.ArgumentParser) -> None:
    """The subcommand's arguments."""
    cli.add_argument("--model", default="default", help="model folder (default: the bundled one)")
    cli.add_argument("--mocap", type=Path, required=True, help="folder of motion capture with the held-out actors")
    cli.add_argument("--split", default="test", choices=("val", "test"))
    cli.add_argument("--clips", type=int, default=6)
    cli.add_argument("--frames", type=int, default=90, help="of each clip, at the recording's rate")
    cli.add_argument("--hypotheses", type=int, default=5)
    cli.add_argument("--smoothing", default="light", choices=("off", "light", "strong"))
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--device", default="cpu")
    cli.add_argument("-o", "--output", type=Path, help="write the numbers to this JSON file")


def clip(recording: mocap.Recording, body, frames: int, generator: torch.Generator, hidden: float):
    """Sightings of a recording and its true joints (F, 22, 3) in camera axes.

    hidden: share of frames in which the upper or the lower half of the body is hidden.
    """
    start = (len(recording.quaternions) - frames) // 2
    take = slice(start, start + frames)
    rotations = Retargeter(body)(recording.quaternions[take])
    shape = shapes.sample(body, 1, generator, "test").expand(frames, -1)
    heading = 2 * math.pi * torch.rand((), generator=generator)
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    turn = about_axis(0, torch.deg2rad(5 * torch.randn((), generator=generator))) @ flip @ about_axis(1, heading)
    moved = recording.positions[take] - recording.positions[take].mean(0)
    place = moved @ turn.T + torch.tensor([0.0, 0.0, 28.0])
    joints = body.skin_joints(rotations, shape, "body22")
    origin = joints[:, :1]
    joints = (joints - origin) @ turn.T + place[:, None]
    points = (body.skin_joints(rotations, shape, "mediapipe33") - origin) @ turn.T

    options = views.ViewOptions(cut_off=0.0, occluded=0.0, missing=0.0, has_estimate=1.0)
    every = max(1, round(0.2 * recording.fps))
    keys = -(-frames // every) + 1
    random = views._Random(generator)
    # Noise at key moments, blended between them; its scale is put right again, because blending lessens it.
    blend = (torch.arange(frames) % every / every)[:, None, None]
    first = torch.arange(frames) // every
    size = (points.amax(1) - points.amin(1)).amax(-1)
    flat = points[..., :2]
    unseen = views.behind_torso(points, flat, random)
    unseen = unseen[torch.arange(frames) // every * every]
    if hidden:
        length = max(1, round(0.5 * recording.fps))
        upper = torch.tensor([i < 23 for i in range(33)])
        for begin in range(0, frames, max(1, round(length / hidden))):
            half = upper if torch.rand((), generator=generator) < 0.5 else ~upper
            unseen[begin + length // 2 : begin + length // 2 + length] |= half
    skill = torch.zeros(keys, 33, 2)
    own = random.normal(keys, 33, 2)
    for joint in views.ORDER:
        if joint < 33:
            parent = views.PARENT[joint]
            skill[:, joint] = own[:, joint] if parent >= 33 else 0.6 * skill[:, parent] + 0.8 * own[:, joint]
    noise = _blended(skill, first, blend) + 0.3 * random.normal(frames, 33, 2)
    level = torch.where(unseen, options.hidden_noise, options.noise * views.LOOSENESS)
    noise = noise * (level * size[:, None])[..., None]
    pixels = place[:, None] + points
    pixels = camera.default_focal_length(SIZE) * (pixels[..., :2] + noise) / pixels[..., 2:]
    pixels = pixels + torch.tensor(SIZE) / 2
    visibility = torch.where(unseen, 0.05 + 0.4 * random.uniform(frames, 33), 1 - 0.1 * random.uniform(frames, 33))
    # The detector's own estimate in space errs as a whole for a while: errors at key moments carried along.
    picked = (torch.arange(keys) * every).clamp_max(frames - 1)
    estimate = views.detector_estimate(points[picked], unseen[picked], random, options)
    exact = points - points[:, 23:25].mean(1, keepdim=True)
    error = _blended(estimate - exact[picked], first, blend)
    space = exact + error + 0.01 * random.normal(frames, 33, 3)
    sightings = []
    for n in range(frames):
        landmarks = torch.cat([pixels[n], visibility[n, :, None]], 1).numpy().astype(np.float32)
        sightings.append(Sighting(visible_box(landmarks, SIZE), landmarks, space[n].numpy().astype(np.float32)))
    return sightings, joints


def _blended(keys: Tensor, first: Tensor, blend: Tensor) -> Tensor:
    return (keys[first] * (1 - blend) + keys[first + 1] * blend) / (blend**2 + (1 - blend) ** 2).sqrt()


def errors(joints: Tensor, truth: Tensor, rate: float) -> dict[str, float]:
    """mm of joints (F, 22, 3) against the truth; acceleration error in m/s²."""
    ours, true = joints - joints[:, :1], truth - truth[:, :1]
    acceleration = [(part[2:] - 2 * part[1:-1] + part[:-2])[:, LSP14] * rate**2 for part in (ours, true)]
    return {
        "mpjpe": metrics.distances(ours[:, LSP14], true[:, LSP14]).mean().item(),
        "pa_mpjpe": metrics.aligned_distances(ours[:, LSP14], true[:, LSP14]).mean().item(),
        "acceleration": (acceleration[0] - acceleration[1]).norm(dim=-1).mean().item(),
    }


@torch.no_grad()
def run(args: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Evaluate and print; returns the numbers."""
    recoverer = mega_backend.load(args.model, args.device)
    body = recoverer.body
    fitting = [r for r in mocap.recordings(args.mocap, args.split) if len(r.quaternions) >= args.frames]
    if not fitting:
        raise SystemExit(f"No recording of {args.mocap} has {args.frames} frames: ask for fewer.")
    picked = [fitting[i] for i in np.linspace(0, len(fitting) - 1, min(args.clips, len(fitting))).astype(int)]
    options = MotionOptions(hypotheses=args.hypotheses, seed=args.seed, smoothing=args.smoothing)
    results: dict[str, dict[str, dict[str, float]]] = {}
    print("| frames | motion | MPJPE | PA-MPJPE | acceleration error |\n|---|---|---|---|---|")
    for name, hidden in (("seen", 0.0), ("30 % half hidden", 0.3)):
        found: dict[str, list[dict[str, float]]] = {"hypothesis 0": [], "along time": []}
        for number, recording in enumerate(picked):
            generator = torch.Generator().manual_seed(args.seed * 1000 + number)
            sightings, truth = clip(recording, body, args.frames, generator, hidden)
            solver = MotionSolver(recoverer, SIZE, options=options)
            frames = [(n, n / recording.fps, [(1, sighting)]) for n, sighting in enumerate(sightings)]
            done = solver.push(frames) + solver.finish()
            people = [frame.people[0] for frame in done]
            first = torch.from_numpy(np.stack([person.alternatives[0] for person in people])).float()
            ours = torch.from_numpy(np.stack([person.joints for person in people])).float()
            found["hypothesis 0"].append(errors(first, truth, recording.fps))
            found["along time"].append(errors(ours, truth, recording.fps))
        results[name] = {
            kind: {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} for kind, rows in found.items()
        }
        for kind, row in results[name].items():
            print(f"| {name} | {kind} | {row['mpjpe']:.1f} | {row['pa_mpjpe']:.1f} | {row['acceleration']:.2f} |")
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")
    return results
