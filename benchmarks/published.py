"""MEGA-HRNet and its mesh autoencoder at published size against the plain formulation, in one run.

    python -m benchmarks.published [--connections FOLDER] [--threads 2] [--repeat 3] [--hypotheses 25] [--cpu-time]

*Plain* is how the released programs compute: a kernel expanded for every (point, neighbour) of the mesh autoencoder,
the picture repeated for every sample before the backbone, every token of every block computed, and conditioning
tokens, rotation and camera computed again in every step. Weights are random: they change nothing about time and
memory. Before anything is timed, both formulations must give the same logits and the same meshes.

The connection matrices are the published ones if their folder is given; else a hierarchy of the same sizes is made up.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mega_backend.model.mega import Mega
from mega_backend.model.transformer import sine_positions
from mega_backend.tokenizer.mesh_conv import MeshConvolution
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE, layer_names, published_config

STEPS = 5
# Points out and the widest neighbour list of the published matrices.
SIZES = {"pool0": (6890, 10), "pool1": (1925, 32), "pool2": (1925, 21), "pool3": (400, 56), "pool4": (400, 26),
         "pool5": (54, 66), "pool6": (54, 19), "unpool6": (54, 19), "unpool5": (400, 11), "unpool4": (400, 26),
         "unpool3": (1925, 14), "unpool2": (1925, 21), "unpool1": (6890, 11), "unpool0": (6890, 10)}  # fmt: skip


# The plain formulation


class PlainDecoder:
    """The decoder of the mesh autoencoder with its kernels expanded to (points, neighbours, out, in), once."""

    def __init__(self, model: MeshVQVAE):
        self.lookup = model.quantiser.lookup
        self.layers = [self._expand(layer) for layer in model.layers[model.depth :]]

    @staticmethod
    def _expand(layer: torch.nn.Module) -> tuple:
        part = layer.parts()[0]
        real = part.neighbours < part.points_in
        if not isinstance(part, MeshConvolution):
            share = part.p_neighbors.abs() * real
            return part.neighbours.long(), None, share / (share.sum(1, keepdim=True) + 1e-8), part, layer.activation
        coefficients = part.w_weights * real[..., None]
        kernels = torch.einsum("pmw,wc->pmc", coefficients, part.weights)
        kernels = kernels.unflatten(2, (part.channels_out, part.channels_in))
        return part.neighbours.long(), kernels, part.bias, part, layer.activation

    def __call__(self, tokens: Tensor) -> Tensor:
        x = self.lookup(tokens)
        for neighbours, kernels, other, part, activation in self.layers:
            if kernels is None and part.weight_res is not None:
                x = x @ part.weight_res.T
            padded = torch.cat([x, x.new_zeros(len(x), 1, x.shape[2])], dim=1)
            gathered = padded[:, neighbours]  # (B, P, M, in)
            if kernels is None:
                x = torch.einsum("pm,bpmi->bpi", other, gathered)
            else:
                x = torch.einsum("pmoi,bpmi->bpmo", kernels, gathered).sum(2) + other
                x = functional.elu(x) if activation else x
        return x


def _blocks(blocks: torch.nn.ModuleList, x: Tensor) -> Tensor:
    """Transformer blocks by torch's own layers, every place computed."""
    for block in blocks:
        attention, mlp = block.attn, block.mlp
        qkv = functional.linear(block.norm1(x), attention.qkv.weight)
        query, key, value = qkv.unflatten(2, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + functional.linear(mixed, attention.proj.weight, attention.proj.bias)
        hidden = functional.gelu(functional.linear(block.norm2(x), mlp.fc1.weight, mlp.fc1.bias))
        x = x + functional.linear(hidden, mlp.fc2.weight, mlp.fc2.bias)
    return x


def plain_logits(model: Mega, tokens: Tensor, visible: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, rotation and camera in one go, as the released model returns them; rows have equally many visible."""
    encoder, decoder = model.encoder, model.decoder
    batch, places = visible.shape
    order = (~visible).to(torch.uint8).argsort(dim=1, stable=True)
    shown = order[:, : int(visible[0].sum())]
    x = encoder.proj(tokens) + encoder.pos_embedding[:, 0]
    x = x.gather(1, shown[..., None].expand(-1, -1, x.shape[2]))
    x = encoder.layer_norm(_blocks(encoder.transformer, torch.cat([encoder.cls_token.expand(batch, -1, -1), x], dim=1)))
    full = torch.cat([x[:, 1:], decoder.mask_token.expand(batch, places - shown.shape[1], -1)], dim=1)
    full = full.gather(1, order.argsort(dim=1)[..., None].expand_as(full))
    full = torch.cat([x[:, :1], full], dim=1) + decoder.pos_embedding[:, 0]
    flat = features.flatten(2).transpose(1, 2)
    conditioning = decoder.cond_emb(flat)
    conditioning = conditioning + sine_positions(*conditioning.shape[1:])
    full = _blocks(decoder.transformer, torch.cat([conditioning, full], dim=1))
    hidden = decoder.rotcam_head(flat.mean(1))
    logits = decoder.head(full[:, conditioning.shape[1] + 1 :])
    return logits, decoder.rot_predictor(hidden), decoder.cam_predictor(hidden)


def plain_samples(model: Mega, crop: Tensor, count: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (count, T), rotation and camera: the picture repeated, everything computed in every step."""
    features = model.features(crop.repeat(count, 1, 1, 1))
    tokens = torch.zeros(count, model.token_count, dtype=torch.long)
    visible = torch.zeros_like(tokens, dtype=torch.bool)
    for step in range(1, steps + 1):
        logits, rotation, camera = plain_logits(model, tokens, visible, features)
        noise = 1 - step / steps
        gumbel = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-20, 1 - 2**-24)))
        drawn = (logits + noise * gumbel).argmax(-1)
        drawn = torch.where(visible, tokens, drawn)
        confidence = logits.gather(2, drawn[..., None])[..., 0].masked_fill(visible, math.inf)
        hidden = math.floor(model.token_count * math.cos(math.pi / 2 * step / steps)) if step < steps else 0
        rank = confidence.argsort(dim=1).argsort(dim=1)
        visible = rank >= hidden
        tokens = torch.where(visible, drawn, 0)
    return tokens, rotation, camera


