"""A model folder keeps what is put into it, and says what is wrong with it."""

import json

import pytest
import torch

from mega_backend import checkpoint
from mega_backend.checkpoint import CheckpointError


def config(**changes):
    base = {"format": 1, "name": "test", "body": None, "tokenizer": None, "model": None, "provenance": []}
    return {**base, **changes}


class Part(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.register_buffer("index", torch.arange(4, dtype=torch.int32))


@pytest.fixture
def linear_part(monkeypatch):
    """Stands in for the real modules, so that only the folder is under test."""
    monkeypatch.setattr(checkpoint, "build", lambda part, config: Part() if config is not None else None)


@pytest.mark.parametrize("precision", checkpoint.PRECISIONS)
def test_load_then_save_gives_the_same_bytes(tmp_path, linear_part, precision):
    settings = config(model={"kind": "part"}, precision=precision)
    part = Part()
    checkpoint.save(tmp_path / "a", settings, checkpoint.collect_state(model=part))
    loaded = checkpoint.load(tmp_path / "a")
    assert loaded.model.linear.weight.dtype == torch.float32
    assert not loaded.model.training
    loaded.save(tmp_path / "b")
    for name in (checkpoint.CONFIG, checkpoint.WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    tolerance = 0 if precision == "float32" else 1e-3
    torch.testing.assert_close(loaded.model.linear.weight, part.linear.weight, rtol=tolerance, atol=tolerance)


def test_loading_leaves_the_random_state_alone(tmp_path, linear_part):
    checkpoint.save(tmp_path, config(model={"kind": "part"}), checkpoint.collect_state(model=Part()))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    checkpoint.load(tmp_path)
    assert torch.equal(torch.rand(2), expected)


def test_tensors_that_share_memory_are_saved(tmp_path):
    whole = torch.rand(6)
    checkpoint.save(tmp_path, config(), {"model.a": whole[:3], "model.b": whole, "model.c": whole.view(2, 3).T})
    assert torch.equal(checkpoint.read_state(tmp_path)["model.c"], whole.view(2, 3).T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.linear.bias"), r"lacks linear\.bias"),
        (lambda state: state.update({"model.extra": torch.zeros(1)}), "does not know: extra"),
        (lambda state: state.update({"model.linear.bias": torch.zeros(5)}), r"shape \(5,\).*says \(2,\)"),
        (lambda state: state.update({"tokenizer.x": torch.zeros(5)}), "does not know: x"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, linear_part, change, message):
    state = checkpoint.collect_state(model=Part())
    change(state)
    checkpoint.save(tmp_path, config(model={"kind": "part"}), state)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        (json.dumps(config(format=9)), "format 9"),
        (json.dumps({"format": 1, "name": "x"}), "lacks body"),
        (json.dumps(config(colour="red")), "unknown entries colour"),
        (json.dumps(config(model="mega")), "'model' must be an object"),
        (json.dumps(config(model={})), "does not say its kind"),
        (json.dumps(config(model={"kind": "oracle"})), "unknown kind of model: 'oracle'"),
        (json.dumps(config(precision="int4")), "precision"),
    ],
)
def test_a_wrong_configuration_is_refused_in_words(tmp_path, text, message):
    checkpoint.save(tmp_path, config(), {})
    (tmp_path / checkpoint.CONFIG).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path)


def test_what_is_not_a_model_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no model folder"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="mega import"):
        checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, config(), {})
    (tmp_path / checkpoint.WEIGHTS).write_bytes(b"\x08")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(tmp_path)
    (tmp_path / checkpoint.WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        checkpoint.load(tmp_path)


def test_values_too_large_for_half_precision_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="too large"):
        checkpoint.save(tmp_path, config(precision="float16"), {"model.x": torch.tensor([1e6])})


def test_a_name_outside_the_parts_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="belongs to no part"):
        checkpoint.save(tmp_path, config(), {"optimizer.x": torch.zeros(1)})
