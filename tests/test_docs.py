"""What README and guide say is there: pictures, pages, and commands as they are printed."""

import argparse
import importlib
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


def commands(beginning: str) -> list[str]:
    """The lines of code blocks that begin with a command, without comments and brackets round what may be left out."""
    texts = [re.sub(r"\\\n\s+", "", page.read_text(encoding="utf-8")) for page in PAGES]
    lines = [line for text in texts for line in re.findall(r"^ {4}(\S.*)$", text, re.M)]
    lines = [re.sub(r"\s+#.*|\s{4,}\S.*$|[\[\]]", "", line) for line in lines]
    return [line.removeprefix(beginning).strip() for line in lines if line.startswith(beginning + " ")]


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    wrong = []
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(f"{target}#{anchor}")
    assert not wrong


def test_every_picture_of_the_guide_is_shown():
    shown = {Path(target).name for page in PAGES for target, _ in LINK.findall(page.read_text(encoding="utf-8"))}
    assert {path.name for path in (ROOT / "docs" / "images").iterdir()} <= shown


@pytest.mark.parametrize("line", [line for line in commands("mega") if not line.startswith("COMMAND")])
def test_documented_commands_are_understood(line):
    from mega_backend import cli

    words = line.split()
    options = cli.parser(words).parse_args(words)
    assert options.command == words[0]
    # What makes something must be told where it goes; the parser alone does not know.
    assert not hasattr(options, "output") or options.output or getattr(options, "overlay", None)


def is_abridged(line: str) -> bool:
    """Whether a "…" stands for more than the value of an option."""
    return any(word == "…" and not before.startswith("-") for before, word in pairwise(line.split()))


class Understood(Exception):
    """A command has read its arguments, and a stage of the training its configuration."""


@pytest.mark.parametrize("line", [line for line in commands("python -m") if not is_abridged(line)])
def test_documented_commands_of_modules_are_understood(line, monkeypatch):
    from train.config import Config

    module, *words = line.split()
    monkeypatch.setattr(sys, "argv", [module, *words])
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)

        def then_stop(parser, *arguments, parse=parse):
            options = parse(parser, *arguments)
            if not hasattr(options, "overrides"):
                raise Understood
            return options

        monkeypatch.setattr(argparse.ArgumentParser, name, then_stop)
    validate = Config.model_validate.__func__

    def validate_then_stop(kind, values):
        validate(kind, values)
        raise Understood

    monkeypatch.setattr(Config, "model_validate", classmethod(validate_then_stop))
    with pytest.raises(Understood):
        importlib.import_module(module).main()


def test_documented_targets_of_make_are_there():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert {line.split()[0] for line in commands("make")} <= set(targets)


def test_documented_commands_of_blender_are_understood():
    pytest.importorskip("bpy")
    from tools import extension_package

    extension_package.enable()
    from mega_mesh_recovery.blender_addon import command_line

    lines = commands("blender -b --command mega")
    assert len(lines) >= 4
    for line in lines:
        words = [re.sub(r"\|.*", "", word) for word in line.replace("FILES…", "FILES").split()]
        assert command_line.parser().parse_args(words).action == words[0]
