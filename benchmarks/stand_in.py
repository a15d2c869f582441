"""Stand-ins, at full size and in the released layouts, for the licensed files that the papers' models are trained on.

    python -m benchmarks.stand_in FOLDER
    cd FOLDER && python -m train.mesh_vqvae mesh_vqvae_smpl --run runs/mesh_vqvae loop.steps=2

FOLDER then holds a file wherever the published configurations name one: SMPL and SMPL-H models of three genders (people
of tubes, 6,890 vertices), the regressor of Human3.6M's joints, connection matrices of the published sizes, motions as
AMASS has them, and the four datasets of pictures, a few people each. The real commands can so be rehearsed and timed at
the real sizes before any licence is signed; what is learnt from them means nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from mega_backend.smpl import PARENTS, VERTICES
from train.data import annotations
from train.data.annotations import MIRROR_SMPL24, Annotations
from train.data.smpl import GENDERS, SmplBodies

# A tube of rings of vertices for each of the 24 joints, from its parent to it; two more close the ends.
RINGS, AROUND = 41, 7
# Left joints and those in the middle, metres, T-pose facing +Z; the right ones are mirrored.
PLACES = {
    0: (0, 0, 0), 1: (0.07, -0.08, 0), 3: (0, 0.11, -0.02), 4: (0.1, -0.46, 0), 6: (0, 0.25, 0),
    7: (0.09, -0.87, -0.03), 9: (0, 0.3, 0.01), 10: (0.11, -0.93, 0.1), 12: (0, 0.51, -0.03), 13: (0.08, 0.42, -0.02),
    15: (0, 0.62, 0.02), 16: (0.17, 0.45, -0.03), 18: (0.43, 0.44, -0.05), 20: (0.68, 0.44, -0.06),
    22: (0.78, 0.43, -0.07),
}  # fmt: skip
RADII = {0: 0.12, 3: 0.13, 6: 0.13, 9: 0.13, 12: 0.06, 15: 0.09}
# SMPL's joints that stand for Human3.6M's 17 in their released order.
H36M = (0, 2, 5, 8, 1, 4, 7, 6, 12, 15, 15, 16, 18, 20, 17, 19, 21)
# Points of the levels of the mesh autoencoder; of each matrix the levels in and out, its width, its usual neighbours.
LEVELS = (VERTICES, 1925, 400, 54)
MATRICES = {
    "_pool0": (0, 0, 10, 7), "_pool1": (0, 1, 32, 19), "_pool2": (1, 1, 21, 11), "_pool3": (1, 2, 56, 33),
    "_pool4": (2, 2, 26, 14), "_pool5": (2, 3, 66, 41), "_pool6": (3, 3, 19, 10), "_unpool6": (3, 3, 19, 10),
    "_unpool5": (3, 2, 11, 6), "_unpool4": (2, 2, 26, 14), "_unpool3": (2, 1, 14, 7), "_unpool2": (1, 1, 21, 11),
    "_unpool1": (1, 0, 11, 5), "_unpool0": (0, 0, 10, 7),
}  # fmt: skip
# Dataset files of the configurations, and the folders of their pictures.
DATASETS = {
    "coco": "coco", "coco_validation": "coco", "mpii": "mpii", "h36m_train": "h36m",
    "mpi_inf_3dhp_train": "mpi_inf_3dhp",
}  # fmt: skip


def rest_joints() -> np.ndarray:
    """Where the 24 joints rest, (24, 3) metres."""
    joints = np.zeros((24, 3))
    for joint, place in PLACES.items():
        joints[joint], joints[MIRROR_SMPL24[joint]] = place, np.array(place) * [-1, 1, 1]
    return joints


def model_arrays(joints: int = 24, height: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of an SMPL (24 joints) or SMPL-H (52) file; height: relative."""
    random = np.random.default_rng(seed)
    places = height * rest_joints()
    template = np.zeros((VERTICES, 3))
    weights, regressor = np.zeros((VERTICES, joints)), np.zeros((joints, VERTICES))
    faces = []
    # SMPL-H has fifteen joints in each hand, of which the first is where SMPL has its only one.
    own = list(range(22)) + ([22, 23] if joints == 24 else [22, 37])
    along = np.linspace(0, 1, RINGS)
    angles = 2 * np.pi * np.arange(AROUND) / AROUND
    for tube in range(24):
        parent = PARENTS[tube]
        start = places[tube] - [0, 0.08 * height, 0] if parent < 0 else places[parent]
        axis = places[tube] - start
        side = np.cross(axis, [0.3, 0.2, 1.0])
        side /= np.linalg.norm(side)
        up = np.cross(axis, side) / np.linalg.norm(axis)
        ring = RADII.get(tube, 0.045) * (np.cos(angles)[:, None] * side + np.sin(angles)[:, None] * up)
        first = tube * RINGS * AROUND
        rows = slice(first, first + RINGS * AROUND)
        template[rows] = (start + along[:, None, None] * axis + ring).reshape(-1, 3)
        bend = np.repeat(np.clip(along - 0.9, 0, 1) * 5, AROUND)
        weights[rows, own[max(parent, 0)]] += 1 - bend
        weights[rows, own[tube]] += bend
        regressor[own[tube], first + (RINGS - 1) * AROUND : first + RINGS * AROUND] = 1 / AROUND
        at = first + np.arange((RINGS - 1) * AROUND)
        beside = first + (at - first) // AROUND * AROUND + (at - first + 1) % AROUND
        faces += [np.stack([at, beside, at + AROUND], 1), np.stack([beside, beside + AROUND, at + AROUND], 1)]
    for end, (tube, ring) in zip((VERTICES - 2, VERTICES - 1), ((15, RINGS - 1), (0, 0)), strict=True):
        rim = (tube * RINGS + ring) * AROUND + np.arange(AROUND)
        template[end], weights[end] = template[rim].mean(0), weights[rim[0]]
        faces.append(np.stack([rim, np.roll(rim, -1), np.full(AROUND, end)], 1))
    parents = list(PARENTS[:22])
    for hand, wrist in ((22, 20), (37, 21)) if joints == 52 else ():
        parents += [wrist if n % 3 == 0 else hand + n - 1 for n in range(15)]
        for finger in range(1, 15):
            regressor[hand + finger] = regressor[hand]
    parents += PARENTS[22:] if joints == 24 else []
    shapes = 0.03 * random.normal(size=(3, 10 if joints == 24 else 16))
    return {
        "v_template": template,
        "shapedirs": template[:, :, None] * shapes,
        "posedirs": np.zeros((VERTICES, 3, 9 * (joints - 1)), np.float32),
        "J_regressor": regressor,
        "weights": weights,
        "kintree_table": np.array([[2**32 - 1, *parents[1:]], range(joints)]),
        "f": np.concatenate(faces).astype(np.uint32),
    }


