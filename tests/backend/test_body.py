"""The bundled body: what its numbers must satisfy, and that subsets and shortcuts equal the plain way."""

import numpy as np
import pytest
import torch

from mega_backend import rotations as R
from mega_backend.body import BUNDLED, REGRESSORS, Body

MM = 1e-3


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.load()


@pytest.fixture(scope="module")
def posed(body):
    """World rotations (6, J, 3, 3) and shapes (6, S) of moderate random poses."""
    generator = torch.Generator().manual_seed(0)
    local = R.matrix_from_axis_angle(0.3 * torch.randn(6, body.joint_count, 3, generator=generator))
    return R.world_from_local(local, body.parents), body.shape_bank[:6]


@pytest.fixture(scope="module")
def identity(body):
    return torch.eye(3).expand(1, body.joint_count, 3, 3), torch.zeros(1, body.shape_count)


def test_topology(body):
    assert body.vertex_count == 13718 and body.quads.shape == (13710, 4) and body.faces.shape == (27420, 3)
    assert body.quads.max() == body.vertex_count - 1 and len(body.quads.unique()) == body.vertex_count
    assert body.face_uv.shape == body.quads.shape and body.face_uv.max() < len(body.uv)
    assert body.uv.min() >= 0 and body.uv.max() <= 1
    halves = body.faces.reshape(-1, 6)
    assert torch.equal(halves[:, [0, 1, 2, 5]], body.quads)


def test_asset_is_small():
    assert BUNDLED.stat().st_size < 4e6


def test_surface_points_outwards(body, identity):
    triangle = body.skin(*identity)[0][body.faces]
    volume = (torch.linalg.cross(triangle[:, 0], triangle[:, 1]) * triangle[:, 2]).sum() / 6
    assert 0.03 < volume < 0.12  # cubic metres


def test_identity_is_a_t_pose_facing_z(body, identity):
    joints = dict(zip(body.regressor_names("coco17"), body.joints(body.skin(*identity), "coco17")[0], strict=True))
    arms = joints["left_wrist"] - joints["right_wrist"]
    assert arms[0] > 0.9 and arms[1:].abs().max() < 0.02
    assert (joints["left_wrist"][1] - joints["left_shoulder"][1]).abs() < 0.07
    for side in ("left", "right"):
        leg = joints[f"{side}_hip"] - joints[f"{side}_ankle"]
        assert leg[1] > 0.6 and leg[0].abs() < 0.05
    assert joints["nose"][2] > joints["left_ear"][2] + 0.05
    assert joints["nose"][1] > joints["left_hip"][1] + 0.5


def test_parts_cover_the_body(body, identity):
    assert set(body.vertex_part.tolist()) == set(range(len(body.part_names)))
    middle = body.skin(*identity)[0]
    centre = {name: middle[body.vertex_part == part].mean(0) for part, name in enumerate(body.part_names)}
    assert centre["head"][1] > centre["torso"][1] > centre["left_leg"][1] > centre["left_foot"][1]
    for limb in ("arm", "hand", "leg", "foot"):
        assert centre[f"left_{limb}"][0] > 0 > centre[f"right_{limb}"][0]
    other = [body.part_names.index({"l": "right", "r": "left"}.get(n[0], "") + n[n.index("_") :] if "_" in n else n)
             for n in body.part_names]  # fmt: skip
    mirrored = torch.tensor(other)[body.vertex_part]
    assert (mirrored == body.vertex_part[body.mirror]).float().mean() > 0.995


def test_mirror_pairs_vertices_of_a_symmetric_body(body):
    everything = torch.arange(body.vertex_count)
    assert torch.equal(body.mirror[body.mirror], everything)
    reflected = body.mean * torch.tensor([-1.0, 1.0, 1.0])
    assert (reflected - body.mean[body.mirror]).norm(dim=-1).max() < 0.2 * MM


