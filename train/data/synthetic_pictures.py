"""Synthetic pictures for image backbones, where no dataset is at hand: dressed Anny bodies in random scenes.

    python -m train.data.synthetic_pictures OUT -n 2000 --seed 0 [--mocap FOLDER] [--split train] [--processes 2]

Writes OUT/pictures and OUT/people.npz in the layout of training files (`train.data.annotations`), with Anny's shape
coefficients. Every scene depends on (seed, its number) alone: a run that was stopped goes on where it was, with any
number of processes. Scenes: floor, walls, furniture with patterns; one or two people in clothes; sun and sky; something
in front of the person now and then; two cameras each, from all sides.
"""

from __future__ import annotations

import argparse
import multiprocessing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from mega_backend.body import Body
from mega_backend.rotations import axis_angle_from_quaternion
from train import command
from train.data import annotations, mocap, raycast, shapes
from train.data.annotations import ANNOTATED24, AnnotationError, Annotations
from train.data.anny import AnnyBodies, annotated24
from train.data.poses import PoseSource
from train.data.raycast import Camera, Light, Thing
from train.data.render import HAIR, SKIN, Outfit, dress
from train.data.sequences import join

VIEWS = 2
"""Cameras of a scene."""
TRIES = 5
"""Cameras that are tried until one sees somebody."""
BOX_MARGIN = 1.2


@dataclass(frozen=True)
class Person:
    """One body in the world: pose (66) with the root in world axes, shape (S), vertices (V, 3), joints (24, 3)."""

    pose: np.ndarray
    shape: np.ndarray
    vertices: np.ndarray
    joints: np.ndarray


class Studio:
    """Makes scenes out of a body, poses (N, 22, 4) as local quaternions, and shapes."""

    def __init__(self, poses: torch.Tensor, split: str, body: Body | None = None) -> None:
        self.bodies = AnnyBodies(body)
        self.body, self.poses, self.split = self.bodies.body, poses, split
        self.joints = annotated24(self.body).numpy()
        self.faces, self.quads = self.body.faces.numpy(), self.body.quads.numpy()
        self.part = self.body.vertex_part.numpy()

    def people(self, count: int, random: np.random.Generator) -> list[Person]:
        """Random people, the first at the origin, their lowest points on the floor (y = 0)."""
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        picked = self.poses[torch.from_numpy(random.integers(len(self.poses), size=count))]
        pose = axis_angle_from_quaternion(picked).flatten(1).numpy().astype(np.float64)
        heading = Rotation.from_rotvec(np.outer(random.uniform(0, 2 * np.pi, count), [0, 1, 0]))
        pose[:, :3] = (heading * Rotation.from_rotvec(pose[:, :3])).as_rotvec()
        shape = shapes.sample(self.body, count, generator, self.split)
        vertices = self.body.skin(self.bodies.rotations(torch.from_numpy(pose).float()), shape).numpy()
        people = []
        for number in range(count):
            angle, apart = random.uniform(0, 2 * np.pi), random.uniform(0.6, 1.6) if number else 0.0
            place = apart * np.array([np.cos(angle), 0, np.sin(angle)])
            middle = vertices[number].mean(0) * [1, 0, 1]
            points = vertices[number] + place - middle - [0, vertices[number, :, 1].min(), 0]
            people.append(Person(pose[number], shape[number].numpy(), points, self.joints @ points))
        return people

    def dressed(self, person: Person, random: np.random.Generator) -> list[Thing]:
        """Two things: what is covered by clothes, with a pattern, and the rest."""
        outfit = replace(Outfit.random(random), skin=varied(SKIN, random), hair=varied(HAIR, random))
        rest = self.body.rest(torch.from_numpy(person.shape)[None])[0][0].numpy().astype(np.float64)
        vertices, colours = dress(rest, person.vertices, self.quads, self.part, self.body.part_names, outfit)
        covered = np.zeros(len(rest), bool)
        for colour in (outfit.shirt, outfit.trousers, outfit.shoes):
            covered |= (colours == colour).all(1)
        cloth = covered[self.faces].all(1)
        pattern = {
            "pattern": int(random.choice([raycast.PLAIN, raycast.STRIPES, raycast.CHECKS, raycast.NOISE])),
            "frequency": float(random.uniform(6, 30)),
            "contrast": float(random.uniform(0.2, 0.9)),
            "second": tuple(random.uniform(0.02, 0.8, 3)),
        }
        return [
            Thing(vertices, self.faces[cloth], colours, rest, **pattern),
            Thing(vertices, self.faces[~cloth], colours, rest),
        ]


def varied(colours: tuple, random: np.random.Generator) -> tuple[float, float, float]:
    """One of the colours, somewhat lighter, darker or shifted."""
    return tuple(np.clip(np.array(colours[random.integers(len(colours))]) * random.uniform(0.8, 1.25, 3), 0.01, 0.9))


_CUBE = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3, indexing="ij")).reshape(3, -1).T
_CUBE_FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4],
     [1, 5, 7], [1, 7, 3]]
)  # fmt: skip


