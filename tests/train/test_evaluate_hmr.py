"""Evaluation on pictures: errors as computed by hand, both protocols, whatever the batch; files beside the numbers."""

import argparse
import json

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes as scipy_procrustes
from smpl_fixture import bodies, random_people, write_models, write_tokenizer, write_training

from mega_backend import checkpoint
from mega_backend.rotations import matrix_from_axis_angle
from train import images
from train.data import annotations
from train.evaluation import hmr


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A 3DPW-like file of eight people in two sequences, and the folder of an untrained tiny model."""
    folder = tmp_path_factory.mktemp("evaluation")
    models, h36m = write_models(folder / "models")
    model = bodies(folder / "models")
    write_tokenizer(folder / "tokenizer", model, steps=30)
    training = annotations.read(write_training(folder / "people", model, count=8, size=64))
    table = annotations.Annotations(
        **{
            **training.__dict__,
            "names": np.array([f"downtown_{'stairs' if n < 3 else 'bar'}_00/{n}.png" for n in range(8)]),
            "joints": np.zeros((8, 24, 3)),
            "joint_set": "smpl24",
        }
    )
    annotations.write(folder / "3dpw.npz", table, "evaluation")
    for number, name in enumerate(table.names):
        (folder / "imageFiles" / name).parent.mkdir(parents=True, exist_ok=True)
        picture = folder / "people" / "pictures" / f"person_{number}.png"
        (folder / "imageFiles" / name).write_bytes(picture.read_bytes())
    settings = images.ImageConfig.model_validate(
        {
            "stage": "image",
            "loop": {"steps": 1},
            "sources": [{"file": folder / "people" / "people.npz", "pictures": folder / "people" / "pictures"}],
            "body": {"models": models, "h36m": h36m},
            "tokenizer": folder / "tokenizer",
            "model": {
                "width": 32, "encoder_depth": 1, "decoder_depth": 1, "heads": 2,
                "conditioning": {"backbone": {"name": "resnet", "blocks": [1, 1, 1, 1], "width": 8, "input_size": 64}},
            },
        }
    )  # fmt: skip
    torch.manual_seed(0)
    images.export(images.ImageTask(settings), folder / "model", "tiny", {})
    return folder, model, models, h36m


def arguments(data, **changes):
    folder, _, models, h36m = data
    cli = argparse.ArgumentParser()
    hmr.configure(cli)
    given = [
        "--model", str(folder / "model"), "--data", str(folder / "3dpw.npz"), "--pictures", str(folder / "imageFiles"),
        "--h36m", h36m, "--samples", "5", "--steps", "2",
    ]  # fmt: skip
    for gender, path in models.items():
        given += [f"--{gender}", path]
    for name, value in changes.items():
        given += [f"--{name}", str(value)]
    return cli.parse_args(given)


def test_errors_are_those_computed_by_hand(data):
    model = data[1]
    people = random_people(2, 3)
    pose, betas = (torch.from_numpy(people[name]).float() for name in ("pose", "betas"))
    first, second = model.canonical(pose[:, 3:66], betas, torch.zeros(2, dtype=torch.long))
    turn, other = matrix_from_axis_angle(pose[:, :3])
    errors = hmr.joint_errors(first, turn, second, other, model, "h36m")
    a, b = (mesh.numpy() @ rotation.numpy().T for mesh, rotation in ((first, turn), (second, other)))
    regressor = model.h36m.numpy()

    def distance(x, y):
        return 1000 * np.linalg.norm(x - y, axis=1).mean()

    ja, jb = regressor @ a, regressor @ b
    assert np.isclose(errors["standard_pve"], distance(a - ja[14], b - jb[14]), rtol=1e-4)
    assert np.isclose(errors["standard_mpjpe"], distance(ja[:14] - ja[14], jb[:14] - jb[14]), rtol=1e-4)
    assert np.isclose(errors["released_pve"], distance(a - a.mean(0), b - b.mean(0)), rtol=1e-4)
    assert np.isclose(errors["released_mpjpe"], distance(ja - a.mean(0), jb - b.mean(0)), rtol=1e-4)
    # SciPy's Procrustes allows reflections and works at unit size: take its result where it is a rotation.
    matched, moved, _ = scipy_procrustes(jb[:14], ja[:14])
    size = np.linalg.norm(jb[:14] - jb[:14].mean(0))
    scipy_error = size * distance(matched, moved)
    assert errors["standard_pa_mpjpe"] >= scipy_error - 1e-3
    same = hmr.joint_errors(first + 3, turn, first, turn, model, "smpl24")
    assert all(float(value) < 0.2 for value in same.values())


def test_pa_ignores_rotation_and_scale_others_do_not(data):
    model = data[1]
    mesh = model.canonical(torch.zeros(1, 63), torch.zeros(1, 10), torch.zeros(1, dtype=torch.long))[0]
    turn = matrix_from_axis_angle(torch.tensor([0.3, 0.1, -0.2]))
    errors = hmr.joint_errors(1.1 * mesh, turn, mesh, torch.eye(3), model, "smpl24")
    assert errors["standard_pa_mpjpe"] < 0.01 and errors["released_pa_mpjpe"] < 0.01
    assert min(errors[name] for name in ("standard_mpjpe", "standard_pve", "released_mpjpe", "released_pve")) > 50


def test_command_writes_json_table_and_plots(data, tmp_path, capsys):
    result = hmr.run(arguments(data, dataset="3dpw", output=tmp_path / "deep" / "3dpw.json"))
    assert result["people"] == 8 and result["skipped"] == 0
    assert json.loads((tmp_path / "deep" / "3dpw.json").read_text())["model"] == "tiny"
    text = (tmp_path / "deep" / "3dpw.md").read_text()
    assert "MEGA, HRNet (paper), deterministic | as published | 81.6 | 68.5 | 44.1" in text
    assert text in capsys.readouterr().out
    assert (tmp_path / "deep" / "3dpw.png").read_bytes()[:4] == b"\x89PNG"
    best = result["best_of"]["standard_mpjpe"]
    assert best[5] <= best[1]


def test_splits_and_broken_pictures(data, tmp_path):
    occluded = hmr.run(arguments(data, dataset="3dpw-occ", samples=0))
    assert occluded["people"] == 3 and "best_of" not in occluded
    folder = data[0]
    broken = folder / "imageFiles" / "downtown_bar_00" / "4.png"
    whole = broken.read_bytes()
    try:
        broken.write_bytes(b"")
        result = hmr.run(arguments(data, dataset="emdb", samples=0, limit=7))
    finally:
        broken.write_bytes(whole)
    assert result["people"] + result["skipped"] == 7
    with pytest.raises(ValueError, match="--neutral"):
        options = arguments(data)
        options.neutral = options.male = options.female = None
        hmr.run(options)


def test_numbers_do_not_depend_on_the_batch(data):
    folder, model, _, _ = data
    loaded = checkpoint.load(folder / "model")
    source = hmr.Source(annotations.read(folder / "3dpw.npz"), folder / "imageFiles")
    found = [hmr.evaluate(loaded, model, source, samples=3, steps=2, batch=batch) for batch in (8, 3)]
    for name in found[0]:
        assert np.allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-3), name
