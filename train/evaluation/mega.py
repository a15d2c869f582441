"""`python -m train.evaluate mega`: a landmark model against held-out bodies under synthetic views.

Actors and shapes that training never saw, from every side, with the detector's noise. Joints are the 14 of the standard
protocol, taken from the mesh; *standard* numbers are relative to the pelvis, *released* ones to the mean vertex (17
joints). MPJPE includes the predicted root rotation, PA-MPJPE does not.

Two rows for each kind of bodies and views: what the tokens decode to, Q samples beside the deterministic answer; and
*refined*, what `Recoverer.recover` gives for the same landmarks: Q hypotheses, the deterministic one among them.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mega_backend.body import Body
from mega_backend.model.mega import Mega
from mega_backend.model.sampling import row_generator
from mega_backend.people import Detection
from mega_backend.people.landmarks import MAIN
from mega_backend.recovery import Recoverer
from mega_backend.rotations import matrix_from_6d, matrix_from_axis_angle
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE
from train import metrics, report
from train.config import UserError
from train.data import views
from train.data.bank import Bank, prepare
from train.data.bodies import held_out
from train.images import joints_of_points

HELP = "MEGA from landmarks: PVE, MPJPE, PA-MPJPE, best of Q, diversity, calibration"
SETTINGS = {
    "whole": ("whole person, 2D landmarks and the detector's 3D estimate", views.ViewOptions().benign()),
    "poor": (
        "the same with errors as large as were measured on small rendered people",
        views.ViewOptions().benign(1.0),
    ),
    "flat": (
        "whole person, 2D landmarks alone",
        views.ViewOptions(cut_off=0.0, occluded=0.0, missing=0.0, has_estimate=0.0),
    ),
    "any": ("as in training: some cut off, occluded, with landmarks or the 3D estimate missing", views.ViewOptions()),
}
CROP_PIXELS = 500
"""Half the side of the crop in the picture that the refined rows pretend to see; the picture is twice as large."""
LSP14 = list(metrics.BODY22_TO_LSP14)


def configure(cli: argparse.ArgumentParser) -> None:
    """The subcommand's arguments."""
    cli.add_argument("--model", default="default", help="model folder (default: the bundled one)")
    cli.add_argument("--mocap", type=Path, required=True, help="folder of motion capture with the held-out actors")
    cli.add_argument("--split", default="test", choices=("val", "test"))
    cli.add_argument("--bodies", type=int, default=500, help="bodies of each kind")
    cli.add_argument("--sampled", type=int, default=100, help="bodies of each kind that are also sampled")
    cli.add_argument("--samples", type=int, default=25)
    cli.add_argument("--steps", type=int, default=5)
    cli.add_argument("--temperature", type=float, default=1.0)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--device", default="cpu")
    cli.add_argument("--unrefined", action="store_true", help="only what the tokens decode to")
    cli.add_argument("--only", nargs="+", choices=tuple(SETTINGS), default=tuple(SETTINGS))
    cli.add_argument("-o", "--output", type=Path, help="JSON file; a Markdown table and plots are written beside it")


class MeshJoints:
    """Joints straight from the points a tokenizer decodes: regressor and lift as one matrix, no full mesh."""

    def __init__(self, body: Body, tokenizer: MeshVQVAE, name: str) -> None:
        self.matrix = joints_of_points(tokenizer, body.regressor(name))

    def __call__(self, points: Tensor) -> Tensor:
        """points (…, P, 3) → joints (…, J, 3)."""
        return self.matrix.to(points) @ points


class Draws(NamedTuple):
    """How a bank is sampled: the first `sampled` bodies, `samples` of each; views and samples depend on `seed`."""

    sampled: int = 100
    samples: int = 25
    steps: int = 5
    temperature: float = 1.0
    seed: int = 0


