"""Set Up Backend: what it would do, and doing it with commands that stand in for uv."""

import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def install(extension):
    from mega_mesh_recovery.blender_addon.backend import install

    return install


def request(install, tmp_path, **changes):
    return install.Request(**{"folder": tmp_path / "backend", "root": ROOT, **changes})


def test_the_packages_are_those_of_the_project(install):
    needed = install.requirements(ROOT)
    assert "torch==2.13.0" in needed and any(each.startswith("mediapipe") for each in needed)


def test_with_uv_at_hand_it_makes_the_environment_and_installs(install, tmp_path):
    steps = install.plan(request(install, tmp_path), "/usr/bin/uv")
    assert [step.command[:3] for step in steps[:2]] == [("/usr/bin/uv", "venv", "--allow-existing"),
                                                        ("/usr/bin/uv", "pip", "install")]  # fmt: skip
    assert "3.11" in steps[0].command and "torch==2.13.0" in steps[1].command
    assert all(str(tmp_path) in " ".join(step.command) for step in steps)


def test_without_uv_blenders_own_python_fetches_it(install, tmp_path):
    steps = install.plan(request(install, tmp_path, own_python="/blender/python"), None)
    assert steps[0].command[:3] == ("/blender/python", "-m", "venv")
    assert steps[1].command[-1] == "uv" and str(tmp_path) in steps[1].command[0]
    assert sum(step.share for step in steps) == pytest.approx(1)


def test_a_python_and_a_folder_of_wheels_are_used_and_no_network(install, tmp_path):
    steps = install.plan(request(install, tmp_path, python="/opt/python3.12", wheels="/media/wheels"), None)
    assert any("/opt/python3.12" in step.command for step in steps)
    for step in steps:
        if "install" in step.command:
            assert "--no-index" in step.command and "/media/wheels" in step.command
    assert "--offline" in next(step for step in steps if "--allow-existing" in step.command).command


def fake_uv(tmp_path, monkeypatch, script):
    """A uv that is a Python script, first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "uv.py").write_text(script)
    (folder / "uv").write_text(f'#!/bin/sh\nexec {sys.executable} {folder / "uv.py"} "$@"\n')
    (folder / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


MAKES = """
import os, sys
from pathlib import Path
if sys.argv[1] == "venv":
    python = Path(sys.argv[-1]) / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text("#!/bin/sh\\necho 2.13.0\\n"); python.chmod(0o755)
else:
    for package in sys.argv[5:]: print("+", package, flush=True)
"""


def test_it_comes_to_an_end_with_progress_and_a_log_and_can_be_removed(install, tmp_path, monkeypatch):
    from mega_mesh_recovery.blender_addon.jobs import Job, Progress

    fake_uv(tmp_path, monkeypatch, MAKES)
    wanted = request(install, tmp_path)
    events = list(Job("Set Up", install.run(wanted, tmp_path / "log.txt")).run())
    fractions = [event.fraction for event in events if isinstance(event, Progress)]
    assert fractions == sorted(fractions) and len(fractions) > 10 and fractions[-1] <= 1
    assert events[-1] == install.python_of(wanted.folder / "environment")
    assert install.is_complete(wanted.folder, ROOT)
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["torch==3"]')
    assert not install.is_complete(wanted.folder, tmp_path)  # an update of the extension needs other packages
    assert "+ torch==2.13.0" in (tmp_path / "log.txt").read_text()
    install.remove(wanted.folder)
    assert not install.is_complete(wanted.folder, ROOT) and not wanted.folder.exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("error: No space left on device", "make room"),
        ("WARNING: Retrying (SSLError(CERTIFICATE_VERIFY_FAILED)) after connection broken", "give a folder of wheels"),
        ("error: Failed to resolve 'pypi.org' (Temporary failure in name resolution)", "connect to the network"),
        ("error: no wheel of torch fits", "no wheel of torch fits"),
    ],
)
def test_a_failure_is_a_sentence_with_the_reason(install, tmp_path, monkeypatch, line, said):
    from mega_mesh_recovery.blender_addon.jobs import Failed, Job

    script = f"import sys; print('Resolving'); print({line!r}); print('x'); sys.exit(2)"
    fake_uv(tmp_path, monkeypatch, script)
    wanted = request(install, tmp_path)
    *_, last = Job("Set Up", install.run(wanted, tmp_path / "log.txt")).run()
    assert isinstance(last, Failed) and said in last.text
    assert line in (tmp_path / "log.txt").read_text()
    assert not install.is_complete(wanted.folder, ROOT)


def test_cancelling_kills_the_command(install, tmp_path, monkeypatch):
    from mega_mesh_recovery.blender_addon.jobs import Job

    fake_uv(tmp_path, monkeypatch, "import time; print('downloading', flush=True); time.sleep(60)")
    job = Job("Set Up", install.run(request(install, tmp_path), tmp_path / "log.txt"))
    job.start()
    timer = threading.Timer(1.0, job.cancel)
    timer.start()
    deadline = threading.Event()
    for _ in range(100):
        if job.finished:
            break
        deadline.wait(0.1)
    assert job.finished and not job.take(10)
    assert not install.is_complete(tmp_path / "backend", ROOT)


def test_without_network_permission_it_says_so(blender, extension):
    if blender.app.online_access:
        pytest.skip("this Blender may use the network")
    with pytest.raises(RuntimeError, match="Online Access"):
        blender.ops.mega.set_up_backend()
