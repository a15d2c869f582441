"""A bank of bodies prepared once: what training needs of each, so that a step poses and encodes nothing.

Tokens describe canonical meshes, which no camera changes: one prepared body serves any number of synthetic views.

    python -m train.data.bank --mocap FOLDER --count 100000 -o bank.pt
"""

from __future__ import annotations

import argparse
import multiprocessing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from tqdm import tqdm

from mega_backend.body import Body
from mega_backend.rotations import matrix_from_6d, sixd_from_matrix
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE
from train import command
from train.data.bodies import BodySampler, held_out


@dataclass
class Bank:
    """N bodies. Everything canonical: root rotation removed, the mesh's mean vertex at the origin; metres.

    rotations (N, J, 6) float16 and shape (N, S) float16: the pose, for `Body.skin`. root (N, 3, 3): its root rotation.
    landmarks (N, 33, 3), joints (N, 22, 3): MediaPipe's landmarks and the 22 usual joints.
    tokens (N, T) int16 of a tokenizer and their codes, latents (N, T, D) float16, or None before `tokenise`: the codes
    and not what the encoder says, which may lie well outside of them, where nothing decodes.
    """

    rotations: Tensor
    shape: Tensor
    root: Tensor
    landmarks: Tensor
    joints: Tensor
    tokens: Tensor | None = None
    latents: Tensor | None = None

    def __len__(self) -> int:
        return len(self.root)

    def save(self, path: str | Path) -> None:
        """Write all arrays to one file."""
        torch.save({field.name: getattr(self, field.name) for field in fields(self)}, path)

    @classmethod
    def load(cls, path: str | Path) -> Bank:
        """Read what `save` wrote."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no bank of bodies at {path}: make one with `python -m train.data.bank`")
        return cls(**torch.load(path, weights_only=True))

    def to(self, device: torch.device) -> Bank:
        """The bank on a device; itself where it already is there."""
        if self.root.device == device:
            return self
        return Bank(*(None if (a := getattr(self, f.name)) is None else a.to(device) for f in fields(self)))

    def part(self, start: int, stop: int) -> Bank:
        """The bodies start…stop - 1."""
        return Bank(*(None if (a := getattr(self, f.name)) is None else a[start:stop] for f in fields(self)))

    def posed(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """World rotations (n, J, 3, 3) and shape (n, S) of the bodies start…stop - 1, as `Body.skin` takes them."""
        return matrix_from_6d(self.rotations[start:stop].float()), self.shape[start:stop].float()


@torch.no_grad()
def prepare(body: Body, rotations: Tensor, shape: Tensor) -> Bank:
    """Landmarks and joints of bodies: world rotations (N, J, 3, 3) and shape (N, S), as `Body.skin` takes them."""
    # Through the stored precision first, so that tokens made later belong to exactly these landmarks.
    six, shape = sixd_from_matrix(rotations).half(), shape.half()
    rotations, exact = matrix_from_6d(six.float()), shape.float()
    upright = rotations[:, :1].mT @ rotations
    centre = body.centre(upright, exact)[:, None]
    landmarks = body.skin_joints(upright, exact, "mediapipe33") - centre
    joints = body.skin_joints(upright, exact, "body22") - centre
    return Bank(six.cpu(), shape.cpu(), rotations[:, 0].cpu(), landmarks.cpu(), joints.cpu())


def joined(parts: list[Bank]) -> Bank:
    """Banks of the same fields as one."""
    names = [f.name for f in fields(Bank) if getattr(parts[0], f.name) is not None]
    return Bank(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def build(sampler: BodySampler, count: int, generator: torch.Generator, chunk: int = 1000) -> Bank:
    """Sample `count` bodies and prepare them."""
    parts = []
    for start in tqdm(range(0, count, chunk), desc="bodies"):
        drawn = sampler.sample(min(chunk, count - start), generator)
        parts.append(prepare(sampler.body, drawn["rotations"], drawn["shape"]))
    return joined(parts)


def build_share(job: tuple[str, Path, int, int, Path]) -> Path:
    """A process's share of a bank: (split, mocap, count, seed, file to write); returns the file."""
    split, mocap, count, seed, path = job
    torch.set_num_threads(1)
    body = Body.bundled().subset(torch.arange(1))
    build(BodySampler(body, split, mocap), count, torch.Generator().manual_seed(seed)).save(path)
    return path


