"""`python -m train.evaluate hmr`: a model on pictures with known bodies: 3DPW, 3DPW-OCC, EMDB, or any dataset file.

Two protocols go by the same names and both are reported. *standard*: 14 joints out of Human3.6M's 17 (3DPW) or SMPL's
24 (EMDB), both bodies moved to their pelvis. *released*: what the published program computes, 17 joints, both meshes
moved to the mean of their vertices. Best of Q is taken for each metric by itself, as published; the likeliest sample's
numbers stand beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mega_backend import checkpoint
from mega_backend.model.mega import Mega
from mega_backend.rotations import matrix_from_6d, matrix_from_axis_angle
from train import metrics, report
from train.config import UserError
from train.data import annotations
from train.data.annotations import OCCLUDED_3DPW
from train.data.anny import AnnyBodies
from train.data.pictures import Augmentation, BrokenPicture, Source
from train.data.smpl import GENDERS, SmplBodies
from train.images import PELVIS, normalise

HELP = "models that look at pictures, on 3DPW, 3DPW-OCC, EMDB or a dataset file"
METRICS = ("pve", "mpjpe", "pa_mpjpe")
PROTOCOLS = ("standard", "released")
# Published results: PVE, MPJPE, PA-MPJPE in mm, deterministic; then best of Q in MPJPE.
PAPERS: dict[str, dict[str, tuple[float | None, ...]]] = {
    "3dpw": {
        "MEGA, HRNet (paper)": (81.6, 68.5, 44.1),
        "MEGA, ViT-H (paper)": (80.0, 67.5, 41.0),
        "MEGA, ResNet-50 (paper)": (90.6, 76.3, 48.3),
        "VQ-HPS, HRNet (paper)": (84.8, 71.1, 45.2),
    },
    "emdb": {
        "MEGA, HRNet (paper)": (107.9, 90.5, 58.7),
        "MEGA, ViT-H (paper)": (108.6, 92.4, 52.5),
        "VQ-HPS, HRNet (paper)": (112.9, 99.9, 65.2),
    },
}
PAPERS_BEST_OF: dict[str, dict[str, dict[int, float]]] = {
    "3dpw": {
        "MEGA, HRNet (paper)": {1: 69.9, 5: 66.1, 10: 64.9, 25: 63.6},
        "MEGA, ResNet-50 (paper)": {1: 86.2, 5: 78.0, 10: 76.4, 25: 73.9},
    },
}
BEST_OF = (1, 5, 10, 25)


def configure(cli: argparse.ArgumentParser) -> None:
    """The subcommand's arguments."""
    cli.add_argument("--model", required=True, help="model folder")
    cli.add_argument("--data", type=Path, required=True, help="npz of train.data.prepare_3dpw, prepare_emdb, …")
    cli.add_argument("--pictures", type=Path, required=True, help="folder that the file's picture names start from")
    cli.add_argument("--dataset", choices=("3dpw", "3dpw-occ", "emdb", "other"), default="other")
    for gender in GENDERS:
        cli.add_argument(f"--{gender}", type=Path, help=f"SMPL file of {gender} bodies")
    cli.add_argument("--h36m", type=Path, help="J_regressor_h36m.npy")
    cli.add_argument("--limit", type=int, help="at most so many people, evenly over the file")
    cli.add_argument("--samples", type=int, default=25, help="per person; 0: the deterministic answer alone")
    cli.add_argument("--steps", type=int, default=5)
    cli.add_argument("--temperature", type=float, default=1.0)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--batch", type=int, default=16)
    cli.add_argument("--workers", type=int, default=0, help="processes that decode pictures")
    cli.add_argument("--device", default="cpu")
    cli.add_argument("-o", "--output", type=Path, help="JSON file; a Markdown table and plots are written beside it")


class _Crops(Dataset):
    """Rows of a source as crops; a broken picture is None."""

    def __init__(self, source: Source, size: int) -> None:
        self.source, self.size = source, size

    def __len__(self) -> int:
        return len(self.source.annotations)

    def __getitem__(self, row: int) -> dict[str, Any] | None:
        try:
            item = self.source.item(row, self.size, Augmentation.none(), np.random.default_rng(0))
        except BrokenPicture:
            return None
        return {**item, "row": np.int64(row)}


