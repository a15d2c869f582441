"""The pipeline, on a model with random weights: shapes, repeatability, geometry, locked parts, cancelling."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from people_fixture import SIZE, detections

import mega_backend
from mega_backend import Cancelled, camera, people
from mega_backend.people.landmarks import COCO17_LANDMARKS
from mega_backend.plausibility import Verdict

BLANK = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)


@pytest.fixture
def crowd(monkeypatch):
    """Make the search find so many people."""

    def find(count: int) -> None:
        monkeypatch.setattr(people, "find", lambda picture, smallest: detections(count))

    return find


def same(one, other) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)


def test_importing_loads_no_torch():
    program = """if True:
        import sys, mega_backend, mega_backend.result, mega_backend.people
        assert not {"torch", "mediapipe"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", program], check=True)


def test_shapes_and_geometry(tiny, crowd):
    crowd(2)
    # The untrained model's meshes are no bodies: no rig fits them.
    recovery = tiny.recover(BLANK, hypotheses=4, seed=1, refine=False)
    assert recovery.picture_size == SIZE and recovery.focal_length == camera.default_focal_length(SIZE)
    assert recovery.faces.shape == (27420, 3) and len(recovery.people) == 2
    for person in recovery.people:
        assert person.vertices.shape == (4, 13718, 3) and person.vertices.dtype == np.float32
        assert person.tokens.shape == (4, tiny.tokenizer.token_count) and person.tokens.dtype == np.uint16
        assert np.allclose(person.rotation @ person.rotation.transpose(0, 2, 1), np.eye(3), atol=1e-5)
        # vertices = rotation · canonical + translation, and canonical meshes are what the tokens mean
        canonical = (person.vertices - person.translation[:, None]) @ person.rotation
        assert np.allclose(canonical, tiny.decode(person.tokens), atol=1e-4)
        assert (np.diff(person.log_probability[1:]) <= 0).all()
        assert person.spread.shape == (13718,) and (person.spread > 0).any()
        assert np.allclose(person.joints, tiny.joints(person.vertices, "body22"), atol=1e-5)


def test_those_who_were_found_are_chosen_from(tiny, crowd, monkeypatch):
    """Find, choose, recover is the same as recover, for whom one chose."""
    crowd(3)
    everybody = tiny.recover(BLANK, hypotheses=2, seed=1, refine=False)
    found = tiny.find(BLANK)
    monkeypatch.setattr(people, "find", lambda *_, **__: pytest.fail("looked again"))
    chosen = tiny.recover(BLANK, hypotheses=2, seed=1, refine=False, found=found[:1])
    assert len(found) == 3 and len(chosen.people) == 1
    np.testing.assert_allclose(chosen.people[0].vertices, everybody.people[0].vertices, atol=1e-4)
    assert not tiny.recover(BLANK, found=[]).people


def test_placed_on_the_landmarks(tiny, crowd):
    """Whatever the shape, the body lies where the person is: its middle within a few pixels of the landmarks'."""
    crowd(3)
    recovery = tiny.recover(BLANK, hypotheses=2)
    for person in recovery.people:
        points = camera.project(tiny.joints(person.vertices, "coco17"), recovery.focal_length, SIZE)
        seen = person.landmarks[list(COCO17_LANDMARKS), :2]
        assert np.abs(points.mean(1) - seen.mean(0)).max() < 12
    assert all(np.isfinite(errors).all() and (errors < 0.5).all() for errors in tiny.landmark_errors(recovery))


def test_same_seed_same_result_whatever_the_batch(tiny, crowd):
    crowd(2)
    first, second = tiny.recover(BLANK, 3, seed=5), tiny.recover(BLANK, 3, seed=5)
    assert all(same(a, b) for a, b in zip(first.people, second.people, strict=True))
    other = tiny.recover(BLANK, 3, seed=6)
    assert np.array_equal(first.people[0].tokens[0], other.people[0].tokens[0])
    assert not np.array_equal(first.people[0].tokens[1:], other.people[0].tokens[1:])
    more = tiny.recover(BLANK, 8, seed=5)
    few = {row.tobytes() for row in first.people[1].tokens}
    assert few <= {row.tobytes() for row in more.people[1].tokens}


def test_nobody(tiny, crowd, tmp_path):
    crowd(0)
    recovery = tiny.recover(BLANK, hypotheses=3)
    assert recovery.people == []
    loaded = type(recovery).load(recovery.save(tmp_path / "nobody.npz"))
    assert loaded.people == [] and loaded.arrays()["vertices"].shape == (0, 3, 13718, 3)
    assert tiny.resample(loaded, keep=["legs"]).people == []


def test_locked_parts_keep_their_tokens_and_place(tiny, crowd):
    crowd(2)
    recovery = tiny.recover(BLANK, hypotheses=2, refine=False)
    again = tiny.resample(recovery, keep=["legs"], hypothesis=1, hypotheses=4, seed=3, refine=False)
    names = tiny.body.part_names
    legs = [names.index(name) for name in ("left_leg", "right_leg", "left_foot", "right_foot")]
    kept = np.isin(tiny.tokenizer.token_part.numpy(), legs)
    vertices = np.isin(tiny.body.vertex_part.numpy(), legs)
    assert 0 < kept.sum() < len(kept)
    for before, after in zip(recovery.people, again.people, strict=True):
        assert (after.tokens[:, kept] == before.tokens[1, kept]).all()
        assert (after.tokens[1:, ~kept] != before.tokens[1, ~kept]).any()
        middle = after.vertices[:, vertices].mean(1) - before.vertices[1, vertices].mean(0)
        assert np.abs(middle).max() < 1e-3
        assert np.allclose(after.rotation, before.rotation[1], atol=1e-6)


def test_keeping_everything_changes_nothing(tiny, crowd):
    crowd(1)
    recovery = tiny.recover(BLANK, hypotheses=1, refine=False)
    again = tiny.resample(recovery, keep=list(tiny.body.part_names), hypotheses=2, refine=False)
    assert (again.people[0].tokens == recovery.people[0].tokens[0]).all()
    assert np.abs(again.people[0].vertices - recovery.people[0].vertices[0]).max() < 1e-3


def test_resampling_needs_no_more_than_the_file(tiny, crowd, tmp_path):
    crowd(2)
    recovery = tiny.recover(BLANK, hypotheses=2)
    loaded = type(recovery).load(recovery.save(tmp_path / "a.npz"))
    for a, b in zip(tiny.resample(recovery).people, tiny.resample(loaded).people, strict=True):
        assert same(a, b)


def test_random_people(tiny):
    three, five = tiny.random(3, seed=2, refine=False), tiny.random(5, seed=2, refine=False)
    for a, b in zip(three.people, five.people[:3], strict=True):
        assert np.array_equal(a.tokens, b.tokens)
    floors = [person.vertices[0, :, 1].max() for person in five.people]
    assert np.allclose(floors, floors[0], atol=1e-4)
    for person in five.people:
        pixels = camera.project(person.vertices[0], five.focal_length, five.picture_size)
        assert (pixels >= 0).all() and (pixels <= five.picture_size).all()
        canonical = (person.vertices - person.translation[:, None]) @ person.rotation
        assert np.allclose(canonical, tiny.decode(person.tokens), atol=1e-4)
    assert len(tiny.resample(three, keep=["head"], hypotheses=2).people) == 3


def test_progress_grows_and_can_stop_the_work(tiny, crowd):
    crowd(2)
    seen = []
    tiny.recover(BLANK, hypotheses=4, progress=lambda fraction, text: seen.append((fraction, text)))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    assert all(text for _, text in seen)

    def stop(fraction: float, text: str) -> None:
        if fraction > 0.5:
            raise Cancelled

    for work in (
        lambda: tiny.recover(BLANK, hypotheses=4, progress=stop),
        lambda: tiny.random(4, progress=stop),
        lambda: tiny.resample(tiny.random(2), progress=stop),
    ):
        with pytest.raises(Cancelled):
            work()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"hypotheses": 0}, "at least 1"),
        ({"steps": 0}, "at least 1 step"),
        ({"temperature": -1.0}, "temperature"),
        ({"focal_length": 0.0}, "focal length"),
    ],
)
def test_senseless_arguments(tiny, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny.recover(BLANK, **arguments)


def test_senseless_resampling(tiny, crowd):
    crowd(1)
    recovery = tiny.recover(BLANK, hypotheses=2)
    with pytest.raises(ValueError, match="no body part 'tail'"):
        tiny.resample(recovery, keep=["tail"])
    with pytest.raises(ValueError, match="no hypothesis 2"):
        tiny.resample(recovery, hypothesis=2)
    recovery.people[0].tokens[0, 0] = 60000
    with pytest.raises(ValueError, match="another model"):
        tiny.resample(recovery)


def test_missing_devices_are_named(tiny_model):
    with pytest.raises(ValueError, match="no device 'nonsense'"):
        mega_backend.load(tiny_model, device="nonsense")


def test_implausible_random_people_are_drawn_again(tiny, monkeypatch):
    """Whoever the judge condemns is replaced, the others stay, and the answer depends on seed and number alone."""
    first = [person.tokens for person in tiny.random(4, seed=3, refine=False).people]
    bad = {tokens.tobytes() for tokens in (first[1], first[3])}
    condemned = [tiny.decode(np.frombuffer(key, np.uint16).reshape(1, -1))[0] for key in bad]

    def strict(vertices):
        same = [any(np.allclose(mesh, other, atol=1e-5) for other in condemned) for mesh in vertices.numpy()]
        fine = torch.zeros(len(vertices))
        return Verdict(fine, torch.where(torch.tensor(same), 100.0, 0.0), fine)

    monkeypatch.setattr(tiny, "judge", strict)
    again = [person.tokens for person in tiny.random(4, seed=3, refine=False).people]
    fewer = [person.tokens for person in tiny.random(2, seed=3, refine=False).people]
    assert np.array_equal(again[0], fewer[0]) and np.array_equal(again[1], fewer[1])
    assert not np.array_equal(again[1], first[1]) and not np.array_equal(again[3], first[3])


def test_spread_of_joints_is_that_of_canonical_joints(tiny, crowd):
    crowd(1)
    person = tiny.recover(BLANK, 4, refine=False).people[0]
    joints = tiny.joints(tiny.decode(person.tokens), tiny.joint_set)
    assert np.allclose(person.joint_spread, np.sqrt(joints.var(0).sum(-1)), atol=1e-4)
    assert (tiny.recover(BLANK, 1).people[0].joint_spread == 0).all()