def box(centre: np.ndarray, half: np.ndarray, turn: float, random: np.random.Generator) -> Thing:
    """A box with half its sides (3), turned about the vertical by radians, of random colours and pattern."""
    vertices = _CUBE * half @ Rotation.from_rotvec([0, turn, 0]).as_matrix().T + centre
    return Thing(
        vertices,
        _CUBE_FACES,
        np.tile(random.uniform(0.03, 0.8, 3), (8, 1)),
        vertices,
        pattern=int(random.integers(4)),
        frequency=float(np.exp(random.uniform(np.log(0.5), np.log(12)))),
        contrast=float(random.uniform(0, 0.9)),
        second=tuple(random.uniform(0.03, 0.8, 3)),
    )


def surroundings(random: np.random.Generator) -> list[Thing]:
    """Floor, perhaps walls, furniture round the middle; y = 0 is the floor."""
    things = [box(np.array([0, -0.5, 0]), np.array([30, 0.5, 30]), 0.0, random)]
    for _ in range(random.integers(0, 4)):
        turn, away = random.uniform(0, 2 * np.pi), random.uniform(1.5, 8)
        centre = np.array([away * np.sin(turn), 2.0, away * np.cos(turn)])
        things.append(box(centre, np.array([random.uniform(1, 12), random.uniform(1, 4), 0.05]), turn, random))
    for _ in range(random.integers(0, 6)):
        angle, away = random.uniform(0, 2 * np.pi), random.uniform(0.9, 4)
        half = random.uniform(0.05, 0.6, 3)
        centre = np.array([away * np.cos(angle), half[1], away * np.sin(angle)])
        things.append(box(centre, half, random.uniform(0, np.pi), random))
    return things


def look_at(target: np.ndarray, position: np.ndarray, roll: float, focal: float, size: tuple[int, int]) -> Camera:
    """A camera at `position` with `target` in the middle of its picture, rolled by radians."""
    ahead = target - position
    ahead = ahead / np.linalg.norm(ahead)
    right = np.cross(ahead, [0, 1, 0])
    right /= np.linalg.norm(right)
    level = np.stack([right, np.cross(ahead, right), ahead])
    return Camera(Rotation.from_rotvec([0, 0, roll]).as_matrix() @ level, position, focal, size)


def random_camera(person: Person, size: int, random: np.random.Generator) -> Camera:
    """A camera from any side, mostly level, that shows the person nearly whole, a little off the middle."""
    middle = (person.vertices.min(0) + person.vertices.max(0)) / 2
    radius = np.linalg.norm(person.vertices - middle, axis=1).max()
    view = np.deg2rad(random.uniform(20, 60))
    distance = radius / np.sin(view / 2) * random.uniform(0.95, 1.5)
    azimuth, height = random.uniform(0, 2 * np.pi), np.deg2rad(np.clip(random.normal(8, 14), -15, 60))
    offset = np.array([np.cos(height) * np.sin(azimuth), np.sin(height), np.cos(height) * np.cos(azimuth)])
    position = middle + distance * offset
    position[1] = max(position[1], 0.15)
    target = middle + 0.12 * radius * random.normal(size=3)
    return look_at(target, position, np.deg2rad(random.normal(0, 4)), size / 2 / np.tan(view / 2), (size, size))


def random_light(random: np.random.Generator) -> Light:
    """Sunny or overcast, warm or cold."""
    warm = np.array([1 + 0.2 * random.uniform(-1, 1), 1.0, 1 - 0.25 * random.uniform(-1, 1)])
    sun = random.normal(size=3)
    sun[1] = abs(sun[1]) + 0.4
    zenith = random.uniform(0.2, 0.9) * np.array([random.uniform(0.6, 1), random.uniform(0.7, 1), 1.0])
    return Light(
        sun,
        tuple(random.choice([0.0, 1.0, 2.5]) * random.uniform(0.4, 1) * warm),
        tuple(zenith),
        tuple(random.uniform(0.4, 1.0) * warm),
    )


def annotate(people: list[Person], camera: Camera, seen: list[bool], name: str) -> Annotations | None:
    """What a training file says about the people whom the camera sees; None if it sees nobody."""
    rows = []
    for person, visible in zip(people, seen, strict=True):
        if not visible:
            continue
        pixels = camera.project(person.vertices)
        low, high = np.clip(pixels.min(0), 0, camera.size), np.clip(pixels.max(0), 0, camera.size)
        root = Rotation.from_matrix(camera.rotation) * Rotation.from_rotvec(person.pose[:3])
        joints = np.column_stack([camera.project(person.joints), np.ones(len(ANNOTATED24))])
        rows.append(
            Annotations(
                names=np.array([name]),
                centre=(low + high)[None] / 2,
                side=np.array([BOX_MARGIN * (high - low).max()]),
                pose=np.concatenate([root.as_rotvec(), person.pose[3:]])[None],
                shape=person.shape[None],
                gender=np.zeros(1, np.int64),
                joints=joints[None],
                joint_set="annotated24",
                body="anny",
            )
        )
    return join(rows, name) if rows else None