def test_mirrored_pose_gives_the_mirrored_mesh(body, posed):
    rotations, shape = posed
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    mirrored = flip @ rotations[:, body.mirror_joints] @ flip
    expected = body.skin(rotations, shape)[:, body.mirror] * torch.tensor([-1.0, 1.0, 1.0])
    assert (body.skin(mirrored, shape) - expected).norm(dim=-1).mean() < 1 * MM


def test_weights_sum_to_one_over_at_most_eight_joints(body):
    assert torch.allclose(body.weights.sum(1), torch.ones(body.vertex_count), atol=1e-6)
    assert (body.weights > 0).sum(1).max() <= 8
    assert body.weights.min() >= 0


def test_root_rotation_turns_the_whole_body(body, posed):
    rotations, shape = posed
    turn = R.random_matrices(6, torch.Generator().manual_seed(3))
    root = body.heads(shape)[:, :1]
    expected = (body.skin(rotations, shape) - root) @ turn.mT + root
    assert (body.skin(turn[:, None] @ rotations, shape) - expected).abs().max() < 0.01 * MM


def test_canonical_mesh_ignores_root_and_place(body, posed):
    rotations, shape = posed
    turn = R.random_matrices(6, torch.Generator().manual_seed(4))
    plain = body.canonical(body.skin(rotations, shape), rotations[:, 0])
    assert plain.mean(1).abs().max() < 0.01 * MM
    turned = turn[:, None] @ rotations
    again = body.canonical(body.skin(turned, shape) + 3.0, turned[:, 0])
    assert (again - plain).abs().max() < 0.05 * MM
    assert (body.canonical_skin(turned, shape) - plain).abs().max() < 0.05 * MM


def test_subset_equals_the_full_body(body, posed):
    rotations, shape = posed
    index = torch.randperm(body.vertex_count, generator=torch.Generator().manual_seed(5))[:300]
    part = body.subset(index)
    assert (part.skin(rotations, shape) - body.skin(rotations, shape)[:, index]).abs().max() < 1e-5
    canonical = body.canonical(body.skin(rotations, shape), rotations[:, 0])
    assert (part.canonical_skin(rotations, shape) - canonical[:, index]).abs().max() < 0.01 * MM
    assert torch.equal(part.vertex_part, body.vertex_part[index])
    assert torch.equal(part.subset([3, 1]).vertex_indices, index[[3, 1]])
    with pytest.raises(ValueError, match="skin_joints"):
        part.joints(part.skin(rotations, shape), "coco17")


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressed_joints(body, posed, name):
    rotations, shape = posed
    vertices = body.skin(rotations, shape)
    joints = body.joints(vertices, name)
    assert joints.shape == (6, int(name[-2:]), 3) and len(body.regressor_names(name)) == int(name[-2:])
    matrix = body.regressor(name)
    assert torch.allclose(matrix.sum(1), torch.ones(len(matrix)), atol=1e-5)
    assert torch.allclose(matrix @ vertices, joints, atol=1e-5)
    assert (body.skin_joints(rotations, shape, name) - joints).abs().max() < 0.01 * MM
    assert (body.subset([0]).skin_joints(rotations, shape, name) - joints).abs().max() < 0.01 * MM
    moved = body.joints(vertices + torch.tensor([1.0, 2.0, 3.0]), name)
    assert torch.allclose(moved, joints + torch.tensor([1.0, 2.0, 3.0]), atol=1e-5)


def test_body22_lie_at_the_skeletons_joints(body, posed):
    heads = body.posed_heads(*posed)
    joints = dict(zip(body.regressor_names("body22"), body.skin_joints(*posed, "body22").unbind(1), strict=True))
    for name, bone, bound in (
        ("left_ankle", "foot.L", 8), ("right_wrist", "wrist.R", 8), ("left_elbow", "lowerarm01.L", 15),
        ("right_knee", "lowerleg01.R", 20), ("pelvis", "root", 20), ("left_shoulder", "upperarm01.L", 20),
        ("head", "head", 8), ("left_hip", "upperleg01.L", 30),
    ):  # fmt: skip
        error = (joints[name] - heads[:, body.joint_names.index(bone)]).norm(dim=-1).mean()
        assert error < bound * MM, name