def build_together(split: str, mocap: Path, count: int, seed: int, workers: int) -> Bank:
    """As `build`, by so many processes. What comes out depends on their number: each has a seed of its own."""
    # Forked processes would share the parent's threads' locks; tensors go through files, not through shared memory.
    with TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(workers) as pool:
        shares = [count // workers + (number < count % workers) for number in range(workers)]
        jobs = [(split, mocap, n, seed * 1000 + k, Path(folder) / f"{k}.pt") for k, n in enumerate(shares)]
        return joined([Bank.load(path) for path in pool.map(build_share, jobs)])


@torch.no_grad()
def tokenise(bank: Bank, body: Body, tokenizer: MeshVQVAE, chunk: int = 500) -> Bank:
    """The bank with tokens and latents of the tokenizer, made on its device; only the points it convolves are posed."""
    posing = body.subset(tokenizer.points) if tokenizer.lifted else body
    device = next(tokenizer.parameters()).device
    posing = posing.to(device)
    tokens, latents = [], []
    for start in tqdm(range(0, len(bank), chunk), desc="tokens"):
        rotations, shape = bank.posed(start, start + chunk)
        latent = tokenizer.encode_points(posing.canonical_skin(rotations.to(device), shape.to(device)))
        token, quantised, _ = tokenizer.quantise(latent)
        tokens.append(token.to(torch.int16).cpu())
        latents.append(quantised.half().cpu())
    return Bank(
        bank.rotations, bank.shape, bank.root, bank.landmarks, bank.joints, torch.cat(tokens), torch.cat(latents)
    )


@torch.no_grad()
def surface(bank: Bank, body: Body, count: int = 256, chunk: int = 1000) -> Bank:
    """The bank with evenly spread surface points as its latents (N, count, 3), metres: before a tokenizer exists.

    A regressor to them has learnt nearly all that one to the tokenizer's latents needs.
    """
    rest = body.rest(torch.zeros(1, body.shape_count))[0][0]
    chosen = [int(rest[:, 1].argmax())]
    nearest = torch.full((len(rest),), torch.inf)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (rest - rest[chosen[-1]]).norm(dim=-1))
        chosen.append(int(nearest.argmax()))
    posing = body.subset(torch.tensor(chosen))
    starts = tqdm(range(0, len(bank), chunk), desc="surface")
    points = torch.cat([posing.canonical_skin(*bank.posed(start, start + chunk)).half() for start in starts])
    return replace(bank, tokens=None, latents=points)


def main() -> None:
    cli = argparse.ArgumentParser(description="Prepare bodies to train on.")
    cli.add_argument("--mocap", type=Path, required=True, help="folder of motion capture")
    cli.add_argument("--split", default="train", choices=("train", "val", "test"))
    cli.add_argument("--held-out", choices=("mocap", "synthetic"), help="the fixed set of this kind, nothing random")
    cli.add_argument("--count", type=int, default=100_000)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--workers", type=int, default=1, help="processes that draw bodies")
    cli.add_argument("--tokenizer", type=Path, help="model folder whose tokenizer encodes the bodies")
    cli.add_argument("--device", default="cpu", help="where the tokenizer encodes them")
    cli.add_argument("--surface", type=int, help="instead of a tokenizer's latents: so many points of the surface")
    cli.add_argument("--bodies", type=Path, help="an earlier bank: encode its bodies instead of drawing new ones")
    cli.add_argument("-o", "--output", type=Path, required=True)
    args = cli.parse_args()
    body = Body.bundled()
    # Landmarks and joints are exact on any subset of the vertices.
    joints_only = body.subset(torch.arange(1))
    if args.bodies:
        bank = Bank.load(args.bodies)
    elif args.held_out:
        bank = prepare(
            joints_only, **held_out(joints_only, args.mocap, args.split, args.count, args.held_out, args.seed)
        )
    elif args.workers > 1:
        bank = build_together(args.split, args.mocap, args.count, args.seed, args.workers)
    else:
        sampler = BodySampler(joints_only, args.split, args.mocap)
        bank = build(sampler, args.count, torch.Generator().manual_seed(args.seed))
    if args.tokenizer:
        from mega_backend import checkpoint

        tokenizer = checkpoint.load(args.tokenizer).tokenizer.to(args.device)
        bank = tokenise(bank, body, tokenizer, 500 if args.device == "cpu" else 4000)
    elif args.surface:
        bank = surface(bank, body, args.surface)
    bank.save(args.output)


if __name__ == "__main__":
    command.run(main)
