"""`python -m train.evaluate pictures`: rendered pictures of held-out people through the whole path, detector and all.

Actors and shapes that training never saw, dressed, lit, cut off and hidden (`train.data.photographs`). Joints are the
14 of the standard protocol; the detector's own 3D landmarks are held against ours on the twelve main landmarks. MPJPE
and PVE are relative to the pelvis and include orientation. The pictures say nothing of their lens, as most do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from tqdm import tqdm

import mega_backend
from mega_backend import overlay
from mega_backend.people.landmarks import MAIN
from mega_backend.result import Person, Recovery
from train import metrics, report
from train.config import UserError
from train.data import photographs
from train.data.detector import match, read_picture
from train.data.photographs import Truth

HELP = "rendered pictures through the whole path: PA-MPJPE, MPJPE, PVE against the detector's own, by group"
LSP14 = list(metrics.BODY22_TO_LSP14)
LIMBS = list(MAIN)
TITLES = {"pa_mpjpe": "PA-MPJPE, mm", "mpjpe": "MPJPE, mm", "pve": "PVE, mm"}


def configure(cli: argparse.ArgumentParser) -> None:
    """The subcommand's arguments."""
    cli.add_argument("folder", type=Path, help="of the pictures; those that are missing are made")
    cli.add_argument("--model", default="default", help="model folder (default: the bundled one)")
    cli.add_argument("--mocap", type=Path, required=True, help="folder of motion capture with the held-out actors")
    cli.add_argument("--split", default="test", choices=("val", "test"))
    cli.add_argument("--pictures", type=int, default=300)
    cli.add_argument("--size", type=int, default=photographs.SIZE, help="longer side of those that are made, in pixels")
    cli.add_argument("--hypotheses", type=int, default=1, help="above 1, the best of so many is reported too")
    cli.add_argument("--seed", type=int, default=0, help="of the samples")
    cli.add_argument("--no-refine", dest="refine", action="store_false", help="meshes as the tokens say")
    cli.add_argument("--device", default="cpu")
    cli.add_argument("--sheets", type=Path, help="folder for sheets of the ten best and the ten worst")
    cli.add_argument("-o", "--output", type=Path, help="JSON file; a Markdown table and plots are written beside it")


class Case(NamedTuple):
    """One true person who was found: picture number, person's number in it, errors in mm, groups."""

    picture: int
    person: int
    errors: dict[str, float]
    groups: dict[str, str]


def errors(person: Person, truth: Truth, number: int, body: Any) -> dict[str, float]:
    """Errors (mm) of a recovered person against a true one; `best_…` of all hypotheses where there are several."""
    rotations, shape = (part[number : number + 1] for part in truth.posed())
    turn = torch.from_numpy(truth.canonical_to_camera()[number]).float()
    true = body.canonical_skin(rotations, shape)[0] @ turn.T
    found = torch.from_numpy(person.vertices)
    joints, true_joints = body.joints(found, "body22"), body.joints(true, "body22")
    pelvis, true_pelvis = joints[:, 0], true_joints[0]
    limbs, true_limbs = body.joints(found, "mediapipe33")[:, LIMBS], body.joints(true, "mediapipe33")[LIMBS]
    own = torch.from_numpy(person.landmarks_3d)[LIMBS]
    target = (true_joints[LSP14] - true_pelvis).expand(len(found), -1, -1)
    moved = metrics.moved_to(joints[:, LSP14], pelvis)
    values = {
        "pa_mpjpe": metrics.aligned_distances(moved, target),
        "mpjpe": metrics.distances(moved, target),
        "pve": metrics.distances(metrics.moved_to(found, pelvis), true - true_pelvis),
        "pa_limbs": metrics.aligned_distances(limbs, true_limbs.expand_as(limbs)),
    }
    result = {name: float(value[0]) for name, value in values.items()}
    if len(found) > 1:
        result |= {f"best_{name}": float(value.min()) for name, value in values.items()}
    return result | {"detector_pa_limbs": float(metrics.aligned_distances(own[None], true_limbs[None])[0])}


