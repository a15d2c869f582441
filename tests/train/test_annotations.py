"""Dataset files in the released formats: conventions are undone on reading, broken ones named."""

import pickle

import numpy as np
import pytest
import torch
from released_fixture import command, world_sequence, write_3dpw, write_emdb
from smpl_fixture import bodies, random_people, write_models, write_training

from mega_backend.rotations import matrix_from_axis_angle
from train.data import annotations, prepare_3dpw
from train.data.annotations import AnnotationError
from train.data.sequences import smooth_boxes
from train.data.smpl import ModelFileError, SmplBodies


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bodies(tmp_path_factory.mktemp("models"))


def agrees_with_world(model, table, joints, extrinsics):
    """Worst joint, metres, between the body posed from the table and the world's body in camera axes, up to a shift."""
    pose, betas = torch.from_numpy(table.pose).float(), torch.from_numpy(table.shape).float()
    canonical = model.canonical(pose[:, 3:], betas, torch.from_numpy(table.gender))
    posed = model.joints(canonical @ matrix_from_axis_angle(pose[:, :3]).mT, "smpl24").numpy()
    expected = np.einsum("fij,fkj->fki", extrinsics[:, :3, :3], joints)
    difference = (posed - posed[:, :1]) - (expected - expected[:, :1])
    return np.linalg.norm(difference, axis=-1).max()


def test_training_layout(tmp_path, model):
    path = write_training(tmp_path, model)
    table = annotations.read(path)
    assert len(table) == 6 and table.joint_set == "h36m" and table.body == "smpl"
    assert np.allclose(table.side, 128) and table.pose.shape == (6, 66) and table.shape.shape == (6, 10)
    # In this file the picture is 0.4 · 128 pixels per metre of the camera-frame body's joints.
    pose, shape = torch.from_numpy(table.pose), torch.from_numpy(table.shape)
    canonical = model.canonical(pose[:, 3:], shape, torch.from_numpy(table.gender))
    joints = model.joints(canonical @ matrix_from_axis_angle(pose[:, :3]).mT).numpy()
    assert np.abs(0.4 * 128 * joints[..., :2] + 64 - table.joints[..., :2]).max() < 0.01


@pytest.mark.parametrize(("layout", "joints", "joint_set"), [("training", 17, "h36m"), ("evaluation", 24, "smpl24")])
def test_what_is_written_is_read_back(tmp_path, layout, joints, joint_set):
    random = np.random.default_rng(0)
    table = annotations.Annotations(
        names=np.array(["a/1.jpg", "b/2.jpg"]),
        centre=random.uniform(0, 500, (2, 2)),
        side=np.array([100.0, 333.0]),
        pose=random.normal(size=(2, 66)),
        shape=random.normal(size=(2, 10)),
        gender=np.array([2, 1]),
        joints=random.uniform(1, 99, (2, joints, 3)),
        joint_set=joint_set,
    )
    annotations.write(tmp_path / "x.npz", table, layout)
    back = annotations.read(tmp_path / "x.npz")
    for name in ("centre", "side", "pose", "shape", "joints"):
        assert np.allclose(getattr(back, name), getattr(table, name), rtol=1e-5), name
    assert back.joint_set == joint_set and (back.gender == table.gender).all() and (back.names == table.names).all()
    with np.load(tmp_path / "x.npz") as file:
        assert np.allclose(file["scale"], [0.5, 1.665] if layout == "training" else [2, 200 / 333])


def test_object_strings_of_older_files_are_read(tmp_path, model):
    with np.load(write_training(tmp_path, model)) as file:
        arrays = dict(file)
    arrays["imgname"] = arrays["imgname"].astype(object)
    np.savez(tmp_path / "old.npz", **arrays)
    assert annotations.read(tmp_path / "old.npz").names[0] == "person_0.png"


def test_wrong_files_are_named(tmp_path, model):
    path = write_training(tmp_path, model)
    with np.load(path) as file:
        good = dict(file)

    def changed(**changes):
        arrays = {k: v for k, v in {**good, **changes}.items() if v is not None}
        np.savez(tmp_path / "bad.npz", **arrays)
        return tmp_path / "bad.npz"

    for changes, words in (
        ({"pose_cam": None}, "'pose_cam' or 'pose'"),
        ({"part": good["part"][:, :17]}, "'part' has shape"),
        ({"pose_cam": good["pose_cam"][:, :60]}, "60 numbers"),
        ({"gender": np.array(["x"] * 6)}, "gender"),
        ({"scale": np.zeros(6)}, "no person"),
    ):
        with pytest.raises(AnnotationError, match=words):
            annotations.read(changed(**changes))
    (tmp_path / "text.npz").write_text("hello")
    for path in (tmp_path / "text.npz", tmp_path / "missing.npz"):
        with pytest.raises(AnnotationError, match=path.name):
            annotations.read(path)
    partly = annotations.read(changed(scale=np.where(np.arange(6) < 2, np.nan, good["scale"])))
    assert len(partly) == 4


