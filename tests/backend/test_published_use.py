"""Imported models in use, and the defects of the released programs that must not come back.

The released sampler leaves a token at code 0, counts cls as visible and pastes a token, takes raw logits for
confidence, draws noise from NumPy's global state, corrupts rows with different numbers of visible tokens, repeats
pictures before the backbone, and its mesh autoencoder returns as many meshes as its configured batch.
"""

import numpy as np
import published_fixture as fixture
import pytest
import torch

import mega_backend
from mega_backend import importing, people, protocol
from mega_backend.model import sampling
from mega_backend.people import Detection

PICTURE = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)


def detection(x: float) -> Detection:
    random = np.random.default_rng(int(x))
    landmarks = np.concatenate([random.normal((x, 60), (8, 20), (33, 2)), np.full((33, 1), 0.9)], axis=1)
    box = np.concatenate([landmarks[:, :2].min(0), landmarks[:, :2].max(0)])
    return Detection(box.astype(np.float32), landmarks.astype(np.float32), np.zeros((33, 3), np.float32), 0.9)


@pytest.fixture
def crowd(monkeypatch):
    """Make the search find people at these places."""

    def find(*places: float) -> None:
        monkeypatch.setattr(people, "find", lambda picture, smallest: [detection(x) for x in places])

    return find


def imported(tmp_path, model, state, backbone):
    """A complete folder around a model, made by the import; backbones take toy-sized crops."""
    here = tmp_path / "files"
    connections = fixture.write_connections(here / "connections")
    np.savez(here / "smpl.npz", **fixture.smpl_arrays())
    np.save(here / "h36m.npy", np.random.default_rng(1).random((17, fixture.VERTICES)))
    tokenizer = fixture.write_checkpoint(here / "vq", fixture.authors_tokenizer(fixture.small_tokenizer()))
    checkpoint = fixture.write_checkpoint(here / "model", state)
    files = [connections, here / "smpl.npz", here / "h36m.npy", tokenizer, checkpoint]
    done = importing.import_files(files, tmp_path / "folder")
    assert done.missing == []
    recoverer = mega_backend.load(tmp_path / "folder")
    network = recoverer.model.backbone if backbone == "mega" else recoverer.model.backbone_pose
    network.input_size = 64
    return recoverer


@pytest.fixture(params=list(fixture.BACKBONES))
def mega(tmp_path, request):
    model = fixture.small_mega(request.param)
    return imported(tmp_path, model, model.state_dict(), "mega")


def test_people_in_a_picture_become_smpl_meshes(mega, crowd):
    crowd(40, 110)
    recovery = mega.recover(PICTURE, hypotheses=4, seed=2)
    assert len(recovery.people) == 2
    assert recovery.faces.shape == (40, 3)
    for person in recovery.people:
        assert person.vertices.shape == (4, fixture.VERTICES, 3)
        assert person.joints.shape == (4, 22, 3)
        assert np.isfinite(person.vertices).all()
        np.testing.assert_allclose(
            person.rotation @ person.rotation.transpose(0, 2, 1), np.tile(np.eye(3), (4, 1, 1)), atol=1e-5
        )
    topology = protocol.topology_of(mega.body)
    np.testing.assert_array_equal(topology.quads, recovery.faces)
    assert topology.vertex_count == fixture.VERTICES
    again = mega.resample(recovery, keep=["left_leg", "torso"], hypotheses=3, picture=PICTURE)
    kept = np.isin(mega.tokenizer.token_part.numpy(), [mega.body.part_names.index(p) for p in ("left_leg", "torso")])
    for before, after in zip(recovery.people, again.people, strict=True):
        assert (after.tokens[:, kept] == before.tokens[0, kept]).all()


def test_vqhps_gives_one_mesh_per_person(tmp_path, crowd):
    model = fixture.small_vqhps()
    recoverer = imported(tmp_path, model, fixture.authors_vqhps(model), "vqhps")
    crowd(40, 110)
    both = recoverer.recover(PICTURE, hypotheses=1)
    assert [person.vertices.shape for person in both.people] == [(1, fixture.VERTICES, 3)] * 2
    # A person's mesh does not depend on who else is in the picture, although the published program mixes them.
    crowd(110)
    alone = recoverer.recover(PICTURE, hypotheses=1)
    np.testing.assert_array_equal(alone.people[0].tokens, both.people[1].tokens)
    with pytest.raises(ValueError, match="1 hypothesis"):
        recoverer.recover(PICTURE, hypotheses=2)


def test_features_are_computed_once_per_person(mega, crowd):
    """Neither samples nor steps repeat the backbone or the conditioning."""
    rows = []
    mega.model.backbone.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    conditioned = []
    mega.model.decoder.cond_emb.register_forward_hook(lambda module, inputs, output: conditioned.append(len(output)))
    crowd(40, 80, 120)
    mega.recover(PICTURE, hypotheses=9, steps=4)
    assert rows == [3]
    assert conditioned == [3]


def test_bfloat16_is_float32_roughly(tmp_path, mega):
    features = torch.randn(2, fixture.FEATURES[mega.model.config["conditioning"]["backbone"]["name"]], 2, 2)
    tokens, visible = torch.randint(fixture.CODES, (2, fixture.TOKENS)), torch.rand(2, fixture.TOKENS) < 0.5
    with torch.no_grad():
        exact = mega.model.logits(tokens, visible, features)
        rough = mega_backend.load(tmp_path / "folder", precision="bfloat16").model.logits(tokens, visible, features)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()
    with pytest.raises(ValueError, match="no precision 'int8'"):
        mega_backend.load(tmp_path / "folder", precision="int8")


