"""AMASS and BEDLAM motions: frame rates, genders, broken files; meshes equal single posed bodies."""

import json

import numpy as np
import pytest
import torch
from smpl_fixture import bodies, write_models

from train.data import mocap, motions
from train.data.annotations import AnnotationError
from train.data.smpl import ModelFileError, SmplBodies


def write_motion(path, frames=12, seed=0, **changes):
    random = np.random.default_rng(seed)
    arrays = {
        "poses": random.normal(0, 0.3, (frames, 156)),
        "trans": np.zeros((frames, 3)),
        "betas": random.normal(0, 1, 16),
        "gender": np.array("female"),
        "mocap_framerate": np.array(60.0),
        **changes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return arrays


def test_amass_and_bedlam_files(tmp_path):
    amass = write_motion(tmp_path / "CMU" / "01" / "01_01_poses.npz")
    read = motions.read(tmp_path / "CMU" / "01" / "01_01_poses.npz")
    assert len(read) == 6 and (read.gender == 2).all() and read.betas.shape == (6, 10)
    assert np.allclose(read.pose.numpy(), amass["poses"][::2, 3:66])
    bedlam = {"poses": np.zeros((5, 165)), "betas": np.ones((1, 11)), "gender": np.array("neutral")}
    write_motion(tmp_path / "b" / "motion_seq.npz", mocap_framerate=None, **bedlam)
    assert len(motions.read(tmp_path / "b" / "motion_seq.npz")) == 5
    write_motion(tmp_path / "bytes.npz", gender=np.array(b"male"))
    assert (motions.read(tmp_path / "bytes.npz").gender == 1).all()


def test_broken_files_are_skipped_and_named(tmp_path):
    write_motion(tmp_path / "a.npz")
    write_motion(tmp_path / "b.npz", poses=None)
    write_motion(tmp_path / "c.npz", poses=np.zeros((4, 60)))
    (tmp_path / "d.npz").write_bytes(b"PK nonsense")
    np.savez(tmp_path / "shape.npz", betas=np.zeros(16), gender="male")
    every, skipped = motions.read_all(tmp_path)
    assert len(every) == 6 and len(skipped) == 3
    assert all(name in " ".join(skipped) for name in ("b.npz", "c.npz", "d.npz"))
    with pytest.raises(AnnotationError, match="No motion"):
        motions.read_all(tmp_path / "empty")


def test_sampler_poses_what_it_draws(tmp_path):
    model = bodies(tmp_path / "models")
    write_motion(tmp_path / "m" / "a.npz")
    write_motion(tmp_path / "m" / "b.npz", seed=1, gender=np.array("male"))
    every, _ = motions.read_all(tmp_path / "m")
    sampler = motions.SmplSampler(model, every)
    first, again = (sampler.sample(7, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    meshes = sampler.canonical(first)
    one = model.canonical(first["pose"][2:3], first["shape"][2:3], first["gender"][2:3])
    assert torch.allclose(meshes[2], one[0], atol=1e-6)
    models, _ = write_models(tmp_path / "models")
    with pytest.raises(ModelFileError, match="male"):
        motions.SmplSampler(SmplBodies({"female": models["female"]}), every)


def test_splits_of_files_and_of_our_own_format(tmp_path):
    for number in range(5):
        write_motion(tmp_path / "amass" / f"{number}.npz", seed=number)
    kept, held_out, skipped = motions.read_split(tmp_path / "amass", held_out_every=5)
    assert (len(kept), len(held_out), skipped) == (24, 6, [])
    assert not (kept.pose[:, None] == held_out.pose).all(-1).any()

    own = tmp_path / "own"
    own.mkdir()
    (own / "index.json").write_text(json.dumps({"joint_names": mocap.JOINTS, "parents": mocap.PARENTS}))
    turned = np.zeros((3, 22, 4), np.float16)
    turned[..., 0] = 1
    turned[:, mocap.JOINTS.index("left_elbow")] = [np.cos(0.4), 0, np.sin(0.4), 0]
    for split in ("train", "val"):
        (own / split).mkdir()
        arrays = {"quat": turned, "trans": np.zeros((3, 3)), "keep10": np.ones(3, bool)}
        np.savez(own / split / "1.npz", **arrays, start=[0], length=[3], trial=["1"], source=["amc"], fps=[30.0])
    kept, held_out, _ = motions.read_split(own)
    assert len(kept) == len(held_out) == 3 and (kept.gender == 0).all()
    # Local rotations of the same 22 joints: 0.8 rad about y at the left elbow, body joint 17 of 21.
    expected = torch.zeros(21, 3)
    expected[17, 1] = 0.8
    assert torch.allclose(kept.pose[0].unflatten(0, (21, 3)), expected, atol=2e-3)
    assert not torch.equal(kept.betas, held_out.betas)
