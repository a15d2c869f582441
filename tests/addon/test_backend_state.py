"""The life of the backend as a pure function, and the runner with real processes."""

import sys
import threading
import time

import pytest


@pytest.fixture(scope="module")
def state(extension):
    from mega_mesh_recovery.blender_addon.backend import state

    return state


def run(state, start, *events):
    effects = ()
    for event in events:
        start, effects = state.transition(start, event)
    return start, effects


def local(state):
    return state.State(state.Settings(python="/usr/bin/python3"))


def test_a_local_backend_starts_when_wanted_and_becomes_ready(state):
    s, effects = run(state, local(state), state.Wanted())
    assert s.phase is state.Phase.STARTING and isinstance(effects[0], state.StartProcess)
    s, effects = run(state, s, state.ProcessReady("http://127.0.0.1:5", "t"))
    assert effects == (state.AskHealth("http://127.0.0.1:5", "t"),)
    s, effects = run(state, s, state.Answered({"device": "cuda"}))
    assert s.phase is state.Phase.READY and s.device == "cuda" and not effects
    assert run(state, s, state.Wanted()) == (s, ())


def ready(state):
    return run(state, local(state), state.Wanted(), state.ProcessReady("u", "t"), state.Answered({}))[0]


def test_one_that_dies_is_restarted_once_then_reported(state):
    s, effects = run(state, ready(state), state.ProcessExited(-9, "killed"))
    assert s.phase is state.Phase.STARTING and isinstance(effects[0], state.StartProcess)
    s = run(state, s, state.ProcessReady("u", "t"), state.Answered({}))[0]
    s, effects = run(state, s, state.ProcessExited(-9, "killed"))
    assert s.phase is state.Phase.FAILED and "killed" in s.text and not effects
    assert run(state, s, state.Wanted())[0].phase is state.Phase.STARTING


def test_one_that_was_idle_just_starts_again(state):
    s, effects = run(state, ready(state), state.ProcessExited(0))
    assert s.phase is state.Phase.OFF and not effects


def test_one_that_does_not_start_is_reported_not_tried_for_ever(state):
    s, effects = run(state, local(state), state.Wanted(), state.ProcessExited(1, "No module named torch"))
    assert s.phase is state.Phase.FAILED and "No module named torch" in s.text and not effects


def test_without_an_environment_the_text_says_what_to_do(state):
    s, effects = run(state, state.State(), state.Wanted())
    assert s.phase is state.Phase.MISSING and "Set Up Backend" in s.text and not effects


def test_a_remote_backend_is_asked_and_its_refusal_is_the_text(state):
    s, effects = run(state, state.State(state.Settings(url="http://gpu:1", token="t")), state.Wanted())
    assert effects == (state.AskHealth("http://gpu:1", "t"),)
    s, effects = run(state, s, state.NoAnswer("The token is wrong."))
    assert s.phase is state.Phase.FAILED and s.text == "The token is wrong."


def test_changed_settings_stop_what_runs(state):
    s, effects = run(state, ready(state), state.Configured(state.Settings(url="http://x")))
    assert s.phase is state.Phase.OFF and effects == (state.StopProcess(),)
    assert run(state, s, state.Configured(state.Settings(url="http://x"))) == (s, ())


FAKE_SERVE = """
import sys; sys.path.insert(0, {tests!r})
from fake_recoverer import FakeRecoverer
from mega_backend import server
arguments = sys.argv[1:]
sys.exit(server.serve(FakeRecoverer(), port=0, token=server.read_token(None), stop_with_stdin=True))
"""


@pytest.fixture
def runner(extension, tmp_path, monkeypatch):
    """A runner whose "Python" is a script that serves the fake model."""
    from pathlib import Path

    from mega_mesh_recovery.blender_addon.backend import runner as module
    from mega_mesh_recovery.blender_addon.backend import state

    root = Path(__file__).resolve().parents[2]
    script = tmp_path / "serve.py"
    script.write_text(FAKE_SERVE.format(tests=str(root / "tests")))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    backend = module.Backend(root)
    backend.configure(state.Settings(python=str(python)), tmp_path / "backend.log")
    yield backend
    backend.stop()


def test_a_process_is_started_used_revived_and_stopped(runner, state):
    client = runner.connect(threading.Event())
    assert client.health()["model"]["name"] == "fake" and client.token
    process = runner._process
    process._child.kill()
    deadline = time.monotonic() + 20
    while runner._process is process or runner.state.phase is not state.Phase.READY:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again = runner.connect(threading.Event())
    assert again.url != client.url and again.health()
    child = runner._process._child
    runner.stop()
    assert child.wait(5) == 0 and runner.state.phase is state.Phase.OFF


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_killing_blender_leaves_no_backend_behind(runner, tmp_path):
    """The parent is killed without a chance to clean up; the backend sees its input close."""
    import os
    import signal
    import subprocess
    from pathlib import Path

    script = (
        "import sys, threading, time; from pathlib import Path; from tools import extension_package as e; e.load()\n"
        "from mega_mesh_recovery.blender_addon.backend import runner, state\n"
        "b = runner.Backend(Path.cwd()); b.configure(state.Settings(python=sys.argv[1]), Path(sys.argv[2]))\n"
        "b.connect(threading.Event()); print('pid', b._process.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "python"), str(tmp_path / "other.log")],
        cwd=Path(__file__).resolve().parents[2], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = next(line for line in parent.stdout if line.startswith("pid"))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{line.split()[1]}").exists() and not _is_zombie(line.split()[1]):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _is_zombie(pid):
    from pathlib import Path

    return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()


def test_a_job_whose_backend_is_killed_fails_with_a_sentence_and_the_next_one_works(runner, photo):
    from mega_mesh_recovery.blender_addon import tasks
    from mega_mesh_recovery.blender_addon.jobs import Failed, Job
    from mega_mesh_recovery.mega_backend.protocol import RecoverParameters

    def job(kill):
        for event in Job("picture", tasks.recover(runner, [photo], RecoverParameters(hypotheses=2))).run():
            if kill and isinstance(event, tasks.Begun):
                runner._process._child.kill()
                runner._process._child.wait()
            yield event

    *_, last = job(kill=True)
    assert isinstance(last, Failed) and ("was lost" in last.text or "No backend answers" in last.text)
    events = list(job(kill=False))
    assert any(isinstance(event, tasks.Ended) and event.people == 2 for event in events)


def test_a_python_that_cannot_be_run_is_a_sentence(runner, state, tmp_path):
    runner.configure(state.Settings(python=str(tmp_path / "nothing")), tmp_path / "backend.log")
    with pytest.raises(Exception, match="cannot be run"):
        runner.connect(threading.Event())