def evaluate(
    tokenizer: MeshVQVAE,
    model: Mega,
    bank: Bank,
    options: views.ViewOptions,
    draws: Draws | None = None,
    chunk: int = 50,
) -> dict[str, Any]:
    """Numbers (mm, degrees) of a model on a bank's bodies, one view of each, the first also by samples (`draws`).

    Beside the means, `errors` holds what `plots` draws: arrays over bodies.
    """
    sampled, samples, steps, temperature, seed = draws or Draws()
    body = Body.bundled()
    j22, coco = MeshJoints(body, tokenizer, "body22"), MeshJoints(body, tokenizer, "coco17")
    generator = torch.Generator().manual_seed(seed)
    view = views.draw(bank.landmarks, bank.root, generator, options)
    found: dict[str, list[Tensor]] = {}

    def note(name: str, value: Tensor) -> None:
        found.setdefault(name, []).append(value.cpu())

    device = next(model.parameters()).device
    for start in range(0, len(bank), chunk):
        stop = min(start + chunk, len(bank))
        features = view.features[start:stop].to(device)
        condition = model.condition(features)
        rotation = matrix_from_6d(condition.rotation_6d.float()).cpu()
        true_rotation = view.rotation[start:stop]
        true_mesh = body.canonical_skin(*bank.posed(start, stop))
        true_j22, true_coco = bank.joints[start:stop], body.joints(true_mesh, "coco17")

        best = model.best(condition)
        points = tokenizer.decode_points(tokenizer.quantiser.lookup(best.tokens)).cpu()
        _note_errors(note, points, rotation, j22, coco, true_j22, true_coco, true_rotation)
        mesh = tokenizer.lift(points.to(device)).cpu()
        moved = metrics.moved_to(mesh, j22(points)[:, 0]) @ rotation.mT
        note("pve", metrics.distances(moved, metrics.moved_to(true_mesh, true_j22[:, 0]) @ true_rotation.mT))
        note("canonical_pve", metrics.distances(mesh, true_mesh))
        note("degrees", metrics.degrees(rotation, true_rotation))
        known = view.landmarks_3d[start:stop].isfinite().flatten(1).all(1)
        truth = bank.landmarks[start:stop][:, list(MAIN)]
        note(
            "detector_pa_mpjpe",
            metrics.aligned_distances(view.landmarks_3d[start:stop][known][:, list(MAIN)], truth[known]),
        )

        if start < sampled:
            take = slice(0, min(stop, sampled) - start)
            part = condition.select(torch.arange(take.stop, device=device))
            drawn = model.draw(part, samples, steps, temperature, generator=seed)
            latent = tokenizer.quantiser.lookup(drawn.tokens.flatten(0, 1))
            points = tokenizer.decode_points(latent).unflatten(0, drawn.tokens.shape[:2]).cpu()
            joints = j22(points)[..., LSP14, :]
            true = true_j22[take][:, None][..., LSP14, :].expand_as(joints)
            note("sample_pa_mpjpe", metrics.aligned_distances(joints, true))
            turned = drawn_rotations(model, part, drawn.tokens, seed)
            camera = (j22(points) - j22(points)[..., :1, :]) @ turned.mT
            true_camera = (true_j22[take] - true_j22[take][:, :1]) @ true_rotation[take].mT
            note("sample_mpjpe", metrics.distances(camera[..., LSP14, :], true_camera[:, None][..., LSP14, :]))
            note("sample_log_probability", drawn.log_probability)
            note("diversity", metrics.pairwise_distance(joints))
            note("joints", joints)
            note("true_joints", true[:, 0])
    return _summary({name: torch.cat(parts) for name, parts in found.items()})


def drawn_rotations(model: Mega, condition: Any, tokens: Tensor, seed: int) -> Tensor:
    """Root rotations (B, N, 3, 3) of samples (B, N, T), each drawn from what the model knows of it."""
    sixd, _, spread = (part.float().cpu() for part in model.pose_under(condition, tokens))
    noise = [torch.randn(tokens.shape[1], 3, generator=row_generator(seed, -person)) for person in range(len(tokens))]
    return matrix_from_axis_angle(torch.stack(noise) * spread) @ matrix_from_6d(sixd)


def detections(view: views.Views, chosen: slice) -> list[Detection]:
    """The views as people found in a picture of 4 · CROP_PIXELS square, in the middle of which each crop lies."""
    found = []
    for landmarks, visibility, estimate in zip(*(part[chosen].numpy() for part in view[:3]), strict=True):
        pixels = CROP_PIXELS * (landmarks + 2.0)
        marks = np.concatenate([pixels, visibility[:, None]], axis=1).astype(np.float32)
        shown = pixels[visibility > 0.5] if (visibility > 0.5).sum() > 3 else pixels
        box = np.concatenate([shown.min(0), shown.max(0)]).astype(np.float32)
        found.append(Detection(box, marks, estimate.astype(np.float32), 1.0))
    return found


