"""Landmarks off pictures: the truth is right, the landmark model reads what the network gives, both make one folder."""

import dataclasses

import anny_fixture
import numpy as np
import pytest
import stages
import torch

from mega_backend import checkpoint
from mega_backend.model import backbones
from mega_backend.people.landmarks import MIRRORED
from mega_backend.recovery import Recoverer
from mega_backend.rotations import matrix_from_axis_angle
from train import image_reader, images, readings
from train.data import annotations
from train.data.anny import AnnyBodies
from train.data.landmarks import placed, with_landmarks
from train.data.pictures import Augmentation, Source, View, move_pose
from train.loop import seeded, train
from train.weights import averaged_state


@pytest.fixture(scope="module")
def bodies():
    return AnnyBodies()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return stages.write(tmp_path_factory.mktemp("reader"))


def test_landmarks_are_where_the_camera_saw_them(tmp_path, bodies):
    _, pixels = anny_fixture.write(tmp_path, count=5, seed=3)
    table = with_landmarks(annotations.read(tmp_path / "people.npz"), bodies)
    assert table.joint_set == "landmarks33" and (table.joints[..., 2] == 1).all()
    assert np.abs(table.joints[..., :2] - pixels).max() < 0.05


def test_joints_that_no_camera_explains_give_no_landmarks(tmp_path, bodies):
    anny_fixture.write(tmp_path, count=3)
    table = annotations.read(tmp_path / "people.npz")
    moved = table.joints.copy()
    moved[1, 4, :2] += 8
    found = with_landmarks(dataclasses.replace(table, joints=moved), bodies)
    assert found.joints[:, 0, 2].tolist() == [1, 0, 1]


def test_landmarks_in_camera_axes_are_those_of_the_mesh_and_mirror_with_it(bodies):
    generator = torch.Generator().manual_seed(0)
    pose, shape = 0.3 * torch.randn(4, 66, generator=generator), bodies.body.shape_bank[:4]
    part = bodies.subset(torch.arange(1))
    found = placed(part, pose, shape)
    mesh = bodies.canonical(pose[:, 3:], shape) @ matrix_from_axis_angle(pose[:, :3]).mT
    expected = bodies.body.joints(mesh, "mediapipe33")
    expected = expected - expected[:, 23:25].mean(1, keepdim=True)
    assert (found - expected).norm(dim=-1).max() < 1e-4
    flipped = torch.from_numpy(np.stack([move_pose(p, View(flip=True)) for p in pose.numpy()])).float()
    mirrored = found[:, list(MIRRORED)] * torch.tensor([-1.0, 1, 1])
    # Anny's third neck bone starts a few millimetres off the middle.
    assert (placed(part, flipped, shape) - mirrored).norm(dim=-1).max() < 6e-3


def test_reader_gives_what_the_landmark_model_reads():
    reader = backbones.build("reader", input_size=64, width=8).eval()
    with torch.no_grad():
        features = reader(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        reading = reader.read(torch.zeros(1, 3, 64, 64))
    assert features.shape == (2, 33, 8) and features.isfinite().all()
    assert (features[..., 3] == 1).all() and (features[..., 7] == 1).all()
    assert ((features[..., 2] > 0) & (features[..., 2] < 1)).all()
    assert reading.landmarks.abs().max() < 1.5
    with pytest.raises(ValueError, match="multiple of 32"):
        backbones.build("reader", input_size=90)


def test_kept_pictures_give_the_same_crops(tmp_path):
    anny_fixture.write(tmp_path, count=2)
    table = annotations.read(tmp_path / "people.npz")
    plain, kept = (Source(table, tmp_path / "pictures", kept=memory) for memory in (None, {}))
    for _ in range(2):
        for row in range(2):
            items = [source.item(row, 32, Augmentation(), np.random.default_rng(row)) for source in (plain, kept)]
            assert all(np.array_equal(items[0][name], items[1][name]) for name in items[0])
    assert len(kept.kept) == 2


def test_pictures_for_the_log(data):
    config = image_reader.ReaderConfig.model_validate({"loop": stages.LOOP, **stages._image_reader(data, 2)[2]})
    shown = image_reader.ReaderTask(config).eval().pictures()["read"]
    assert shown.dtype == np.uint8 and shown.shape == (64, 4 * 32, 3)


def test_steps_follow_each_other_into_a_folder_that_looks_at_pictures(data, tmp_path):
    reader, loop = stages.make("image_reader", data)
    train(reader, loop, tmp_path / "reader")
    settings = {"loop": stages.LOOP, **stages._behind_reader("image", ["backbone", "prior"])(data, 2)[2]}
    task = images.ImageTask(images.ImageConfig.model_validate({**settings, "reader": tmp_path / "reader"}))
    kept = averaged_state(tmp_path / "reader", "reader.")
    state = task.model.backbone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in kept.items())
    task.train()
    assert not task.model.backbone.training and task.model.encoder.training
    landmark_model = checkpoint.load(data / "landmark_model").model.state_dict()
    own = task.model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in landmark_model.items())

    loaded = checkpoint.load(images.export(task.eval(), tmp_path / "model", "tiny", {"stage": "image"}))
    crops = images.normalise(torch.randint(0, 256, (2, 3, 32, 32)).to(torch.uint8))
    found, expected = (model.best(model.features(crops)).tokens for model in (loaded.model, task.model))
    assert torch.equal(found, expected)
    assert not Recoverer.load(tmp_path / "model").reads_landmarks
    assert Recoverer.load(data / "landmark_model").reads_landmarks


