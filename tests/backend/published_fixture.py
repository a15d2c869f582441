"""Files in the layouts of the authors' checkpoints and of SMPL, at toy size and with random numbers."""

import pickle
import sys
import types
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from mega_backend.model.mega import Mega
from mega_backend.model.vqhps import VQHPS
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE, layer_names, published_config

VERTICES, TOKENS, CODES = 60, 6, 16
POINTS = [VERTICES, 20, 20, TOKENS, TOKENS]  # out of _pool0 … _pool4
CHANNELS = [6, 6, 8, 8, 9, 8, 8, 6, 6, 3]
BACKBONES = {
    "hrnet": {"name": "hrnet", "width": 4, "stem": 8, "modules": [1, 1, 1], "blocks": 1},
    "resnet": {"name": "resnet", "blocks": [1, 1, 1, 1], "width": 8},
    "vit": {"name": "vit", "width": 384, "depth": 1, "heads": 6, "picture": [64, 48], "patch": 16, "ratio": 4},
}
FEATURES = {"hrnet": 60, "resnet": 256, "vit": 384}


def connection_matrix(random: np.random.Generator, points_in: int, points_out: int, width: int = 4) -> np.ndarray:
    """Between one and ``width`` neighbours per point, padded as published."""
    matrix = np.tile(np.array([0] + [points_in, -1] * width, np.int32), (points_out, 1))
    for row in matrix:
        count = random.integers(1, min(width, points_in) + 1)
        row[0], row[1 : 1 + 2 * count : 2] = count, random.choice(points_in, count, replace=False)
        row[2 : 2 + 2 * count : 2] = 1
    return matrix


def connections(seed: int = 0) -> dict[str, np.ndarray]:
    """The matrices of a network of 5 + 5 layers, as the published ones are named."""
    random = np.random.default_rng(seed)
    sizes = [VERTICES, *POINTS]
    down = [connection_matrix(random, sizes[i], sizes[i + 1]) for i in range(5)]
    up = [connection_matrix(random, sizes[i + 1], sizes[i]) for i in range(5)]
    names = layer_names(5)
    return dict(zip(names, [*down, *reversed(up)], strict=True))


def write_connections(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    for name, matrix in connections(seed).items():
        np.save(folder / f"{name}.npy", matrix)
    return folder


def small_tokenizer(seed: int = 0, **options) -> MeshVQVAE:
    matrices = connections()
    config = published_config(matrices, levels=5, codes=CODES, channels=CHANNELS, **options)
    return MeshVQVAE.build(config, list(matrices.values()), seed=seed).eval()


def authors_tokenizer(model: MeshVQVAE) -> dict[str, torch.Tensor]:
    """The state dictionary as the authors' program would have saved it."""
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("layers.") and not name.endswith(".neighbours"):
            _, layer, _, leaf = name.split(".")
            for side in ("encoder", "decoder"):
                state[f"{side}.model.{leaf}{layer}"] = value
    leaves = {"codebook": "_embedding.weight", "ema_sum": "_ema_w", "ema_count": "_ema_cluster_size"}
    for stage, quantiser in enumerate(model.quantiser):
        where = "vq_vae." if model.quantiser.stages == 1 else f"vq_vae.layers.{stage}."
        state |= {where + leaves[name]: value for name, value in quantiser.state_dict().items()}
    return state


def small_mega(backbone: str | None = "hrnet", conditioned: bool = True, heads: int = 4) -> Mega:
    torch.manual_seed(0)
    channels = 12 if backbone is None else FEATURES[backbone]
    image = {"kind": "image", "channels": channels, "backbone": None if backbone is None else BACKBONES[backbone]}
    config = {
        "token_count": TOKENS,
        "code_count": CODES,
        "width": 32,
        "encoder_depth": 2,
        "decoder_depth": 1,
        "heads": heads,
        "conditioning": image if conditioned else None,
    }
    return Mega.from_config(config).eval()


def small_vqhps(backbone: str | None = "resnet", **options) -> VQHPS:
    torch.manual_seed(0)
    model = VQHPS(
        TOKENS,
        CODES,
        width=32,
        hidden=48,
        decoder_layers=2,
        head_layers=2,
        pose_width=24,
        backbone=None if backbone is None else BACKBONES[backbone],
        feature_channels=12 if backbone is None else None,
        **options,
    )
    return model.eval()


def authors_vqhps(model: VQHPS) -> dict[str, torch.Tensor]:
    """With the causal masks that the authors' program stores."""
    masks = {
        f"transformer.dec_head.blocks.{block}.attn.mask": torch.ones(1, 1, TOKENS, TOKENS).tril()
        for block in range(model.config["head_layers"])
    }
    return model.state_dict() | masks


def write_checkpoint(path: Path, state: dict[str, torch.Tensor], prefix: str = "") -> Path:
    """The authors' file layout; scores beside the weights are NumPy scalars, as they often are."""
    model = {prefix + name: value for name, value in state.items()}
    torch.save({"model": model, "optimizer": {}, "epoch": 3, "loss": np.float64(1.5), "v2v": np.float32(2)}, path)
    return path


# SMPL

PARENTS = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21]


