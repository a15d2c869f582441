"""Crops: picture, 2D joints, pose and mesh are moved as one; batches depend on their generator alone."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from smpl_fixture import MIRROR_VERTICES, bodies, random_people, write_training

from mega_backend.rotations import matrix_from_axis_angle
from train.data import annotations
from train.data.annotations import JOINT_MIRRORS, AnnotationError
from train.data.pictures import (
    Augmentation,
    BrokenPicture,
    Mixture,
    Source,
    View,
    crop_matrix,
    cut,
    draw_view,
    move_joints,
    move_pose,
    read_picture,
)

views = st.builds(
    View,
    scale=st.floats(0.75, 1.25),
    shift=st.tuples(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1)),
    angle=st.floats(-np.pi / 6, np.pi / 6),
    flip=st.booleans(),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bodies(tmp_path_factory.mktemp("models"))


@settings(max_examples=25, deadline=None)
@given(
    view=views,
    side=st.floats(60, 900),
    point=st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3)),
    centre=st.tuples(st.floats(150, 350), st.floats(150, 350)),
)
def test_picture_and_joints_agree(view, side, point, centre):
    size = 112
    place = np.array(centre) + side * np.array(point)
    blob = max(2.0, 2 * side / size)
    y, x = np.mgrid[:500, :500] + 0.5
    bright = 255 * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * blob**2))
    picture = np.repeat(bright[..., None], 3, 2).astype(np.uint8)
    matrix = crop_matrix(np.array(centre), side, size, view)
    expected = matrix[:, :2] @ place + matrix[:, 2]
    inside = (place > 4 * blob).all() and (place < 500 - 4 * blob).all()
    if not inside or (expected < 10).any() or (expected > size - 10).any():
        return
    crop = cut(picture, matrix, size)[..., 0].astype(float)
    y, x = np.mgrid[:size, :size] + 0.5
    found = np.array([(crop * x).sum(), (crop * y).sum()]) / crop.sum()
    assert np.abs(found - expected).max() < 0.5
    joints = np.zeros((17, 3))
    joints[:] = [*place, 1]
    moved = move_joints(joints, matrix, size, view, "h36m")
    assert np.allclose((moved[0, :2] + 1) * size / 2, expected)


@settings(max_examples=20, deadline=None)
@given(view=views, seed=st.integers(0, 1000))
def test_pose_mesh_and_joints_agree(model, view, seed):
    person = random_people(1, seed)
    betas, gender = torch.from_numpy(person["betas"]).float(), torch.zeros(1, dtype=torch.long)

    def in_camera(pose):
        vectors = torch.from_numpy(pose[None]).float()
        canonical = model.canonical(vectors[:, 3:], betas, gender)
        return (canonical @ matrix_from_axis_angle(vectors[:, :3]).mT)[0]

    before, after = in_camera(person["pose"][0, :66]), in_camera(move_pose(person["pose"][0, :66], view))
    turn = crop_matrix(np.zeros(2), 1.0, 1, View(angle=view.angle, flip=view.flip))[:, :2]
    expected = before.clone()
    expected[:, :2] = before[:, :2] @ torch.from_numpy(turn).float().T
    if view.flip:
        expected = expected[torch.from_numpy(MIRROR_VERTICES)]
    assert (after - expected).norm(dim=-1).max() < 1e-4  # a tenth of a millimetre

    # The joints of the moved body are the moved joints, under the weak perspective of the crop's camera.
    side, centre, size = 100.0, np.array([60.0, 50.0]), 64
    pixels = 40 * model.joints(before).numpy()[:, :2] + centre
    moved = move_joints(
        np.column_stack([pixels, np.ones(17)]), crop_matrix(centre, side, size, view), size, view, "h36m"
    )
    camera = 40 * 2 / (side * view.scale)
    own = camera * model.joints(after).numpy()[:, :2]
    offset = moved[:, :2] - own
    assert np.ptp(offset, axis=0).max() * size / 2 < 0.5


def test_mirroring_twice_and_turning_back_is_nothing():
    pose = random_people(1, 3)["pose"][0, :66]
    flipped = move_pose(move_pose(pose, View(flip=True)), View(flip=True))
    turned = move_pose(move_pose(pose, View(angle=0.4)), View(angle=-0.4))
    for result in (flipped, turned):
        same = [Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix() for vectors in (result, pose)]
        assert np.allclose(*same, atol=1e-9)
    for table in JOINT_MIRRORS.values():
        assert [table[k] for k in table] == list(range(len(table)))


def test_draws_keep_to_their_ranges():
    augmentation, random = Augmentation(), np.random.default_rng(0)
    drawn = [draw_view(augmentation, random) for _ in range(2000)]
    scales, angles = np.array([v.scale for v in drawn]), np.array([v.angle for v in drawn])
    assert 0.75 <= scales.min() < 0.76 and 1.24 < scales.max() <= 1.25
    assert abs((angles != 0).mean() - 0.4) < 0.04 and np.abs(angles).max() <= np.pi / 6
    assert abs(np.mean([v.flip for v in drawn]) - 0.5) < 0.04
    assert draw_view(Augmentation.none(), random) == View()


def test_a_reduced_jpeg_shows_the_same_crop(tmp_path):
    y, x = np.mgrid[:801, :1203]
    picture = np.stack([x / 5 % 256, y / 4 % 256, 127 + 120 * np.sin(x / 90) * np.sin(y / 70)], -1).astype(np.uint8)
    picture = cv2.GaussianBlur(picture, (0, 0), 6)
    cv2.imwrite(str(tmp_path / "a.jpg"), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
    matrix = crop_matrix(np.array([600.0, 400]), 700.0, 80, View(angle=0.2))
    whole = cut(read_picture(tmp_path / "a.jpg"), matrix, 80).astype(int)
    reduced = cut(read_picture(tmp_path / "a.jpg", 4), matrix * [4, 4, 1], 80).astype(int)
    assert np.abs(whole - reduced).mean() < 1.5


@pytest.fixture
def dataset(tmp_path, model):
    path = write_training(tmp_path, model)
    return Source(annotations.read(path), tmp_path / "pictures")


def test_batches_depend_on_the_generator_alone(dataset):
    mixture = Mixture([dataset], 64, Augmentation())
    first, again = (mixture.batch(5, torch.Generator().manual_seed(4)) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["picture"].shape == (5, 3, 64, 64) and first["picture"].dtype == torch.uint8
    other = mixture.batch(5, torch.Generator().manual_seed(5))
    assert not torch.equal(first["picture"], other["picture"])


def test_broken_pictures_are_skipped_counted_and_replaced(dataset):
    whole = Mixture([dataset], 32, Augmentation()).batch(16, torch.Generator().manual_seed(0))
    (dataset.folder / "person_0.png").write_bytes(b"not a picture")
    (dataset.folder / "person_1.png").unlink()
    mixture = Mixture([dataset], 32, Augmentation())
    batch = mixture.batch(16, torch.Generator().manual_seed(0))
    assert batch["skipped"] > 0 and len(batch["picture"]) == 16
    untouched = [(a == b).all() for a, b in zip(whole["picture"], batch["picture"], strict=True)]
    assert 0 < sum(untouched) < 16
    again = mixture.batch(16, torch.Generator().manual_seed(0))
    assert torch.equal(batch["picture"], again["picture"])
    for picture in dataset.folder.iterdir():
        picture.unlink()
    with pytest.raises(BrokenPicture, match="check the picture folders"):
        mixture.batch(1, torch.Generator().manual_seed(0))


def test_cutting_starts_no_threads_that_a_forked_worker_would_wait_for():
    large = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3)).astype(np.uint8)
    before = threading_native_count()
    cut(large, crop_matrix(np.array([1000, 750]), 1400, 224, View(angle=0.3)), 224)
    cv2.GaussianBlur(large, (0, 0), 3)
    assert threading_native_count() == before and cv2.getNumThreads() == 1


def threading_native_count() -> int:
    """Threads of this process, those of libraries too, where the system tells."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 0


def test_shares_are_kept(dataset):
    sources = [Source(dataset.annotations, dataset.folder, share) for share in (0.75, 0.25, 0.0)]
    batch = Mixture(sources, 8, Augmentation.none()).batch(400, torch.Generator().manual_seed(1))
    shares = torch.bincount(batch["source"], minlength=3) / 400
    assert torch.allclose(shares, torch.tensor([0.75, 0.25, 0.0]), atol=0.06)
    with pytest.raises(AnnotationError, match="share"):
        Mixture([Source(dataset.annotations, dataset.folder, 0.0)], 8, Augmentation())
