"""Where the parts of a model folder came from: written when a file is imported, read by `mega info`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from .inputs import Input


def entry_of(found: Input) -> dict[str, Any]:
    """What a folder keeps of an input (JSON-able): its role, the file's name and SHA-256, and what it is."""
    entry: dict[str, Any] = {"role": found.role, "file": found.path.name, "what": found.text}
    if found.path.is_file():
        with found.path.open("rb") as file:
            entry["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return entry


def forget(config: dict[str, Any], by_role: Mapping[str, Input]) -> None:
    """What is replaced no longer comes from where it came from."""
    models = {"mega", "vqhps"}
    replaced = {found.role for found in by_role.values()} | (models if "model" in by_role else set())
    config["provenance"] = [
        entry for entry in config["provenance"] if not (isinstance(entry, dict) and entry.get("role") in replaced)
    ]


def origins(config: Mapping[str, Any]) -> list[str]:
    """Where the parts of a folder came from, a line each."""
    return [_provenance_text(entry) for entry in config["provenance"]]


def _provenance_text(entry: Any) -> str:
    if isinstance(entry, dict) and {"file", "what"} <= set(entry):
        digest = f" (SHA-256 {entry['sha256'][:12]}…)" if "sha256" in entry else ""
        return f"{entry['file']}: {entry['what']}{digest}"
    if isinstance(entry, dict) and "stage" in entry:
        # What a line holds; all settings are in the folder's config.json.
        told = [(name, value) for name, value in entry.items() if isinstance(value, int | float | str)]
        return ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in told
        )
    return entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False)
