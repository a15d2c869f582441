"""What mends an error: the operator that its button in the panel runs. No bpy here."""

from __future__ import annotations

from dataclasses import dataclass

from ..mega_backend.client import BackendError


@dataclass(frozen=True)
class Mend:
    """A button beside an error."""

    operator: str
    label: str
    icon: str
    values: tuple[tuple[str, str], ...] = ()
    """Properties of the operator."""


PREFERENCES = Mend("mega.preferences", "Backend Preferences", "PREFERENCES")
ONLINE = Mend("mega.allow_online", "Allow Online Access", "INTERNET")
SET_UP = Mend("mega.set_up_backend", "Set Up Backend", "IMPORT")
LOG = Mend("mega.show_log", "Show Log", "TEXT", (("name", "backend"),))
SET_UP_LOG = Mend("mega.show_log", "Show Log", "TEXT", (("name", "setup"),))
PICTURE = Mend("mega.choose_picture", "Choose Picture", "FILE_FOLDER")
FIND = Mend("mega.find_people", "Find People", "VIEWZOOM")


class Trouble(BackendError):
    """An error whose mending is known."""

    def __init__(self, text: str, mend: Mend | None = None, status: int = 0):
        super().__init__(text, status)
        self.mend = mend


def of(error: Exception) -> Mend | None:
    """What mends an error; None where nothing of ours does."""
    known = getattr(error, "mend", None)
    if known is not None or not isinstance(error, BackendError):
        return known
    # Nobody answered, or the one who did wants another token: where and how to reach it is set in the preferences.
    return PREFERENCES if error.status in (0, 401, 403) else None