def _collate(items: list[dict[str, Any] | None]) -> dict[str, Tensor]:
    whole = [item for item in items if item is not None]
    return {name: torch.from_numpy(np.stack([item[name] for item in whole])) for name in whole[0]} if whole else {}


def batches(source: Source, size: int, batch: int, workers: int = 0) -> Iterator[dict[str, Tensor]]:
    """Crops of a source in order, unaugmented, without the broken ones."""
    loader = DataLoader(_Crops(source, size), batch_size=batch, num_workers=workers, collate_fn=_collate)
    return (part for part in loader if part)


def joint_errors(
    found: Tensor,
    rotation: Tensor,
    truth: Tensor,
    true_rotation: Tensor,
    bodies: SmplBodies | AnnyBodies,
    joint_set: str,
) -> dict[str, Tensor]:
    """Errors in mm (…) by both protocols, named "standard_pve" and so on.

    Args:
        found, truth: canonical vertices (…, V, 3). rotation, true_rotation: (…, 3, 3).
        joint_set: of the standard protocol: "h36m" (its first 14) or "smpl24".
    """
    meshes = [(vertices - vertices.mean(-2, keepdim=True)) @ turn.mT for vertices, turn in
              ((found, rotation), (truth, true_rotation))]  # fmt: skip
    seventeen = [bodies.joints(mesh) for mesh in meshes]
    if joint_set == "h36m":
        pelvis, chosen = [joints[..., PELVIS, :] for joints in seventeen], [joints[..., :14, :] for joints in seventeen]
    else:
        chosen = [bodies.joints(mesh, joint_set) for mesh in meshes]
        pelvis = [joints[..., 0, :] for joints in chosen]
    centred = [metrics.moved_to(joints, origin) for joints, origin in zip(chosen, pelvis, strict=True)]
    vertices = [metrics.moved_to(mesh, origin) for mesh, origin in zip(meshes, pelvis, strict=True)]
    return {
        "standard_pve": metrics.distances(*vertices),
        "standard_mpjpe": metrics.distances(*centred),
        "standard_pa_mpjpe": metrics.aligned_distances(*centred),
        "released_pve": metrics.distances(*meshes),
        "released_mpjpe": metrics.distances(*seventeen),
        "released_pa_mpjpe": metrics.aligned_distances(*seventeen),
    }


@torch.no_grad()
def evaluate(
    loaded: checkpoint.Loaded,
    bodies: SmplBodies | AnnyBodies,
    source: Source,
    joint_set: str = "h36m",
    samples: int = 25,
    steps: int = 5,
    temperature: float = 1.0,
    seed: int = 0,
    batch: int = 16,
    workers: int = 0,
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """Errors of every person in mm: deterministic "standard_pve" … (N), of samples "sample_standard_pve" … (N, Q).

    Beside them `row` (N) in the file, `degrees` (N) of the root rotation, and for samples `log_probability` (N, Q),
    `diversity` (N), and of the annotated joints their `spread` (N, 17), mean error (N, 17) and what `coverage` needs.
    Who is drawn how depends on the seed and the person's row alone.
    """
    model, tokenizer = loaded.model.to(device).eval(), loaded.tokenizer.to(device)
    bodies = bodies.to(device)
    size = model.backbone.input_size if isinstance(model, Mega) else model.input_size
    found: dict[str, list[Tensor]] = {}

    def note(**values: Tensor) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value.float().cpu())

    bar = tqdm(total=len(source.annotations), desc="people", leave=False)
    for part in batches(source, size, batch, workers):
        part = {name: value.to(device) for name, value in part.items()}
        truth = bodies.canonical(part["pose"][:, 3:], part["shape"], part["gender"])
        true_rotation = matrix_from_axis_angle(part["pose"][:, :3])
        features = model.features(normalise(part["picture"]))
        if isinstance(model, Mega):
            features = model.condition(features)
        rotation_6d, _ = model.pose(features)
        rotation = matrix_from_6d(rotation_6d.float())
        best = tokenizer.decode(model.best(features).tokens)
        note(row=part["row"], degrees=metrics.degrees(rotation, true_rotation))
        note(**joint_errors(best, rotation, truth, true_rotation, bodies, joint_set))
        note(body=bodies.joints(truth, joint_set), rotation=true_rotation)
        if samples and isinstance(model, Mega):
            seeds = [int(np.random.SeedSequence([seed, row]).generate_state(1)[0]) for row in part["row"].tolist()]
            drawn = model.draw(features, samples, steps, temperature, generator=seeds)
            rows = [tokenizer.decode(tokens) for tokens in drawn.tokens]  # a person at a time: memory
            errors = [
                joint_errors(meshes, rotation[n], truth[n], true_rotation[n], bodies, joint_set)
                for n, meshes in enumerate(rows)
            ]
            note(**{f"sample_{name}": torch.stack([e[name] for e in errors]) for name in errors[0]})
            joints = torch.stack([bodies.joints(meshes) for meshes in rows])
            note(log_probability=drawn.log_probability, joints=joints, true_joints=bodies.joints(truth))
            note(vertex_spread=torch.stack([metrics.spread(meshes[None]).mean() for meshes in rows]))
        bar.update(len(truth))
    bar.close()
    if not found:
        raise UserError(f"no picture in {source.folder} could be read: check --pictures")
    return {name: torch.cat(values).numpy() for name, values in found.items()}


