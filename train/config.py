"""Configurations: a YAML file per model, overridable on the command line, checked before anything runs.

    python -m train.STAGE CONFIG [KEY=VALUE …] [--run FOLDER]

CONFIG is a file, or the name of one in `train/configs`. KEY is dotted (`loop.steps=100`), VALUE is read as YAML.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

CONFIGS = Path(__file__).parent / "configs"


class UserError(ValueError):
    """What a command was given cannot be used; the message says what to do. Commands print it without a traceback."""


class ConfigError(UserError):
    """A configuration cannot be used; the message says which key is wrong and what it should be."""


class Config(BaseModel):
    """Base of all configurations: unknown keys are errors, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnyConfig = TypeVar("AnyConfig", bound=Config)


def load(kind: type[AnyConfig], source: str | Path, overrides: list[str] | None = None) -> AnyConfig:
    """Read a configuration of type `kind`.

    Args:
        source: a YAML file, or the name (without suffix) of one of `train/configs`.
        overrides: `dotted.key=value` strings, applied in order.
    Raises:
        ConfigError: the file is missing or no mapping, an override is malformed, a key unknown or a value wrong.
    """
    path = _find(source)
    values = _values(path, overrides)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or '(top)'}: {e['msg']}" for e in error.errors()]
        known = ", ".join(kind.model_fields)
        raise ConfigError(
            "\n".join([f"{path}: {len(lines)} wrong setting(s):", *lines, f"  (top keys: {known})"])
        ) from error


def peek(source: str | Path, overrides: list[str] | None, key: str) -> Any:
    """The unchecked value of a top key (None where it is missing): which kind of configuration this is.

    Raises:
        ConfigError: the file is missing or no mapping, or an override is malformed.
    """
    return _values(_find(source), overrides).get(key)


def parser(description: str, default: str) -> argparse.ArgumentParser:
    """The command line that every stage shares: a configuration, overrides, and the run's folder."""
    cli = argparse.ArgumentParser(description=description)
    cli.add_argument("config", nargs="?", default=default, help=f"YAML file, or one of: {', '.join(names())}")
    cli.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the file's")
    # Under torchrun the longer name: it takes `--run` for the beginning of an option of its own.
    cli.add_argument(
        "--run",
        "--run-folder",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="of the run: checkpoints, logs; resumed if it exists",
    )
    return cli


def names() -> list[str]:
    """Names of the configurations that come with the project."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def _find(source: str | Path) -> Path:
    for path in (Path(source), CONFIGS / f"{source}.yaml"):
        if path.is_file():
            return path
    raise ConfigError(f"No configuration {str(source)!r}: give a YAML file or one of {', '.join(names()) or '(none)'}.")


def _values(path: Path, overrides: list[str] | None) -> dict:
    """What a YAML file and the overrides say."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys to values, not a {type(values).__name__}.")
    for override in overrides or []:
        _apply(values, override)
    return values


def _apply(values: dict, override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"Override {override!r} is not of the form key.subkey=value.")
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"Override {override!r}: {parent!r} is a single value, it has no keys of its own.")
    try:
        values[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"Override {override!r}: the value is not readable as YAML: {error}") from error