def test_people_do_not_change_each_other(mega, crowd):
    crowd(40, 110)
    both = mega.recover(PICTURE, hypotheses=3, seed=4)
    crowd(40)
    alone = mega.recover(PICTURE, hypotheses=3, seed=4)
    np.testing.assert_array_equal(alone.people[0].tokens, both.people[0].tokens)


def test_the_picture_crop_is_what_the_backbones_were_trained_on(mega, crowd):
    """RGB, ImageNet's mean and deviation, the backbone's side."""
    seen = []
    mega.model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    crowd(80)
    red = np.zeros_like(PICTURE)
    red[..., 0] = 255
    mega.recover(red, hypotheses=1)
    assert seen[0].shape == (1, 3, 64, 64)
    middle = seen[0][0, :, 32, 32]
    torch.testing.assert_close(middle, torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]))


# The sampler


def constant(scores):
    return lambda tokens, visible: scores[: len(tokens)]


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_no_token_is_left_over_after_the_last_step(steps):
    """The released sampler returns code 0 in at least one place of every sample."""
    scores = torch.zeros(6, 54, 512)
    scores[..., 0] = -1e9
    start = torch.zeros(6, 54, dtype=torch.long)
    rows = [sampling.row_generator(0, row) for row in range(6)]
    drawn = sampling.generate(constant(scores), scores, start, start.bool(), rows, steps, 1.0)
    assert (drawn.tokens != 0).all()


def test_deterministic_answers_contain_nothing_of_the_given_tokens():
    """The released mask counts cls as visible: one of the given tokens comes back unpredicted."""
    model = fixture.small_mega(None)
    features = torch.randn(4, 12, 3, 3)
    nothing = torch.zeros(4, fixture.TOKENS, dtype=torch.bool)
    answers = [model.best(features, torch.full((4, fixture.TOKENS), code), nothing).tokens for code in (0, 7)]
    assert torch.equal(*answers)
    likeliest = model.logits(torch.zeros(4, fixture.TOKENS, dtype=torch.long), nothing, features).argmax(-1)
    assert torch.equal(answers[0], likeliest)


def test_confidence_is_a_probability_not_a_raw_logit():
    """Adding a constant to all logits of a place changes nothing; raw logits as confidence would fill it first."""
    scores = torch.randn(3, 10, 20, generator=torch.Generator().manual_seed(0))
    shifted = scores + torch.linspace(-40, 40, 10)[:, None]
    start = torch.zeros(3, 10, dtype=torch.long)
    order = {}
    for name, logits in (("plain", scores), ("shifted", shifted)):
        order[name] = []

        def ask(tokens, visible, name=name, logits=logits):
            order[name].append(visible.clone())
            return logits

        rows = [sampling.row_generator(1, row) for row in range(3)]
        drawn = sampling.generate(ask, logits, start, start.bool(), rows, 4, 1.0)
        order[name].append(drawn.tokens)
    assert all(torch.equal(a, b) for a, b in zip(*order.values(), strict=True))


def test_rows_with_different_numbers_of_visible_tokens_are_what_they_are_alone():
    model = fixture.small_mega(None)
    features = torch.randn(4, 12, 3, 3)
    tokens = torch.randint(fixture.CODES, (4, fixture.TOKENS))
    visible = torch.tensor([[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]]).bool()
    with torch.no_grad():
        together = model.logits(tokens, visible, features)
        alone = [model.logits(tokens[i : i + 1], visible[i : i + 1], features[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    drawn = model.sample(features, 3, generator=8, tokens=tokens, visible=visible)
    for i in range(4):
        options = {"tokens": tokens[i : i + 1], "visible": visible[i : i + 1]}
        assert torch.equal(model.sample(features[i : i + 1], 3, generator=8, **options), drawn[i : i + 1])


def test_samples_do_not_touch_global_random_states():
    model = fixture.small_mega(None)
    features = torch.randn(1, 12, 3, 3)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = model.sample(features, 2, generator=3)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(2)
    torch.manual_seed(99)
    assert torch.equal(model.sample(features, 2, generator=3), first)


@pytest.mark.gpu
def test_a_seed_means_the_same_samples_on_another_device():
    model = fixture.small_mega(None)
    features = torch.randn(2, 12, 3, 3)
    expected = model.sample(features, 5, generator=3)
    assert torch.equal(model.cuda().sample(features.cuda(), 5, generator=3).cpu(), expected)


# The mesh autoencoder


@pytest.mark.parametrize("batch", [1, 2, 16, 17])
def test_as_many_meshes_come_out_as_go_in(batch):
    """The released program, configured for batches of 16, returns 16 meshes for one."""
    model = fixture.small_tokenizer()
    tokens = torch.randint(fixture.CODES, (batch, fixture.TOKENS), generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        meshes = model.decode(tokens)
        assert meshes.shape == (batch, fixture.VERTICES, 3)
        torch.testing.assert_close(meshes, torch.cat([model.decode(row[None]) for row in tokens]), rtol=1e-4, atol=1e-6)
        assert model.encode(meshes).shape == (batch, fixture.TOKENS)