def test_the_reader_goes_on_learning_landmarks_beside_what_they_say(data):
    settings = {"loop": stages.LOOP, **stages._behind_reader("image_regressor", [])(data, 2)[2]}
    alone, both = (
        seeded(images.ImageTask, images.ImageConfig.model_validate({**settings, "reading_weight": weight}))
        for weight in (0.0, 2.0)
    )
    batches = [task.shard(0, 0, torch.Generator().manual_seed(0)) for task in (alone, both)]
    assert torch.equal(batches[0]["picture"], batches[1]["picture"])
    (_, parts), (total, more) = (task.eval()(batch) for task, batch in zip((alone, both), batches, strict=True))
    for name in ("latent", "rotation"):  # of the same look
        torch.testing.assert_close(parts[name], more[name])
    expected = sum(more[name] for name in ("latent", "rotation", "joint")) + 2 * more["reading"]
    torch.testing.assert_close(total.detach(), expected)
    total.backward()
    assert both.model.backbone.maps.weight.grad.unflatten(0, (33, 7))[:, 4:].abs().sum() > 0
    assert set(both.validate()) == set(alone.validate())


def test_a_reader_needs_a_landmark_model_of_the_same_tokens(data):
    settings = {"loop": stages.LOOP, **stages._behind_reader("image_regressor", [])(data, 2)[2]}
    plain = {"kind": "mega", **stages.MEGA, "conditioning": {"backbone": stages.RESNET}}
    backbone = {"backbone": stages.RESNET}
    for changes, words in (
        ({"landmark_model": data / "tokenizer"}, "reads landmarks"),
        ({"landmark_model": None, "model": plain}, "behind a reader"),
        ({"reading_weight": 1.0, "model": backbone}, "backbone.name=reader"),
    ):
        with pytest.raises(ValueError, match=words):
            images.ImageTask(images.ImageConfig.model_validate({**settings, **changes}))


def test_heat_is_right_where_its_mean_is_the_point():
    """Of all heatmaps, the loss likes best the one that shares a point out between the four places around it."""
    side = 12
    points = torch.tensor([[[0.31, -0.72], [0.0, 0.95], [1.4, 0.0]]])
    known = torch.tensor([[1.0, 1.0, 1.0]])  # the last one lies outside the crop: no place of the map is its
    logits = torch.zeros(1, 3, side, side, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.3)
    for _ in range(300):
        optimizer.zero_grad()
        readings.heat_loss(logits.flatten(2).log_softmax(-1).unflatten(-1, (side, side)), points, known).backward()
        optimizer.step()
    share = logits.detach().flatten(2).softmax(-1).unflatten(-1, (side, side))
    at = (torch.arange(side) + 0.5) * (2 / side) - 1
    middle = torch.stack([(share.sum(2) * at).sum(-1), (share.sum(3) * at).sum(-1)], -1)
    # A point beyond the middles of the outermost places is held at them: half a place is the offset's work.
    assert (middle - points.clamp(at[0], at[-1]))[:, :2].abs().max() < 0.01
    assert share[0, 2].std() < 1e-6
