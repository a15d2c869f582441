"""What the detector says about people whose bodies are known: real errors to train with, and their statistics.

    python -m train.data.detector FOLDER --count 1500 --mocap MOCAP -o detector_train.npz

makes rendered pictures in FOLDER (see `train.data.photographs`), runs the whole of `people.find` on each, and writes
what was found beside what is true, in the form that training reads. Nothing is done twice: pictures and detections that
are there stay; `--again` detects anew in the pictures that are there. `--variants 6` looks at every person six times
instead, each time in a picture made worse in another way, starting from about where the person is: several times as
many detections an hour as by searching.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from tqdm import tqdm

from mega_backend import camera, people
from mega_backend.body import Body
from mega_backend.people import Detection, square_crop
from mega_backend.people.landmarks import MAIN, MIRRORED
from mega_backend.people.looking import Circle, Eye, as_detection, circle_round, pyramid
from mega_backend.people.pose_network import shared_network
from train import command, metrics
from train.data import mocap, photographs, views
from train.data.bank import prepare
from train.data.detections import Detections
from train.data.photographs import Truth

FARTHEST = 0.25
"""A detection belongs to a person if their main joints lie no farther apart in the median, relative to the person."""


def match(found: list[np.ndarray], truth: Truth) -> list[int | None]:
    """Which of the found people, landmarks (33, ≥2) in pixels each, is which true one.

    Returns:
        For each true person the number of the found one, or None where nobody found them. A person whose left and
        right were taken for each other is found.
    """
    if not found:
        return [None] * len(truth.landmarks)
    main = list(MAIN)
    cost = np.ones((len(truth.landmarks), len(found)))
    for row, true in enumerate(truth.landmarks):
        size = np.hypot(*np.ptp(true, axis=0))
        for column, landmarks in enumerate(found):
            ways = (landmarks[:, :2], landmarks[list(MIRRORED), :2])
            cost[row, column] = min(np.median(np.hypot(*(way - true)[main].T)) / size for way in ways)
    pairs = zip(*linear_sum_assignment(np.minimum(cost, FARTHEST)), strict=True)
    matched = {int(row): int(column) for row, column in pairs if cost[row, column] < FARTHEST}
    return [matched.get(row) for row in range(len(truth.landmarks))]


def described(found: list[Detection], truth: Truth, body: Body, picture: int) -> Detections | None:
    """Those of the true people who were found, with what was found; None if nobody was.

    body: or any subset of it.
    """
    size = (int(truth.size[0]), int(truth.size[1]))
    pairs = [(person, found[n]) for person, n in enumerate(match([d.landmarks for d in found], truth)) if n is not None]
    if not pairs:
        return None
    chosen = [person for person, _ in pairs]
    rotations, shape = (part[chosen] for part in truth.posed())
    bank = prepare(body, rotations, shape)
    crops = [square_crop(detection.landmarks, size) for _, detection in pairs]
    turn = np.stack(
        [
            camera.view_rotation(np.array([crop.x, crop.y]), truth.focal_length, size).T @ rotation
            for crop, rotation in zip(crops, truth.canonical_to_camera()[chosen], strict=True)
        ]
    )
    rotation = torch.from_numpy(turn).float()
    true = np.stack([crop.from_picture(truth.landmarks[person]) for crop, person in zip(crops, chosen, strict=True)])
    true_landmarks = torch.from_numpy(true).float()
    flat = [crop.from_picture(detection.landmarks[:, :2]) for crop, (_, detection) in zip(crops, pairs, strict=True)]
    return Detections(
        landmarks=torch.from_numpy(np.stack(flat)).float(),
        visibility=torch.from_numpy(np.stack([detection.landmarks[:, 2] for _, detection in pairs])).float(),
        landmarks_3d=torch.from_numpy(np.stack([detection.landmarks_3d for _, detection in pairs])).float(),
        score=torch.tensor([detection.score for _, detection in pairs]),
        rotation=rotation,
        camera=views.fit_camera(bank.landmarks @ rotation.mT, true_landmarks),
        true_landmarks=true_landmarks,
        seen=torch.from_numpy(truth.seen[chosen]),
        rotations=bank.rotations,
        shape=bank.shape,
        root=bank.root,
        picture=torch.full((len(pairs),), picture),
        person=torch.tensor(chosen),
        crop=torch.tensor([[crop.x, crop.y, crop.side] for crop in crops]),
        size=torch.tensor([size] * len(pairs)),
        focal_length=torch.full((len(pairs),), float(truth.focal_length)),
    )


def worsened(picture: np.ndarray, landmarks: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) as a worse camera would have taken it, now and then with something before the person.

    landmarks: (33, 2) pixels of the person. Returns the picture, of the same size, and which landmarks (33,) are newly
    covered.
    """
    height, width = picture.shape[:2]
    worse = picture
    size = np.ptp(landmarks, axis=0).max()
    covered = np.zeros(len(landmarks), bool)
    if random.random() < 0.35:
        centre = landmarks[random.integers(len(landmarks))] + random.normal(0, 0.05 * size, 2)
        half = size * random.uniform(0.04, 0.16, 2)
        low, high = np.clip([centre - half, centre + half], 0, [width, height]).astype(int)
        if (high > low).all():
            worse = worse.copy()
            # Something else of the same picture: its colours and its light.
            across, down = high - low
            x, y = random.integers(0, width - across + 1), random.integers(0, height - down + 1)
            patch = picture[y : y + down, x : x + across]
            worse[low[1] : high[1], low[0] : high[0]] = patch * random.uniform(0.4, 1.0)
            covered = ((landmarks >= low) & (landmarks <= high)).all(1)
    if random.random() < 0.7:
        smaller = np.exp(random.uniform(np.log(0.2), 0))
        reduced = (max(int(width * smaller), 32), max(int(height * smaller), 32))
        worse = cv2.resize(cv2.resize(worse, reduced, interpolation=cv2.INTER_AREA), (width, height))
    if random.random() < 0.3:
        worse = cv2.GaussianBlur(worse, (0, 0), random.uniform(0.002, 0.012) * size)
    level = 255 * (worse / np.float32(255)) ** np.float32(np.exp(random.normal(0, 0.35)))
    level = (level - 128) * random.uniform(0.6, 1.2) + 128 + random.normal(0, 10)
    level = level + random.normal(0, random.uniform(0, 8), (height, width, 1))
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(25, 95))]
    _, packed = cv2.imencode(".jpg", np.clip(level, 0, 255).astype(np.uint8), quality)
    return cv2.imdecode(packed, cv2.IMREAD_COLOR), covered


