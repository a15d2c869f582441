"""Retargeting and pose sampling: limbs point where the joints' do; poses are plausible, varied, repeatable."""

import pytest
import torch

from mega_backend import rotations as R
from mega_backend.body import Body
from train.data import mocap, poses, shapes, synthetic
from train.data.bodies import BodySampler, held_out
from train.data.plausible import Plausibility
from train.data.retarget import Retargeter


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.load()


@pytest.fixture(scope="module")
def made(body) -> synthetic.SyntheticPoses:
    return synthetic.SyntheticPoses(body, pool=1500)


def random_poses(count: int, scale: float = 0.4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return R.quaternion_from_axis_angle(scale * torch.randn(count, 22, 3, generator=generator))


def test_limbs_point_where_the_joints_turn_them(body):
    local = random_poses(8)
    shape = body.shape_bank[:8]
    heads = body.posed_heads(Retargeter(body)(local), shape)
    world = R.world_from_local(R.matrix_from_quaternion(local), mocap.PARENTS)
    for joint, start, end, target in (
        ("left_shoulder", "upperarm01.L", "lowerarm01.L", (1, 0, 0)),
        ("right_elbow", "lowerarm01.R", "wrist.R", (-1, 0, 0)),
        ("left_hip", "upperleg01.L", "lowerleg01.L", (0, -1, 0)), ("right_knee", "lowerleg01.R", "foot.R", (0, -1, 0)),
    ):  # fmt: skip
        bone = heads[:, body.joint_names.index(end)] - heads[:, body.joint_names.index(start)]
        expected = world[:, mocap.JOINTS.index(joint)] @ torch.tensor(target, dtype=torch.float32)
        angle = torch.acos((torch.nn.functional.normalize(bone, dim=-1) * expected).sum(-1).clamp(-1, 1))
        # Arms and thighs have two bones, of which the upper turns less about its own, slightly bent, axis.
        assert angle.max() < 0.12, joint


def test_joints_are_found_again_on_the_body(body):
    local, retarget = random_poses(8), Retargeter(body)
    found = R.matrix_from_quaternion(retarget.joints(retarget(local)))
    assert R.angle_between(found, R.matrix_from_quaternion(local)).max() < 1e-2


def test_identity_stays_the_t_pose(body):
    still = torch.zeros(1, 22, 4)
    still[..., 0] = 1
    rotations = Retargeter(body)(still, torch.zeros(1, 2, 10))
    assert torch.allclose(rotations, torch.eye(3).expand_as(rotations), atol=1e-6)


def test_fingers_bend_towards_the_palm(body):
    still = torch.zeros(2, 22, 4)
    still[..., 0] = 1
    bend = torch.zeros(2, 2, 10)
    bend[1] = 1.2
    heads = body.posed_heads(Retargeter(body)(still, bend), torch.zeros(2, body.shape_count))
    for side in "LR":
        tips = [body.joint_names.index(f"finger{finger}-2.{side}") for finger in (2, 3, 4, 5)]
        # In the T-pose palms face down.
        assert (heads[1, tips, 1] < heads[0, tips, 1] - 0.01).all()


def test_mirroring_is_an_involution_and_swaps_sides(body):
    local = random_poses(6)
    assert torch.equal(synthetic.mirror(synthetic.mirror(local)), local)
    retarget, shape = Retargeter(body), torch.zeros(6, body.shape_count)
    joints = body.skin_joints(retarget(local), shape, "coco17")
    mirrored = body.skin_joints(retarget(synthetic.mirror(local)), shape, "coco17")
    names = body.regressor_names("coco17")
    swap = {"left": "right", "right": "left"}
    other = [names.index("_".join(swap.get(word, word) for word in name.split("_"))) for name in names]
    error = (mirrored - joints[:, other] * torch.tensor([-1.0, 1.0, 1.0])).norm(dim=-1)
    assert error.max() < 3e-3


def test_same_seed_same_poses_and_others_differ(made):
    first = made.sample(32, torch.Generator().manual_seed(5))
    again = made.sample(32, torch.Generator().manual_seed(5))
    other = made.sample(32, torch.Generator().manual_seed(6))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert torch.allclose(first.norm(dim=-1), torch.ones(32, 22), atol=1e-5)


def test_synthetic_poses_stay_within_joint_limits_and_out_of_themselves(body, made):
    local = made.sample(400, torch.Generator().manual_seed(0))
    measure = Plausibility(body)
    assert (measure.intersection(local) > 0.05).float().mean() < 0.12
    assert torch.rad2deg(measure.excess(local)).mean() < 1.0
    # The measures see what is wrong: an arm through the trunk, a knee bent forward.
    wrong = made._neutral(2)
    wrong[0, mocap.JOINTS.index("left_shoulder")] = R.quaternion_from_axis_angle(torch.tensor([0.0, 3.1, 0.0]))
    wrong[1, mocap.JOINTS.index("left_knee")] = R.quaternion_from_axis_angle(torch.tensor([-1.0, 0.0, 0.0]))
    assert measure.intersection(wrong)[0] > 0.1 and measure.deepest(wrong)[0] > 0.03
    assert measure.excess(wrong)[1, mocap.JOINTS.index("left_knee")] > 0.8


@pytest.mark.parametrize(
    "posture, joint, lowest, highest",
    [("sit", "knee", 45, 120), ("stand", "knee", 0, 20), ("sit on heels", "knee", 125, 155), ("squat", "hip", 65, 140)],
)
def test_postures_are_what_they_are_called(body, posture, joint, lowest, highest):
    source = synthetic.SyntheticPoses(body, {posture: 1.0}, pool=300)
    local = source.sample(50, torch.Generator().manual_seed(0))
    for side in ("left", "right"):
        turn = R.axis_angle_from_quaternion(local[:, mocap.JOINTS.index(f"{side}_{joint}")])
        degrees = torch.rad2deg(turn.norm(dim=-1))
        assert degrees.min() > lowest - 8 and degrees.max() < highest + 8


def test_lying_people_lie_and_bending_people_look_down(body):
    for posture, axis, sign in (("on the back", 1, 1), ("on the belly", 1, -1)):
        local = synthetic.SyntheticPoses(body, {posture: 1.0}, pool=300).sample(20, torch.Generator().manual_seed(0))
        front = R.matrix_from_quaternion(local[:, 0])[:, axis, 2]
        assert (sign * front > 0.6).all()


def test_sampling_without_motion_capture(body):
    sampler = BodySampler(body.subset(range(0, body.vertex_count, 50)), "train", None, weights=(0, 1, 1), bank=64)
    drawn = sampler.sample(20, torch.Generator().manual_seed(0))
    assert drawn["rotations"].shape == (20, body.joint_count, 3, 3) and drawn["shape"].shape == (20, body.shape_count)
    vertices = sampler.body.canonical_skin(**drawn)
    assert vertices.shape == (20, 275, 3) and torch.isfinite(vertices).all() and vertices.abs().max() < 2
    again = sampler.sample(20, torch.Generator().manual_seed(0))
    assert torch.equal(again["rotations"], drawn["rotations"]) and torch.equal(again["shape"], drawn["shape"])
    identity = torch.eye(3).expand_as(drawn["rotations"])
    assert torch.allclose(drawn["rotations"] @ drawn["rotations"].mT, identity, atol=1e-4)


def test_wrong_arguments_are_told(body):
    with pytest.raises(ValueError, match="without its folder"):
        BodySampler(body, "train", None)
    with pytest.raises(ValueError, match="3 numbers"):
        poses.PoseSource(body, "train", None, (1.0, 0.0))
    with pytest.raises(ValueError, match="No posture"):
        synthetic.SyntheticPoses(body, {"hovering": 1.0})
    with pytest.raises(ValueError, match="No kind"):
        held_out(body, "nowhere", kind="other")


def test_shapes_of_training_and_test_differ(body):
    train, test = shapes.bank(body, "train"), shapes.bank(body, "test")
    assert len(train) + len(test) == len(body.shape_bank)
    assert torch.cdist(test, train).min() > 0
    drawn = shapes.sample(body, 500, torch.Generator().manual_seed(0))
    assert drawn.mean(0).abs().max() < 0.3 and (drawn.std(0) - 1).abs().max() < 0.4


def test_hands_are_mostly_relaxed(body):
    bends = poses.fingers(300, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert bends.shape == (300, 2, 10) and bends.min() > -0.2 and bends.max() < 1.8
    assert 0.05 < bends.median() < 0.5


def test_recombined_and_captured_poses(body, shared):
    folder = shared / "mocap"
    captured = poses.PoseSource(body, "val", folder, weights=(1, 0, 0))
    assert not len(captured.made)
    first, _ = captured.sample(300, torch.Generator().manual_seed(1))
    again, _ = captured.sample(300, torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    recombined = poses.PoseSource(body, "val", folder, weights=(0, 1, 0), bank=64)
    local, _ = recombined.sample(300, torch.Generator().manual_seed(0))
    # Recombining makes bodies run into themselves no more than the actors' poses do on this body.
    measure = recombined.plausibility.intersection
    assert (measure(local) > 0.1).float().mean() < (measure(first) > 0.1).float().mean() + 0.02
    # and finds poses that no actor took
    change = R.multiply(R.conjugate(local[:, None, 16:18]), captured.captured[None, :, 16:18])[..., 0].abs()
    assert (change.clamp(max=1).acos().amax(-1).amin(1) > 0.1).float().mean() > 0.3


def test_held_out_bodies_are_fixed(body, shared):
    for kind in ("mocap", "synthetic"):
        first = held_out(body, shared / "mocap", count=12, kind=kind)
        again = held_out(body, shared / "mocap", count=12, kind=kind)
        assert all(torch.equal(first[name], again[name]) for name in first)
