"""The life of the connection to a backend, as a pure function: transition(state, event) → (state, effects).

    OFF ──Wanted──▶ STARTING ──ProcessReady──▶ CONNECTING ──Answered──▶ READY
                        ▲                                                 │
                        └────────────── ProcessExited, once ──────────────┘

A remote backend goes from OFF to CONNECTING. Whatever fails ends in FAILED with a sentence; the next Wanted tries
again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any


class Phase(Enum):
    """Where the connection is; the values are what the panel says."""

    OFF = "not started"
    MISSING = "not set up"
    STARTING = "starting"
    CONNECTING = "connecting"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class Settings:
    """What the user chose. `url` empty means a local backend, run by `python`."""

    url: str = ""
    token: str = ""
    python: str = ""
    device: str = "cpu"
    model: str = "default"

    @property
    def remote(self) -> bool:
        """Whether the backend runs already, here or elsewhere, and is only connected to."""
        return bool(self.url)


@dataclass(frozen=True)
class State:
    """All that is known of the connection.

    url, token: of the backend that answers; health: what it last said of itself; text: what went wrong, or what it is
    doing; restarts: how often in a row it has been started again by itself.
    """

    settings: Settings = Settings()
    phase: Phase = Phase.OFF
    url: str = ""
    token: str = ""
    health: dict[str, Any] | None = None
    text: str = ""
    restarts: int = 0

    @property
    def device(self) -> str:
        """What the backend computes on; empty while it has not said."""
        return str((self.health or {}).get("device", ""))

    @property
    def reads(self) -> str:
        """What the model is conditioned on: "landmarks", or the picture itself."""
        return str((self.health or {}).get("reads", ""))


# Events ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Configured:
    """The user chose something in the preferences."""

    settings: Settings


@dataclass(frozen=True)
class Wanted:
    """Somebody needs the backend."""


@dataclass(frozen=True)
class ProcessReady:
    """The local backend listens at this address."""

    url: str
    token: str


@dataclass(frozen=True)
class ProcessExited:
    """The local backend has ended, or did not start (code None); text: its last words."""

    code: int | None
    text: str = ""


@dataclass(frozen=True)
class Answered:
    """The backend said how it is: the answer to `GET /health`."""

    health: dict[str, Any]


@dataclass(frozen=True)
class NoAnswer:
    """The backend did not answer, or not as it should; text: a sentence for the user."""

    text: str


@dataclass(frozen=True)
class Worked:
    """A whole request was answered: what went wrong before is over."""


@dataclass(frozen=True)
class Stopped:
    """The user, or the end of Blender, stops the backend."""


Event = Configured | Wanted | ProcessReady | ProcessExited | Answered | NoAnswer | Worked | Stopped

# Effects --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartProcess:
    """Start a local backend."""

    settings: Settings


@dataclass(frozen=True)
class StopProcess:
    """Stop the local backend."""


@dataclass(frozen=True)
class AskHealth:
    """Ask the backend at this address how it is; `Answered` or `NoAnswer` follows."""

    url: str
    token: str


Effect = StartProcess | StopProcess | AskHealth

MISSING_TEXT = "No backend is set up; open the add-on's preferences and press Set Up Backend, or connect to one."


def transition(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:
    """What an event makes of a state, and what has to be done about it."""
    match event:
        case Configured(settings) if settings != state.settings:
            return State(settings), (StopProcess(),)
        case Wanted() if state.phase in (Phase.OFF, Phase.MISSING, Phase.FAILED):
            return _begin(replace(state, restarts=0))
        case ProcessReady(url, token) if state.phase is Phase.STARTING:
            ready = replace(state, phase=Phase.CONNECTING, url=url, token=token, text="")
            return ready, (AskHealth(url, token),)
        case Answered(health) if state.phase is Phase.CONNECTING:
            return replace(state, phase=Phase.READY, health=health, text=""), ()
        case NoAnswer(text) if state.phase in (Phase.CONNECTING, Phase.READY):
            if state.phase is Phase.CONNECTING or state.settings.remote:
                return replace(state, phase=Phase.FAILED, text=text, health=None), _stop(state)
            return state, ()  # a local backend that is gone is noticed by its process
        case ProcessExited(code, text):
            return _exited(state, code, text)
        case Worked() if state.phase is Phase.READY:
            return replace(state, restarts=0), ()
        case Stopped():
            return State(state.settings), (StopProcess(),)
    return state, ()


def _begin(state: State) -> tuple[State, tuple[Effect, ...]]:
    settings = state.settings
    if settings.remote:
        state = replace(state, phase=Phase.CONNECTING, url=settings.url, token=settings.token, text="")
        return state, (AskHealth(settings.url, settings.token),)
    if not settings.python:
        return replace(state, phase=Phase.MISSING, text=MISSING_TEXT), ()
    return replace(state, phase=Phase.STARTING, text="", health=None), (StartProcess(settings),)


def _stop(state: State) -> tuple[Effect, ...]:
    return () if state.settings.remote else (StopProcess(),)


def _exited(state: State, code: int | None, text: str) -> tuple[State, tuple[Effect, ...]]:
    if state.settings.remote or state.phase in (Phase.OFF, Phase.MISSING, Phase.FAILED):
        return state, ()
    if state.phase is Phase.READY and code == 0:
        return State(state.settings), ()  # idle for long: it starts again when needed
    if state.phase is Phase.READY and state.restarts == 0:
        again, effects = _begin(replace(state, restarts=1))
        return replace(again, text="The backend stopped unexpectedly and is started again."), effects
    twice = state.restarts > 0
    begin = "The backend was started again and stopped once more" if twice else "The backend does not run"
    return replace(state, phase=Phase.FAILED, health=None, text=f"{begin}: {_reason(code, text)}."), ()


def _reason(code: int | None, text: str) -> str:
    """Why a process ended: who was killed has not said so itself."""
    if code is not None and code < 0:
        return f"it was killed (signal {-code}); the computer may have too little memory for it"
    return text.rstrip(".") or f"exit code {code}"
