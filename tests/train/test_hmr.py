"""Training from landmarks: the data belong together, each stage learns what it is shown, and the result is usable."""

import json

import numpy as np
import pytest
import torch
from landmark_fixture import CODES, TOKENS, bodies, posed, tokenizer

from mega_backend import checkpoint
from mega_backend.rotations import about_axis, sixd_from_matrix
from train import bundle, metrics
from train.data import views
from train.data.bank import Bank, build_together, tokenise
from train.evaluation import mega as evaluation
from train.landmarks import HmrConfig, MaskedTask, RegressorTask, whitening
from train.loop import train
from train.pretrain import PretrainConfig, PretrainTask, draw_visible
from train.weights import averaged_state

LOOP = {"steps": 3, "learning_rate": 2e-3, "ema_decay": 0.9, "log_every": 1, "threads": 1}
MEGA = {
    "width": 64,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "heads": 2,
    "prior": {"width": 96, "depth": 1, "free_rank": 8},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, tokenizer): bank.pt of 16 bodies with tokens, and the tokenizer's model folder."""
    folder = tmp_path_factory.mktemp("hmr")
    model = tokenizer(folder / "tokenizer")
    body, *_ = posed(1)
    tokenise(bodies(16), body, model).save(folder / "bank.pt")
    return folder, model


def config(folder, stage: str, **changes) -> HmrConfig:
    data = {"bank": folder / "bank.pt", "validation": folder / "bank.pt", "batch": 16}
    model = {"width": 96, "depth": 1} if stage == "regressor" else MEGA
    values = {"stage": stage, "loop": LOOP, "data": data, "model": model, "tokenizer": folder / "tokenizer"}
    return HmrConfig.model_validate(values | changes)


def loop(folder):
    return config(folder, "regressor").loop


def test_bank_holds_what_the_tokenizer_says_of_the_full_mesh(made):
    folder, model = made
    bank = Bank.load(folder / "bank.pt")
    body, *_ = posed(1)
    mesh = body.canonical_skin(*bank.posed(0, 16))
    assert (model.encode(mesh) == bank.tokens).float().mean() > 0.98  # float16 latents lie between codes now and then
    torch.testing.assert_close(body.joints(mesh, "mediapipe33"), bank.landmarks, atol=1e-4, rtol=0)
    torch.testing.assert_close(body.joints(mesh, "body22"), bank.joints, atol=1e-4, rtol=0)
    assert mesh.mean(1).abs().max() < 1e-5


def test_processes_draw_a_bank_together(tmp_path, shared):
    bank = build_together("val", shared / "mocap", 5, seed=3, workers=2)
    assert len(bank) == 5 and bank.tokens is None
    again = build_together("val", shared / "mocap", 5, seed=3, workers=2)
    assert torch.equal(bank.landmarks, again.landmarks)
    assert not torch.equal(bank.landmarks[0], bank.landmarks[3])  # each process draws bodies of its own


def test_missing_banks_and_tokens_say_what_to_do(made, tmp_path):
    folder, _ = made
    with pytest.raises(FileNotFoundError, match=r"train\.data\.bank"):
        Bank.load(tmp_path / "none.pt")
    bodies(2).save(tmp_path / "bare.pt")
    data = {"bank": tmp_path / "bare.pt", "validation": tmp_path / "bare.pt"}
    for stage in (RegressorTask, MaskedTask):
        with pytest.raises(ValueError, match="--tokenizer"):
            stage(config(folder, "masked", data=data))