def h36m_regressor() -> np.ndarray:
    """(17, 6890), rows in their released order."""
    joints = model_arrays()["J_regressor"]
    matrix = joints[list(H36M)]
    matrix[10] = 0
    matrix[10, VERTICES - 2] = 1  # the top of the head
    return matrix


def write_bodies(folder: Path) -> None:
    """`SMPL_NEUTRAL.npz` … and `SMPLH_NEUTRAL.npz` … of three genders, `J_regressor_h36m.npy`."""
    folder.mkdir(parents=True, exist_ok=True)
    for gender, height in zip(GENDERS, (1.0, 1.04, 0.96), strict=True):
        for name, joints in (("SMPL", 24), ("SMPLH", 52)):
            np.savez_compressed(folder / f"{name}_{gender.upper()}.npz", **model_arrays(joints, height))
    np.save(folder / "J_regressor_h36m.npy", h36m_regressor())


def spread_out(points: np.ndarray, count: int) -> np.ndarray:
    """Indices (count) of points (N, 3) far from each other, each the farthest from those before."""
    chosen = [0]
    apart = np.linalg.norm(points - points[0], axis=1)
    for _ in range(count - 1):
        chosen.append(int(apart.argmax()))
        apart = np.minimum(apart, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.array(chosen)


def connections() -> dict[str, np.ndarray]:
    """Matrices of the published sizes over the tubes' vertices: neighbours are the nearest points below."""
    levels = [model_arrays()["v_template"]]
    for count in LEVELS[1:]:
        levels.append(levels[-1][spread_out(levels[-1], count)])
    matrices = {}
    for name, (below, above, width, count) in MATRICES.items():
        nearest = cKDTree(levels[below]).query(levels[above], count)[1]
        matrix = np.tile(np.array([count] + [LEVELS[below], -1] * width, np.int32), (LEVELS[above], 1))
        matrix[:, 1 : 1 + 2 * count : 2], matrix[:, 2 : 2 + 2 * count : 2] = nearest, 1
        matrices[name] = matrix
    return matrices


def write_connections(folder: Path) -> None:
    """The matrices as the files of the released autoencoder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, matrix in connections().items():
        np.save(folder / f"{name}.npy", matrix)


def write_motions(folder: Path, files: int = 20, frames: int = 240) -> None:
    """AMASS's layout: people who sway, one gender after the other."""
    random = np.random.default_rng(0)
    for number in range(files):
        time = np.arange(frames)[:, None] / 120
        sway = np.sin(2 * np.pi * (random.uniform(0.1, 1, 156) * time + random.uniform(0, 1, 156)))
        path = folder / f"subject_{number % 5}" / f"{number:03d}_poses.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path,
            poses=random.normal(0, 0.3, 156) + 0.2 * sway,
            trans=np.zeros((frames, 3)),
            betas=random.normal(0, 1, 16),
            dmpls=np.zeros((frames, 8)),
            gender=np.array(GENDERS[number % 3]),
            mocap_framerate=np.array(120.0),
        )


