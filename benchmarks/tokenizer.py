"""The factored mesh convolution against kernels expanded per (point, neighbour): time and peak memory.

    python -m benchmarks.tokenizer [--connections FOLDER] [--tokenizer FOLDER] [--batch 16] [--threads 1]

At the published size (SMPL, 6890 points; the published connection matrices where their folder is given, else made-up
ones of the same sizes) and at the bundled one. Both formulations are checked to agree before anything is timed. Memory
is what a process of its own takes beyond the model, at its highest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import types
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.published import build_tokenizer
from mega_backend import checkpoint
from mega_backend.tokenizer.mesh_conv import MeshConvolution
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE

WORK = ("decode", "training step")


def expanded(self: MeshConvolution, x: Tensor) -> Tensor:
    """The convolution as the released program computes it: a kernel for every point and neighbour."""
    real = self.neighbours < self.points_in
    kernels = torch.einsum("pmw,wk->pmk", self.w_weights * real[..., None], self.weights)
    kernels = kernels.unflatten(2, (self.channels_out, self.channels_in))
    gathered = x[torch.where(real, self.neighbours, 0).long()]  # (P, M, B, in)
    return torch.einsum("pmoi,pmbi->pbo", kernels, gathered) + self.bias


def build(args: argparse.Namespace, size: str, way: str) -> MeshVQVAE:
    model = build_tokenizer(args.connections) if size == "published" else checkpoint.load(args.tokenizer).tokenizer
    if way == "expanded":
        for module in model.modules():
            if isinstance(module, MeshConvolution):
                module.forward = types.MethodType(expanded, module)
    return model.requires_grad_(True)


def work(model: MeshVQVAE, what: str, batch: int) -> Tensor:
    """One decode of ``batch`` meshes, or one forward and backward pass."""
    generator = torch.Generator().manual_seed(0)
    if what == "decode":
        tokens = torch.randint(model.code_count, (batch, model.token_count), generator=generator)
        with torch.no_grad():
            return model.decode(tokens)
    points = torch.randn(batch, len(model.points), 3, generator=generator)
    decoded = model.decode_points(model.encode_points(points))
    (decoded - points).norm(dim=-1).mean().backward()
    return decoded.detach()


def megabytes(field: str) -> float:
    """Resident memory of this process now ("VmRSS") or at its highest ("VmHWM"); Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(args: argparse.Namespace, size: str, way: str, what: str) -> None:
    """Print milliseconds (of the processor, best of `--repeat`) and megabytes; runs in a process of its own."""
    torch.set_num_threads(args.threads)
    model = build(args, size, way)
    work(model, what, 1)  # libraries and thread pools are in place before
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    times = []
    for _ in range(args.repeat):
        start = time.process_time()
        work(model, what, args.batch)
        times.append(time.process_time() - start)
    print(1000 * min(times), megabytes("VmHWM") - before)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--connections", type=Path, help="folder of the published connection matrices")
    cli.add_argument("--tokenizer", default="default", help="model folder with the bundled tokenizer")
    cli.add_argument("--batch", type=int, default=16)
    cli.add_argument("--threads", type=int, default=1)
    cli.add_argument("--repeat", type=int, default=3)
    cli.add_argument("--measure", nargs=3, metavar=("SIZE", "WAY", "WHAT"), help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.measure:
        measure(args, *args.measure)
        return
    torch.set_num_threads(args.threads)
    print("| network | work | factored | expanded | times faster | factored | expanded |")
    print("|---|---|---|---|---|---|---|")
    for size in ("published", "bundled"):
        first, second = (work(build(args, size, way), "decode", 2) for way in ("factored", "expanded"))
        if not torch.allclose(first, second, atol=1e-4 * float(second.abs().max())):
            raise SystemExit(f"{size}: the two formulations disagree by {float((first - second).abs().max()):.2g}.")
        for what in WORK:
            found = []
            for way in ("factored", "expanded"):
                command = [sys.executable, "-m", "benchmarks.tokenizer", *sys.argv[1:], "--measure", size, way, what]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found.append([float(number) for number in printed.split()[-2:]])
            (ours, small), (plain, large) = found
            print(
                f"| {size} | {what}, batch {args.batch} | {ours:.0f} ms | {plain:.0f} ms | {plain / ours:.1f} |"
                f" {small:.0f} MB | {large:.0f} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