def looked_at(picture: np.ndarray, landmarks: np.ndarray, random: np.random.Generator) -> Detection | None:
    """What the detector says of the person whose landmarks (33, 2) are there, having found them about there."""
    eye = Eye(pyramid(picture), shared_network())
    circle = circle_round(landmarks, score=1.0)
    angle, longer = np.deg2rad(random.normal(0, 8)), random.uniform(0.85, 1.2)
    up = longer * (circle.top - circle.centre)
    turned = np.array([np.cos(angle) * up[0] - np.sin(angle) * up[1], np.sin(angle) * up[0] + np.cos(angle) * up[1]])
    centre = circle.centre + random.normal(0, 0.06 * circle.radius, 2)
    first = eye.look(Circle(centre, centre + turned, circle.score))
    pose = first and eye.follow(first)
    return None if pose is None else as_detection(pose, picture.shape)


def variants(
    picture: np.ndarray, truth: Truth, count: int, random: np.random.Generator, body: Body, number: int
) -> list[Detections]:
    """`count` looks at each person of a picture that shows enough of them, each in another worse picture."""
    result = []
    for person in np.flatnonzero(truth.seen[:, list(MAIN)].sum(1) >= 4):
        for _ in range(count):
            worse, covered = worsened(picture, truth.landmarks[person], random)
            seen = truth.seen.copy()
            seen[person] &= ~covered
            found = looked_at(worse, truth.landmarks[person], random)
            if found is not None and match([found.landmarks], truth)[person] == 0:
                result.append(described([found], replace(truth, seen=seen), body, number))
    return result


def statistics(found: Detections, landmarks: Tensor) -> dict[str, object]:
    """How far off the detector is.

    landmarks (N, 33, 3): the bodies' own, canonical (`Bank.landmarks`). Distances in 3D in mm; in 2D relative to the
    person's size in the crop (the longer side of the box round the true landmarks).
    """
    main = list(MAIN)
    pa = metrics.aligned_distances(found.landmarks_3d[:, main], landmarks[:, main])
    span = (found.true_landmarks.amax(1) - found.true_landmarks.amin(1)).amax(-1)
    error = (found.landmarks - found.true_landmarks).norm(dim=-1) / span[:, None]
    own = error[:, main].mean(1)
    order = list(MIRRORED)

    def exchanged(part: list[int]) -> Tensor:
        there = (found.landmarks[:, order] - found.true_landmarks).norm(dim=-1) / span[:, None]
        return (there[:, part].mean(1) < 0.7 * error[:, part].mean(1)) & (error[:, part].mean(1) > 0.06)

    facing = _facing(landmarks @ found.rotation.mT)
    said = _facing(found.landmarks_3d)
    angle = torch.rad2deg(torch.atan2(facing[:, 0] * said[:, 2] - facing[:, 2] * said[:, 0], (facing * said).sum(1)))
    result: dict[str, object] = {
        "people": len(found),
        "pa_mpjpe_of_3d": float(pa.mean()),
        "pa_mpjpe_of_3d_median": float(pa.median()),
        "pa_mpjpe_of_3d_90th": float(pa.quantile(0.9)),
        "error_2d_main": float(own.mean()),
        "error_2d_main_median": float(own.median()),
        "arms_exchanged": float(exchanged([11, 12, 13, 14, 15, 16]).float().mean()),
        "legs_exchanged": float(exchanged([23, 24, 25, 26, 27, 28]).float().mean()),
        "heading_degrees_median": float(angle.abs().median()),
        "heading_off_by_90": float((angle.abs() > 90).float().mean()),
    }
    rows = []
    for index in range(33):
        columns: dict[str, float] = {"landmark": index}
        for name, chosen in (
            ("seen", found.seen[:, index]),
            ("hidden", ~found.seen[:, index]),
            ("visibility > 0.9", found.visibility[:, index] > 0.9),
            ("0.5 to 0.9", (found.visibility[:, index] > 0.5) & (found.visibility[:, index] <= 0.9)),
            ("below 0.5", found.visibility[:, index] <= 0.5),
        ):
            columns[name] = float(error[chosen, index].median()) if chosen.any() else float("nan")
            columns[f"{name}, share"] = float(chosen.float().mean())
        rows.append(columns)
    result["landmarks"] = rows
    return result


