"""What the tests share: where optional outside data lies, and which special machines are at hand."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository; tests that need it skip where it is missing."""
    folder = Path(os.environ.get("MEGA_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the reference data folder {folder.name!r} beside the repository (or MEGA_SHARED)")
    return folder


@pytest.fixture
def fake_recoverer():
    """A recoverer without a model, for what only carries results."""
    from fake_recoverer import FakeRecoverer

    return FakeRecoverer()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU or a real Blender where there is none, and say so."""
    for item in items:
        if item.get_closest_marker("blender") and not os.environ.get("BLENDER"):
            item.add_marker(pytest.mark.skip(reason="needs a Blender executable: set BLENDER to its path"))
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