def groups(truth: Truth, number: int, body: Any) -> dict[str, str]:
    """Which groups a person belongs to: the side seen, how much of the main joints is seen, the posture."""
    rotations, shape = (part[number : number + 1] for part in truth.posed())
    turn = truth.canonical_to_camera()[number]
    joints = dict(
        zip(body.regressor_names("body22"), body.skin_joints(rotations, shape, "body22")[0].numpy(), strict=True)
    )
    ahead = turn @ [0, 0, 1]
    view = "front" if ahead[2] < -0.6 else "back" if ahead[2] > 0.6 else "side"
    unseen = 1 - truth.seen[number, LIMBS].mean()
    occlusion = "under 20 % hidden" if unseen < 0.2 else "20 to 45 % hidden" if unseen < 0.45 else "over 45 % hidden"
    trunk = joints["neck"] - joints["pelvis"]
    upright = trunk[1] / np.linalg.norm(trunk)
    height = joints["pelvis"][1] - min(joints["left_ankle"][1], joints["right_ankle"][1])
    legs = np.linalg.norm(joints["left_hip"] - joints["left_knee"]) + np.linalg.norm(
        joints["left_knee"] - joints["left_ankle"]
    )
    posture = "standing" if height > 0.75 * legs else "sitting or crouching"
    if upright < 0.6:
        posture = "lying or bent over"
    return {"view": view, "occlusion": occlusion, "posture": posture}


def evaluate(
    recover: Callable[[np.ndarray], Recovery], paths: list[Path], body: Any
) -> tuple[list[Case], list[tuple[int, int]], int]:
    """All people who were found; (picture, person) of those who were missed though half of them is seen; strangers.

    Strangers are people who were found where nobody is.
    """
    cases, missed, strangers = [], [], 0
    for path in tqdm(paths, desc="pictures"):
        truth = Truth.load(path.with_suffix(".npz"))
        found = recover(read_picture(path)).people
        matched = match([person.landmarks for person in found], truth)
        strangers += len(found) - sum(number is not None for number in matched)
        for number, which in enumerate(matched):
            if which is not None:
                numbers = errors(found[which], truth, number, body)
                cases.append(Case(int(path.stem), number, numbers, groups(truth, number, body)))
            elif truth.seen[number, LIMBS].mean() >= 0.5:
                missed.append((int(path.stem), number))
    return cases, missed, strangers


