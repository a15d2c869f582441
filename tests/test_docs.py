"""What README and guide say is there: pictures, pages, and commands as they are printed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


def commands(beginning: str) -> list[str]:
    """The lines of code blocks that begin with a command, without comments and brackets round what may be left out."""
    lines = [line for page in PAGES for line in re.findall(r"^ {4}(\S.*)$", page.read_text(encoding="utf-8"), re.M)]
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
    assert cli.parser(words).parse_args(words).command == words[0]


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
