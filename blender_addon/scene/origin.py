"""What a person was made from, as it is noted on the object."""

from __future__ import annotations

from dataclasses import dataclass

import bpy

from ...mega_backend.protocol import BodyTopology


@dataclass(frozen=True)
class Origin:
    """Sampling parameters and picture of a result."""

    seed: int = 0
    steps: int = 5
    temperature: float = 1.0
    model: str = ""
    picture: str = ""
    picture_size: tuple[int, int] = (1, 1)
    focal_length: float = 1000.0

    def note(self, person: bpy.types.Object, topology: BodyTopology) -> None:
        """Mark an object as a person of ours, and write this on it."""
        note = person.mega
        note.is_person, note.body = True, topology.name
        note.seed, note.steps, note.temperature, note.model = self.seed, self.steps, self.temperature, self.model
        note.picture, note.picture_size, note.focal_length = self.picture, self.picture_size, self.focal_length
