"""`python -m train.evaluate tokenizer`: vertex error of tokenized bodies against the bodies themselves.

On the full mesh, whole and by part; codes in use and their perplexity; what the lift alone costs; and how still the
vertices of a part lie when all tokens of other parts are replaced. Bodies of Anny are actors and shapes that training
never saw (`--mocap`), bodies of SMPL those of a folder of motions (`--motions`, with the SMPL file of each gender).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mega_backend import checkpoint
from mega_backend.body import Body
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE
from train import report
from train.config import UserError
from train.data import motions
from train.data.bodies import held_out
from train.data.smpl import GENDERS, SmplBodies
from train.metrics import MILLIMETRES

HELP = "tokenizer: mean vertex error of the full mesh, by part; codes in use; locality"
AT_ONCE = 50
"""Bodies whose full meshes are in memory together."""


def configure(cli: argparse.ArgumentParser) -> None:
    """The subcommand's arguments."""
    cli.add_argument("--model", default="default", help="model folder (default: the bundled one)")
    cli.add_argument("--mocap", type=Path, help="Anny: folder of motion capture with the held-out actors")
    cli.add_argument("--split", default="test", choices=("val", "test"), help="of the motion capture")
    cli.add_argument("--motions", type=Path, help="SMPL: folder of AMASS or BEDLAM npz files, all of them looked at")
    for gender in GENDERS:
        cli.add_argument(f"--{gender}", type=Path, help=f"SMPL file of {gender} bodies")
    cli.add_argument("--bodies", type=int, default=500, help="bodies of each kind")
    cli.add_argument("--device", default="cpu")
    cli.add_argument("-o", "--output", type=Path, help="JSON file; a Markdown table and plots are written beside it")


@torch.no_grad()
def evaluate(tokenizer: MeshVQVAE, meshes: Iterable[Tensor], part: Tensor, part_names: Sequence[str]) -> dict[str, Any]:
    """Errors in millimetres over canonical meshes, batches (n, V, 3), all as means over bodies and vertices.

    part: (V) the body part of each vertex, an index into `part_names`.
    """
    part = part.cpu()
    sums, per_vertex, per_body, tokens = torch.zeros(3), torch.zeros(len(part)), [], []
    locked: dict[str, float] = {}
    for vertices in meshes:
        locked = locked or locked_parts(tokenizer, vertices, part, part_names)
        latent = tokenizer.latent(vertices)
        token, quantised, _ = tokenizer.quantise(latent)
        error = (tokenizer.decode_latent(quantised) - vertices).norm(dim=-1)
        unquantised = (tokenizer.decode_latent(latent) - vertices).norm(dim=-1)
        points = vertices[:, tokenizer.points.long()] if tokenizer.lifted else vertices
        lifted = (tokenizer.lift(points) - vertices).norm(dim=-1)
        sums += torch.stack([value.mean(1).sum() for value in (error, unquantised, lifted)]).cpu()
        per_vertex += error.sum(0).cpu()
        per_body.append(error.mean(1).cpu())
        tokens.append(token.cpu())
    tokens, per_body = torch.cat(tokens), torch.cat(per_body)
    count = len(per_body)
    sums, per_vertex = sums / count, per_vertex / count
    share = torch.bincount(tokens.flatten(), minlength=tokenizer.code_count) / tokens.numel()
    return {
        "bodies": count,
        "vertex_error": MILLIMETRES * float(sums[0]),
        "vertex_error_p95_of_bodies": MILLIMETRES * float(per_body.quantile(0.95)),
        "without_quantisation": MILLIMETRES * float(sums[1]),
        "lift_alone": MILLIMETRES * float(sums[2]),
        "parts": {n: MILLIMETRES * float(per_vertex[part == i].mean()) for i, n in enumerate(part_names)},
        "codes_in_use": int((share > 0).sum()),
        "perplexity": float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum())),
        "locked_parts": locked,
        "per_body": (MILLIMETRES * per_body).numpy(),
    }


@torch.no_grad()
def locked_parts(tokenizer: MeshVQVAE, vertices: Tensor, part: Tensor, part_names: Sequence[str]) -> dict[str, float]:
    """Millimetres that the vertices of each part move on average when only the tokens of that part are kept.

    The other tokens come from another body; the part may move as a whole with the mesh's mean, which is not counted:
    what remains after the best shift is.
    """
    tokens = tokenizer.encode(vertices)
    before, result = tokenizer.decode(tokens), {}
    for index, name in enumerate(part_names):
        keep = tokenizer.token_part == index
        if not keep.any():
            continue
        after = tokenizer.decode(torch.where(keep, tokens, tokens.roll(1, 0)))
        step = (after - before)[:, (part == index).to(after.device)]
        result[name] = MILLIMETRES * float((step - step.mean(1, keepdim=True)).norm(dim=-1).mean())
    return result


def bundled_bodies(args: argparse.Namespace, body: Body) -> dict[str, Iterator[Tensor]]:
    """{kind: canonical meshes in batches}: poses as captured and synthetic ones."""
    if args.mocap is None:
        raise UserError("This tokenizer is of the bundled body: give its held-out actors, --mocap FOLDER.")
    kinds = {}
    for kind in ("mocap", "synthetic"):
        people = held_out(body, args.mocap, args.split, args.bodies, kind)
        parts = zip(people["rotations"].split(AT_ONCE), people["shape"].split(AT_ONCE), strict=True)
        kinds[kind] = (body.canonical_skin(*part) for part in parts)
    return kinds


def smpl_bodies(args: argparse.Namespace, vertices: int) -> dict[str, Iterator[Tensor]]:
    """{kind: canonical meshes in batches}: bodies of a folder of motions, evenly over all of them."""
    given = {gender: getattr(args, gender) for gender in GENDERS if getattr(args, gender)}
    if not given or args.motions is None:
        raise UserError("This tokenizer is of SMPL bodies: give --motions FOLDER and --neutral, --male, --female FILE.")
    bodies = SmplBodies(given).to(args.device)
    if bodies.vertex_count != vertices:
        raise UserError(f"The tokenizer is for {vertices} vertices, the body has {bodies.vertex_count}.")
    every, skipped = motions.read_all(args.motions)
    for message in skipped:
        print(f"skipped: {message}")
    bodies.check_genders(every.gender, str(args.motions))
    rows = torch.linspace(0, len(every) - 1, min(args.bodies, len(every))).round().long()
    parts = ([value[chosen].to(args.device) for value in (every.pose, every.betas, every.gender)]
             for chosen in rows.split(AT_ONCE))  # fmt: skip
    return {"motions": (bodies.canonical(*part) for part in parts)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate and print; returns the numbers."""
    loaded = checkpoint.load(args.model, args.device)
    if loaded.tokenizer is None:
        raise UserError(f"{args.model} holds no tokenizer: give a folder that does.")
    body = loaded.body
    if body is None:
        raise UserError(f"{args.model} holds no body: import its SMPL file into it.")
    bundled = isinstance(body, Body)
    kinds = bundled_bodies(args, body) if bundled else smpl_bodies(args, body.vertex_count)
    parts = body.vertex_part, body.part_names
    results = {kind: evaluate(loaded.tokenizer, meshes, *parts) for kind, meshes in kinds.items()}
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
