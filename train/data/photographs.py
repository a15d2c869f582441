"""Photograph-like pictures of people whose bodies are known exactly: to measure the detector and the whole path by.

One or two people in clothes, with faces and hair, in a street of boxes and patterns under sun or cloud; from all
sides, near and far, with long and short lenses; some cut off by the frame, some behind things. Whatever the detector
may be asked about is written beside each picture.

    python -m train.data.photographs FOLDER --count 300 --split test --mocap MOCAP

FOLDER/000123.jpg and FOLDER/000123.npz belong together; what is there already is not made again. The split decides
whose motion capture and whose shapes: a picture depends on the split, the seed and its number alone.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from mega_backend.body import Body
from mega_backend.people.landmarks import MAIN
from mega_backend.rotations import matrix_from_6d, sixd_from_matrix
from train import command
from train.data import mocap, raycast
from train.data.bodies import BodySampler
from train.data.raycast import Camera, Thing
from train.data.render import HAIR, SKIN, Outfit, dress
from train.data.synthetic_pictures import box, look_at, random_light, surroundings, varied

POSES = {"train": (0.3, 0.3, 0.4), "val": (0.5, 0.1, 0.4), "test": (0.6, 0.0, 0.4)}
"""Shares of poses as captured, recombined and synthetic."""
LIMB_DEPTH = 0.11
"""A landmark counts as seen where the camera sees its own body no farther in front of it, relative to its height."""
SIZE = 960
"""Longer side of the widest pictures, in pixels. Photographs are larger still. In pictures of 352 pixels the detector's
landmarks are 6.5 % of the person off, in those of 704 pixels 4.2 %."""
FRAMES = ((1.0, 1.0), (0.85, 1.0625), (1.1, 0.825))
"""Widths and heights of pictures, relative to those of a square one."""


@dataclass(frozen=True)
class Subject:
    """A posed body in the world (Y up): rotations (J, 3, 3) and shape (S) as for `Body.skin`, vertices (V, 3)."""

    rotations: np.ndarray
    shape: np.ndarray
    vertices: np.ndarray


@dataclass(frozen=True)
class Truth:
    """What is known of a picture's P people. Camera axes: x right, y down, z forward; metres and pixels.

    rotations (P, J, 6) and shape (P, S): the pose for `Body.skin`, the root turned against the ground, Y up.
    camera_rotation (3, 3): world to camera axes. translation (P, 3): the mesh's mean in camera axes.
    landmarks (P, 33, 2): MediaPipe's in pixels. seen (P, 33): whether the camera sees them, inside the frame.
    size: width, height. focal_length: in pixels.
    """

    rotations: np.ndarray
    shape: np.ndarray
    camera_rotation: np.ndarray
    translation: np.ndarray
    landmarks: np.ndarray
    seen: np.ndarray
    size: np.ndarray
    focal_length: float

    def save(self, path: Path) -> None:
        """Write one file; half a file never bears the name."""
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **vars(self))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Truth:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(**{name: file[name] for name in file.files})

    def posed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """World rotations (P, J, 3, 3) and shape (P, S), as `Body.skin` takes them."""
        six = torch.from_numpy(self.rotations.astype(np.float32))
        return matrix_from_6d(six), torch.from_numpy(self.shape.astype(np.float32))

    def canonical_to_camera(self) -> np.ndarray:
        """Rotations (P, 3, 3) from canonical to camera axes."""
        return self.camera_rotation @ self.posed()[0][:, 0].double().numpy()


class Photographer:
    """Makes pictures of random people of a split; without motion capture in synthetic postures only."""

    def __init__(self, split: str, folder: Path | None, body: Body | None = None, size: int = SIZE) -> None:
        self.size = size
        self.body = Body.bundled() if body is None else body
        weights = POSES[split] if folder is not None else (0.0, 0.0, 1.0)
        self.sampler = BodySampler(self.body, split, folder, weights, bank=512)
        self.quads, self.faces = self.body.quads.numpy(), self.body.faces.numpy()
        self.part = self.body.vertex_part.numpy()
        rest = self.body.rest(torch.zeros(1, self.body.shape_count))[0]
        self.face = _Face(rest[0].double().numpy(), self.body.joints(rest, "mediapipe33")[0].double().numpy())

    def subjects(self, count: int, random: np.random.Generator) -> list[Subject]:
        """Random people, the first at the origin, their lowest points on the floor (y = 0)."""
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        drawn = self.sampler.sample(count, generator)
        heading = Rotation.from_rotvec(np.outer(random.uniform(0, 2 * np.pi, count), [0, 1, 0])).as_matrix()
        turned = torch.from_numpy(heading).float()[:, None] @ drawn["rotations"]
        # Through the stored precision first, so that the picture shows exactly what is written beside it.
        rotations = matrix_from_6d(sixd_from_matrix(turned).half().float())
        shape = drawn["shape"].half().float()
        vertices = self.body.skin(rotations, shape).double().numpy()
        subjects = []
        for number in range(count):
            angle, apart = random.uniform(0, 2 * np.pi), random.uniform(0.5, 1.6) if number else 0.0
            place = apart * np.array([np.cos(angle), 0, np.sin(angle)])
            low = vertices[number, :, 1].min()
            points = vertices[number] + place - vertices[number].mean(0) * [1, 0, 1] - [0, low, 0]
            subjects.append(Subject(rotations[number].numpy(), shape[number].numpy(), points))
        return subjects

    def dressed(self, subject: Subject, random: np.random.Generator) -> list[Thing]:
        """Two things: what is covered by clothes, with a pattern, and the rest."""
        outfit = replace(Outfit.random(random), skin=varied(SKIN, random), hair=varied(HAIR, random))
        rest = self.body.rest(torch.from_numpy(subject.shape)[None])[0][0].double().numpy()
        vertices, colours = dress(rest, subject.vertices, self.quads, self.part, self.body.part_names, outfit)
        hair = (colours == outfit.hair).all(1) & (self.part == self.body.part_names.index("head"))
        normals = raycast.vertex_normals(vertices, self.faces)
        vertices = vertices + hair[:, None] * random.uniform(0.0, 0.035) * normals
        covered = np.zeros(len(rest), bool)
        for colour in (outfit.shirt, outfit.trousers, outfit.shoes):
            covered |= (colours == colour).all(1)
        self.face.paint(colours, outfit, random)
        cloth = covered[self.faces].all(1)
        pattern = {
            "pattern": int(
                random.choice([raycast.PLAIN, raycast.PLAIN, raycast.STRIPES, raycast.CHECKS, raycast.NOISE])
            ),
            "frequency": float(random.uniform(6, 30)),
            "contrast": float(random.uniform(0.1, 0.8)),
            "second": tuple(random.uniform(0.02, 0.8, 3)),
        }
        return [
            Thing(vertices, self.faces[cloth], colours, rest, **pattern),
            Thing(vertices, self.faces[~cloth], colours, rest),
        ]

    def take(self, path: Path, seed: tuple[int, ...]) -> Truth:
        """Make the picture `path` (.jpg) and what is known of it, which is also returned."""
        random = np.random.default_rng(seed)
        subjects = self.subjects(1 + int(random.random() < 0.45), random)
        things = [thing for subject in subjects for thing in self.dressed(subject, random)]
        count, light = len(things), random_light(random)
        things += surroundings(random)
        while True:
            camera = random_camera(subjects[0], random, self.size)
            scene = list(things)
            if random.random() < 0.35:
                at = camera.position + random.uniform(0.4, 0.75) * (subjects[0].vertices.mean(0) - camera.position)
                half = random.uniform(0.04, 0.2, 3) * [1, 2, 1]
                scene.append(box(at + random.normal(0, 0.15, 3), half, random.uniform(0, np.pi), random))
            truth = self._truth(subjects, scene, count, camera)
            # Somebody must be there to be found: most of the first one's main joints, or of the upper body's.
            if truth is not None and truth.seen[0, list(MAIN)].sum() >= 6:
                break
        samples = int(random.integers(2, 5))
        picture, _ = raycast.render(scene, camera, light, seed=int(random.integers(2**31)), samples=samples)
        picture = _developed(picture, random)
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(70, 96))]
        cv2.imwrite(str(path), picture[..., ::-1], quality)
        truth.save(path.with_suffix(".npz"))
        return truth

    def _truth(self, subjects: list[Subject], scene: list[Thing], dressed: int, camera: Camera) -> Truth | None:
        """What the camera sees of the people who are wholly before it; None where the first one is not."""
        ahead = [bool((camera.to_camera(subject.vertices)[:, 2] > 0.1).all()) for subject in subjects]
        if not ahead[0]:
            return None
        rows = [subject for subject, good in zip(subjects, ahead, strict=True) if good]
        numbers = [index for index, good in enumerate(ahead) if good]
        vertices = torch.from_numpy(np.stack([row.vertices for row in rows])).float()
        points = self.body.joints(vertices, "mediapipe33").double().numpy()
        pixels = camera.project(points)
        inside = ((pixels >= 0) & (pixels <= np.array(camera.size))).all(-1)
        thing, depth = raycast.first_hits(scene, camera.position, points.reshape(-1, 3))
        thing, depth = thing.reshape(inside.shape), depth.reshape(inside.shape)
        own = thing // 2 == np.array(numbers)[:, None]
        own &= thing < dressed
        height = np.array([np.linalg.norm(np.ptp(row.vertices, 0)) for row in rows])
        near = depth > np.linalg.norm(points - camera.position, axis=-1) - LIMB_DEPTH * height[:, None]
        return Truth(
            rotations=sixd_from_matrix(torch.from_numpy(np.stack([row.rotations for row in rows]))).half().numpy(),
            shape=np.stack([row.shape for row in rows]).astype(np.float16),
            camera_rotation=camera.rotation,
            translation=camera.to_camera(vertices.mean(1).double().numpy()),
            landmarks=pixels,
            seen=inside & own & near,
            size=np.array(camera.size),
            focal_length=camera.focal,
        )


def random_camera(subject: Subject, random: np.random.Generator, size: int = SIZE) -> Camera:
    """A camera from any side, mostly level, with a short or long lens; one in five is so near that the frame cuts.

    size: see `SIZE`; the same scene whatever it is.
    """
    low, high = subject.vertices.min(0), subject.vertices.max(0)
    middle, radius = (low + high) / 2, np.linalg.norm(high - low) / 2
    width, height = (round(length * size / 1.1) for length in random.choice(FRAMES))
    view = np.deg2rad(np.exp(random.uniform(np.log(15), np.log(65))))
    near = random.random() < 0.2
    distance = radius / np.sin(view / 2) * (random.uniform(0.5, 0.85) if near else random.uniform(0.9, 1.3))
    azimuth = random.uniform(0, 2 * np.pi)
    wide = random.random() < 0.15
    above = np.deg2rad(np.clip(random.normal(8, 35 if wide else 12), -25, 75))
    offset = np.array([np.cos(above) * np.sin(azimuth), np.sin(above), np.cos(above) * np.cos(azimuth)])
    target = middle + 0.1 * radius * random.normal(size=3)
    if near:
        target[1] += random.uniform(0.1, 0.45) * (high - low)[1] / 2
    position = target + distance * offset
    position[1] = max(position[1], 0.12)
    roll = np.deg2rad(random.normal(0, 4))
    focal = min(width, height) / 2 / np.tan(view / 2)
    return look_at(target, position, roll, focal, (int(width), int(height)))


class _Face:
    """Eyes, brows and lips, painted onto the vertices that lie where they belong on the mean body at rest."""

    def __init__(self, rest: np.ndarray, landmarks: np.ndarray) -> None:
        left, right = landmarks[2], landmarks[5]
        mouth = landmarks[9:11].mean(0)
        front = rest[:, 2] > 0.7 * mouth[2]
        eye = np.minimum(*(np.linalg.norm((rest - place) * [1, 1.3, 0.7], axis=1) for place in (left, right)))
        beside = np.minimum(*(np.abs(rest[:, 0] - place[0]) for place in (left, right)))
        above = rest[:, 1] - left[1]
        self.rims = front & (eye < 0.019)
        self.whites = front & (eye < 0.013)
        self.irises = front & (np.hypot(beside, above) < 0.0065)
        self.brows = front & (beside < 0.02) & (np.abs(above - 0.019) < 0.005)
        away = (rest[:, :2] - mouth[:2]) / [0.024, 0.009]
        self.lips = front & (np.linalg.norm(away, axis=1) < 1) & (rest[:, 2] > 0.9 * mouth[2])
        self.beard = (rest[:, 2] > 0.3 * mouth[2]) & (rest[:, 1] < mouth[1] + 0.008) & (rest[:, 1] > mouth[1] - 0.06)
        self.beard &= ~self.lips

    def paint(self, colours: np.ndarray, outfit: Outfit, random: np.random.Generator) -> None:
        """Change the colours (V, 3) of a face in place."""
        skin, hair = np.array(outfit.skin), np.array(outfit.hair)
        if random.random() < 0.2:
            bare = (colours == skin).all(1)
            colours[self.beard & bare] = 0.3 * skin + 0.7 * hair
        colours[self.lips] = skin * [1.0, 0.62, 0.62]
        colours[self.rims] = 0.6 * skin
        colours[self.whites] = 0.55
        colours[self.irises] = random.uniform(0.01, 0.09, 3)
        colours[self.brows] = 0.25 * skin + 0.75 * np.minimum(hair, 0.12)


def _developed(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The picture as a camera would give it: the renderer's grain smoothed, a little blur, contrast, noise."""
    picture = cv2.bilateralFilter(cv2.medianBlur(picture, 3), 9, 80, 3)
    if random.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), random.uniform(0.4, 1.2))
    level = 255 * (picture / 255) ** np.exp(random.normal(0, 0.25))
    level = (level - 128) * random.uniform(0.75, 1.15) + 128 + random.normal(0, 8)
    grey = level.mean(-1, keepdims=True)
    level = grey + (level - grey) * (0.0 if random.random() < 0.05 else random.uniform(0.5, 1.0))
    return np.clip(level + random.normal(0, random.uniform(0, 5), picture.shape), 0, 255).astype(np.uint8)


def make(folder: Path, numbers: range, split: str, motion: Path, seed: int = 0, size: int = SIZE) -> list[Path]:
    """Make those pictures that the folder lacks; returns the paths of all."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:06d}.jpg" for number in numbers]
    missing = [path for path in paths if not path.with_suffix(".npz").exists()]
    if missing:
        photographer = Photographer(split, motion, size=size)
        for path in tqdm(missing, desc="pictures"):
            photographer.take(path, (seed, mocap.SPLITS.index(split), int(path.stem)))
    return paths


def main(arguments: list[str] | None = None) -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("folder", type=Path)
    cli.add_argument("--count", type=int, required=True)
    cli.add_argument("--mocap", type=Path, required=True, help="folder of motion capture")
    cli.add_argument("--split", default="train", choices=mocap.SPLITS)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--start", type=int, default=0, help="number of the first picture, to share the work out")
    cli.add_argument("--size", type=int, default=SIZE, help="longer side of the widest pictures in pixels")
    options = cli.parse_args(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    numbers = range(options.start, options.start + options.count)
    make(options.folder, numbers, options.split, options.mocap, options.seed, options.size)


if __name__ == "__main__":
    command.run(main)
