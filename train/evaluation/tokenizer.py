"""`python -m train.evaluate tokenizer`: vertex error of tokenized bodies against the bodies themselves.

Actors and shapes that training never saw, on the full mesh, whole and by part; codes in use and their perplexity; what
the lift alone costs; and how still the vertices of a part lie when all tokens of other parts are replaced.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mega_backend import checkpoint
from mega_backend.body import Body
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE
from train import report
from train.data.bodies import held_out
from train.metrics import MILLIMETRES

HELP = "tokenizer: mean vertex error of the full mesh, by part; codes in use; locality"


def configure(cli: argparse.ArgumentParser) -> None:
    """The subcommand's arguments."""
    cli.add_argument("--model", default="default", help="model folder (default: the bundled one)")
    cli.add_argument("--mocap", type=Path, required=True, help="folder of motion capture with the held-out actors")
    cli.add_argument("--split", default="test", choices=("val", "test"))
    cli.add_argument("--bodies", type=int, default=500, help="bodies of each kind")
    cli.add_argument("--device", default="cpu")
    cli.add_argument("-o", "--output", type=Path, help="JSON file; a Markdown table and plots are written beside it")


@torch.no_grad()
def evaluate(tokenizer: MeshVQVAE, body: Body, people: dict[str, Tensor]) -> dict[str, Any]:
    """Errors in millimetres over ``people`` (rotations, shape), all as means over bodies and vertices."""
    sums = torch.zeros(3)
    per_vertex, per_body, tokens = torch.zeros(body.vertex_count), [], []
    count = len(people["shape"])
    for rotations, shape in zip(people["rotations"].split(50), people["shape"].split(50), strict=True):
        vertices = body.canonical_skin(rotations, shape)
        latent = tokenizer.latent(vertices)
        token, quantised, _ = tokenizer.quantise(latent)
        error = (tokenizer.decode_latent(quantised) - vertices).norm(dim=-1)
        unquantised = (tokenizer.decode_latent(latent) - vertices).norm(dim=-1)
        lifted = (tokenizer.lift(vertices[:, tokenizer.points.long()]) - vertices).norm(dim=-1)
        sums += torch.stack([value.mean(1).sum() for value in (error, unquantised, lifted)]).cpu() / count
        per_vertex += error.sum(0).cpu() / count
        per_body.append(error.mean(1).cpu())
        tokens.append(token.cpu())
    tokens, per_body = torch.cat(tokens), torch.cat(per_body)
    share = torch.bincount(tokens.flatten(), minlength=tokenizer.code_count) / tokens.numel()
    part = body.vertex_part.cpu()
    return {
        "bodies": count,
        "vertex_error": MILLIMETRES * float(sums[0]),
        "vertex_error_p95_of_bodies": MILLIMETRES * float(per_body.quantile(0.95)),
        "without_quantisation": MILLIMETRES * float(sums[1]),
        "lift_alone": MILLIMETRES * float(sums[2]),
        "parts": {n: MILLIMETRES * float(per_vertex[part == i].mean()) for i, n in enumerate(body.part_names)},
        "codes_in_use": int((share > 0).sum()),
        "perplexity": float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum())),
        "locked_parts": locked_parts(tokenizer, body, people),
        "per_body": (MILLIMETRES * per_body).numpy(),
    }


@torch.no_grad()
def locked_parts(tokenizer: MeshVQVAE, body: Body, people: dict[str, Tensor], count: int = 50) -> dict[str, float]:
    """Millimetres that the vertices of each part move on average when only the tokens of that part are kept.

    The other tokens come from another body; the part may move as a whole with the mesh's mean, which is not counted:
    what remains after the best shift is.
    """
    vertices = body.canonical_skin(people["rotations"][:count], people["shape"][:count])
    tokens = tokenizer.encode(vertices)
    before, result = tokenizer.decode(tokens), {}
    for index, name in enumerate(body.part_names):
        keep = tokenizer.token_part == index
        if not keep.any():
            continue
        after = tokenizer.decode(torch.where(keep, tokens, tokens.roll(1, 0)))
        step = (after - before)[:, body.vertex_part == index]
        result[name] = MILLIMETRES * float((step - step.mean(1, keepdim=True)).norm(dim=-1).mean())
    return result


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate and print; returns the numbers."""
    loaded = checkpoint.load(args.model, args.device)
    if loaded.tokenizer is None:
        raise SystemExit(f"{args.model} holds no tokenizer: give a folder that does.")
    body = Body.bundled().to(args.device)
    results = {
        kind: evaluate(loaded.tokenizer, body, held_out(body, args.mocap, args.split, args.bodies, kind))
        for kind in ("mocap", "synthetic")
    }
    errors = {kind: values.pop("per_body") for kind, values in results.items()}
    plots = {"mean vertex error of a body, mm": errors}
    report.write(args.output, {"model": loaded.config["name"], **results}, table(results), plots)
    return results


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: a column for each kind of bodies."""
    names = list(results)
    lines = [f"| millimetres | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]

    def row(title: str, values: list[float], digits: int = 1) -> None:
        lines.append(f"| {title} | " + " | ".join(f"{value:.{digits}f}" for value in values) + " |")

    row("mean vertex error, full mesh", [results[n]["vertex_error"] for n in names], 2)
    row("the same, 95th percentile of bodies", [results[n]["vertex_error_p95_of_bodies"] for n in names])
    row("without quantisation", [results[n]["without_quantisation"] for n in names], 2)
    row("lift alone", [results[n]["lift_alone"] for n in names], 2)
    for part in results[names[0]]["parts"]:
        row(f"error: {part}", [results[n]["parts"][part] for n in names])
    for part in results[names[0]]["locked_parts"]:
        row(f"moves when all other tokens change: {part}", [results[n]["locked_parts"][part] for n in names])
    row("codes in use", [results[n]["codes_in_use"] for n in names], 0)
    row("perplexity", [results[n]["perplexity"] for n in names], 0)
    return "\n".join(lines)
