"""What lives as long as Blender does: the one backend, and a timer that keeps the panels current."""

from __future__ import annotations

import atexit
from urllib.parse import urlsplit

import bpy

from . import environment, mending, package, text
from .backend.runner import Backend
from .backend.state import MISSING_TEXT, Phase, Settings
from .jobs import board
from .mending import Trouble

backend = Backend(package.FOLDER)
TICK = 0.25
_shown: object = None


def ready_backend() -> Backend:
    """The backend, configured as the preferences say. Main thread only. Raises BackendError where not allowed."""
    settings = settings_from(package.preferences())
    if settings.remote and not _is_local(settings.url) and not bpy.app.online_access:
        text = "Blender may not use the network; allow Online Access in the System preferences."
        raise Trouble(text, mending.ONLINE)
    try:
        logs = package.user_folder("logs", create=True)
    except OSError as error:
        text = f"The extension's folder {error.filename} cannot be written ({error.strerror}); make it writable."
        raise Trouble(text) from error
    backend.configure(settings, logs / "backend.log")
    return backend


def settings_from(preferences: bpy.types.AddonPreferences) -> Settings:
    """The backend that the preferences describe; paths absolute, an environment of the add-on's own filled in."""
    if preferences.mode == "REMOTE":
        return Settings(url=preferences.url.strip(), token=preferences.token.strip())
    python = bpy.path.abspath(preferences.python) if preferences.python else environment.python()
    return Settings(python=str(python or ""), device=preferences.device, model=preferences.model or "default")


def _is_local(url: str) -> bool:
    return (urlsplit(url if "//" in url else f"http://{url}").hostname or "") in ("127.0.0.1", "localhost", "::1")


def is_missing() -> bool:
    """Whether there is no backend yet that could be started or reached."""
    settings = settings_from(package.preferences())
    return not (settings.remote or settings.python)


def status() -> tuple[str, str]:
    """The backend's state for a label: text, icon."""
    state = backend.state
    match state.phase:
        case Phase.READY:
            busy = "busy" if board.jobs else "ready"
            return text.say(
                "Backend {state} on {device}", state=text.say(busy), device=state.device.upper()
            ), "CHECKMARK"
        case Phase.STARTING | Phase.CONNECTING:
            return backend.progress_text or text.say("Backend {state}", state=text.say(state.phase.value)), "SORTTIME"
        case Phase.FAILED | Phase.MISSING:
            return state.text, "ERROR"
    if package.preferences().mode == "REMOTE":
        return text.say("Connects when needed"), "PLAY"
    if is_missing():
        return text.say(MISSING_TEXT), "ERROR"
    return text.say("Backend starts when needed"), "PLAY"


def redraw() -> None:
    """Draw our panels again, wherever they are visible."""
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type in ("VIEW_3D", "IMAGE_EDITOR", "CLIP_EDITOR", "PREFERENCES"):
                area.tag_redraw()


def _tick() -> float:
    global _shown
    shown = (status(), [(job.title, round(job.fraction, 2), job.text) for job in board.jobs])
    if shown != _shown:
        _shown = shown
        redraw()
    return TICK


def close(wait: bool = True) -> None:
    """End everything that runs: nothing may outlive Blender."""
    board.cancel_all()
    backend.stop(wait)


def register() -> None:
    atexit.register(close)
    if not bpy.app.background:
        bpy.app.timers.register(_tick, persistent=True)


def unregister() -> None:
    atexit.unregister(close)
    if bpy.app.timers.is_registered(_tick):
        bpy.app.timers.unregister(_tick)
    close()
