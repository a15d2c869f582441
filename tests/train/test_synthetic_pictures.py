"""Synthetic pictures show the bodies that their annotations describe, and do not depend on how they were made."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from mega_backend.rotations import axis_angle_from_quaternion, matrix_from_axis_angle
from train.data import annotations, synthetic_pictures
from train.data.anny import AnnyBodies
from train.data.pictures import View, move_pose

pytest.importorskip("warp", reason="needs warp-lang: pip install '.[train]'")


@pytest.fixture(scope="module")
def bodies():
    return AnnyBodies()


@pytest.fixture(scope="module")
def poses():
    numbers = 0.15 * torch.randn(40, 22, 4, generator=torch.Generator().manual_seed(0))
    numbers[..., 0] = 1
    return torch.nn.functional.normalize(numbers, dim=-1)


@pytest.fixture(autouse=True)
def few_poses(monkeypatch, poses):
    """The command draws its poses from these: preparing real ones takes a while."""
    source = SimpleNamespace(sample=lambda count, generator: (poses, None))
    monkeypatch.setattr(synthetic_pictures, "PoseSource", lambda *_, **__: source)


def test_pictures_show_what_the_file_says(tmp_path, bodies):
    arguments = [str(tmp_path), "-n", "2", "--size", "96", "--samples", "2"]
    synthetic_pictures.main(arguments)
    table = annotations.read(tmp_path / "people.npz")
    assert table.body == "anny" and len(table) >= 1
    assert all((tmp_path / "pictures" / name).exists() for name in table.names)
    with np.load(tmp_path / "people.npz") as file:
        assert file["part"].shape == (len(table), 24, 3) and (file["part"][..., 2] == 1).all()
    # The annotated joints are those of the annotated body: some camera projects the one onto the other.
    pose, shape = torch.from_numpy(table.pose), torch.from_numpy(table.shape)
    posed = bodies.canonical(pose[:, 3:], shape) @ matrix_from_axis_angle(pose[:, :3]).mT
    for body_joints, pixels in zip(bodies.joints(posed).numpy(), table.joints[..., :2], strict=True):
        # Perspective with unknown translation t and focal f: x·f + tx' − (u − c)·(z + tz) = 0 is linear in f, f·t, tz.
        u, v = (pixels - 48).T
        x, y, z = body_joints.T
        zero, one = np.zeros(17), np.ones(17)
        system = np.concatenate([np.stack([x, one, zero, -u], 1), np.stack([y, zero, one, -v], 1)])
        target = np.concatenate([u * z, v * z])
        solution, *_ = np.linalg.lstsq(system, target, rcond=None)
        focal, tx, ty, tz = solution
        again = np.stack([(x * focal + tx) / (z + tz), (y * focal + ty) / (z + tz)], 1) + 48
        assert np.abs(again - pixels).max() < 0.05


def test_people_appear_where_their_vertices_project(poses):
    studio = synthetic_pictures.Studio(poses, "train")
    random = np.random.default_rng(1)
    person = studio.people(1, random)[0]
    camera = synthetic_pictures.random_camera(person, 128, random)
    things = studio.dressed(person, random)
    _, found = synthetic_pictures.raycast.render(things, camera, synthetic_pictures.random_light(random), 0, samples=1)
    pixels = np.floor(camera.project(person.vertices)).astype(int)
    inside = ((pixels >= 0) & (pixels < 128)).all(1)
    mask = cv2.dilate((found >= 0).astype(np.uint8), np.ones((3, 3)))
    assert mask[pixels[inside, 1], pixels[inside, 0]].mean() > 0.99
    rows, columns = np.nonzero(found >= 0)
    assert columns.min() >= pixels[:, 0].min() - 3 and columns.max() <= pixels[:, 0].max() + 3
    assert rows.min() >= pixels[:, 1].min() - 3 and rows.max() <= pixels[:, 1].max() + 3


def test_a_stopped_run_goes_on_to_the_same_pictures(tmp_path):
    def files(folder):
        return {path.name: path.read_bytes() for path in sorted((folder / "pictures").iterdir())}

    common = ["--size", "40", "--samples", "1"]
    synthetic_pictures.main([str(tmp_path / "whole"), "-n", "4", *common])
    synthetic_pictures.main([str(tmp_path / "twice"), "-n", "2", *common])
    first = {name: (tmp_path / "twice" / "pictures" / name).stat().st_mtime_ns for name in files(tmp_path / "twice")}
    synthetic_pictures.main([str(tmp_path / "twice"), "-n", "4", *common])
    assert files(tmp_path / "whole") == files(tmp_path / "twice")
    for name, time in first.items():
        assert (tmp_path / "twice" / "pictures" / name).stat().st_mtime_ns == time
    tables = [annotations.read(tmp_path / run / "people.npz") for run in ("whole", "twice")]
    assert np.array_equal(tables[0].pose, tables[1].pose) and (tables[0].names == tables[1].names).all()


def test_mirrored_annotations_are_the_mirrored_body(poses):
    bodies = AnnyBodies()
    # Anny's third neck bone starts up to 4 mm off the middle; everything else of it is symmetric.
    neck = bodies.body.joint_names.index("neck03")
    bodies.body.head_mean[neck, 0] = 0
    bodies.body.head_basis[:, neck, 0] = 0
    pose = axis_angle_from_quaternion(poses[:3]).flatten(1)
    flipped = torch.from_numpy(np.stack([move_pose(p, View(flip=True)) for p in pose.numpy()])).float()
    shape = bodies.body.shape_bank[:3]

    def posed(pose):
        return bodies.canonical(pose[:, 3:], shape) @ matrix_from_axis_angle(pose[:, :3]).mT

    mirrored = posed(pose)[:, bodies.body.mirror] * torch.tensor([-1.0, 1, 1])
    distance = (posed(flipped) - mirrored).norm(dim=-1)
    assert distance.mean() < 1e-4 and distance.max() < 5e-4  # the precision of the body's file
