"""What tests run on: a tiny mirror-symmetric body in SMPL's file layout, and datasets in the released formats."""

from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from mega_backend import checkpoint
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE
from train.data.annotations import ANNOTATED24, MIRROR_SMPL24, USED17
from train.data.smpl import SmplBodies

PARENTS = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21]
# Left joints and those in the middle, metres, T-pose facing +Z; the right ones are mirrored.
JOINTS = {
    0: (0, 0, 0), 1: (0.07, -0.08, 0), 3: (0, 0.11, -0.02), 4: (0.1, -0.46, 0), 6: (0, 0.25, 0),
    7: (0.09, -0.87, -0.03), 9: (0, 0.3, 0.01), 10: (0.11, -0.93, 0.1), 12: (0, 0.51, -0.03), 13: (0.08, 0.42, -0.02),
    15: (0, 0.58, 0.02), 16: (0.17, 0.45, -0.03), 18: (0.43, 0.44, -0.05), 20: (0.68, 0.44, -0.06),
    22: (0.76, 0.43, -0.07),
}  # fmt: skip
POINTS = 8
VERTICES = 24 * POINTS
# SMPL joints that stand for Human3.6M's 17 in their released order.
H36M = (0, 1, 4, 7, 2, 5, 8, 6, 12, 15, 15, 16, 18, 20, 17, 19, 21)
MIRROR_VERTICES = np.concatenate(
    [
        MIRROR_SMPL24[j] * POINTS + (np.arange(POINTS) if MIRROR_SMPL24[j] != j else np.arange(POINTS) ^ 1)
        for j in range(24)
    ]
)
_SIGNS = np.array([-1, 1, 1])


def model_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a model file: 24 joints, a blob of 8 vertices round each."""
    random = np.random.default_rng(seed)
    joints = np.zeros((24, 3))
    for joint, place in JOINTS.items():
        joints[joint], joints[MIRROR_SMPL24[joint]] = place, np.array(place) * _SIGNS
    template = np.repeat(joints, POINTS, 0)
    template += _mirrored(random.normal(0, 0.05, (VERTICES, 3)), lambda value: value[MIRROR_VERTICES] * _SIGNS)

    def mirrored_posedirs(value: np.ndarray) -> np.ndarray:
        moved = value.reshape(VERTICES, 3, 23, 3, 3)[MIRROR_VERTICES] * _SIGNS[:, None, None, None]
        moved = moved[:, :, np.array(MIRROR_SMPL24[1:]) - 1] * np.outer(_SIGNS, _SIGNS)
        return moved.reshape(VERTICES, 3, 207)

    weights = np.zeros((VERTICES, 24))
    regressor = np.zeros((24, VERTICES))
    for joint in range(24):
        rows = slice(joint * POINTS, (joint + 1) * POINTS)
        weights[rows, joint] += 0.8
        weights[rows, max(PARENTS[joint], 0)] += 0.2
        regressor[joint, rows] = 1 / POINTS
    faces = np.array([[v, v + 1, v + 2] for v in range(VERTICES - 2)])
    return {
        "v_template": template,
        "shapedirs": _mirrored(
            random.normal(0, 0.01, (VERTICES, 3, 10)), lambda value: value[MIRROR_VERTICES] * _SIGNS[:, None]
        ),
        "posedirs": _mirrored(random.normal(0, 0.002, (VERTICES, 3, 207)), mirrored_posedirs),
        "J_regressor": regressor,
        "weights": weights,
        "kintree_table": np.array([[2**32 - 1, *PARENTS[1:]], list(range(24))]),
        "f": faces.astype(np.uint32),
    }


def _mirrored(value, mirror):
    return 0.5 * (value + mirror(value))


def h36m_regressor() -> np.ndarray:
    matrix = np.zeros((17, VERTICES))
    for row, joint in enumerate(H36M):
        matrix[row, joint * POINTS : (joint + 1) * POINTS] = 1 / POINTS
    matrix[9] = 0
    matrix[9, [15 * POINTS, 15 * POINTS + 1]] = 0.5
    return matrix


def write_models(folder: Path) -> tuple[dict[str, str], str]:
    """Model files of three genders and the Human3.6M regressor: ({gender: path}, path)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for gender in ("neutral", "male", "female"):
        arrays = model_arrays()
        arrays["v_template"] = arrays["v_template"] * {"neutral": 1, "male": 1.05, "female": 0.97}[gender]
        paths[gender] = str(folder / f"{gender}.npz")
        np.savez(paths[gender], **arrays)
    np.save(folder / "h36m.npy", h36m_regressor())
    return paths, str(folder / "h36m.npy")


def bodies(folder: Path) -> SmplBodies:
    models, h36m = write_models(folder)
    return SmplBodies(models, h36m)