def summarise(found: dict[str, np.ndarray], people: int) -> dict[str, Any]:
    """Means over people, best of Q, diversity and calibration."""
    names = [f"{protocol}_{metric}" for protocol in PROTOCOLS for metric in METRICS]
    result: dict[str, Any] = {
        "people": len(found["row"]),
        "skipped": people - len(found["row"]),
        "degrees_median": float(np.median(found["degrees"])),
        "deterministic": {name: float(found[name].mean()) for name in names},
        "blind": blind(*(torch.from_numpy(found[name]) for name in ("body", "rotation"))),
    }
    if "log_probability" in found:
        sampled = {name: torch.from_numpy(found[f"sample_{name}"]) for name in names}
        likeliest = torch.from_numpy(found["log_probability"]).argmax(1, keepdim=True)
        joints, truth = torch.from_numpy(found["joints"]), torch.from_numpy(found["true_joints"])
        result["best_of"] = {name: metrics.best_of(errors, BEST_OF).means() for name, errors in sampled.items()}
        result["mean_sample"] = {name: float(errors.mean()) for name, errors in sampled.items()}
        result["likeliest_sample"] = {name: float(e.gather(1, likeliest).mean()) for name, e in sampled.items()}
        result["vertex_spread"] = float(found["vertex_spread"].mean())
        if joints.shape[1] >= 2:
            result["joint_apd"] = float(metrics.pairwise_distance(joints).mean())
        if joints.shape[1] >= 3:
            result["coverage"] = metrics.coverage(joints, truth, (0.25, 0.5, 0.75, 0.9))
            error = metrics.MILLIMETRES * (joints.mean(1) - truth).norm(dim=-1)
            result["spread_error_correlation"] = metrics.correlation(metrics.spread(joints), error)
    return result


def blind(joints: Tensor, rotation: Tensor) -> dict[str, float]:
    """`metrics.blind` of the standard protocol; canonical joints (N, J, 3) of its set, rotation (N, 3, 3)."""
    usual = joints.shape[1] == 17
    chosen = metrics.moved_to(joints, joints[:, PELVIS if usual else 0])
    return metrics.blind(chosen[:, :14] if usual else chosen, rotation)