def evaluate_refined(
    recoverer: Recoverer,
    bank: Bank,
    options: views.ViewOptions,
    draws: Draws | None = None,
    chunk: int = 20,
) -> dict[str, Any]:
    """As `evaluate`, of what `recover` makes of the same views; hypothesis 0 is the deterministic answer."""
    sampled, samples, steps, temperature, seed = draws or Draws()
    body = Body.bundled()
    view = views.draw(bank.landmarks, bank.root, torch.Generator().manual_seed(seed), options)
    blank = np.zeros((4 * CROP_PIXELS, 4 * CROP_PIXELS, 3), np.uint8)
    found: dict[str, list[Tensor]] = {}

    def note(name: str, value: Tensor) -> None:
        found.setdefault(name, []).append(value)

    edges = sorted({*range(0, len(bank), chunk), min(sampled, len(bank)), len(bank)})
    for start, stop in pairwise(edges):
        people = recoverer.recover(
            blank,
            hypotheses=samples if stop <= sampled else 1,
            seed=seed,
            steps=steps,
            temperature=temperature,
            found=detections(view, slice(start, stop)),
        ).people
        true_mesh = body.canonical_skin(*bank.posed(start, stop)) @ view.rotation[start:stop].mT
        true = bank.joints[start:stop] @ view.rotation[start:stop].mT
        true_mesh, true = true_mesh - true[:, :1], true - true[:, :1]
        joints = torch.stack([torch.as_tensor(person.joints) for person in people])
        pelvis = joints[:, :, :1]
        joints = joints - pelvis
        mesh = torch.stack([torch.as_tensor(person.vertices[0]) for person in people]) - pelvis[:, 0]
        expected = true[:, None].expand_as(joints)
        aligned = metrics.aligned_distances(joints[..., LSP14, :], expected[..., LSP14, :])
        distance = metrics.distances(joints[..., LSP14, :], expected[..., LSP14, :])
        note("pa_mpjpe", aligned[:, 0])
        note("mpjpe", distance[:, 0])
        note("pve", metrics.distances(mesh, true_mesh))
        rotation = torch.stack([torch.as_tensor(person.rotation[0]) for person in people])
        note("degrees", metrics.degrees(rotation, view.rotation[start:stop]))
        if stop <= sampled and samples > 1:
            note("sample_pa_mpjpe", aligned)
            note("sample_mpjpe", distance)
            log_probability = torch.stack([torch.as_tensor(person.log_probability) for person in people])
            note("sample_log_probability", log_probability)
            # In the body's own axes, as the samples of tokens are: where the pelvis and its axes are is said elsewhere.
            turned = torch.stack([torch.as_tensor(person.rotation) for person in people])
            own = (joints @ turned)[..., LSP14, :]
            note("diversity", metrics.pairwise_distance(own))
            note("joints", own)
            note("true_joints", (true @ view.rotation[start:stop])[..., LSP14, :])
    return _summary({name: torch.cat(parts) for name, parts in found.items()})


def _note_errors(note, points, rotation, j22, coco, true_j22, true_coco, true_rotation) -> None:
    joints = j22(points)
    note("pa_mpjpe", metrics.aligned_distances(joints[:, LSP14], true_j22[:, LSP14]))
    turned = metrics.moved_to(joints, joints[:, 0]) @ rotation.mT
    true = metrics.moved_to(true_j22, true_j22[:, 0]) @ true_rotation.mT
    note("mpjpe", metrics.distances(turned[:, LSP14], true[:, LSP14]))
    # Canonical meshes have their mean vertex at the origin already.
    released = metrics.distances(coco(points) @ rotation.mT, true_coco @ true_rotation.mT)
    note("released_mpjpe", released)


def _summary(found: dict[str, Tensor]) -> dict[str, Any]:
    plain = ("pa_mpjpe", "mpjpe", "pve", "canonical_pve", "released_mpjpe", "detector_pa_mpjpe")
    result: dict[str, Any] = {name: found[name].mean().item() for name in plain if len(found.get(name, ()))}
    result["degrees_median"] = found["degrees"].median().item()
    result["pa_mpjpe_90th"] = found["pa_mpjpe"].quantile(0.9).item()
    if "sample_pa_mpjpe" in found:
        for name in ("pa_mpjpe", "mpjpe"):
            errors = found[f"sample_{name}"]
            result[f"best_of_{name}"] = metrics.best_of(errors).means()
            result[f"mean_sample_{name}"] = errors.mean().item()
            likeliest = found["sample_log_probability"].argmax(1, keepdim=True)
            result[f"likeliest_{name}"] = errors.gather(1, likeliest).mean().item()
        errors = found["sample_pa_mpjpe"]
        result["gain_best_of_all"] = 1 - errors.amin(1).mean().item() / errors.mean().item()
        result["diversity"] = found["diversity"].mean().item()
        joints, truth = found["joints"], found["true_joints"]
        result["coverage"] = metrics.coverage(joints, truth)
        error = metrics.MILLIMETRES * (joints.mean(1) - truth).norm(dim=-1)
        result["spread_error_correlation"] = metrics.correlation(metrics.spread(joints), error)
        found = {**found, "best_pa_mpjpe": errors.amin(1), "spread": metrics.spread(joints), "error": error}
    kept = ("pve", "mpjpe", "pa_mpjpe", "best_pa_mpjpe", "spread", "error")
    result["errors"] = {name: found[name].numpy() for name in kept if name in found}
    return result


