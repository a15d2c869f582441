"""Tokens → meshes in the picture: decoded, turned, moved onto the landmarks, refined with the body's rig."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mega_backend.locking import hold
from mega_backend.refinement import Framing, refined
from mega_backend.result import Person
from mega_backend.rig import nearest_rotation

from .placing import onto_landmarks

if TYPE_CHECKING:
    from .recoverer import Recoverer

Anchor = tuple[np.ndarray, np.ndarray]
"""Vertices (V, 3) in camera space, and which of them (V,) bool must stay where they are."""


def build(
    recoverer: Recoverer,
    seen: Any,
    tokens: np.ndarray,
    log_probability: np.ndarray,
    rotation: np.ndarray,
    translation: np.ndarray,
    framing: Framing | None = None,
    anchor: Anchor | None = None,
    refine: bool = False,
) -> Person:
    """One person from N hypotheses.

    Args:
        seen: anything with box (4,), landmarks (33, 3) and landmarks_3d (33, 3), as `people.Detection` has them.
        tokens: (N, T). log_probability: (N,).
        rotation, translation: (3, 3) or (N, 3, 3), and (3,) or (N, 3): of all hypotheses or of each.
        framing: where the landmarks are, to move each hypothesis onto them. anchor: goes before.
        refine: bring in the rig, where the body has one.
    """
    canonical = recoverer.decode(tokens)
    count = len(tokens)
    rotations = np.broadcast_to(rotation, (count, 3, 3)).astype(np.float32)
    turned = canonical @ rotations.transpose(0, 2, 1)
    translations = np.broadcast_to(translation, (count, 3))
    if anchor is not None:
        places, kept = anchor
        translations = (places[kept].astype(np.float64) - turned[:, kept]).mean(axis=1)
    elif framing is not None and recoverer.has_joints("coco17"):
        translations = onto_landmarks(recoverer.joints(turned, "coco17"), seen.landmarks, framing, translations)
    translations = translations.astype(np.float32)
    vertices = turned + translations[:, None]
    if refine and recoverer.refiner is not None:
        vertices = refined(recoverer.refiner, vertices, seen.landmarks, framing, anchor)
        if anchor is not None:
            vertices = hold(vertices, *anchor, recoverer.neighbour_means)
        translations = vertices.mean(axis=1)
        # The rotation belongs to the tokens' mesh, so that whoever draws some of them anew starts from this pose.
        centred = vertices - translations[:, None]
        rotations = nearest_rotation(torch.as_tensor(centred.transpose(0, 2, 1) @ canonical)).numpy()
        canonical = centred @ rotations
    # Kept parts stay where they are in space: there, not in canonical axes, they have no spread.
    aligned = canonical if anchor is None else vertices
    return Person(
        box=np.asarray(seen.box, np.float32),
        landmarks=np.asarray(seen.landmarks, np.float32),
        landmarks_3d=np.asarray(seen.landmarks_3d, np.float32),
        tokens=tokens.astype(np.uint16),
        log_probability=log_probability.astype(np.float32),
        rotation=rotations,
        translation=translations,
        vertices=vertices,
        joints=recoverer.joints(vertices, recoverer.joint_set),
        spread=np.sqrt(aligned.var(axis=0).sum(axis=-1)).astype(np.float32),
    )