def smpl_arrays(vertices: int = VERTICES, joints: int = 24, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of an SMPL (24 joints) or SMPL-H (52) file."""
    random = np.random.default_rng(seed)
    parents = PARENTS[:22] + ([20, 21] if joints == 24 else [20] * 15 + [21] * 15)
    weights = np.zeros((vertices, joints))
    weights[np.arange(vertices), np.arange(vertices) % joints] = 1
    regressor = random.random((joints, vertices)) * (random.random((joints, vertices)) < 0.2)
    regressor[:, 0] += 1e-3
    return {
        "v_template": random.normal(0, 0.5, (vertices, 3)),
        "shapedirs": random.normal(0, 0.02, (vertices, 3, 10 if joints == 24 else 16)),
        "posedirs": random.normal(0, 0.01, (vertices, 3, 9 * (joints - 1))),
        "J_regressor": regressor / regressor.sum(1, keepdims=True),
        "weights": weights,
        "kintree_table": np.array([[2**32 - 1, *parents[1:]], range(joints)], dtype=np.uint32),
        "f": random.integers(0, vertices, (40, 3)).astype(np.uint32),
    }


def write_chumpy_pickle(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """As SMPL is distributed: chumpy objects, a sparse regressor, pickled by protocol 2, with text from Python 2."""
    package, module, reordering = (types.ModuleType(name) for name in ("chumpy", "chumpy.ch", "chumpy.reordering"))

    class Ch:
        pass

    class Select:
        pass

    for kind, home in ((Ch, "chumpy.ch"), (Select, "chumpy.reordering")):
        kind.__module__, kind.__qualname__ = home, kind.__name__
    module.Ch, reordering.Select = Ch, Select

    def ch(value: np.ndarray) -> Ch:
        made = Ch()
        made.__dict__ = {"x": value, "_dirty_vars": {"x"}}
        return made

    chosen = Select()
    shape = arrays["shapedirs"].shape
    chosen.__dict__ = {
        "a": ch(np.pad(arrays["shapedirs"], ((0, 0), (0, 0), (0, 5)))),
        "idxs": np.arange(np.prod((*shape[:2], shape[2] + 5))).reshape(*shape[:2], -1)[..., : shape[2]].ravel(),
        "preferred_shape": shape,
    }
    content = {
        **arrays,
        "v_template": ch(arrays["v_template"]),
        "shapedirs": chosen,
        "J_regressor": sparse.csc_matrix(arrays["J_regressor"]),
        "bs_style": "lbs",
        "bs_type": b"lrotmin",
    }
    del content["posedirs"]
    content["posedirs"] = ch(arrays["posedirs"])
    fakes = {"chumpy": package, "chumpy.ch": module, "chumpy.reordering": reordering}
    sys.modules.update(fakes)
    try:
        with path.open("wb") as file:
            pickle.dump(content, file, protocol=2)
    finally:
        for name in fakes:
            del sys.modules[name]
    return path