def plain_one(model: Mega, crop: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The deterministic answer."""
    tokens = torch.zeros(1, model.token_count, dtype=torch.long)
    logits, rotation, camera = plain_logits(
        model, tokens, torch.zeros_like(tokens, dtype=torch.bool), model.features(crop)
    )
    return logits.argmax(-1), rotation, camera


# Ours


def ours_one(model: Mega, crop: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The deterministic answer."""
    condition = model.condition(model.features(crop))
    return model.best(condition).tokens, *model.pose(condition)


def ours_samples(model: Mega, crop: Tensor, count: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (count, T), rotation and camera."""
    condition = model.condition(model.features(crop))
    return model.sample(condition, count, steps=steps)[0], *model.pose(condition)


# Measuring


def matrices(folder: Path | None) -> dict[str, np.ndarray]:
    """The published connection matrices, or random ones of their sizes."""
    if folder is not None:
        return {name: np.load(folder / f"{name}.npy") for name in layer_names(7)}
    random, made, points = np.random.default_rng(0), {}, 6890
    for name in layer_names(7):
        count, width = SIZES[name[1:]]
        matrix = np.tile(np.array([0] + [points, -1] * width, np.int32), (count, 1))
        real = random.integers(max(1, width // 3), width + 1, count)
        for row, number in zip(matrix, np.minimum(real, points), strict=True):
            row[0], row[1 : 1 + 2 * number : 2] = number, random.choice(points, number, replace=False)
        made[name], points = matrix, count
    return made


def timed(work: dict[str, Callable[[], object]], repeat: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each piece of work, taken in turns so that a busy moment hits all alike.

    The first turn does not count where there are several.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeat + (repeat > 1)):
        for name, call in work.items():
            start = clock()
            call()
            if turn or repeat == 1:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(arguments: argparse.Namespace, which: str) -> float:
    """MiB that decoding adds at its peak, in a process of its own; Linux."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.published",
        "--memory",
        which,
        "--hypotheses",
        str(arguments.hypotheses),
    ]
    command += ["--threads", str(arguments.threads)]
    if arguments.connections:
        command += ["--connections", str(arguments.connections)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure_memory(arguments: argparse.Namespace) -> None:
    """Print the MiB by which decoding raises the peak of this process."""
    tokenizer = build_tokenizer(arguments.connections)
    tokens = torch.randint(512, (arguments.hypotheses, 54))
    tokenizer.decode_latent(torch.zeros(1, 54, 9))  # libraries and thread pools are in place before
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    if arguments.memory == "plain":
        PlainDecoder(tokenizer)(tokens)
    else:
        tokenizer.decode(tokens)
    print(_status("VmHWM") - before)


def build_tokenizer(folder: Path | None) -> MeshVQVAE:
    connections = matrices(folder)
    return MeshVQVAE.build(published_config(connections), list(connections.values())).eval()


def build_mega() -> Mega:
    torch.manual_seed(0)
    image = {"kind": "image", "channels": 720, "backbone": {"name": "hrnet"}}
    return Mega.from_config({"conditioning": image}).eval()


def agreement(ours: Tensor, plain: Tensor) -> float:
    return float((ours - plain).abs().max() / plain.abs().max())


def check(model: Mega, tokenizer: MeshVQVAE, plain_decode: PlainDecoder) -> None:
    """Both formulations must compute the same."""
    features = torch.randn(2, 720, 7, 7)
    tokens = torch.randint(512, (2, 54))
    visible = torch.zeros(2, 54, dtype=torch.bool)
    visible[:, ::5] = True
    error = agreement(model.logits(tokens, visible, features), plain_logits(model, tokens, visible, features)[0])
    mesh = agreement(tokenizer.decode(tokens), plain_decode(tokens))
    print(f"largest difference, ours to plain: logits {error:.1e}, meshes {mesh:.1e} of the largest value\n")
    if max(error, mesh) > 1e-4:
        raise SystemExit("the two formulations disagree: their times mean nothing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=Path, help="folder of the published connection matrices")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--hypotheses", type=int, default=25)
    parser.add_argument("--cpu-time", action="store_true", help="of this process, for busy machines; with --threads 1")
    parser.add_argument("--memory", choices=["plain", "ours"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    if arguments.memory:
        measure_memory(arguments)
        return
    count = arguments.hypotheses
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {arguments.threads} threads, "
          f"torch {torch.__version__}, median of {arguments.repeat}")  # fmt: skip
    model, tokenizer = build_mega(), build_tokenizer(arguments.connections)
    plain_decode = PlainDecoder(tokenizer)
    check(model, tokenizer, plain_decode)
    crop = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(512, (count, 54), generator=torch.Generator().manual_seed(0))

    def in_bfloat16() -> Tensor:
        model.autocast = torch.bfloat16
        tokens = ours_samples(model, crop, count, STEPS)[0]
        model.autocast = None
        return tokenizer.decode(tokens)

    seconds = timed(
        {
            "one plain": lambda: plain_decode(plain_one(model, crop)[0]),
            "one ours": lambda: tokenizer.decode(ours_one(model, crop)[0]),
            "many plain": lambda: plain_decode(plain_samples(model, crop, count, STEPS)[0]),
            "many ours": lambda: tokenizer.decode(ours_samples(model, crop, count, STEPS)[0]),
            "many bfloat16": in_bfloat16,
            "decode plain": lambda: plain_decode(tokens),
            "decode ours": lambda: tokenizer.decode(tokens),
        },
        arguments.repeat,
        time.process_time if arguments.cpu_time else time.perf_counter,
    )
    memory = {which: peak_memory(arguments, which) for which in ("plain", "ours")}
    rows = [
        ("one hypothesis, picture to mesh", "one plain", "one ours", "≥ 1.3"),
        (f"{count} hypotheses, float32", "many plain", "many ours", "≥ 1.8"),
        (f"{count} hypotheses, bfloat16", "many plain", "many bfloat16", "≥ 3"),
        (f"mesh decoding, {count} meshes", "decode plain", "decode ours", "≥ 3"),
    ]
    print(f"{'':34}{'plain':>11}{'ours':>11}{'ratio':>8}   asked")
    for text, plain, ours, asked in rows:
        print(f"{text:34}{seconds[plain]:9.3f} s{seconds[ours]:9.3f} s{seconds[plain] / seconds[ours]:8.2f}   {asked}")
    ratio = memory["plain"] / memory["ours"]
    print(f"{'mesh decoding, memory':34}{memory['plain']:7.0f} MiB{memory['ours']:7.0f} MiB{ratio:8.2f}   ≥ 5")


if __name__ == "__main__":
    main()
