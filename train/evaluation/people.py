"""`python -m train.evaluate people`: random people out of nothing, how plausible and how varied they are.

People as `Recoverer.random` gives them, which draws implausible ones again, and as they are drawn first. Every mesh
gets a rig; its joints are held against anatomical ranges and its limbs against running into each other, beside the
same measures of real poses that went through the tokenizer. Distances are between body joints after the best
similarity transform: from each random person to the nearest real pose, and from held-out poses to the nearest random
person.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mega_backend
from mega_backend.body import Body
from mega_backend.plausibility import BEYOND_DEGREES, INTO_MILLIMETRES, Judge
from train import report
from train.config import UserError
from train.data.bodies import BodySampler, held_out

HELP = "random people: joint limits, self-intersection, distance to real poses, coverage"


def configure(cli: argparse.ArgumentParser) -> None:
    """The subcommand's arguments."""
    cli.add_argument("--model", default="default", help="model folder (default: the bundled one)")
    cli.add_argument("--mocap", type=Path, required=True, help="folder of motion capture")
    cli.add_argument("--people", type=int, default=200)
    cli.add_argument("--real", type=int, default=4000, help="real poses that random people are compared with")
    cli.add_argument("--steps", type=int, default=20)
    cli.add_argument("--temperature", type=float, default=1.3)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("-o", "--output", type=Path, help="JSON file; its text and plots are written beside it")


def plausible(judge: Judge, vertices: Tensor) -> dict[str, float]:
    """Shares of meshes (N, V, 3) whose rigs are inside joint limits, free of self-intersection, and both."""
    verdict = judge(vertices)
    inside, free = verdict.beyond < BEYOND_DEGREES, verdict.into < INTO_MILLIMETRES
    return {
        "inside_limits": float(inside.float().mean()),
        "free_of_intersection": float(free.float().mean()),
        "both": float((inside & free).float().mean()),
        "rig_error_mm": float(verdict.fit.mean()),
    }


def nearest(points: Tensor, others: Tensor) -> Tensor:
    """Millimetres (N) from joints (N, K, 3) to the nearest of others (M, K, 3) after the best similarity transform."""
    others = others - others.mean(1, keepdim=True)
    sizes = others.square().sum((1, 2))
    result = []
    for one in points - points.mean(1, keepdim=True):
        u, singular, v = torch.linalg.svd(others.mT @ one)
        sign = torch.ones_like(singular)
        sign[:, 2] = torch.linalg.det(u @ v).sign()
        scale = (singular * sign).sum(1) / sizes
        moved = scale[:, None, None] * (others @ ((u * sign[:, None]) @ v))
        result.append((moved - one).norm(dim=-1).mean(1).min())
    return 1000 * torch.stack(result)


@torch.no_grad()
def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate and print; returns the numbers."""
    recoverer = mega_backend.load(args.model, device="cpu")
    body, tokenizer = recoverer.body, recoverer.tokenizer
    if not isinstance(body, Body):
        raise UserError(f"{args.model} is not of the bundled body, whose real poses are known: give one that is.")
    options = {"steps": args.steps, "temperature": args.temperature}
    drawn = recoverer.model.draw(None, count=args.people, generator=args.seed, **options).tokens[0]
    first = torch.cat([tokenizer.decode(part) for part in drawn.split(25)])
    given = recoverer.random(args.people, args.seed, **options)
    made = torch.from_numpy(np.concatenate([person.vertices for person in given.people]))
    people = held_out(body, args.mocap, "test", args.people)
    canonical = body.canonical_skin(people["rotations"], people["shape"])
    real = torch.cat([tokenizer.decode(tokenizer.encode(part)) for part in canonical.split(25)])
    joints = body.subset([0])
    sampler = BodySampler(joints, "train", args.mocap)
    known = sampler.sample(args.real, torch.Generator().manual_seed(args.seed))
    known_joints = joints.skin_joints(known["rotations"], known["shape"], "body22")
    made_joints, test_joints = body.joints(made, "body22"), joints.skin_joints(**people, name="body22")
    judge = Judge(body)
    distances = {
        "random people": nearest(made_joints, known_joints),
        "held-out poses": nearest(test_joints, known_joints),
        "held-out to random": nearest(test_joints, made_joints),
    }
    medians = [float(values.median()) for values in distances.values()]
    results: dict[str, Any] = {
        "random": plausible(judge, made),
        "first_draw": plausible(judge, first),
        "held_out": plausible(judge, real),
        "to_nearest_real_mm": medians[0],
        "held_out_to_nearest_real_mm": medians[1],
        "held_out_to_nearest_random_mm": medians[2],
    }
    lines = []
    for name, title in (
        ("random", "random people"),
        ("first_draw", "the same, first draws"),
        ("held_out", "held-out poses, tokenized"),
    ):
        numbers = results[name]
        lines.append(
            f"{title}: {numbers['both']:.1%} plausible ({numbers['inside_limits']:.1%} inside joint limits, "
            f"{numbers['free_of_intersection']:.1%} free of self-intersection; rig {numbers['rig_error_mm']:.1f} mm)"
        )
    lines.append(
        f"nearest real pose, median: {medians[0]:.0f} mm (held-out poses: {medians[1]:.0f} mm); "
        f"held-out poses to the nearest of {args.people} random people: {medians[2]:.0f} mm"
    )
    plots = {"to the nearest pose, aligned, mm": {name: values.numpy() for name, values in distances.items()}}
    report.write(args.output, {"model": recoverer.card["name"], **results}, "\n\n".join(lines), plots)
    return results
