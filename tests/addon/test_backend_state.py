"""The life of the backend as a pure function, and the runner with real processes."""

import sys
import threading
import time

import pytest
from waiting import until


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
    assert s.phase is state.Phase.FAILED and "signal 9" in s.text and not effects
    assert run(state, s, state.Wanted())[0].phase is state.Phase.STARTING


def test_one_that_worked_in_between_is_restarted_again(state):
    s = run(state, ready(state), state.ProcessExited(-9), state.ProcessReady("u", "t"), state.Answered({}))[0]
    s = run(state, s, state.Worked(), state.ProcessExited(-9))[0]
    assert s.phase is state.Phase.STARTING


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
    until(lambda: runner._process is not process and runner.state.phase is state.Phase.READY, 20)
    again = runner.connect(threading.Event())
    assert again.url != client.url and again.health()
    child = runner._process._child
    runner.stop()
    assert child.wait(5) == 0 and runner.state.phase is state.Phase.OFF


def test_one_that_was_replaced_before_anybody_asked_counts_as_dead(runner, state):
    from mega_mesh_recovery.mega_backend.client import BackendError

    client = runner.connect(threading.Event())
    runner._process._child.kill()
    until(lambda: runner.state.phase is state.Phase.READY and runner.state.url != client.url, 60)
    asked = time.monotonic()
    assert runner.died(client, BackendError("cut off"))
    assert not runner.died(runner.connect(threading.Event()), BackendError("refused", status=400))
    assert time.monotonic() - asked < 5, "it waited for the end of the new one"


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
    until(lambda: not Path(f"/proc/{line.split()[1]}").exists() or _is_zombie(line.split()[1]), 20, pause=0.1)


def _is_zombie(pid):
    from pathlib import Path

    return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()


def killing(runner, photo, times, after):
    """The events of a job whose backend is killed so many times, each time when an event of a kind comes."""
    from mega_mesh_recovery.blender_addon import tasks
    from mega_mesh_recovery.blender_addon.jobs import Job
    from mega_mesh_recovery.mega_backend.protocol import RecoverParameters

    for event in Job("picture", tasks.recover(runner, [photo], RecoverParameters(hypotheses=2))).run():
        if times and after(event):
            times -= 1
            runner._process._child.kill()
        yield event


def is_person(event):
    return getattr(getattr(event, "message", None), "kind", "") == "person"


def begins(event):
    return type(event).__name__ == "Begun" or getattr(event, "text", "").endswith("started again")


def test_a_job_whose_backend_is_killed_goes_on_with_another_one(runner, photo):
    events = list(killing(runner, photo, 1, begins))
    assert [type(event).__name__ for event in events if type(event).__name__ != "Progress"] == [
        "BodyKnown", "Begun", "Received", "Received", "Received", "Ended",
    ]  # fmt: skip
    assert any(getattr(event, "text", "").endswith("it is started again") for event in events)


def test_what_arrived_before_the_backend_was_killed_does_not_come_twice(runner, photo):
    events = list(killing(runner, photo, 1, is_person))
    assert [event.message.fields["index"] for event in events if is_person(event)] == [0, 1]


def test_a_backend_that_dies_twice_is_reported_and_the_next_job_starts_another(runner, photo, state):
    killed = []

    def doomed(event):
        if not begins(event):
            return False
        # The second one dies as soon as it is there, which may be before or after the job says that it is started.
        until(lambda: runner._process is not None and runner._process not in killed, 60)
        killed.append(runner._process)
        return True

    *_, last = killing(runner, photo, 2, doomed)
    assert type(last).__name__ == "Failed" and "signal 9" in last.text and last.mend.operator == "mega.show_log"
    assert runner.state.phase is state.Phase.FAILED
    assert sum(map(is_person, killing(runner, photo, 0, begins))) == 2


def test_a_log_that_cannot_be_written_stops_nothing(extension, tmp_path):
    from mega_mesh_recovery.blender_addon.backend.process import Log

    with Log(tmp_path / "no folder" / "backend.log") as log:
        log.write("lost\n")
    assert log.problem
    full = Log(tmp_path / "full.log")
    full._file = open("/dev/full", "w") if sys.platform.startswith("linux") else full._file  # noqa: SIM115
    with full as log:
        log.write("lost\n")
        log.write("lost\n")
    assert not sys.platform.startswith("linux") or log.problem


def test_queued_jobs_run_one_after_the_other(extension):
    from mega_mesh_recovery.blender_addon.jobs import Job, board

    order, gate = [], threading.Event()

    def work(name):
        def run(job):
            order.append(f"{name} begins")
            if name == "first":
                gate.wait(10)
            order.append(f"{name} ends")
            yield from ()

        return run

    jobs = [Job("first", work("first"), queued=True), Job("second", work("second"), queued=True)]
    beside = Job("beside", work("beside"))
    for job in (*jobs, beside):
        board.add(job)
        job.start()
    try:
        until(lambda: beside.done and jobs[1].text, 10)
        assert jobs[1].text == "waits for first" and "second begins" not in order
        gate.set()
        until(lambda: jobs[1].done, 10)
        assert order.index("first ends") < order.index("second begins")
    finally:
        gate.set()
        board.jobs.clear()


def test_a_python_that_cannot_be_run_is_a_sentence(runner, state, tmp_path):
    runner.configure(state.Settings(python=str(tmp_path / "nothing")), tmp_path / "backend.log")
    with pytest.raises(Exception, match="cannot be run"):
        runner.connect(threading.Event())
