"""Recoverer: picture → people → hypotheses. The one pipeline that command line, server and Python callers share."""

import copy
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from . import __version__, camera, checkpoint, people, pictures
from .body import Body
from .explain import Iteration
from .locking import hold, neighbour_means, part_numbers
from .model.conditioning import landmark_features
from .model.sampling import Samples, likeliest, row_generator
from .people import Crop, Detection, square_crop
from .plausibility import Judge
from .refinement import Framing, Refiner, landmark_trust, refined
from .result import LANDMARKS, Person, Recovery
from .rig import Rig, nearest_rotation
from .rotations import matrix_from_6d, matrix_from_axis_angle

Progress = Callable[[float, str], None]

DECODED_TOGETHER = 64
"""Meshes that are decoded together: bounds memory."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRECISIONS = ("float32", "bfloat16")
"""What the networks over tokens may compute in."""
JOINT_SETS = ("body22", "coco17")
"""Which joints a result holds: the first of these that the body has."""
COCO17_LANDMARKS = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
"""The detector's landmark for each of the 17 COCO joints."""
REDRAWN = 8
"""So many times a random person who is not plausible is drawn again."""
LANDMARK_ERROR = 0.02
"""How far off a good landmark is, relative to the crop's side."""


class Recoverer:
    """A loaded model and everything one does with it.

    Attributes:
        body, tokenizer, model: the parts, torch modules on `device`; None where the model folder lacks one. Such a
            folder loads, so that what is there can be used, but has nobody to recover.
        refiner: moves the body's rig onto landmarks; on the CPU. None for bodies without a rig.
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
        if self.body is not None:
            self._joint_set = next(name for name in JOINT_SETS if _has_joints(self.body, name))
            self._can_fit = _has_joints(self.body, "coco17")
        self.refiner: Refiner | None = None
        self._judge: Judge | None = None
        if isinstance(self.body, Body):
            # Small batches of small solves: on the CPU whatever the model's device.
            posing = copy.deepcopy(self.body).cpu()
            self.refiner = Refiner(Rig(posing), posing)
            self._neighbour_means = neighbour_means(self.faces, self.body.vertex_count)
            self._judge = Judge(posing, self.refiner.rig)

    @classmethod
    def load(
        cls, model: str | os.PathLike = "default", device: str | torch.device = "cpu", precision: str = "float32"
    ) -> "Recoverer":
        """The model in a folder, or the bundled one; see `mega_backend.load`."""
        device = _device(device)
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
        return getattr(self.model, "kind", "image") == "landmarks" and not hasattr(self.model, "backbone")

    def recover(
        self,
        picture: str | os.PathLike | bytes | np.ndarray,
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
        progress = progress or _no_progress
        self.check_complete()
        _check(hypotheses, steps, temperature)
        if hypotheses > 1:
            self._check_sampling()
        progress(0.0, "reading the picture")
        image = pictures.read(picture)
        size = (image.shape[1], image.shape[0])
        focal_length = _focal_length(pictures.focal_length(picture) if focal_length is None else focal_length, size)
        if found is None:
            progress(0.05, "looking for people")
            found = people.find(image, smallest=smallest) if boxes is None else people.find_in_boxes(image, boxes)
        progress(0.4, _people_text(len(found)))
        meta = self._meta(seed=seed, steps=steps, temperature=temperature, hypotheses=hypotheses)
        if not found:
            return Recovery(size, focal_length, [], self.faces, meta)
        crops = [square_crop(detection.landmarks, size) for detection in found]
        with torch.no_grad():
            features = self.features(image, crops, found)
            tokens, log_probability = self._hypotheses(
                features, len(found), hypotheses, seed, steps, temperature, progress
            )
            seeds = [_person_seed(seed, number) for number in range(len(found))]
            rotation, weak = self.poses(features, tokens, seeds)
        results = []
        for index, (detection, crop) in enumerate(zip(found, crops, strict=True)):
            progress(0.8 + 0.2 * index / len(found), f"building person {index + 1} of {len(found)}")
            placed = self.place(rotation[index], weak[index], crop, focal_length, size)
            results.append(
                self._person(
                    detection.box,
                    detection.landmarks,
                    detection.landmarks_3d,
                    tokens[index],
                    log_probability[index],
                    *placed,
                    fit=Framing(crop, focal_length, size),
                    refine=refine,
                )
            )
        progress(1.0, _people_text(len(found)))
        return Recovery(size, focal_length, results, self.faces, meta)

    def find(
        self,
        picture: str | os.PathLike | bytes | np.ndarray,
        boxes: np.ndarray | None = None,
        smallest: float = 0.0,
        progress: Progress | None = None,
    ) -> list[Detection]:
        """Who is in a picture, to choose from before anybody is recovered: pass some of them to `recover` as `found`.

        Args:
            picture, boxes, progress: as for `recover`.
            smallest: leave out people smaller than this fraction of the largest.
        """
        progress = progress or _no_progress
        progress(0.0, "reading the picture")
        image = pictures.read(picture)
        progress(0.1, "looking for people")
        found = people.find(image, smallest=smallest) if boxes is None else people.find_in_boxes(image, boxes)
        progress(1.0, _people_text(len(found)))
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
        _check(1, steps, temperature)
        self._check_sampling()
        seen: list[Iteration] = []
        # The model itself draws; a stand-in that shares its weights notes what it is asked on the way.
        watched = copy.copy(self.model)

        def logits(tokens: torch.Tensor, visible: torch.Tensor, condition: Any = None) -> torch.Tensor:
            answer = self.model.logits(tokens, visible, condition)
            guess = likeliest(answer.float().log_softmax(-1), self.model.codebook)
            guess = torch.where(visible, tokens, guess)
            seen.append(Iteration(guess[0].cpu().numpy(), visible[0].cpu().numpy()))
            return answer

        watched.logits = logits
        crop = square_crop(detection.landmarks, (picture.shape[1], picture.shape[0]))
        with torch.no_grad():
            features = self.features(picture, [crop], [detection])
            drawn = watched.draw(features, 1, steps, temperature, generator=[_person_seed(seed, 0)])
        last = drawn.tokens[0, 0].cpu().numpy()
        # The first step starts from logits that were computed for all samples at once.
        return [*seen, Iteration(last, np.ones(len(last), bool))]

    def recover_video(self, clip: Any, **options: Any) -> Any:
        """The people of each frame of a clip, followed and smooth: see `video.recover.recover_video`."""
        from .video.recover import recover_video

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
        picture: str | os.PathLike | bytes | np.ndarray | None = None,
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
        progress = progress or _no_progress
        self.check_complete()
        _check(hypotheses, steps, temperature)
        self._check_sampling()
        kept_parts = part_numbers(keep, self.body.part_names)
        meta = self._meta(seed=seed, steps=steps, temperature=temperature, hypotheses=hypotheses) | {"keep": list(keep)}
        size, focal_length = recovery.picture_size, recovery.focal_length
        progress(0.0, "sampling")
        everyone = recovery.people
        if not everyone:
            return Recovery(size, focal_length, [], self.faces, meta)
        for person in everyone:
            self._check_person(person, hypothesis)
        base = torch.as_tensor(np.stack([person.tokens[hypothesis] for person in everyone]).astype(np.int64))
        visible = torch.isin(self.tokenizer.token_part.cpu(), torch.tensor(kept_parts, dtype=torch.int32))
        if kept_parts and not visible.any():
            raise ValueError(f"no token of this model belongs to {', '.join(keep)} alone: keep a larger part")
        visible = visible.expand(base.shape)
        crops = [square_crop(person.landmarks, size) for person in everyone]
        seen = all((person.landmarks[:, 2] > 0).any() for person in everyone)
        with torch.no_grad():
            features = None
            if seen and self.reads_landmarks:
                features = self.features(None, crops, everyone)
            elif picture is not None:
                features = self.features(pictures.read(picture), crops, everyone)
            elif seen:
                raise ValueError("this model looks at the picture itself: give the picture to resample its people")
            tokens, log_probability = self._hypotheses(
                features, len(everyone), hypotheses, seed, steps, temperature, progress, (base, visible)
            )
        moves = torch.isin(self.body.vertex_part.cpu(), torch.tensor(kept_parts)).numpy()
        results = []
        for index, (person, crop) in enumerate(zip(everyone, crops, strict=True)):
            progress(0.8 + 0.2 * index / len(everyone), f"building person {index + 1} of {len(everyone)}")
            results.append(
                self._person(
                    person.box,
                    person.landmarks,
                    person.landmarks_3d,
                    tokens[index],
                    log_probability[index],
                    person.rotation[hypothesis].astype(np.float64),
                    person.translation[hypothesis].astype(np.float64),
                    fit=Framing(crop, focal_length, size) if seen else None,
                    anchor=(person.vertices[hypothesis], moves) if moves.any() else None,
                    refine=refine,
                )
            )
        progress(1.0, "done")
        return Recovery(size, focal_length, results, self.faces, meta)

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
        progress = progress or _no_progress
        self.check_complete()
        _check(count, steps, temperature)
        self._check_sampling()
        progress(0.0, "sampling")
        with torch.no_grad():
            drawn = self.model.draw(
                None,
                count=count,
                steps=steps,
                temperature=temperature,
                generator=seed,
                progress=lambda fraction: progress(0.6 * fraction, "sampling"),
            )
            tokens, log_probability = self._plausible(drawn, seed, steps, temperature, progress)
        turned = np.diag([1.0, -1.0, -1.0])
        spacing, height = 1.4, 2.4
        size = (max(1024, int(1024 * spacing * count / height)), 1024)
        focal_length = camera.default_focal_length(size)
        depth = focal_length * height / size[1]
        results = []
        for index in range(count):
            progress(0.8 + 0.2 * index / count, f"building person {index + 1} of {count}")
            place = np.array([spacing * (index - (count - 1) / 2), 0.0, depth])
            person = self._person(
                np.zeros(4, np.float32),
                np.zeros((LANDMARKS, 3), np.float32),
                np.full((LANDMARKS, 3), np.nan, np.float32),
                tokens[index : index + 1],
                log_probability[index : index + 1],
                turned,
                place,
                refine=refine,
            )
            # Everybody stands on the same floor, 1 m below the camera.
            lift = np.float32(1.0) - person.vertices[0, :, 1].max()
            for array in (person.vertices, person.joints, person.translation):
                array[..., 1] += lift
            person.box = _projected_box(person.vertices[0], focal_length, size)
            results.append(person)
        progress(1.0, "done")
        meta = self._meta(seed=seed, steps=steps, temperature=temperature, hypotheses=1)
        return Recovery(size, focal_length, results, self.faces, meta)

    def landmark_errors(self, recovery: Recovery) -> list[np.ndarray]:
        """How far each person's projected main joints lie from the detected ones.

        Returns:
            For each person (N,) mean distance of shoulders, elbows, wrists, hips, knees and ankles that are detected
            inside the picture, relative to the longer side of the person's box; NaN where there are none.
        """
        self.check_complete()
        size, rows, results = recovery.picture_size, list(range(5, 17)), []
        for person in recovery.people:
            seen = person.landmarks[[COCO17_LANDMARKS[row] for row in rows]]
            chosen = (seen[:, 2] > 0.5) & (landmark_trust(seen, size) > 0.5)
            points = camera.project(self.joints(person.vertices, "coco17"), recovery.focal_length, size)[:, rows]
            distance = np.linalg.norm(points - seen[:, :2], axis=-1)[:, chosen]
            side = max(person.box[2] - person.box[0], person.box[3] - person.box[1], 1)
            results.append(distance.mean(axis=1) / side if chosen.any() else np.full(person.hypotheses, np.nan))
        return results

    # Steps of the pipeline ----------------------------------------------------------------------------------------

    def features(self, image: np.ndarray | None, crops: list[Crop], detections: Sequence[Any]) -> Any:
        """What the model is conditioned on, for each person: computed once, whatever the number of samples."""
        if self.reads_landmarks:
            numbers = [
                np.concatenate(
                    [crop.from_picture(person.landmarks[:, :2]), person.landmarks[:, 2:], person.landmarks_3d], 1
                )
                for crop, person in zip(crops, detections, strict=True)
            ]
            stacked = torch.as_tensor(np.stack(numbers), dtype=torch.float32, device=self.device)
            features = landmark_features(stacked[..., :2], stacked[..., 2], stacked[..., 3:])
        else:
            backbone = getattr(self.model, "backbone", None) or getattr(self.model, "backbone_pose", None)
            if backbone is None:
                raise ValueError("this model was imported without its image backbone: import the whole checkpoint")
            cut = np.stack([crop.cut(image, backbone.input_size) for crop in crops])
            tensor = torch.as_tensor(cut, device=self.device).permute(0, 3, 1, 2).float() / 255
            mean, std = (
                torch.tensor(values, device=self.device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD)
            )
            features = self.model.features((tensor - mean) / std)
        return self.model.condition(features) if hasattr(self.model, "condition") else features

    def poses(self, features: Any, tokens: np.ndarray, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Root rotations (P, N, 3, 3) in the crop's view and weak-perspective cameras (P, N, 3) of tokens (P, N, T).

        A model that knows how sure it is of the rotation draws one for every hypothesis but the first; seeds: of each
        person.
        """
        persons, count = tokens.shape[:2]
        if not self.reads_landmarks:
            rotation_6d, weak = self.model.pose(features)
            rotation = matrix_from_6d(rotation_6d.float())[:, None].expand(-1, count, -1, -1)
            return rotation.double().cpu().numpy(), weak[:, None].expand(-1, count, -1).double().cpu().numpy()
        given = torch.as_tensor(tokens.astype(np.int64), device=self.device)
        rotation_6d, weak, spread = self.model.pose_under(features, given)
        noise = torch.zeros(persons, count, 3)
        for person in range(persons):
            for number in range(1, count):
                # Numbers below zero: samples of tokens own the others.
                noise[person, number] = torch.randn(3, generator=row_generator(seeds[person], -number))
        turned = matrix_from_axis_angle((noise * spread.float().cpu()).double())
        rotation = turned @ matrix_from_6d(rotation_6d.double().cpu())
        return rotation.numpy(), weak.double().cpu().numpy()

    def _hypotheses(
        self,
        features: Any,
        persons: int,
        hypotheses: int,
        seed: int,
        steps: int,
        temperature: float,
        progress: Progress,
        start: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (P, N, T) and log-probability (P, N): the deterministic answer, then samples, likeliest first.

        start: tokens and visible (P, T) to begin from.
        """
        given = {} if start is None else {"tokens": start[0].to(self.device), "visible": start[1].to(self.device)}
        best = self.model.best(features, **given)
        tokens, log_probability = best.tokens[:, None], best.log_probability[:, None]
        if len(tokens) != persons:
            tokens, log_probability = tokens.expand(persons, -1, -1), log_probability.expand(persons, -1)
        if hypotheses > 1:
            drawn = self.model.draw(
                features,
                count=hypotheses - 1,
                steps=steps,
                temperature=temperature,
                generator=[_person_seed(seed, number) for number in range(persons)],
                progress=lambda fraction: progress(0.4 + 0.4 * fraction, "sampling"),
                **given,
            )
            order = drawn.log_probability.argsort(dim=1, descending=True, stable=True)
            sampled = drawn.tokens.gather(1, order[..., None].expand_as(drawn.tokens))
            tokens = torch.cat([tokens, sampled], dim=1)
            log_probability = torch.cat([log_probability, drawn.log_probability.gather(1, order)], dim=1)
        return tokens.cpu().numpy(), log_probability.float().cpu().numpy()

    def _plausible(
        self, drawn: Samples, seed: int, steps: int, temperature: float, progress: Progress
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (N, T) and log-probability (N) of drawn people (1, N), the implausible among them drawn anew.

        Whoever is no better after `REDRAWN` more draws stays as the least bad of them.
        """
        tokens, log_probability = drawn.tokens[0].clone(), drawn.log_probability[0].clone()
        if self._judge is None:
            return tokens.cpu().numpy(), log_probability.cpu().numpy()
        badness = self._judge(torch.as_tensor(self.decode(tokens.cpu().numpy()))).badness
        for attempt in range(REDRAWN):
            poor = (badness >= 1).nonzero()[:, 0]
            if not len(poor):
                break
            progress(0.6 + 0.2 * attempt / REDRAWN, f"{len(poor)} drawn again")
            chosen = poor.to(tokens.device)
            again = self.model.draw(
                None,
                count=1,
                steps=steps,
                temperature=temperature,
                generator=[_person_seed(_person_seed(seed, int(number)), attempt) for number in poor],
                tokens=torch.zeros_like(tokens[chosen]),
                visible=torch.zeros_like(tokens[chosen], dtype=torch.bool),
            )
            verdict = self._judge(torch.as_tensor(self.decode(again.tokens[:, 0].cpu().numpy()))).badness
            better = verdict < badness[poor]
            taken = chosen[better.to(tokens.device)]
            tokens[taken] = again.tokens[better.to(tokens.device), 0]
            log_probability[taken] = again.log_probability[better.to(tokens.device), 0]
            badness[poor] = torch.minimum(verdict, badness[poor])
        return tokens.cpu().numpy(), log_probability.cpu().numpy()

    def place(
        self, rotation: np.ndarray, weak: np.ndarray, crop: Crop, focal_length: float, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rotations (…, 3, 3) and translations (…, 3) in the picture's camera of what the model said about the crop."""
        centre = np.array([crop.x, crop.y])
        if not self.reads_landmarks:
            # The published models were trained with rotations of the picture's own camera.
            return rotation, camera.weak_to_full(weak, centre, crop.side, focal_length, size)
        view = camera.view_rotation(centre, focal_length, size)
        ahead = camera.weak_to_full(weak, np.array(size) / 2, crop.side, focal_length, size)
        return view @ rotation, ahead @ view.T

    def _person(
        self,
        box: np.ndarray,
        landmarks: np.ndarray,
        landmarks_3d: np.ndarray,
        tokens: np.ndarray,
        log_probability: np.ndarray,
        rotation: np.ndarray,
        translation: np.ndarray,
        fit: Framing | None = None,
        anchor: tuple[np.ndarray, np.ndarray] | None = None,
        refine: bool = False,
    ) -> Person:
        """Decode the hypotheses and put them into the picture.

        rotation (3, 3) or (N, 3, 3), translation (3,) or (N, 3): of all hypotheses or of each. fit: where the landmarks
        are, to move each one onto them. anchor: vertices (V, 3) and which of them (V,) bool must
        stay where they are; goes before. refine: bring in the rig, where the body has one.
        """
        canonical = self.decode(tokens)
        count = len(tokens)
        rotations = np.broadcast_to(rotation, (count, 3, 3)).astype(np.float32)
        turned = canonical @ rotations.transpose(0, 2, 1)
        translations = np.broadcast_to(translation, (count, 3))
        if anchor is not None:
            vertices, kept = anchor
            translations = (vertices[kept].astype(np.float64) - turned[:, kept]).mean(axis=1)
        elif fit is not None and self._can_fit:
            crop, focal_length, size = fit
            joints = self.joints(turned, "coco17")
            seen = landmarks[list(COCO17_LANDMARKS)]
            translations = camera.fit_translation(
                joints,
                seen[:, :2],
                landmark_trust(seen, size),
                translations,
                focal_length,
                size,
                LANDMARK_ERROR * crop.side,
            )
        translations = translations.astype(np.float32)
        vertices = turned + translations[:, None]
        if refine and self.refiner is not None:
            vertices = refined(self.refiner, vertices, landmarks, fit, anchor)
            if anchor is not None:
                vertices = hold(vertices, *anchor, self._neighbour_means)
            translations = vertices.mean(axis=1)
            # The rotation belongs to the tokens' mesh, so that whoever draws some of them anew starts from this pose.
            centred = vertices - translations[:, None]
            rotations = nearest_rotation(torch.as_tensor(centred.transpose(0, 2, 1) @ canonical)).numpy()
            canonical = centred @ rotations
        aligned = canonical if anchor is None else vertices
        return Person(
            box=np.asarray(box, np.float32),
            landmarks=np.asarray(landmarks, np.float32),
            landmarks_3d=np.asarray(landmarks_3d, np.float32),
            tokens=tokens.astype(np.uint16),
            log_probability=log_probability.astype(np.float32),
            rotation=rotations,
            translation=translations,
            vertices=vertices,
            joints=self.joints(vertices, self._joint_set),
            spread=np.sqrt(aligned.var(axis=0).sum(axis=-1)).astype(np.float32),
        )

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

    def _check_sampling(self) -> None:
        if not hasattr(self.model, "draw"):
            raise ValueError(f"{self.card['name']} gives one answer and cannot sample: ask for 1 hypothesis")

    def _check_person(self, person: Person, hypothesis: int) -> None:
        if not 0 <= hypothesis < person.hypotheses:
            raise ValueError(f"there is no hypothesis {hypothesis}: choose 0 to {person.hypotheses - 1}")
        fits = (
            person.tokens.shape[1] == self.tokenizer.token_count and person.vertices.shape[1] == self.body.vertex_count
        )
        if not fits or int(person.tokens.max(initial=0)) >= self.tokenizer.code_count:
            raise ValueError("this result was made with another model: resample it with the model that made it")

    def _meta(self, **settings: Any) -> dict[str, Any]:
        return {
            "version": __version__,
            "model": self.card["name"],
            "token_count": int(self.tokenizer.token_count),
            "joint_set": self._joint_set,
            "joint_names": list(self.body.regressor_names(self._joint_set)),
            **settings,
        }


def _device(name: str | torch.device) -> torch.device:
    """The device of this name; ValueError where this machine has none."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"there is no device '{name}' here: use cpu, or see `mega info` for what there is") from None
    return device


def _has_joints(body: Any, name: str) -> bool:
    try:
        body.regressor_names(name)
    except (KeyError, ValueError):
        return False
    return True


def _projected_box(vertices: np.ndarray, focal_length: float, size: tuple[int, int]) -> np.ndarray:
    points = camera.project(vertices, focal_length, size)
    return np.clip([*points.min(0), *points.max(0)], 0, [*size, *size]).astype(np.float32)


def _person_seed(seed: int, person: int) -> int:
    """The seed of one person's samples, unrelated between persons."""
    digest = hashlib.blake2b(f"{int(seed)}/person {person}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def _focal_length(given: float | None, size: tuple[int, int]) -> float:
    if given is None:
        return camera.default_focal_length(size)
    if not np.isfinite(given) or given <= 0:
        raise ValueError(f"the focal length must be a positive number of pixels, not {given}")
    return float(given)


def _check(count: int, steps: int, temperature: float) -> None:
    if count < 1:
        raise ValueError(f"ask for at least 1, not {count}")
    if steps < 1:
        raise ValueError(f"sampling takes at least 1 step, not {steps}")
    if not np.isfinite(temperature) or temperature < 0:
        raise ValueError(f"the temperature must be 0 or more, not {temperature}")


def _people_text(count: int) -> str:
    return "no person found" if count == 0 else f"{count} {'person' if count == 1 else 'people'} found"


def _no_progress(fraction: float, text: str) -> None:
    """For callers that do not want to know."""
