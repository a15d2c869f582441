"""What the backend's tests share: a tiny model, and a picture with somebody in it."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import mega_backend

# That a machine is busy is no fault of what is tested on it.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    from tiny_model import write

    return write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_model: Path):
    """A Recoverer on the model with random weights."""
    return mega_backend.load(tiny_model)
