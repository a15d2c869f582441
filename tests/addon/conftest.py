"""The add-on inside the bpy module, and a fake backend for it to talk to."""

import socket
import threading

import pytest
import uvicorn
from fake_recoverer import FakeRecoverer

from mega_backend import server


class Recording(FakeRecoverer):
    """A fake that remembers what it was asked to sample again."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def resample(self, recovery, keep=(), seed=0, **others):
        person = recovery.people[0]
        self.asked.append({"keep": keep, "seed": seed, "vertices": person.vertices, "landmarks": person.landmarks})
        return super().resample(recovery, keep, seed=seed, **others)


@pytest.fixture(scope="session")
def backend_app():
    """The fake model behind `backend_url`."""
    return Recording()


@pytest.fixture(scope="session")
def backend_url(backend_app):
    """The address of a backend with a fake model, in a thread of this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = server.create_app(backend_app)
    instance = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=instance.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    instance.should_exit = True
    thread.join(10)
    listener.close()


@pytest.fixture(scope="session")
def extension():
    """The extension's package, registered in this process's Blender."""
    pytest.importorskip("bpy")
    from tools import extension_package

    return extension_package.enable()


@pytest.fixture
def blender(extension, backend_url):
    """bpy with an empty scene and the add-on connected to the fake backend."""
    import bpy

    bpy.ops.wm.read_factory_settings(use_empty=True)
    if extension.__name__ not in bpy.context.preferences.addons:  # factory settings forget it
        bpy.context.preferences.addons.new().module = extension.__name__
    preferences = bpy.context.preferences.addons[extension.__name__].preferences
    preferences.mode, preferences.url = "REMOTE", backend_url
    return bpy


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """The freshly built zip of the extension."""
    from real_blender import BLENDER, build

    return build(tmp_path_factory.mktemp("zip"), BLENDER)


@pytest.fixture(scope="session")
def installed(archive, tmp_path_factory):
    """The environment of a real Blender that has it installed."""
    from real_blender import BLENDER, install

    return install(archive, tmp_path_factory.mktemp("user"), BLENDER)


@pytest.fixture
def photo(tmp_path):
    """A grey picture of 80 × 60 pixels, in which the fake finds two people."""
    from PIL import Image

    path = tmp_path / "park.png"
    Image.new("RGB", (80, 60), (120, 120, 120)).save(path)
    return path