def optimise(task, steps: int, rate: float = 3e-3) -> tuple[dict, dict]:
    """Scalars of the first and last of `steps` steps on one fixed batch."""
    torch.manual_seed(0)
    batch = task.shard(0, 0, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(task.parameters(), lr=rate)
    first = None
    for _ in range(steps):
        loss, scalars = task(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first = first or {name: float(value.detach()) for name, value in scalars.items()}
    return first, {name: float(value.detach()) for name, value in scalars.items()}


def test_regressor_overfits_a_handful(made):
    torch.manual_seed(0)
    first, last = optimise(RegressorTask(config(made[0], "regressor", nothing_known=1.0, unconditional=0.0)), 150)
    assert last["latent"] < 0.05 * first["latent"]
    assert last["joints"] < 0.3 * first["joints"]
    assert last["tokens"] < 0.3 * first["tokens"]
    assert last["rotation"] < 0.02
    assert last["camera"] < 0.05


def test_placed_joints_see_where_a_wrong_rotation_puts_them(made):
    """The loss is the mean distance of joints from the pelvis in camera axes, whatever made them go astray."""
    task = RegressorTask(config(made[0], "regressor", placed_weight=1.0))
    batch = task.shard(0, 0, torch.Generator().manual_seed(0))
    hidden = torch.ones(batch["tokens"].shape, dtype=torch.bool)
    said = task.regressor(batch["features"])
    turn = about_axis(1, torch.full((16,), 0.3)) @ batch["rotation"]
    off = {}
    for name, rotation in (("true", batch["rotation"]), ("turned", turn)):
        told = said._replace(latent=batch["latents"], rotation_6d=sixd_from_matrix(rotation))
        off[name] = float(task.losses(told, batch, hidden)["placed"])
    joints = (batch["joints"] - batch["joints"][:, :1]).double()
    expected = (joints @ turn.double().mT - joints @ batch["rotation"].double().mT).norm(dim=-1).mean()
    assert off["true"] < 0.011  # a centimetre is where the distance becomes round
    assert off["turned"] == pytest.approx(float(expected), abs=0.006)


def test_masked_stage_overfits_a_handful(made):
    torch.manual_seed(0)
    settings = {"frozen_prior": False, "nothing_known": 1.0}
    first, last = optimise(MaskedTask(config(made[0], "masked", **settings)), 150, 6e-3)
    assert last["tokens"] < 0.3 * first["tokens"]
    assert last["unconditional"] < 0.8 * first["unconditional"]


def test_trust_in_the_regressor_is_measured_in_its_own_errors():
    """The latent head's squared distance of errors with the measured covariance is that of a standard normal."""
    generator = torch.Generator().manual_seed(0)
    mixing = 2 * torch.eye(4) + 0.5 * torch.randn(3, 4, 4, generator=generator)
    errors = torch.einsum("ntd,tde->nte", torch.randn(20000, 3, 4, generator=generator), mixing)
    whitened = torch.einsum("ntd,ted->nte", errors, whitening(errors))  # as in LatentHead
    covariance = torch.einsum("ntd,nte->tde", whitened, whitened) / len(errors)
    torch.testing.assert_close(covariance, torch.eye(4).expand(3, 4, 4), atol=0.06, rtol=0)


def test_stages_follow_each_other_into_a_model_folder(made, tmp_path):
    folder, _ = made
    train(RegressorTask(config(folder, "regressor")), loop(folder), tmp_path / "regressor")
    task = MaskedTask(config(folder, "masked", start=tmp_path / "regressor"))
    kept = averaged_state(tmp_path / "regressor", "regressor.")
    assert all(torch.equal(value, kept[name]) for name, value in task.model.prior.state_dict().items())

    train(task, loop(folder), tmp_path / "masked")
    (tmp_path / "masked" / "model.json").write_text(json.dumps(task.model.config))
    sources = (folder / "tokenizer", tmp_path / "masked", folder / "bank.pt")
    output = bundle.bundle(*sources, task.model.config, tmp_path / "model", "tiny", precision="float32")
    loaded = checkpoint.load(output)
    features = task.held_out(4)["features"]
    # How errors go together is measured when the model is bundled.
    task.model.latent_head.together.copy_(loaded.model.latent_head.together)
    assert 0.1 < task.model.latent_head.together.square().sum(-1).mean() <= 1
    assert torch.equal(
        loaded.model.sample(features, 3, generator=1), task.model.eval().sample(features, 3, generator=1)
    )
    assert loaded.model.sample(None, 2, generator=1).shape == (1, 2, TOKENS)
    # Finished weights may be trained on.
    again = RegressorTask(config(folder, "regressor", start=output)).regressor.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in loaded.model.prior.state_dict().items())


def test_a_regressor_starts_from_one_with_other_targets(made, tmp_path):
    """Trunk, rotation and camera are kept; the last layer is fitted to the new latents in closed form."""
    folder, _ = made
    bank = Bank.load(folder / "bank.pt")
    bank.tokens, bank.latents = None, bank.latents[:, :5, :3]
    bank.save(tmp_path / "other.pt")
    data = {"bank": tmp_path / "other.pt", "validation": tmp_path / "other.pt", "batch": 16}
    train(RegressorTask(config(folder, "regressor", data=data)), loop(folder), tmp_path / "first")
    torch.manual_seed(0)
    fresh = RegressorTask(config(folder, "regressor"))
    started = RegressorTask(config(folder, "regressor", start=tmp_path / "first"))
    before, after = (task.eval().validate()["whole_latent"] for task in (fresh, started))
    assert after < 0.5 * before


def test_pretraining_overfits_a_handful(made):
    folder, _ = made
    torch.manual_seed(0)
    settings = {key: value for key, value in MEGA.items() if key != "prior"}
    task = PretrainTask(
        PretrainConfig.model_validate(
            {
                "loop": LOOP,
                "bank": folder / "bank.pt",
                "validation": folder / "bank.pt",
                "batch": 16,
                "code_count": CODES,
                "model": settings,
            }
        )
    )
    first, last = optimise(task, 80, 6e-3)
    assert last["tokens"] < 0.8 * first["tokens"]
    assert task.eval().validate()["tokens"] < first["tokens"]


def test_training_logs_show_bodies_from_front_and_side(made, tmp_path):
    folder, _ = made
    regressor = RegressorTask(config(folder, "regressor")).eval()
    settings = {"loop": LOOP, "bank": folder / "bank.pt", "validation": folder / "bank.pt", "code_count": CODES,
                "model": {key: value for key, value in MEGA.items() if key != "prior"}}  # fmt: skip
    pretraining, blind = (
        PretrainTask(PretrainConfig.model_validate(settings | {"tokenizer": tokenizer})).eval()
        for tokenizer in (folder / "tokenizer", None)
    )
    for task in (regressor, pretraining):
        with torch.no_grad():
            (shown,) = task.pictures().values()
        assert shown.shape == (3 * 160, 2 * 2 * 160, 3) and shown.dtype == np.uint8
        rows = shown.reshape(3, 160, 4, 160, 3)
        assert (rows.std(axis=(1, 3, 4)) > 5).all()  # somebody is in every one of them
    assert blind.pictures() == {}
    with pytest.raises(ValueError, match="holds no tokenizer"):
        save = checkpoint.load(folder / "tokenizer")
        checkpoint.save(tmp_path, {**save.config, "tokenizer": None}, {})
        PretrainTask(PretrainConfig.model_validate(settings | {"tokenizer": tmp_path}))


def test_bodies_without_conditioning_weigh_what_the_configuration_says(made):
    folder, _ = made
    task = MaskedTask(config(folder, "masked", unconditional=0.5, unconditional_weight=3.0))
    batch = task.shard(0, 0, torch.Generator().manual_seed(0))
    total, losses = task(batch)
    assert total.item() == pytest.approx((losses["tokens"] + 3 * losses["unconditional"]).item(), rel=1e-5)


def test_masks_have_the_papers_distribution():
    """Mean of 1 − cos(π/2 · u) is 1 − 2/π; rows draw their own ratio."""
    visible = draw_visible(torch.zeros(4000, 54, dtype=torch.long), torch.Generator().manual_seed(0))
    counts = visible.sum(1).float()
    assert counts.mean() / 54 == pytest.approx(1 - 2 / torch.pi, abs=0.02)
    assert counts.min() == 0
    assert counts.max() >= 52
    assert visible.float().mean(0).std() < 0.02


def test_joints_of_points_are_joints_of_the_mesh(made):
    _, model = made
    body, *_ = posed(1)
    tokens = torch.randint(0, CODES, (3, TOKENS), generator=torch.Generator().manual_seed(0))
    points = model.decode_points(model.quantiser.lookup(tokens))
    expected = body.joints(model.decode(tokens), "body22")
    torch.testing.assert_close(evaluation.MeshJoints(body, model, "body22")(points), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_evaluation_of_a_model(made):
    folder, model = made
    task = MaskedTask(config(folder, "masked")).eval()
    bank = Bank.load(folder / "bank.pt")
    result = evaluation.evaluate(model, task.model, bank, views.ViewOptions(), evaluation.Draws(6, 5), chunk=4)
    best = list(result["best_of_pa_mpjpe"].values())
    assert best == sorted(best, reverse=True)
    assert 0 < result["gain_best_of_all"] < 1
    assert result["diversity"] > 0
    assert 0 <= result["coverage"][0.5] <= result["coverage"][0.9] <= 1
    assert "| x |" in evaluation.table({"x": result}, header=True)
    panels = evaluation.plots({"x": result["errors"]})
    assert panels["PA-MPJPE, mm"]["x"].mean() == pytest.approx(result["pa_mpjpe"], rel=1e-5)
    assert len(panels["PA-MPJPE of the best sample, mm"]["x"]) == 6
    assert [curve.shape for curve in panels["error against spread"].values()] == [(6, 14)] * 2
    # The mesh itself, through its own tokens, would be as far off as the tokenizer makes it, in any rotation.
    assert result["canonical_pve"] > metrics.MILLIMETRES * 0.001
