"""The evaluation of rendered pictures: errors of answers whose errors are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("warp")

from mega_backend.body import Body
from mega_backend.result import Person, Recovery
from train.data.photographs import Photographer, Truth
from train.evaluation import pictures


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth, Body]:
    photographer = Photographer("val", None, size=352)
    path = tmp_path_factory.mktemp("pictures") / "000003.jpg"
    return path, photographer.take(path, (0, 3)), photographer.body


def answer(truth: Truth, body: Body, number: int = 0) -> Person:
    """The truth as a result; the second hypothesis is bent by 10 cm."""
    rotations, shape = (part[number : number + 1] for part in truth.posed())
    turn = torch.from_numpy(truth.canonical_to_camera()[number]).float()
    vertices = body.canonical_skin(rotations, shape) @ turn.T + torch.from_numpy(truth.translation[number]).float()
    bent = vertices + 0.1 * torch.sign(vertices[..., :1] - vertices[..., :1].mean())
    both = torch.cat([vertices, bent]).numpy()
    deep = body.joints(vertices, "mediapipe33")[0].numpy()
    return Person(
        box=np.zeros(4, np.float32),
        landmarks=np.column_stack([truth.landmarks[number], np.ones(33)]).astype(np.float32),
        landmarks_3d=deep - deep[[23, 24]].mean(0),
        tokens=np.zeros((2, 54), np.uint16),
        log_probability=np.zeros(2, np.float32),
        rotation=np.stack([np.eye(3, dtype=np.float32)] * 2),
        translation=both.mean(1),
        vertices=both,
        joints=body.joints(torch.from_numpy(both), "body22").numpy(),
        spread=np.zeros(both.shape[1], np.float32),
    )


def test_the_truth_has_no_errors_and_the_best_of_several_is_best(taken: tuple[Path, Truth, Body]):
    _, truth, body = taken
    person = answer(truth, body)
    numbers = pictures.errors(person, truth, 0, body)
    assert all(value < 0.5 for value in numbers.values())
    turned = replace(person, vertices=person.vertices[::-1].copy())
    numbers = pictures.errors(turned, truth, 0, body)
    assert numbers["pve"] > 50 and numbers["best_pve"] < 0.5


def test_everybody_is_counted(taken: tuple[Path, Truth, Body]):
    path, truth, body = taken
    stranger = replace(answer(truth, body), landmarks=np.zeros((33, 3), np.float32))
    everyone = [answer(truth, body, number) for number in range(len(truth.shape))]
    size = (int(truth.size[0]), int(truth.size[1]))

    def recovery(people: list[Person]) -> Recovery:
        return Recovery(size, float(truth.focal_length), people, body.faces.numpy(), {})

    cases, missed, strangers = pictures.evaluate(lambda _: recovery([*everyone, stranger]), [path], body)
    assert len(cases) == len(everyone) and not missed and strangers == 1
    rows = pictures.summary(cases)
    assert rows["everybody"]["people"] == len(everyone)
    assert "view: " in pictures.table(rows) and "posture: " in pictures.table(rows)
    assert pictures.evaluate(lambda _: recovery([]), [path], body)[1]
    sheet = pictures.sheet(cases[:1], path.parent, lambda _: recovery(everyone), body)
    assert sheet.shape == (320, 6 * 320, 3)
