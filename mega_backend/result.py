"""What a recovery gives back, and the `.npz` file that keeps it. NumPy only."""

import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .files import atomic_write

LANDMARKS = 33

_UNREADABLE = (OSError, ValueError, EOFError, TypeError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What NumPy raises for files that are no `.npz`, or a damaged one."""


class ResultError(ValueError):
    """A result file that cannot be used. The message is one sentence for the user."""


@dataclass
class Person:
    """One person and the hypotheses about their body. N hypotheses, V vertices, J joints, T tokens.

    Hypothesis 0 is the deterministic one; the others are samples, the likeliest first. Lengths in metres, camera
    coordinates: x right, y down, z forward.

    Attributes:
        box: (4,) float32 x0, y0, x1, y1 in pixels.
        landmarks: (33, 3) float32 x, y in pixels and visibility in [0, 1].
        tokens: (N, T) uint16.
        log_probability: (N,) float32, natural logarithm, of the tokens under the model.
        rotation: (N, 3, 3) float32: camera-frame mesh = rotation · canonical mesh + translation.
        translation: (N, 3) float32.
        vertices: (N, V, 3) float32 in camera coordinates.
        joints: (N, J, 3) float32 in camera coordinates.
        spread: (V,) float32: standard deviation of each vertex over the hypotheses, of canonical meshes.
        landmarks_3d: (33, 3) float32, the detector's own estimate, hip-centred, camera axes; NaN where there is none.
    """

    box: np.ndarray
    landmarks: np.ndarray
    tokens: np.ndarray
    log_probability: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    vertices: np.ndarray
    joints: np.ndarray
    spread: np.ndarray
    landmarks_3d: np.ndarray = field(default_factory=lambda: np.full((LANDMARKS, 3), np.nan, np.float32))

    def __post_init__(self) -> None:
        hypotheses, vertices = self.vertices.shape[:2]
        expected = {
            "box": (4,),
            "landmarks": (LANDMARKS, 3),
            "landmarks_3d": (LANDMARKS, 3),
            "tokens": (hypotheses, None),
            "log_probability": (hypotheses,),
            "rotation": (hypotheses, 3, 3),
            "translation": (hypotheses, 3),
            "vertices": (hypotheses, vertices, 3),
            "joints": (hypotheses, None, 3),
            "spread": (vertices,),
        }
        for name, shape in expected.items():
            _check_shape(name, np.asarray(getattr(self, name)), shape)

    @property
    def hypotheses(self) -> int:
        """N, the number of hypotheses."""
        return len(self.vertices)

    @property
    def joint_spread(self) -> np.ndarray:
        """(J,) float32: standard deviation of each joint over the hypotheses, in canonical axes, metres."""
        canonical = (self.joints - self.translation[:, None]) @ self.rotation
        return np.sqrt(canonical.var(axis=0).sum(axis=-1)).astype(np.float32)


@dataclass
class Recovery:
    """The people in one picture.

    Attributes:
        picture_size: width, height in pixels.
        focal_length: in pixels; the principal point is the picture's centre.
        people: the largest first; empty where nobody was found. All have the same numbers of hypotheses and vertices.
        faces: (F, 3) int32 triangles.
        meta: what made it, JSON-able: model, seed, steps, temperature, version…
    """

    picture_size: tuple[int, int]
    focal_length: float
    people: list[Person]
    faces: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the `.npz` file, people stacked along the first axis; P = 0 keeps the trailing shapes."""
        if self.people:
            stacked = {
                name: np.stack([getattr(person, name) for person in self.people]).astype(dtype)
                for name, dtype in _PERSON_ARRAYS.items()
            }
        else:
            shapes = self._person_shapes()
            stacked = {name: np.zeros((0, *shapes[name]), dtype) for name, dtype in _PERSON_ARRAYS.items()}
        return {
            **stacked,
            "focal_length": np.float64(self.focal_length),
            "picture_size": np.array(self.picture_size, np.int32),
            # Derived, for whoever reads the file: not read again.
            "joint_spread": np.stack([person.joint_spread for person in self.people])
            if self.people
            else np.zeros((0, len(self.meta.get("joint_names", []))), np.float32),
            "faces": np.asarray(self.faces, np.int32),
            "meta": np.array(json.dumps(self.meta)),
        }

    def _person_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays of one person, for a picture without people."""
        hypotheses = int(self.meta.get("hypotheses", 0))
        vertices = int(self.faces.max(initial=-1)) + 1
        return {
            "box": (4,),
            "landmarks": (LANDMARKS, 3),
            "landmarks_3d": (LANDMARKS, 3),
            "tokens": (hypotheses, int(self.meta.get("token_count", 0))),
            "log_probability": (hypotheses,),
            "vertices": (hypotheses, vertices, 3),
            "joints": (hypotheses, len(self.meta.get("joint_names", [])), 3),
            "rotation": (hypotheses, 3, 3),
            "translation": (hypotheses, 3),
            "spread": (vertices,),
        }

    def save(self, path: str | os.PathLike) -> Path:
        """Write everything to a compressed `.npz` file."""
        # In memory first: NumPy's writer complains for a second time where the file goes away under it on a full disk.
        made = io.BytesIO()
        np.savez_compressed(made, **self.arrays())
        return atomic_write(path, lambda stream: stream.write(made.getbuffer()))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Recovery":
        """Read a file that `save` wrote.

        Raises:
            ResultError: missing, no such file, or its arrays do not belong together.
        """
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except FileNotFoundError:
            raise ResultError(f"there is no file '{path}': give a result that `mega recover` wrote") from None
        except _UNREADABLE as error:
            raise ResultError(f"'{path}' is not a result that `mega recover` wrote ({error})") from None
        return cls.from_arrays(arrays, f"'{path}'")

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], name: str = "the result") -> "Recovery":
        """The result that these arrays describe (see `arrays`); `name` is what errors call it."""
        needed = [*(key for key in _PERSON_ARRAYS if key != "landmarks_3d"), *_SCENE_ARRAYS]
        if missing := [key for key in needed if key not in arrays]:
            raise ResultError(f"{name} lacks {', '.join(missing)}: it was not written by `mega recover`")
        try:
            meta = json.loads(str(arrays["meta"]))
        except ValueError:
            raise ResultError(f"{name} is damaged: its meta is no JSON") from None
        given = {key: np.asarray(arrays[key]) for key in _PERSON_ARRAYS if key in arrays}
        if len({len(array) if array.ndim else -1 for array in given.values()}) != 1:
            raise ResultError(f"{name} is damaged: its arrays are for different numbers of people")
        faces, size = np.asarray(arrays["faces"]), np.asarray(arrays["picture_size"])
        try:
            if not isinstance(meta, dict):
                raise ResultError("meta is no JSON object")
            _check_shape("faces", faces, (None, 3))
            _check_shape("picture_size", size, (2,))
            if np.asarray(arrays["focal_length"]).shape != ():
                raise ResultError("focal_length is not one number")
            count = len(given["box"])
            dtypes = _PERSON_ARRAYS
            people = [
                Person(**{key: array[i].astype(dtypes[key]) for key, array in given.items()}) for i in range(count)
            ]
            vertices = given["vertices"].shape[2] if given["vertices"].ndim == 4 else 0
            if count and faces.size and not 0 <= faces.min() <= faces.max() < vertices:
                raise ResultError("faces name vertices that do not exist")
        except (ResultError, TypeError, IndexError) as error:
            raise ResultError(f"{name} is damaged: {error}") from None
        return cls((int(size[0]), int(size[1])), float(arrays["focal_length"]), people, faces.astype(np.int32), meta)


_PERSON_ARRAYS = {
    "box": np.float32,
    "landmarks": np.float32,
    "tokens": np.uint16,
    "log_probability": np.float32,
    "vertices": np.float32,
    "joints": np.float32,
    "rotation": np.float32,
    "translation": np.float32,
    "spread": np.float32,
    "landmarks_3d": np.float32,
}
_SCENE_ARRAYS = ("focal_length", "picture_size", "faces", "meta")


def _check_shape(name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> None:
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        wanted = " × ".join("any" if want is None else str(want) for want in shape)
        raise ResultError(f"{name} has shape {array.shape}, not {wanted}")
