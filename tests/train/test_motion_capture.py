"""Motion capture files: what is written is read back, whatever rest pose and axes a file has."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from mega_backend import rotations as R
from train.data import amass, bvh, convert, mocap

# A stick figure: offsets of the 22 joints from their parents in a T-pose, metres, and names as other programs have.
OFFSETS = {
    "pelvis": (0, 1, 0), "left_hip": (0.1, -0.05, 0), "right_hip": (-0.1, -0.05, 0), "spine1": (0, 0.1, 0),
    "left_knee": (0, -0.4, 0), "right_knee": (0, -0.4, 0), "spine2": (0, 0.13, 0), "left_ankle": (0, -0.4, 0),
    "right_ankle": (0, -0.4, 0), "spine3": (0, 0.06, 0), "left_foot": (0, -0.06, 0.12), "right_foot": (0, -0.06, 0.12),
    "neck": (0, 0.2, 0), "left_collar": (0.05, 0.1, 0), "right_collar": (-0.05, 0.1, 0), "head": (0, 0.1, 0),
    "left_shoulder": (0.1, 0, 0), "right_shoulder": (-0.1, 0, 0), "left_elbow": (0.28, 0, 0),
    "right_elbow": (-0.28, 0, 0), "left_wrist": (0.25, 0, 0), "right_wrist": (-0.25, 0, 0),
}  # fmt: skip
NAMES = dict(zip(mocap.JOINTS, (
    "Hips", "LeftUpLeg", "RightUpLeg", "Spine", "LeftLeg", "RightLeg", "Spine1", "LeftFoot", "RightFoot", "Spine2",
    "LeftToeBase", "RightToeBase", "Neck", "LeftShoulder", "RightShoulder", "Head", "LeftArm", "RightArm",
    "LeftForeArm", "RightForeArm", "LeftHand", "RightHand",
), strict=True))  # fmt: skip


def random_poses(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return R.quaternion_from_axis_angle(0.5 * torch.randn(count, 22, 3, generator=generator))


def as_bvh(
    local: torch.Tensor, rest: torch.Tensor | None = None, axes: torch.Tensor | None = None, prefix: str = ""
) -> str:
    """BVH text of poses (N, 22, 4), with limbs resting as world rotations `rest` (22, 3, 3), in other axes."""
    rest = torch.eye(3).expand(22, 3, 3) if rest is None else rest
    axes = torch.eye(3) if axes is None else axes
    world = R.world_from_local(R.matrix_from_quaternion(local), mocap.PARENTS) @ rest.mT
    local = axes @ R.local_from_world(world, mocap.PARENTS) @ axes.mT
    parents = [max(parent, 0) for parent in mocap.PARENTS]
    offsets = (axes @ rest[parents] @ torch.tensor(list(OFFSETS.values()), dtype=torch.float32)[..., None])[
        ..., 0
    ] * 100
    lines, order = ["HIERARCHY"], []

    def write(joint: int, depth: int) -> None:
        order.append(joint)
        lines.append("  " * depth + ("JOINT " if depth else "ROOT ") + prefix + NAMES[mocap.JOINTS[joint]])
        lines.append("{\nOFFSET " + " ".join(f"{x:.5f}" for x in offsets[joint].tolist()))
        lines.append(f"CHANNELS {3 if depth else 6} {'' if depth else 'Xposition Yposition Zposition '}"
                     "Zrotation Xrotation Yrotation")  # fmt: skip
        children = [child for child, parent in enumerate(mocap.PARENTS) if parent == joint]
        for child in children:
            write(child, depth + 1)
        if not children:
            lines.append("End Site\n{\nOFFSET 0 5 0\n}")
        lines.append("}")

    write(0, 0)
    # Intrinsic z, x, y angles: R = Rz Rx Ry.
    x = torch.asin(local[..., 2, 1].clamp(-1, 1))
    z = torch.atan2(-local[..., 0, 1], local[..., 1, 1])
    y = torch.atan2(-local[..., 2, 0], local[..., 2, 2])
    angles = torch.rad2deg(torch.stack((z, x, y), dim=-1))
    lines += ["MOTION", f"Frames: {len(local)}", "Frame Time: 0.0333333"]
    for frame in angles[:, order]:
        lines.append(" ".join(["1", "2", "3", *(f"{value:.6f}" for value in frame.flatten().tolist())]))
    return "\n".join(lines)


def limb_directions(local: torch.Tensor) -> torch.Tensor:
    world = R.world_from_local(R.matrix_from_quaternion(local), mocap.PARENTS)
    parents = [max(parent, 0) for parent in mocap.PARENTS]
    limbs = [mocap.JOINTS.index(f"{s}_{j}") for s in ("left", "right") for j in ("knee", "ankle", "elbow", "wrist")]
    offsets = torch.tensor(list(OFFSETS.values()), dtype=torch.float32)
    return torch.nn.functional.normalize((world[:, parents] @ offsets[..., None])[:, limbs, :, 0], dim=-1)


def test_bvh_with_our_own_rest_pose_is_read_back(tmp_path):
    poses = random_poses(5)
    (tmp_path / "dance.bvh").write_text(as_bvh(poses, prefix="mixamorig:"))
    recording = bvh.read(tmp_path / "dance.bvh")
    assert recording.fps == pytest.approx(30, rel=1e-3) and recording.trial == "dance"
    angle = R.angle_between(R.matrix_from_quaternion(recording.quaternions), R.matrix_from_quaternion(poses))
    assert angle.max() < 1e-3
    assert recording.positions.shape == (5, 3) and recording.positions.norm(dim=-1).max() < 0.1


def test_bvh_resting_in_an_a_pose_keeps_limb_directions(tmp_path):
    poses = random_poses(5, seed=1)
    rest = torch.eye(3).repeat(22, 1, 1)
    for name, sign in (("left", -1.0), ("right", 1.0)):
        for joint in ("shoulder", "elbow", "wrist"):
            rest[mocap.JOINTS.index(f"{name}_{joint}")] = R.about_axis(2, torch.tensor(sign * 0.8))
        for joint in ("hip", "knee"):
            rest[mocap.JOINTS.index(f"{name}_{joint}")] = R.about_axis(2, torch.tensor(-sign * 0.2))
    (tmp_path / "a.bvh").write_text(as_bvh(poses, rest=rest))
    read = bvh.read(tmp_path / "a.bvh").quaternions
    assert (limb_directions(read) - limb_directions(poses)).norm(dim=-1).max() < 1e-3


@pytest.mark.parametrize("turn", [(0, torch.pi / 2), (1, torch.pi), (1, torch.pi / 2)])
def test_bvh_in_other_axes_stands_up_facing_z(tmp_path, turn):
    poses = random_poses(3, seed=2)
    axes = R.about_axis(turn[0], torch.tensor(turn[1]))
    (tmp_path / "z.bvh").write_text(as_bvh(poses, axes=axes))
    read = bvh.read(tmp_path / "z.bvh").quaternions
    assert R.angle_between(R.matrix_from_quaternion(read), R.matrix_from_quaternion(poses)).max() < 1e-3


def test_broken_bvh_says_what_is_wrong(tmp_path):
    text = as_bvh(random_poses(2))
    for name, broken, message in (
        ("none.bvh", "hello", "no BVH file"),
        ("short.bvh", text[: -len(text) // 8], "announces"),
        ("names.bvh", text.replace("LeftForeArm", "Tentacle"), "left_elbow"),
    ):
        (tmp_path / name).write_text(broken)
        with pytest.raises(ValueError, match=message):
            bvh.read(tmp_path / name)


def test_amass_is_read_upright(tmp_path):
    poses = random_poses(4, seed=3)
    # AMASS stands bodies up along z.
    lying = R.quaternion_from_axis_angle(torch.tensor([torch.pi / 2, 0, 0])).expand(4, 4)
    turns = R.axis_angle_from_quaternion(torch.cat((R.multiply(lying, poses[:, 0])[:, None], poses[:, 1:]), dim=1))
    numbers = np.concatenate([turns.flatten(1).numpy(), np.zeros((4, 90))], axis=1)
    file = tmp_path / "subject" / "walk_poses.npz"
    file.parent.mkdir()
    np.savez(file, poses=numbers, trans=np.array([[1.0, 2.0, 3.0]] * 4), mocap_framerate=120.0)
    recording = amass.read(file)
    angle = R.angle_between(R.matrix_from_quaternion(recording.quaternions), R.matrix_from_quaternion(poses))
    assert angle.max() < 1e-3
    assert recording.fps == 120 and recording.subject == "subject"
    assert recording.positions[0].tolist() == [1.0, 3.0, -2.0]
    np.savez(file, poses=numbers[:, :30])
    with pytest.raises(ValueError, match="no AMASS file"):
        amass.read(file)


def test_converted_files_are_a_folder_that_training_reads(tmp_path):
    poses = random_poses(40, seed=4)
    poses[20:] = poses[20:21]  # a person standing still
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.bvh").write_text(as_bvh(poses))
    (tmp_path / "in" / "bad.bvh").write_text("nothing")
    command = [sys.executable, "-m", "train.data.convert", tmp_path / "in", "-o", tmp_path / "out", "--name", "s1"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 2 and "bad.bvh" in done.stderr
    recordings = mocap.recordings(tmp_path / "out", "train")
    assert [recording.subject for recording in recordings] == ["s1"] and len(recordings[0].quaternions) == 40
    kept = mocap.poses(tmp_path / "out", "train")
    assert kept.shape == (8, 22, 4)  # every third frame of the moving half, one of the still one
    assert (kept.norm(dim=-1) - 1).abs().max() < 1e-6


def test_poses_of_unusable_sources_are_left_out(tmp_path):
    poses = random_poses(10, seed=5)
    convert.write([mocap.Recording("s", "a", poses, torch.zeros(10, 3), 10.0)] * 2, tmp_path, "train", "s")
    with np.load(tmp_path / "train" / "s.npz") as data:
        arrays = dict(data)
    assert len(mocap.poses(tmp_path, "train")) == 20
    arrays["source"] = np.array(["amc", "fbx-neo"])
    np.savez(tmp_path / "train" / "s.npz", **arrays)
    assert len(mocap.poses(tmp_path, "train")) == 10 and len(mocap.recordings(tmp_path, "train")) == 1


def test_missing_motion_capture_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"index\.json"):
        mocap.poses(tmp_path, "train")
    (tmp_path / "index.json").write_text(json.dumps({"joint_names": mocap.JOINTS, "parents": mocap.PARENTS}))
    with pytest.raises(FileNotFoundError, match="No recordings"):
        mocap.poses(tmp_path, "test")
    with pytest.raises(ValueError, match="train, val, test"):
        mocap.poses(tmp_path, "all")


def test_bundled_splits_hold_out_whole_actors(shared):
    subjects = {split: {r.subject for r in mocap.recordings(shared / "mocap", split)} for split in mocap.SPLITS}
    assert subjects["test"] == {"94", "64"} and subjects["val"] == {"131"}
    assert not subjects["train"] & (subjects["test"] | subjects["val"])
    assert len(mocap.poses(shared / "mocap", "train")) > 10_000
