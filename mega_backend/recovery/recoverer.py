"""Recoverer: a loaded model, and what one asks of it."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mega_backend import __version__, checkpoint, people, pictures
from mega_backend.body import Body
from mega_backend.locking import neighbour_means
from mega_backend.people import Crop, Detection, square_crop
from mega_backend.plausibility import Judge
from mega_backend.refinement import Framing, Refiner
from mega_backend.result import Recovery
from mega_backend.rig import Rig

from . import answers, conditioning, generation, placing, random_people, resampling
from .building import build
from .generation import Iteration
from .settings import (
    Progress,
    Sampling,
    no_progress,
    people_text,
    person_seed,
    sampling_part,
    usable_device,
    usable_focal_length,
)

DECODED_TOGETHER = 64
"""Meshes that are decoded together: bounds memory."""
PRECISIONS = ("float32", "bfloat16")
"""What the networks over tokens may compute in."""
JOINT_SETS = ("body22", "coco17")
"""Which joints a result holds: the first of these that the body has."""


class Recoverer:
    """A loaded model and everything one does with it.

    Attributes:
        body, tokenizer, model: the parts, torch modules on `device`; None where the model folder lacks one. Such a
            folder loads, so that what is there can be used, but has nobody to recover.
        joint_set: the name of the joints that a result holds; None without a body.
        refiner, judge, neighbour_means: move the body's rig onto landmarks, say how plausible meshes are, and tell
            every vertex' neighbours; on the CPU. None for bodies without a rig.
        card: what the model is: name, kinds, provenance (JSON-able).
    """

    def __init__(self, loaded: checkpoint.Loaded, device: str | torch.device = "cpu") -> None:
        self.body = None if loaded.body is None else loaded.body.to(device)
        self.tokenizer, self.model = loaded.tokenizer, loaded.model
        self.device = torch.device(device)
        self.folder = loaded.folder
        kinds = {part: (loaded.config[part] or {}).get("kind") for part in ("body", "model")}
        self.card: dict[str, Any] = {
            "name": loaded.config["name"],
            **kinds,
            "provenance": loaded.config["provenance"],
        }
        self.joint_set = None if self.body is None else next(name for name in JOINT_SETS if self.has_joints(name))
        self.refiner: Refiner | None = None
        self.judge: Judge | None = None
        self.neighbour_means = None
        if isinstance(self.body, Body):
            # Small batches of small solves: on the CPU whatever the model's device.
            posing = copy.deepcopy(self.body).cpu()
            self.refiner = Refiner(Rig(posing), posing)
            self.judge = Judge(posing, self.refiner.rig)
            self.neighbour_means = neighbour_means(self.faces, self.body.vertex_count)

    @classmethod
    def load(
        cls, model: str | os.PathLike = "default", device: str | torch.device = "cpu", precision: str = "float32"
    ) -> Recoverer:
        """The model in a folder, or the bundled one; see `mega_backend.load`."""
        device = usable_device(device)
        recoverer = cls(checkpoint.load(model, device), device)
        if precision not in PRECISIONS:
            raise ValueError(f"there is no precision '{precision}': choose from {', '.join(PRECISIONS)}")
        if precision == "bfloat16":
            if not hasattr(recoverer.model, "autocast"):
                raise ValueError(f"{recoverer.card['name']} computes in float32 alone: leave the precision away")
            recoverer.model.autocast = torch.bfloat16
        return recoverer

    @property
    def faces(self) -> np.ndarray:
        """(F, 3) int32 triangles of the body."""
        return self.body.faces.cpu().numpy().astype(np.int32)

    @property
    def rig(self) -> Rig:
        """The rig under the body's meshes, on the CPU. Raises ValueError where the body has none."""
        if self.refiner is None:
            raise ValueError("this model's body has no rig: armatures and videos need one of the bundled body")
        return self.refiner.rig

    @property
    def reads_landmarks(self) -> bool:
        """Whether the model looks at the detector's landmarks; otherwise at the picture itself."""
        return conditioning.reads_landmarks(self.model)

    def recover(
        self,
        picture: pictures.Source,
        hypotheses: int = 5,
        seed: int = 0,
        steps: int = 5,
        temperature: float = 1.0,
        progress: Progress | None = None,
        boxes: np.ndarray | None = None,
        focal_length: float | None = None,
        smallest: float = 0.4,
        refine: bool = True,
        found: Sequence[Detection] | None = None,
    ) -> Recovery:
        """Find the people in a picture and recover each one's mesh.

        Args:
            picture: as `pictures.read` takes it.
            hypotheses: N per person: the deterministic one and N − 1 samples, the likeliest first.
            seed: same seed, same result.
            steps, temperature: of the sampling; more steps are slower and truer, a higher temperature more diverse.
            progress: called with the fraction done and what is going on; may raise `Cancelled` to stop.
            boxes: (P, 4) x0, y0, x1, y1 in pixels: recover the one person in each instead of searching.
            focal_length: in pixels; by default what the file's EXIF data say, else `camera.default_focal_length`.
            smallest: leave out people smaller than this fraction of the largest.
            refine: fit the body's rig to each hypothesis and move it onto the landmarks (bodies with a rig only);
                otherwise the meshes are what the tokens decode to.
            found: people that `find` found in this picture: recover these instead of searching.

        Raises:
            PictureError: the picture cannot be used.
            ValueError: an argument makes no sense; the message says what to do.
        """
        progress = progress or no_progress
        self.check_complete()
        sampling = Sampling.checked(hypotheses, seed, steps, temperature)
        if hypotheses > 1:
            self.check_sampling()
        progress(0.0, "reading the picture")
        image = pictures.read(picture)
        size = (image.shape[1], image.shape[0])
        told = pictures.focal_length(picture) if focal_length is None else focal_length
        focal_length = usable_focal_length(told, size)
        if found is None:
            progress(0.05, "looking for people")
            found = people.find(image, smallest=smallest) if boxes is None else people.find_in_boxes(image, boxes)
        progress(0.4, people_text(len(found)))
        meta = self.meta(**sampling.meta(hypotheses))
        if not found:
            return Recovery(size, focal_length, [], self.faces, meta)
        crops = [square_crop(detection.landmarks, size) for detection in found]
        with torch.no_grad():
            features = self.features(image, crops, found)
            tokens, log_probability = answers.hypotheses(
                self.model, features, len(found), hypotheses, sampling, sampling_part(progress)
            )
            seeds = [person_seed(seed, number) for number in range(len(found))]
            rotation, weak = self.poses(features, tokens, seeds)
        results = []
        for index, (detection, crop) in enumerate(zip(found, crops, strict=True)):
            progress(0.8 + 0.2 * index / len(found), f"building person {index + 1} of {len(found)}")
            placed = self.place(rotation[index], weak[index], crop, focal_length, size)
            framing = Framing(crop, focal_length, size)
            results.append(
                build(self, detection, tokens[index], log_probability[index], *placed, framing, refine=refine)
            )
        progress(1.0, people_text(len(found)))
        return Recovery(size, focal_length, results, self.faces, meta)

    def find(
        self,
        picture: pictures.Source,
        boxes: np.ndarray | None = None,
        smallest: float = 0.0,
        progress: Progress | None = None,
    ) -> list[Detection]:
        """Who is in a picture, to choose from before anybody is recovered: pass some of them to `recover` as `found`.

        Args:
            picture, boxes, progress: as for `recover`.
            smallest: leave out people smaller than this fraction of the largest.
        """
        progress = progress or no_progress
        progress(0.0, "reading the picture")
        image = pictures.read(picture)
        progress(0.1, "looking for people")
        found = people.find(image, smallest=smallest) if boxes is None else people.find_in_boxes(image, boxes)
        progress(1.0, people_text(len(found)))
        return found

    def generation(
        self, picture: np.ndarray, detection: Detection, seed: int = 0, steps: int = 5, temperature: float = 1.0
    ) -> list[Iteration]:
        """How one sample of a person comes about: tokens before each step and after the last.

        Args:
            picture: (H, W, 3) uint8. detection: one of the people that `find` found in it.
            others: as for `recover`.
        """
        self.check_complete()
        sampling = Sampling.checked(1, seed, steps, temperature)
        self.check_sampling()
        return generation.watch(self, picture, detection, sampling)

    def recover_video(self, clip: Any, **options: Any) -> Any:
        """The people of each frame of a clip, followed and smooth: see `video.recover.recover_video`."""
        from mega_backend.video.recover import recover_video

        return recover_video(self, clip, **options)

    def resample(
        self,
        recovery: Recovery,
        keep: Sequence[str] = (),
        hypothesis: int = 0,
        hypotheses: int = 5,
        seed: int = 0,
        steps: int = 5,
        temperature: float = 1.0,
        progress: Progress | None = None,
        picture: pictures.Source | None = None,
        refine: bool = True,
    ) -> Recovery:
        """New hypotheses of the same people that keep body parts of one hypothesis.

        The kept parts' tokens stay, the others are drawn anew, given them and what is known of the picture: the
        landmarks in `recovery`, or for a model that looks at the picture itself, `picture`. Without either (random
        people) the model's idea of human bodies alone decides. Kept parts stay where they are in space.

        Args:
            recovery: from `recover`, `resample` or `random`.
            keep: names of body parts, or of groups: arms, hands, legs, feet.
            hypothesis: number of the hypothesis whose parts are kept.
            others: as for `recover`. Hypothesis 0 of the result is the likeliest completion, the others are samples.
        """
        self.check_complete()
        sampling = Sampling.checked(hypotheses, seed, steps, temperature)
        self.check_sampling()
        return resampling.resample(
            self, recovery, keep, hypothesis, hypotheses, sampling, progress or no_progress, picture, refine
        )

    def random(
        self,
        count: int,
        seed: int = 0,
        steps: int = 20,
        temperature: float = 1.3,
        progress: Progress | None = None,
        refine: bool = True,
    ) -> Recovery:
        """People out of nothing, standing in a row before the camera, one hypothesis each.

        Of bodies with a rig, people with joints bent too far or limbs in each other are drawn again, a few times.
        Person n depends on the seed and n alone. Their landmarks are all zero: nobody saw them in a picture.
        """
        self.check_complete()
        sampling = Sampling.checked(count, seed, steps, temperature)
        self.check_sampling()
        return random_people.draw(self, count, sampling, progress or no_progress, refine)

    def landmark_errors(self, recovery: Recovery) -> list[np.ndarray]:
        """How far each person's projected main joints lie from the detected ones.

        Returns:
            For each person (N,) mean distance of shoulders, elbows, wrists, hips, knees and ankles that are detected
            inside the picture, relative to the longer side of the person's box; NaN where there are none.
        """
        self.check_complete()
        return [
            placing.landmark_errors(
                self.joints(person.vertices, "coco17"), person, recovery.focal_length, recovery.picture_size
            )
            for person in recovery.people
        ]

    # Steps of the pipeline, for whoever makes one of their own -----------------------------------------------------

    def features(self, image: np.ndarray | None, crops: Sequence[Crop], detections: Sequence[Any]) -> Any:
        """What the model is conditioned on: see `conditioning.features`."""
        return conditioning.features(self.model, image, crops, detections, self.device)

    def poses(self, features: Any, tokens: np.ndarray, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Root rotations (P, N, 3, 3) and weak-perspective cameras (P, N, 3): see `answers.poses`."""
        return answers.poses(self.model, features, tokens, seeds, self.device)

    def place(
        self, rotation: np.ndarray, weak: np.ndarray, crop: Crop, focal_length: float, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rotations (…, 3, 3) and translations (…, 3) in the picture's camera of what the model said about the crop."""
        placed = placing.from_crops_camera if self.reads_landmarks else placing.from_own_camera
        return placed(rotation, weak, Framing(crop, focal_length, size))

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Canonical vertices (N, V, 3) float32 of tokens (N, T)."""
        with torch.no_grad():
            parts = [
                self.tokenizer.decode(torch.as_tensor(chunk.astype(np.int64), device=self.device)).float().cpu().numpy()
                for chunk in np.array_split(tokens, range(DECODED_TOGETHER, len(tokens), DECODED_TOGETHER))
            ]
        return np.concatenate(parts)

    def joints(self, vertices: np.ndarray, name: str) -> np.ndarray:
        """Joints (N, J, 3) of meshes (N, V, 3), of a set that the body has: see `JOINT_SETS`."""
        with torch.no_grad():
            return self.body.joints(torch.as_tensor(vertices, device=self.device), name).cpu().numpy()

    # Checks ---------------------------------------------------------------------------------------------------------

    def check_complete(self) -> None:
        """Raise CheckpointError, naming what is missing, unless body, tokenizer and model are all there."""
        missing = [name for name in ("body", "tokenizer", "model") if getattr(self, name) is None]
        if missing:
            raise checkpoint.CheckpointError(
                f"the model folder '{self.folder}' holds no {' and no '.join(missing)}: add it with `mega import`"
            )

    def check_sampling(self) -> None:
        """Raise ValueError unless the model can sample."""
        if not hasattr(self.model, "draw"):
            raise ValueError(f"{self.card['name']} gives one answer and cannot sample: ask for 1 hypothesis")

    def has_joints(self, name: str) -> bool:
        """Whether the body has joints of this name."""
        try:
            self.body.regressor_names(name)
        except (KeyError, ValueError):
            return False
        return True

    # What a result says of its making -----------------------------------------------------------------------------

    def meta(self, **settings: Any) -> dict[str, Any]:
        """What is kept with a result (JSON-able): the model, its tokens and joints, and these settings."""
        return {
            "version": __version__,
            "model": self.card["name"],
            "token_count": int(self.tokenizer.token_count),
            "joint_set": self.joint_set,
            "joint_names": list(self.body.regressor_names(self.joint_set)),
            **settings,
        }