def random_people(bodies: SmplBodies, count: int, size: tuple[int, int], seed: int, name: str) -> Annotations:
    """People before a camera, annotated as training files are; size: of the pictures, width and height in pixels."""
    random = np.random.default_rng(seed)
    pose = random.normal(0, 0.25, (count, 66))
    yaw = Rotation.from_rotvec(np.outer(random.uniform(-np.pi, np.pi, count), [0, 1, 0]))
    pose[:, :3] = (Rotation.from_rotvec([np.pi, 0, 0]) * yaw).as_rotvec()
    betas, gender = random.normal(0, 1, (count, 10)), random.integers(3, size=count)
    tensors = [torch.from_numpy(value).float() for value in (pose[:, :3], pose[:, 3:], betas)]
    vertices = bodies.posed(*tensors, torch.from_numpy(gender))
    joints = bodies.joints(vertices - vertices.mean(1, keepdim=True)).numpy()
    centre = np.array(size) * random.uniform(0.35, 0.65, (count, 2))
    pixels = random.uniform(0.15, 0.3, (count, 1, 1)) * size[1]
    points = centre[:, None] + pixels * joints[..., :2]
    return Annotations(
        names=np.array([f"{name}_{number:06d}.jpg" for number in range(count)]),
        centre=centre,
        side=2.4 * pixels[:, 0, 0],
        pose=pose,
        shape=betas,
        gender=gender,
        joints=np.concatenate([points, np.ones((count, 17, 1))], 2),
        joint_set="h36m",
    )


def write_people(
    path: Path, pictures: Path, bodies: SmplBodies, count: int, size: tuple[int, int] = (640, 480), seed: int = 0
) -> None:
    """A training file and its pictures, as large as COCO's: limbs over a ground that costs what photographs cost."""
    table = random_people(bodies, count, size, seed, path.stem)
    random = np.random.default_rng(seed)
    pictures.mkdir(parents=True, exist_ok=True)
    limbs = ((0, 1), (1, 2), (2, 14), (14, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 12), (12, 9), (9, 10), (10, 11),
             (12, 14), (12, 13))  # fmt: skip
    for name, joints, side in zip(table.names, table.joints, table.side, strict=True):
        picture = random.integers(0, 256, (size[1], size[0], 3)).astype(np.float32)
        picture = cv2.GaussianBlur(picture, (0, 0), 3)
        picture = np.clip(128 + 8 * (picture - 128) + random.normal(0, 5, picture.shape), 0, 255).astype(np.uint8)
        for first, second in limbs:
            ends = [tuple(joints[joint, :2].astype(int).tolist()) for joint in (first, second)]
            cv2.line(picture, *ends, random.integers(256, size=3).tolist(), max(2, int(side / 25)))
        cv2.imwrite(str(pictures / str(name)), picture)
    annotations.write(path, table, "training")


def load_bodies(folder: Path) -> SmplBodies:
    """The SMPL models that `write_bodies` wrote."""
    return SmplBodies({g: folder / f"SMPL_{g.upper()}.npz" for g in GENDERS}, folder / "J_regressor_h36m.npy")


def write(folder: Path, people: int = 64) -> None:
    """Everything that the published configurations read, below a folder; people: in each dataset."""
    write_bodies(folder / "body_models")
    write_connections(folder / "data" / "connections")
    write_motions(folder / "data" / "bedlam_animations")
    bodies = load_bodies(folder / "body_models")
    for seed, (name, pictures) in enumerate(DATASETS.items()):
        write_people(folder / "data" / f"{name}.npz", folder / "data" / pictures, bodies, people, seed=seed)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("folder", type=Path)
    cli.add_argument("--people", type=int, default=64, help="in each dataset of pictures")
    args = cli.parse_args()
    write(args.folder, args.people)
    print(f"{args.folder}: body_models, data; run the published configurations' commands in it")


if __name__ == "__main__":
    main()