def visible(people: list[Person], camera: Camera, found: np.ndarray) -> list[bool]:
    """Who is wholly before the camera and covers 2 % of the picture or more; `found` comes from `raycast.render`."""
    result = []
    for index, person in enumerate(people):
        ahead = (camera.to_camera(person.vertices)[:, 2] > 0.1).all()
        shown = np.isin(found, (2 * index, 2 * index + 1)).mean()
        result.append(bool(ahead and shown > 0.02))
    return result


def make_scene(studio: Studio, folder: Path, seed: int, number: int, size: int, samples: int, device: str) -> None:
    """Render one scene from all its cameras: pictures, then parts/NUMBER.npz (empty if nobody is to be seen)."""
    random = np.random.default_rng([seed, number])
    people = studio.people(1 + int(random.random() < 0.3), random)
    things = [thing for person in people for thing in studio.dressed(person, random)]
    things += surroundings(random)
    light = random_light(random)
    tables = []
    for view in range(VIEWS):
        name = f"{number:06d}_{view}.jpg"
        for _ in range(TRIES):
            camera = random_camera(people[0], size, random)
            scene = list(things)
            if random.random() < 0.35:
                at = camera.position + random.uniform(0.4, 0.75) * (people[0].vertices.mean(0) - camera.position)
                half = random.uniform(0.04, 0.25, 3) * [1, 2, 1]
                scene.append(box(at + random.normal(0, 0.15, 3), half, random.uniform(0, np.pi), random))
            options = {"seed": number * VIEWS + view, "samples": samples, "device": device}
            picture, found = raycast.render(scene, camera, light, **options)
            table = annotate(people, camera, visible(people, camera, found), name)
            if table is not None:
                noise = random.normal(0, random.uniform(0, 6), picture.shape)
                picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / "pictures" / name), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
                tables.append(table)
                break
    part = folder / "parts" / f"{number:06d}.npz"
    if tables:
        annotations.write(part, join(tables, str(folder)), "training")
    else:
        np.savez(part)


def merge(parts: list[Path], out: Path) -> int:
    """Write one training file of those of the scenes; returns the number of people."""
    columns: dict[str, list[np.ndarray]] = {}
    for part in parts:
        with np.load(part, allow_pickle=False) as file:
            for name in file.files:
                columns.setdefault(name, []).append(file[name])
    if not columns:
        raise AnnotationError(f"Nobody is to be seen in any of {len(parts)} scenes: make more of them.")
    body = columns.pop("body")[0]
    partial_file = out.with_suffix(".partial.npz")
    arrays = {name: np.concatenate(values) for name, values in columns.items()}
    np.savez_compressed(partial_file, body=body, **arrays)
    partial_file.replace(out)
    return len(arrays["imgname"])


_studio: Studio | None = None


def _start(mocap_folder: Path | None, split: str, poses: int) -> None:
    global _studio
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    body = Body.bundled()
    weights = (0.3, 0.3, 0.4) if mocap_folder else (0.0, 0.4, 0.6)
    source = PoseSource(body, split, mocap_folder, weights, bank=max(64, poses // 2))
    _studio = Studio(source.sample(poses, torch.Generator().manual_seed(11))[0], split, body)


def _work(number: int, **options) -> None:
    make_scene(_studio, number=number, **options)


def main(arguments: list[str] | None = None) -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("out", type=Path)
    cli.add_argument("-n", "--count", type=int, required=True, help="number of pictures")
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--mocap", type=Path, help="folder of motion capture; without it all poses are synthetic")
    cli.add_argument("--poses", type=int, default=8192, help="number of different poses")
    cli.add_argument("--split", default="train", choices=mocap.SPLITS)
    cli.add_argument("--size", type=int, default=256, help="width and height in pixels")
    cli.add_argument("--samples", type=int, default=6, help="rays through each pixel")
    cli.add_argument("--processes", type=int, default=1)
    cli.add_argument("--device", default="cpu", help="Warp's device: cpu, cuda:0, …")
    options = cli.parse_args(arguments)
    for name in ("pictures", "parts"):
        (options.out / name).mkdir(parents=True, exist_ok=True)
    scenes = range(-(-options.count // VIEWS))
    missing = [number for number in scenes if not (options.out / "parts" / f"{number:06d}.npz").exists()]
    work = partial(
        _work,
        folder=options.out,
        seed=options.seed,
        size=options.size,
        samples=options.samples,
        device=options.device,
    )
    start = (options.mocap, options.split, options.poses)
    bar = partial(tqdm, total=len(missing), desc="scenes", smoothing=0.05)
    if options.processes > 1 and len(missing) > 1:
        with multiprocessing.get_context("spawn").Pool(options.processes, _start, start) as pool:
            for _ in bar(pool.imap_unordered(work, missing)):
                pass
    elif missing:
        _start(*start)
        for number in bar(missing):
            work(number)
    count = merge([options.out / "parts" / f"{number:06d}.npz" for number in scenes], options.out / "people.npz")
    print(f"{count} people in {options.out / 'people.npz'}")


if __name__ == "__main__":
    command.run(main)