def table(name: str, dataset: str, result: dict[str, Any]) -> str:
    """Markdown: this model's numbers by both protocols, the papers' beneath them."""
    lines = [f"## {name} on {dataset}", "", f"{result['people']} people, {result['skipped']} skipped; mm.", ""]
    lines += ["| model | protocol | PVE | MPJPE | PA-MPJPE |", "|---|---|---|---|---|"]
    kinds = [
        ("deterministic", "deterministic"),
        ("mean_sample", "one sample"),
        ("likeliest_sample", "likeliest sample"),
    ]
    for key, text in kinds:
        for protocol in PROTOCOLS if key in result else ():
            numbers = " | ".join(f"{result[key][f'{protocol}_{metric}']:.1f}" for metric in METRICS)
            lines.append(f"| {name}, {text} | {protocol} | {numbers} |")
    blind = result["blind"]
    lines.append(
        f"| the mean of these bodies for everybody | standard | – | {blind['mpjpe']:.1f} | {blind['pa_mpjpe']:.1f} |"
    )
    family = "3dpw" if dataset.startswith("3dpw") and dataset != "3dpw-occ" else dataset
    for paper, numbers in PAPERS.get(family, {}).items():
        shown = " | ".join("–" if number is None else f"{number:.1f}" for number in numbers)
        lines.append(f"| {paper}, deterministic | as published | {shown} |")
    if "best_of" in result:
        counts = list(result["best_of"]["standard_mpjpe"])
        lines += ["", "| best of | protocol | metric | " + " | ".join(map(str, counts)) + " |"]
        lines.append("|---" * (3 + len(counts)) + "|")
        for protocol in PROTOCOLS:
            for metric in METRICS:
                errors = result["best_of"][f"{protocol}_{metric}"]
                shown = " | ".join(f"{errors[count]:.1f}" for count in counts)
                lines.append(f"| {name} | {protocol} | {metric.upper().replace('_', '-')} | {shown} |")
        for paper, errors in PAPERS_BEST_OF.get(family, {}).items():
            shown = " | ".join(f"{errors[count]:.1f}" if count in errors else "–" for count in counts)
            lines.append(f"| {paper} | as published | MPJPE | {shown} |")
        lines.append("")
        lines.append(f"Spread of the samples {result['vertex_spread']:.1f} mm per vertex.")
        if "joint_apd" in result:
            lines[-1] += f" Mean pairwise distance of joints {result['joint_apd']:.1f} mm."
        if "coverage" in result:
            shares = ", ".join(
                f"{100 * level:.0f} % → {100 * share:.0f} %" for level, share in result["coverage"].items()
            )
            lines[-1] += (
                f" Coverage {shares}; correlation of spread and error {result['spread_error_correlation']:.2f}."
            )
    return "\n".join(lines) + "\n"


def plots(found: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Errors over people, deterministic and best of the samples, and spread against error, for `report.plot`."""
    sampled = "joints" in found and found["joints"].shape[1] >= 2
    panels: dict[str, dict[str, np.ndarray]] = {}
    for metric in METRICS:
        name = f"standard_{metric}"
        curves = {"deterministic": found[name]}
        if sampled:
            errors = found[f"sample_{name}"]
            curves |= {"one sample": errors[:, 0], f"best of {errors.shape[1]}": errors.min(1)}
        panels[f"{metric.upper().replace('_', '-')}, mm"] = curves
    if sampled:
        joints = torch.from_numpy(found["joints"])
        error = metrics.MILLIMETRES * (joints.mean(1) - torch.from_numpy(found["true_joints"])).norm(dim=-1)
        panels["error against spread"] = {
            "spread of a joint over samples, mm": metrics.spread(joints).numpy(),
            "error of their mean, mm": error.numpy(),
        }
    return panels


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate, print the table, write the files; returns the numbers."""
    loaded = checkpoint.load(args.model, args.device)
    if loaded.model is None or loaded.tokenizer is None:
        raise UserError(f"{args.model} lacks its model or its tokenizer: give a complete model folder")
    people = annotations.read(args.data)
    if args.dataset == "3dpw-occ":
        people = people.of_sequences(OCCLUDED_3DPW)
    if not len(people):
        raise UserError(f"{args.data} has nobody of {args.dataset}: prepare it with `--split all`")
    if args.limit and args.limit < len(people):
        people = people.select(np.linspace(0, len(people) - 1, args.limit).astype(int))
    if people.body == "anny":
        bodies: SmplBodies | AnnyBodies = AnnyBodies()
    else:
        given = {gender: getattr(args, gender) for gender in GENDERS if getattr(args, gender)}
        if not given or args.h36m is None:
            raise UserError("SMPL datasets need --neutral, --male, --female (as their genders ask) and --h36m")
        bodies = SmplBodies(given, args.h36m)
        bodies.check_genders(people.gender, str(args.data))
    found = evaluate(
        loaded,
        bodies,
        Source(people, args.pictures),
        joint_set="smpl24" if args.dataset == "emdb" else "h36m",
        samples=args.samples,
        steps=args.steps,
        temperature=args.temperature,
        seed=args.seed,
        batch=args.batch,
        workers=args.workers,
        device=args.device,
    )
    name = loaded.config["name"]
    result = {
        "model": name,
        "dataset": args.dataset,
        "samples": args.samples,
        "steps": args.steps,
        "temperature": args.temperature,
        "seed": args.seed,
        **summarise(found, len(people)),
    }
    text = table(name, args.dataset, result)
    report.write(args.output, result, text, plots(found))
    return result