def random_people(count: int, seed: int) -> dict[str, np.ndarray]:
    """Poses (N, 72) with the root in the camera's frame, betas (N, 10), gender names (N)."""
    random = np.random.default_rng(seed)
    pose = random.normal(0, 0.3, (count, 72))
    yaw = Rotation.from_rotvec(np.outer(random.uniform(-1, 1, count), [0, 1, 0]))
    pose[:, :3] = (Rotation.from_rotvec([np.pi, 0, 0]) * yaw).as_rotvec()
    genders = np.array(["neutral", "male", "female"])[random.integers(3, size=count)]
    return {"pose": pose, "betas": random.normal(0, 1, (count, 10)), "gender": genders}


def write_training(folder: Path, model: SmplBodies, count: int = 6, seed: int = 0, size: int = 128) -> Path:
    """A training npz (annotated joints, scale = side / 200) with its pictures under folder/pictures."""
    people = random_people(count, seed)
    random = np.random.default_rng(seed + 1)
    codes = np.array([("neutral", "male", "female").index(g) for g in people["gender"]])
    tensors = [torch.from_numpy(people[k]).float() for k in ("pose", "betas")]
    vertices = model.posed(tensors[0][:, :3], tensors[0][:, 3:66], tensors[1], torch.from_numpy(codes))
    vertices = vertices - vertices.mean(1, keepdim=True)
    joints = model.joints(vertices).numpy()
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    part = np.zeros((count, len(ANNOTATED24), 3))
    names = []
    for row in range(count):
        pixels = 0.4 * size * joints[row, :, :2] + size / 2
        part[row, list(USED17)] = np.column_stack([pixels, np.ones(17)])
        picture = random.integers(0, 60, (size, size, 3)).astype(np.uint8)
        for x, y in pixels:
            cv2.circle(picture, (int(x), int(y)), 4, random.integers(100, 256, 3).tolist(), -1)
        names.append(f"person_{row}.png")
        cv2.imwrite(str(folder / "pictures" / names[-1]), picture)
    path = folder / "people.npz"
    np.savez(
        path,
        imgname=np.array(names),
        center=np.full((count, 2), size / 2),
        scale=np.full(count, size / 200),
        pose_cam=people["pose"],
        shape=people["betas"],
        part=part,
        gender=people["gender"],
    )
    return path


def write_connections(folder: Path) -> None:
    """Connection matrices of one layer each way: one token for each joint."""
    folder.mkdir(parents=True, exist_ok=True)
    down = [[POINTS, *(x for v in range(j * POINTS, (j + 1) * POINTS) for x in (v, 0))] for j in range(24)]
    up = [[2, joint, 0, max(PARENTS[joint], 0), 1] for joint in np.repeat(np.arange(24), POINTS)]
    for name, matrix in (("_pool0", down), ("_unpool0", up)):
        np.save(folder / f"{name}.npy", np.array(matrix, np.int32))


def write_tokenizer(folder: Path, model: SmplBodies, codes: int = 32, steps: int = 150) -> Path:
    """A model folder with a small, quickly trained tokenizer of this body: one token for each joint."""
    up = [[2, joint, 0, max(PARENTS[joint], 0), 1] for joint in np.repeat(np.arange(24), POINTS)]
    down = [[POINTS, *(x for v in range(j * POINTS, (j + 1) * POINTS) for x in (v, 0))] for j in range(24)]
    layers = [
        {"points": 24, "neighbours": POINTS, "channels": 9, "bases": 6, "residual_rate": 0.0},
        {"points": VERTICES, "neighbours": 2, "channels": 3, "bases": 6, "residual_rate": 0.0},
    ]
    config = {"vertices": VERTICES, "lift_neighbours": 0, "encoder": layers[:1], "decoder": layers[1:], "codes": codes}
    tokenizer = MeshVQVAE.build({**config, "normalise": False}, [np.array(down), np.array(up)])
    people = random_people(64, 9)
    pose, betas = (torch.from_numpy(people[name]).float() for name in ("pose", "betas"))
    meshes = model.canonical(pose[:, 3:66], betas, torch.zeros(64, dtype=torch.long))
    optimiser = torch.optim.Adam(tokenizer.parameters(), 0.01)
    for _ in range(steps):
        loss = (tokenizer.decode_latent(tokenizer.latent(meshes)) - meshes).norm(dim=-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    tokenizer.quantiser.quantisers[0].fit(tokenizer.latent(meshes).detach().flatten(0, 1))
    tokenizer.eval()
    content = {"format": 1, "name": "tiny", "body": None, "tokenizer": tokenizer.config, "model": None}
    state = {f"tokenizer.{name}": value for name, value in tokenizer.state_dict().items()}
    return checkpoint.save(folder, {**content, "provenance": []}, state)