def test_3dpw_is_prepared_from_its_release(tmp_path, model):
    world = world_sequence(model, 20, 0)
    valid = np.ones(20, int)
    valid[3:5] = 0
    write_3dpw(tmp_path, world, "downtown_stairs_00", campose_valid=[valid])
    write_3dpw(tmp_path, world, "downtown_arguing_00", campose_valid=[valid], genders=["f"])
    assert command("train.data.prepare_3dpw", tmp_path, tmp_path / "3dpw.npz") == 0
    table = annotations.read(tmp_path / "3dpw.npz")
    assert len(table) == 36 and set(table.gender) == {1, 2}
    occluded = table.of_sequences(annotations.OCCLUDED_3DPW)
    assert len(occluded) == 18 and occluded.names[3] == "downtown_stairs_00/image_00005.jpg"
    kept = valid.astype(bool)
    assert agrees_with_world(model, occluded, world.joints[kept], world.extrinsics[kept]) < 1e-4
    camera = np.einsum("fij,fkj->fki", world.extrinsics[:, :3, :3], world.joints) + world.extrinsics[:, None, :3, 3]
    pixels = 800 * camera[kept][..., :2] / camera[kept][..., 2:] + [320, 240]
    assert np.abs(occluded.joints[..., :2] - pixels).max() < 0.01
    inside = np.abs(occluded.joints[..., :2] - occluded.centre[:, None]) < occluded.side[:, None, None] / 2
    assert inside.all()


def test_emdb_is_prepared_from_its_release(tmp_path, model, capsys):
    world = world_sequence(model, 8, 1)
    boxes = np.tile([100.0, 50, 200, 300], (8, 1))
    boxes[2] = [5, 5, 5, 5]
    good = np.ones(8, bool)
    good[0] = False
    write_emdb(tmp_path, world, good, boxes, invalid=[5])
    assert command("train.data.prepare_emdb", tmp_path, tmp_path / "emdb.npz") == 0
    table = annotations.read(tmp_path / "emdb.npz")
    assert list(table.names) == [f"P0/00_test/images/{frame:05d}.jpg" for frame in (1, 3, 4, 6, 7)]
    assert np.allclose(table.side, 1.2 * 250) and np.allclose(table.centre, [150, 175]) and (table.gender == 2).all()
    rows = [1, 3, 4, 6, 7]
    # World joints above are male (code 1): compare with that body.
    male = annotations.Annotations(**{**table.__dict__, "gender": np.ones(5, int)})
    assert agrees_with_world(model, male, world.joints[rows], world.extrinsics[rows]) < 1e-4
    assert command("train.data.prepare_emdb", tmp_path, tmp_path / "none.npz", "--subset", "2") == 2
    assert "No usable frame" in capsys.readouterr().err


def test_a_release_with_code_in_it_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("this must not run",))

    folder = tmp_path / "sequenceFiles" / "test"
    folder.mkdir(parents=True)
    (folder / "evil.pkl").write_bytes(pickle.dumps({"sequence": Evil()}))
    with pytest.raises(AnnotationError, match=r"evil\.pkl"):
        prepare_3dpw.read_sequence(folder / "evil.pkl")


def test_boxes_are_smooth_and_bridge_gaps():
    random = np.random.default_rng(0)
    joints = np.ones((60, 24, 3))
    joints[..., :2] = 200 + random.uniform(-40, 40, (24, 2)) + np.linspace(0, 100, 60)[:, None, None]
    joints[..., :2] += random.normal(0, 3, (60, 24, 2))
    seen = np.ones(60, bool)
    seen[20:25] = False
    joints[20:25, :, :2] = 9999
    centre, side = smooth_boxes(joints, seen)
    assert np.abs(np.diff(centre, axis=0)).max() < 4 and np.abs(np.diff(side)).max() < 2
    assert 0.9 < side.mean() / (np.hypot(80, 80) * 4 / 3) < 1.2


def test_model_files_are_checked(tmp_path, model):
    models, _ = write_models(tmp_path)
    only = SmplBodies({"neutral": models["neutral"]})
    with pytest.raises(ModelFileError, match="J_regressor_h36m"):
        only.joints(torch.zeros(1, only.vertex_count, 3))
    with pytest.raises(ModelFileError, match="female"):
        only.check_genders(np.array([0, 2]), "the dataset")
    np.savez(tmp_path / "bad.npz", v_template=np.zeros((5, 3)))
    for path in (tmp_path / "bad.npz", tmp_path / "none.npz"):
        with pytest.raises(ModelFileError, match=path.name):
            SmplBodies({"neutral": path})
    with pytest.raises(ModelFileError, match="17"):
        np.save(tmp_path / "few.npy", np.zeros((14, 10)))
        SmplBodies(models, tmp_path / "few.npy")
    with open(tmp_path / "neutral.pkl", "wb") as file, np.load(models["neutral"]) as arrays:
        pickle.dump(dict(arrays), file, protocol=2)
    pickled = SmplBodies({"neutral": tmp_path / "neutral.pkl"})
    assert torch.equal(pickled.models["neutral"].template, model.models["neutral"].template)


def test_batches_mix_genders_as_single_bodies_do(model):
    people = random_people(6, 5)
    pose, betas = torch.from_numpy(people["pose"]).float(), torch.from_numpy(people["betas"]).float()
    gender = torch.tensor([0, 1, 2, 2, 1, 0])
    together = model.canonical(pose[:, 3:], betas, gender)
    for row in range(6):
        alone = model.canonical(pose[row : row + 1, 3:], betas[row : row + 1], gender[row : row + 1])
        assert torch.allclose(together[row], alone[0], atol=1e-6)
    assert together.mean(1).abs().max() < 1e-6