def test_mediapipe_landmarks_are_where_people_have_them(body, identity):
    points = dict(zip(body.regressor_names("mediapipe33"), body.skin_joints(*identity, "mediapipe33")[0], strict=True))
    assert points["right_eye_outer"][0] < points["right_eye"][0] < points["right_eye_inner"][0] < 0
    assert points["left_eye_outer"][0] > points["left_eye"][0] > points["left_eye_inner"][0] > 0
    assert points["left_ear"][0] > points["left_eye_outer"][0]
    assert points["mouth_left"][0] > 0 > points["mouth_right"][0]
    assert points["left_eye"][1] > points["nose"][1] > points["mouth_left"][1] > points["left_shoulder"][1]
    assert points["left_index"][0] > points["left_wrist"][0] and points["left_pinky"][0] > points["left_wrist"][0]
    assert points["left_thumb"][2] > points["left_index"][2] > points["left_pinky"][2]
    assert points["left_foot_index"][2] > points["left_ankle"][2] > points["left_heel"][2]


def test_shapes_span_children_to_tall_adults(body):
    vertices = body.rest(body.shape_bank[:1000])[0]
    height = vertices[..., 1].amax(1) - vertices[..., 1].amin(1)
    assert height.min() < 0.9 and height.max() > 1.85
    assert 1.55 < height.median() < 1.75
    age = body.phenotype_bank[:1000, body.phenotype_names.index("age")]
    young, grown = height[age < 0.2], height[age > 0.6]
    assert young.mean() < grown.mean() - 0.25
    assert torch.allclose(body.shape_bank.std(0), torch.ones(body.shape_count), atol=0.05)


def test_unknown_names_and_files_are_told(body, tmp_path):
    with pytest.raises(ValueError, match="coco17"):
        body.joints(body.mean, "coco")
    with pytest.raises(FileNotFoundError, match="export_body"):
        Body.load(tmp_path / "none.npz")
    with np.load(BUNDLED) as arrays:
        changed = dict(arrays)
    changed["info"] = np.array(str(changed["info"]).replace('"format": 1', '"format": 99'))
    np.savez(tmp_path / "other.npz", **changed)
    with pytest.raises(ValueError, match="export it again"):
        Body.load(tmp_path / "other.npz")


@pytest.mark.slow
def test_skinning_agrees_with_anny(body):
    anny = pytest.importorskip("anny", reason="needs the anny package")
    from train import export_body

    model = anny.Anny(topology="anny-quads", skinning_method="lbs")
    joints, parents, follows = export_body.skeleton(model)
    assert joints == body.joint_names and parents == body.parents
    # People from the stored bank: their phenotypes in Anny, their coefficients here.
    phenotypes = body.phenotype_bank[-24:].double()
    output = model.get_rest_model(export_body.blend_coefficients(model, phenotypes))
    shape = body.shape_bank[-24:]
    generator = torch.Generator().manual_seed(0)
    local = R.matrix_from_axis_angle(0.3 * torch.randn(24, body.joint_count, 3, generator=generator))
    world = R.world_from_local(local, body.parents)
    to_ours = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    turned = to_ours.T @ (world @ body.t_pose(body.heads(shape))).double() @ to_ours
    pose = torch.eye(4, dtype=torch.float64).repeat(24, model.bone_count, 1, 1)
    pose[:, :, :3, :3] = turned[:, follows] @ output["rest_bone_poses"][:, :, :3, :3]
    pose[:, 0, :3, 3] = output["rest_bone_poses"][:, 0, :3, 3]
    posed = model(pose_parameters=pose, phenotype_kwargs=phenotypes, pose_parameterization="world-orient")
    error = (export_body.to_body_axes(posed["vertices"]) - body.skin(world, shape)).norm(dim=-1)
    assert error.mean() < 0.5 * MM
    assert error.flatten()[::7].quantile(0.99) < 3 * MM