def _facing(landmarks: Tensor) -> Tensor:
    """Where the trunk faces (N, 3), level, camera axes: square to shoulders and hips taken together."""
    across = landmarks[:, 11] - landmarks[:, 12] + landmarks[:, 23] - landmarks[:, 24]
    up = landmarks[:, [11, 12]].mean(1) - landmarks[:, [23, 24]].mean(1)
    ahead = torch.linalg.cross(across, up)
    return ahead / ahead.norm(dim=-1, keepdim=True).clamp_min(1e-9)


def report(numbers: dict[str, object]) -> str:
    """The statistics as Markdown."""
    lines = [f"- {name}: {value:.4g}" for name, value in numbers.items() if not isinstance(value, list)]
    kinds = ("seen", "hidden", "visibility > 0.9", "0.5 to 0.9", "below 0.5")
    names = Body.bundled().regressor_names("mediapipe33")
    lines += ["", "Median 2D error in % of the person's size (in brackets: share of people).", ""]
    lines += [f"| landmark | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for row in numbers["landmarks"]:
        cells = [f"{100 * row[kind]:.1f} ({row[f'{kind}, share']:.0%})" for kind in kinds]
        lines.append(f"| {names[row['landmark']]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    return np.ascontiguousarray(cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1])


def main(arguments: list[str] | None = None) -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("folder", type=Path, help="of the pictures")
    cli.add_argument("--count", type=int, required=True, help="number of pictures")
    cli.add_argument("--mocap", type=Path, required=True, help="folder of motion capture")
    cli.add_argument("--split", default="train", choices=mocap.SPLITS)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--start", type=int, default=0, help="number of the first picture, to share the work out")
    cli.add_argument("--chunk", type=int, default=100, help="pictures after which the output is written")
    cli.add_argument("--size", type=int, default=photographs.SIZE, help="longer side of the widest pictures")
    cli.add_argument("--variants", type=int, default=0, help="looks at each person instead of a search")
    cli.add_argument("--again", action="store_true", help="detect anew; only pictures that are there")
    cli.add_argument("-o", "--output", type=Path, required=True, help="npz file; a .md with the statistics beside it")
    options = cli.parse_args(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    body = Body.bundled().subset(torch.arange(1))
    parts = []
    done, end = options.start, options.start + options.count
    if options.output.exists() and not options.again:
        parts.append(Detections.load(options.output))
        done = int(parts[0].picture.max()) + 1
    missed = 0
    for start in tqdm(range(done, end, options.chunk), desc="chunks"):
        numbers = range(start, min(start + options.chunk, end))
        if options.again:
            paths = [options.folder / f"{number:06d}.jpg" for number in numbers]
            paths = [path for path in paths if path.with_suffix(".npz").exists()]
        else:
            paths = photographs.make(options.folder, numbers, options.split, options.mocap, options.seed, options.size)
        for path in paths:
            truth = Truth.load(path.with_suffix(".npz"))
            if options.variants:
                random = np.random.default_rng((options.seed, 1, int(path.stem)))
                parts += variants(read_picture(path), truth, options.variants, random, body, int(path.stem))
                continue
            found = described(people.find(read_picture(path)), truth, body, int(path.stem))
            missed += found is None
            if found is not None:
                parts.append(found)
        if parts:
            everyone = Detections.joined(parts)
            everyone.save(options.output)
            text = report(statistics(everyone, everyone.bank(body).landmarks))
            options.output.with_suffix(".md").write_text(text + "\n")
    print(f"{len(everyone)} people in {options.output}; nobody was found in {missed} of the pictures looked at")


if __name__ == "__main__":
    command.run(main)
