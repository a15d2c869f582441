"""What the backend's tests share: a tiny model, and a picture with somebody in it."""

from pathlib import Path

import pytest

import mega_backend


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    from tiny_model import write

    return write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_model: Path):
    """A Recoverer on the model with random weights."""
    return mega_backend.load(tiny_model)