def summary(cases: list[Case]) -> dict[str, Any]:
    """Means over people, in all and by group; `gain` over the detector on the same landmarks."""

    def means(chosen: list[Case]) -> dict[str, float]:
        row = {name: float(np.mean([case.errors[name] for case in chosen])) for name in chosen[0].errors}
        row["pa_mpjpe_median"] = float(np.median([case.errors["pa_mpjpe"] for case in chosen]))
        return {"people": len(chosen), **row, "gain": 1 - row["pa_limbs"] / row["detector_pa_limbs"]}

    result: dict[str, Any] = {"everybody": means(cases)}
    for kind in cases[0].groups:
        for value in sorted({case.groups[kind] for case in cases}):
            result[f"{kind}: {value}"] = means([case for case in cases if case.groups[kind] == value])
    return result


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown: a row for each group."""
    best = "best_pa_mpjpe" in rows["everybody"]
    head = ["", "people", "PA-MPJPE", "median", *(["best of all"] if best else []), "MPJPE", "PVE"]
    head += ["PA, 12 landmarks", "detector's", "gain"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in rows.items():
        columns = ["pa_mpjpe", "pa_mpjpe_median", *(["best_pa_mpjpe"] if best else []), "mpjpe", "pve"]
        numbers = [f"{row[column]:.1f}" for column in (*columns, "pa_limbs", "detector_pa_limbs")]
        lines.append(f"| {name} | {row['people']} | {' | '.join(numbers)} | {100 * row['gain']:.0f} % |")
    return "\n".join(lines)


def sheet(cases: list[Case], folder: Path, recover: Callable[[np.ndarray], Recovery], body: Any) -> np.ndarray:
    """A row for each case: the picture, the mesh over it, and mesh and truth from the side; (H, W, 3) uint8."""
    rows = []
    for case in cases:
        path = folder / f"{case.picture:06d}.jpg"
        picture, truth = read_picture(path), Truth.load(path.with_suffix(".npz"))
        recovery = recover(picture)
        person = recovery.people[match([p.landmarks for p in recovery.people], truth)[case.person]]
        marked = picture.copy()
        for x, y, seen in person.landmarks[LIMBS]:
            cv2.circle(
                marked, (round(float(x)), round(float(y))), 3, (60, 220, 60) if seen > 0.5 else (230, 60, 60), -1
            )
        rotations, shape = (part[case.person : case.person + 1] for part in truth.posed())
        turn = torch.from_numpy(truth.canonical_to_camera()[case.person]).float()
        true = (body.canonical_skin(rotations, shape)[0] @ turn.T).numpy()
        faces = body.faces.numpy()
        tiles = [_tile(marked), _tile(overlay.overlay(recovery, picture))]
        tiles += [overlay.views(person.vertices[0], faces, (0, 90), 320)]
        tiles += [overlay.views(true, faces, (0, 90), 320, overlay.PALETTE[2])]
        row = np.ascontiguousarray(np.concatenate(tiles, axis=1))
        text = f"{case.errors['pa_mpjpe']:.0f} mm, detector {case.errors['detector_pa_limbs']:.0f} (#{case.picture})"
        cv2.putText(row, text, (8, 312), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (20, 20, 20), 1, cv2.LINE_AA)
        rows.append(row)
    return np.concatenate(rows)


def _tile(picture: np.ndarray, side: int = 320) -> np.ndarray:
    """The picture in the middle of a grey square."""
    zoom = side / max(picture.shape[:2])
    small = cv2.resize(picture, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)[:side, :side]
    tile = np.full((side, side, 3), 236, np.uint8)
    top, left = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
    tile[top : top + small.shape[0], left : left + small.shape[1]] = small
    return tile


@torch.no_grad()
def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate and print; returns the numbers."""
    recoverer = mega_backend.load(args.model, device=args.device)
    body = recoverer.body
    paths = photographs.make(args.folder, range(args.pictures), args.split, args.mocap, size=args.size)

    def recover(picture: np.ndarray) -> Recovery:
        return recoverer.recover(picture, hypotheses=args.hypotheses, seed=args.seed, refine=args.refine)

    cases, missed, strangers = evaluate(recover, paths, body)
    if not cases:
        raise UserError(f"nobody was found in any of {len(paths)} pictures: is {args.folder} the right folder?")
    rows = summary(cases)
    text = table(rows) + (
        f"\n\n{len(paths)} pictures; {len(missed)} people missed of whom half the main joints are seen; "
        f"{strangers} found where nobody is. Millimetres."
    )
    ranked = sorted(cases, key=lambda case: case.errors["pa_mpjpe"])
    if args.sheets:
        args.sheets.mkdir(parents=True, exist_ok=True)
        for name, chosen in (("best", ranked[:10]), ("worst", ranked[:-11:-1])):
            drawn = sheet(chosen, args.folder, recover, body)
            cv2.imwrite(str(args.sheets / f"{name}.jpg"), drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    results = {
        "model": recoverer.card["name"],
        "pictures": len(paths),
        "groups": rows,
        "missed": missed,
        "strangers": strangers,
        "people": [case._asdict() for case in cases],
    }
    report.write(args.output, results, text, plots(cases))
    return results


def plots(cases: list[Case]) -> dict[str, dict[str, np.ndarray]]:
    """Errors over people for `report.plot`, and those of the 12 landmarks beside the detector's."""

    def over_people(name: str) -> np.ndarray:
        return np.array([case.errors[name] for case in cases])

    panels = {title: {"recovered": over_people(name)} for name, title in TITLES.items()}
    both = {"recovered": "pa_limbs", "the detector's": "detector_pa_limbs"}
    return panels | {"12 landmarks, aligned, mm": {title: over_people(name) for title, name in both.items()}}
