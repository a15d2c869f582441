"""Motion capture in SMPL's own parameters, for the first two stages: AMASS npz and BEDLAM's `motion_seq.npz`.

Both hold `poses` (F, 156 or 165) axis-angle, `betas`, `gender`; AMASS also `mocap_framerate`. Only the 21 body joints
are used: roots and positions do not matter to canonical meshes, hands stay flat.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from mega_backend import foreign
from mega_backend.checkpoint import CheckpointError
from mega_backend.rotations import axis_angle_from_quaternion
from train.data import mocap
from train.data.annotations import AnnotationError
from train.data.smpl import BETAS, BODY_JOINTS, SmplBodies


@dataclass(frozen=True)
class Motions:
    """N poses: `pose` (N, 63) axis-angle of the body joints, `betas` (N, 10), `gender` (N) codes."""

    pose: Tensor
    betas: Tensor
    gender: Tensor

    def __len__(self) -> int:
        return len(self.pose)


def read(path: str | Path, fps: float = 30.0) -> Motions:
    """The poses of one file, about `fps` a second where the file says how many it has.

    Raises:
        AnnotationError: not such a file.
    """
    path = Path(path)
    try:
        file = foreign.Archive(path)
        if missing := [name for name in ("poses", "betas", "gender") if name not in file]:
            raise AnnotationError(f"{path} is no motion of SMPL's: it lacks {', '.join(missing)}.")
        poses, betas = np.asarray(file["poses"], np.float32), np.asarray(file["betas"], np.float32)
        gender = str(np.asarray(file["gender"]).reshape(-1)[0]).lower().removeprefix("b'")[:1]
        rate = float(np.asarray(file["mocap_framerate"])) if "mocap_framerate" in file else fps
    except (CheckpointError, OSError, BadZipFile) as error:
        raise AnnotationError(f"{path} cannot be read as a motion: {error}") from error
    if poses.ndim != 2 or poses.shape[1] < 3 * (BODY_JOINTS + 1):
        raise AnnotationError(f"{path}: poses have shape {poses.shape}, not (frames, at least 66).")
    poses = poses[:: max(1, round(rate / fps))]
    poses = poses[np.isfinite(poses).all(1)]
    betas = np.broadcast_to(np.atleast_2d(betas)[:1, :BETAS], (len(poses), min(BETAS, betas.shape[-1])))
    code = {"m": 1, "f": 2}.get(gender, 0)
    return Motions(
        torch.from_numpy(poses[:, 3 : 3 * (BODY_JOINTS + 1)].copy()),
        torch.nn.functional.pad(torch.from_numpy(betas.copy()), (0, BETAS - betas.shape[1])),
        torch.full((len(poses),), code),
    )


def read_all(folder: str | Path, fps: float = 30.0, pattern: str = "**/*.npz") -> tuple[Motions, list[str]]:
    """All motions below a folder in the order of their names, and the files that were skipped because they are broken.

    Raises:
        AnnotationError: no file could be used.
    """
    return collect(sorted(Path(folder).glob(pattern)), str(folder), fps)


def collect(paths: Iterable[Path], where: str, fps: float = 30.0) -> tuple[Motions, list[str]]:
    """The motions of these files joined, and the messages about those that are broken."""
    parts, skipped = [], []
    for path in paths:
        # AMASS keeps the shape of every subject beside the motions: not a motion.
        if path.name in ("shape.npz", "neutral_stagei.npz", "male_stagei.npz", "female_stagei.npz"):
            continue
        try:
            parts.append(read(path, fps))
        except AnnotationError as error:
            skipped.append(str(error))
    if not parts:
        raise AnnotationError(f"No motion in {where}: give the folder of AMASS or of BEDLAM's animations.")
    columns = ("pose", "betas", "gender")
    return Motions(*(torch.cat([getattr(part, name) for part in parts]) for name in columns)), skipped


def read_mocap(folder: str | Path, split: str, seed: int = 0) -> Motions:
    """The distinct poses of our own motion capture format (`train.data.mocap`) on neutral bodies of random shape."""
    local = axis_angle_from_quaternion(mocap.poses(folder, split))
    betas = torch.randn(len(local), BETAS, generator=torch.Generator().manual_seed(seed))
    return Motions(local[:, 1:].flatten(1), betas, torch.zeros(len(local), dtype=torch.long))


def read_split(folder: str | Path, held_out_every: int = 20) -> tuple[Motions, Motions, list[str]]:
    """Motions to train on, held-out ones, and what was skipped.

    Our own format has its splits; of others every n-th file is held out.

    Raises:
        AnnotationError: there is nothing to train or to validate on.
    """
    folder = Path(folder)
    if (folder / "index.json").is_file():
        return read_mocap(folder, "train"), read_mocap(folder, "val", seed=1), []
    paths = sorted(folder.glob("**/*.npz"))
    held_out = set(paths[::held_out_every])
    kept, skipped = collect([path for path in paths if path not in held_out], f"{folder} to train on")
    validation, more = collect(sorted(held_out), f"{folder} to validate on (every {held_out_every}th file)")
    return kept, validation, skipped + more


class SmplSampler:
    """Draws posed SMPL meshes from motions, on the bodies' device."""

    def __init__(self, bodies: SmplBodies, motions: Motions) -> None:
        """
        Raises:
            ModelFileError: a gender occurs for which there is no model.
        """
        bodies.check_genders(motions.gender, "the motion capture")
        self.bodies, self.motions = bodies, motions

    def sample(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`pose` (count, 63), `shape` (count, 10), `gender` (count), on the CPU."""
        index = torch.randint(len(self.motions), (count,), generator=generator, device=generator.device).cpu()
        return {
            "pose": self.motions.pose[index],
            "shape": self.motions.betas[index],
            "gender": self.motions.gender[index],
        }

    def canonical(self, sample: dict[str, Tensor]) -> Tensor:
        """Canonical vertices (count, V, 3) of a sample, posed where the bodies are."""
        device = self.bodies.smpl24.device
        return self.bodies.canonical(*(sample[name].to(device) for name in ("pose", "shape", "gender")))