def plots(errors: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """What `report.plot` draws of the `errors` of rows: distributions over bodies, and spread against error."""
    titles = {"pve": "PVE", "mpjpe": "MPJPE", "pa_mpjpe": "PA-MPJPE", "best_pa_mpjpe": "PA-MPJPE of the best sample"}
    panels = {
        f"{title}, mm": {row: values[name] for row, values in errors.items() if name in values}
        for name, title in titles.items()
    }
    sampled = [values for values in errors.values() if "spread" in values]
    if sampled:
        panels["error against spread"] = {
            "spread of a joint over samples, mm": np.concatenate([values["spread"] for values in sampled]),
            "error of their mean, mm": np.concatenate([values["error"] for values in sampled]),
        }
    return {title: curves for title, curves in panels.items() if curves}


@torch.no_grad()
def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate and print; returns the numbers."""
    recoverer = Recoverer.load(args.model, args.device)
    if not isinstance(recoverer.body, Body) or not recoverer.reads_landmarks:
        raise UserError(f"{args.model} does not read landmarks of the bundled body: try `train.evaluate hmr`.")
    body = Body.bundled()
    joints_only = body.subset(torch.arange(1))
    results: dict[str, Any] = {"model": recoverer.card["name"], "steps": args.steps, "temperature": args.temperature}
    for kind in ("mocap", "synthetic"):
        bank = prepare(joints_only, **held_out(joints_only, args.mocap, args.split, args.bodies, kind))
        for name in args.only:
            draws = Draws(min(args.sampled, args.bodies), args.samples, args.steps, args.temperature, args.seed)
            row, view = f"{kind} {name}", SETTINGS[name][1]
            results[row] = evaluate(recoverer.tokenizer, recoverer.model, bank, view, draws)
            print(table({row: results[row]}, header=kind == "mocap" and name == args.only[0]))
            if not args.unrefined:
                results[f"{row}, refined"] = evaluate_refined(recoverer, bank, view, draws)
                print(table({f"{row}, refined": results[f"{row}, refined"]}, header=False))
    rows = {name: value for name, value in results.items() if isinstance(value, dict)}
    errors = {name: row.pop("errors") for name, row in rows.items()}
    if not args.unrefined:  # what a user gets
        errors = {name: row for name, row in errors.items() if name.endswith(", refined")}
    report.write(args.output, results, table(rows, header=True), plots(errors))
    return results


def table(results: dict[str, dict[str, Any]], header: bool) -> str:
    """A Markdown table, a row for each kind of bodies and views."""
    lines = []
    if header:
        lines += [
            "| bodies and views | PVE | MPJPE | PA-MPJPE | one sample | best of 5 / 10 / 25 | gain | rotation | APD |"
            " coverage of 50 / 90 % | detector's PA |",
            "|" + "---|" * 11,
        ]
    for name, row in results.items():
        best = row.get("best_of_pa_mpjpe", {})
        bests = " / ".join(f"{best[q]:.1f}" for q in (5, 10, 25) if q in best)
        coverage = " / ".join(f"{100 * share:.0f}" for share in row.get("coverage", {}).values())
        gain = f"{100 * row.get('gain_best_of_all', 0):.0f} %"
        detector = f"{row['detector_pa_mpjpe']:.1f}" if "detector_pa_mpjpe" in row else "–"
        lines.append(
            f"| {name} | {row['pve']:.1f} | {row['mpjpe']:.1f} | {row['pa_mpjpe']:.1f} |"
            f" {row.get('mean_sample_pa_mpjpe', float('nan')):.1f} | {bests} | {gain} |"
            f" {row['degrees_median']:.1f}° | {row.get('diversity', float('nan')):.1f} | {coverage} | {detector} |"
        )
    return "\n".join(lines)
