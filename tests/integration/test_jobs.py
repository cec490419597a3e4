"""Jobs: after interruptions of every kind, the output equals that of an uninterrupted run."""

from __future__ import annotations

import functools
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, OptionError
from pycriu_native.cli.exit_codes import Exit
from pycriu_native.jobs import BUSY, CANNOT_RESTORE, INTERRUPTED, Job, State, checkpoints
from pycriu_native.jobs.directory import META, CheckpointProgress, JobDirectory

from .support.jobs import OURS, RunningJob, check_exact, command_line, nothing_runs
from .support.processes import Spawn, eventually, user_namespace

KILLS = int(os.environ.get("PYCRIU_NATIVE_JOB_KILLS", "6"))
"""Random kills in the test that counts them; ``make test-jobs`` uses 1000."""


NONE = CheckpointProgress(started=0, phase="")


def test_uninterrupted(job: RunningJob, tmp_path: Path) -> None:
    """The exit code is that of the command, and its output is complete; a second run
    has no effect.
    """
    job.steps = 100
    job.start()
    assert job.wait() == 0, job.messages()
    check_exact(job, tmp_path / "reference")
    before = (job.directory.path / "events.jsonl").read_text()
    job.start()
    assert job.wait() == 0
    assert (job.directory.path / "events.jsonl").read_text() == before
    assert job.directory.status().state is State.ENDED


def test_the_exit_code_of_the_command(tmp_path: Path) -> None:
    """The exit code is returned, or the signal of a crash; a missing command is an error."""
    assert Job(tmp_path / "a", ["sh", "-c", "exit 7"]).run().exit_code == 7
    crash = Job(tmp_path / "b", ["sh", "-c", "kill -SEGV $$"]).run()
    assert (crash.state, crash.exit_code) == (State.ENDED, 128 + signal.SIGSEGV)
    assert crash.message == "the command was ended by SIGSEGV"
    real_time = Job(tmp_path / "d", ["sh", "-c", "kill -40 $$"]).run()
    assert real_time.message == "the command was ended by signal 40"
    done = command_line("run", "--dir", str(tmp_path / "c"), "--", "/nowhere/program")
    assert done.returncode == 1
    assert "/nowhere/program" in done.stderr
    words = [sys.executable, "-m", "pycriu_native", "run", "--dir", str(tmp_path / "f")]
    closed = ["sh", "-c", '"$@" >&-', "sh", *words, "--", "true"]
    assert subprocess.run(closed, check=False).returncode == 0  # it prints nothing there
    with pytest.raises(CriuError, match="the working directory of the command, /nowhere, cannot"):
        Job(tmp_path / "e", ["true"], cwd="/nowhere").run()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_signals(job: RunningJob, tmp_path: Path, number: signal.Signals) -> None:
    """A last checkpoint is taken, the exit code reports the interruption, and the next
    run resumes.
    """
    process = job.start("--every", "1h")
    job.until(lambda: _steps(job) > 10, "some steps")
    process.send_signal(number)
    assert job.wait() == INTERRUPTED
    assert nothing_runs(job)
    assert job.directory.status().checkpoints == 1
    assert "started over" not in job.events()
    job.start("--every", "1h")
    job.until(lambda: job.directory.status().resumed == 1, "its resumption")
    assert job.finish() == 0
    assert check_exact(job, tmp_path / "reference") > 10


def _steps(job: RunningJob) -> int:
    try:
        return (job.directory.path / "stdout").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("kind", ["command line", "in between", "supervisor", "command"])
def test_killed(job: RunningJob, tmp_path: Path, kind: str) -> None:
    """If any process of the supervisor is killed, the whole job ends, and it is resumed from its
    checkpoint.
    """
    job.start()
    job.until(lambda: job.has_checkpoints(2), "two checkpoints")
    kinds: dict[str, int] = {}
    for number, pid in enumerate(job.processes()):
        kinds.setdefault(job.kind(number, pid), pid)
    os.kill(kinds[kind], signal.SIGKILL)
    code = job.wait()
    assert code == (-signal.SIGKILL if kind == "command line" else INTERRUPTED), job.messages()
    assert nothing_runs(job)
    assert job.directory.status().state is State.INTERRUPTED
    assert job.finish() == 0
    assert "resumed" in job.events()
    check_exact(job, tmp_path / "reference")


def test_before_the_first_checkpoint(job: RunningJob, tmp_path: Path) -> None:
    """The command starts again with its original files, and an event reports this."""
    out = job.place / "out"
    out.mkdir()
    (out / "opened-each-time").write_text("from before\n")
    job.start("--every", "1h")
    job.until(lambda: _steps(job) > 5, "some steps")
    os.kill(job.processes()[-1], signal.SIGKILL)
    assert job.wait() == INTERRUPTED
    job.start("--every", "1h")
    job.until(lambda: "started over" in job.events() and _steps(job) > 5, "its start")
    assert job.finish() == 0
    text = (out / "opened-each-time").read_text()
    assert text.startswith("from before\n0 ")
    (out / "opened-each-time").write_text(text.removeprefix("from before\n"))
    check_exact(job, tmp_path / "reference")


def test_killed_at_random_instants(job: RunningJob, tmp_path: Path) -> None:
    """Any process, also of CRIU, is killed at any time: the job is resumed, and the output is
    exact.
    """
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    killed: dict[str, int] = {}
    for _ in range(KILLS):
        process = job.start()
        if rng.random() < 0.7:
            number = job.directory.status().checkpoints + 1
            job.until(functools.partial(job.has_checkpoints, number), "a checkpoint")
        at_work = rng.random() < 0.4
        if at_work:
            job.until(job.criu, "CRIU at work")
        try:
            process.wait(rng.uniform(0, 0.05 if at_work else 1.5))
        except subprocess.TimeoutExpired:
            kind = job.kill_one(rng)
            killed[kind] = killed.get(kind, 0) + 1
            if kind not in (*OURS, "command"):
                process.terminate()  # the job runs on
        code = job.wait()
        assert code in (INTERRUPTED, -signal.SIGKILL), (seed, killed, job.messages())
        # The kernel ends the namespace of a supervisor that was killed a moment later.
        eventually(functools.partial(nothing_runs, job), f"the end of the command (seed {seed})")
    assert job.finish() == 0, (seed, killed, job.messages())
    steps = check_exact(job, tmp_path / "reference")
    print(f"{sum(killed.values())} kills, {killed}, {steps} steps")


def test_none_can_be_restored(job: RunningJob, tmp_path: Path) -> None:
    """Nothing is started, and no checkpoint is removed; the user decides about starting over."""
    job.start()
    job.until(lambda: job.has_checkpoints(2), "two checkpoints")
    job.end()
    for checkpoint in job.directory.all_checkpoints():
        pages = next(Path(checkpoint.path).glob("pages-*.img"))
        data = bytearray(pages.read_bytes())
        data[len(data) // 2] ^= 1
        pages.write_bytes(data)
    before = sorted(os.listdir(job.directory.checkpoints))
    job.start()
    assert job.wait() == CANNOT_RESTORE
    assert "was changed" in job.messages()
    assert sorted(os.listdir(job.directory.checkpoints)) == before
    assert job.directory.status().state is State.CANNOT_RESTORE
    (job.place / "finish").touch()
    job.start("--or-start-over")
    assert job.wait() == 0
    assert "started over" in job.events()


def test_criu_cannot_be_run(job: RunningJob, tmp_path: Path) -> None:
    """Without CRIU nothing is started over: with it the checkpoints can be restored."""
    job.start()
    job.until(lambda: job.has_checkpoints(2), "two checkpoints")
    job.end()
    job.prefix = ["env", "CRIU_PROGRAM=/bin/false"]
    job.start("--or-start-over")
    assert job.wait() == CANNOT_RESTORE
    assert "CRIU does not work here" in job.messages()
    job.prefix = []
    assert job.finish() == 0
    assert "started over" not in job.events()
    check_exact(job, tmp_path / "reference")


def test_the_newest_is_damaged(job: RunningJob, tmp_path: Path) -> None:
    """The previous checkpoint is restored, and an event has the reason."""
    job.start()
    job.until(lambda: job.has_checkpoints(3), "three checkpoints")
    job.end()
    newest, before, *_ = job.directory.all_checkpoints()
    next(Path(newest.path).glob("core-*.img")).unlink()
    assert job.finish() == 0
    failures = [each for each in job.directory.events() if each["event"] == "restore failed"]
    assert [f"checkpoint {newest.number}: " in each["message"] for each in failures] == [True]
    resumed = [each for each in job.directory.events() if each["event"] == "resumed"]
    assert resumed[0]["number"] == before.number
    check_exact(job, tmp_path / "reference")


def test_two_supervisors(job: RunningJob) -> None:
    """The second one starts nothing, with its own exit code."""
    first = job.start()
    job.until(lambda: job.has_checkpoints(1), "a checkpoint")
    job.start()
    second = job.process
    assert second is not None
    assert second.wait(60) == BUSY
    job.process = first
    assert first.poll() is None


def test_control(job: RunningJob) -> None:
    """status, list, checkpoint, stop and log, as text and as JSON; metrics and events."""
    path = str(job.directory.path)
    assert command_line("job", "status", path).returncode == 6
    process = job.start("--every", "1h", "--keep", "2")
    job.until(lambda: _steps(job) > 0, "its first step")
    for number in (1, 2, 3):
        done = command_line("job", "checkpoint", path, "--json")
        assert json.loads(done.stdout)["result"]["number"] == number
    listed = json.loads(command_line("job", "list", path, "--json").stdout)["result"]
    assert [each["number"] for each in listed["checkpoints"]] == [3, 2]
    status = json.loads(command_line("job", "status", path, "--json").stdout)["result"]
    assert (status["state"], status["checkpoints"], status["kept"]) == ("running", 3, 2)
    assert (
        "pycriu_native_job_checkpoints_total" in (job.directory.path / "metrics.prom").read_text()
    )
    assert "0 " in command_line("job", "log", path).stdout
    assert command_line("job", "stop", path).returncode == 0
    assert process.wait(60) == INTERRUPTED
    assert "interrupted" in command_line("job", "status", path).stdout
    assert command_line("job", "stop", path).returncode == 4
    assert [each for each in job.events() if each != "stopping"] == [
        *("started", *(4 * ("checkpoint begun", "checkpoint")), "interrupted"),
    ]
    (job.directory.checkpoints / "4" / META).write_text("{")
    assert f"4       {META} cannot be read" in command_line("job", "list", path).stdout


class _Metadata(BaseHTTPRequestHandler):
    """The metadata server of a cloud: 404 until there is a notice."""

    notice: str | None = None

    def do_GET(self) -> None:
        text = type(self).notice
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("how", ["command", "url"])
def test_notices(job: RunningJob, how: str) -> None:
    """A notice of a command or a URL takes a last checkpoint, like a signal."""
    flag = job.place / "preempted"
    with HTTPServer(("127.0.0.1", 0), _Metadata) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            _Metadata.notice = None
            port = server.server_port
            source = f"test -e {flag}" if how == "command" else f"http://127.0.0.1:{port}/action"
            job.start("--every", "1h", "--notice", source)
            job.until(lambda: _steps(job) > 0, "its first step")
            flag.touch()
            _Metadata.notice = "TRUE"
            assert job.wait() == INTERRUPTED
        finally:
            server.shutdown()
            thread.join()
    assert "notice" in job.events()
    assert job.directory.status().checkpoints == 1


def test_notices_that_cannot_be_received(job: RunningJob, tmp_path: Path) -> None:
    """Attempts that fail are reported once, and a command that does not exist is refused."""
    job.start("--every", "1h", "--notice", "http://127.0.0.1:1/x")
    job.until(lambda: "notice fails" in job.events(), "the event")
    assert job.finish() == 0
    assert job.events().count("notice fails") == 1
    assert job.messages().count("a notice of interruption would not be received: http") == 1
    words = ("--notice", "nonexistent_command", "--", "true")
    done = command_line("run", "--dir", str(tmp_path / "other"), *words)
    assert done.returncode == Exit.REFUSED
    assert "the command 'nonexistent_command' does not exist" in done.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(tmp_path: Path, closed: str) -> None:
    """The supervisor prints a message nowhere: not into a file of the job that has the number."""
    path = tmp_path / "job"
    command = f"until grep -q 'notice fails' {path}/events.jsonl; do sleep 0.05; done"
    code = (
        "from pycriu_native.jobs import Job; "
        f"job = Job({str(path)!r}, ['sh', '-c', {command!r}], notice='kill -9 $$'); "
        f"print(job.run().exit_code, file=open({str(tmp_path / 'code')!r}, 'w'))"
    )
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run(words, env=environment, check=False).returncode == 0
    assert (tmp_path / "code").read_text() == "0\n"
    assert (path / "lock").read_bytes() == b""


def test_no_time_for_a_last_checkpoint(job: RunningJob, tmp_path: Path) -> None:
    """If earlier checkpoints took longer than the remaining time, none is started."""
    process = job.start("--grace", "0.001")
    job.until(lambda: job.has_checkpoints(1), "a checkpoint")
    count = job.directory.status().checkpoints
    process.terminate()
    assert job.wait() == INTERRUPTED
    (no_time,) = (each for each in job.directory.events() if each["event"] == "no time")
    assert no_time["message"].endswith("and 0.0 s are left")
    assert "grace is short" in job.events()
    assert job.directory.status().checkpoints <= count + 1
    assert job.finish() == 0
    check_exact(job, tmp_path / "reference")


def test_the_progress_of_a_checkpoint(tmp_path: Path) -> None:
    """While a checkpoint is taken, the status has its phase and size; an event has its begin."""
    path = str(tmp_path / "job")
    script = tmp_path / "script"
    wait = f"while [ $CRTOOLS_SCRIPT_ACTION = post-dump ] && [ ! -e {tmp_path}/go ]"
    script.write_text(f"#!/bin/sh\n{wait}; do sleep 0.05; done\n")
    script.chmod(0o755)
    command = ["sh", "-c", f"while [ ! -e {tmp_path}/end ]; do sleep 0.05; done"]
    job = Job(path, command, every=0.1, options=CriuOpts(action_scripts=[str(script)]))
    running = threading.Thread(target=job.run)
    running.start()
    try:
        directory = JobDirectory(path)
        eventually(lambda: (directory.status().progress or NONE).total, "the progress of a dump")
        progress = directory.status().progress
        assert progress is not None
        assert progress.phase == "dump"
        assert "now          a checkpoint since" in command_line("job", "status", path).stdout
        follow = [sys.executable, "-m", "pycriu_native", "job", "status", path, "--follow"]
        following = subprocess.Popen([*follow, "--json"], stdout=subprocess.PIPE, text=True)
        assert following.stdout is not None
        first = json.loads(following.stdout.readline())
        assert first["progress"]["phase"] == "dump"
        with subprocess.Popen(follow, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as text:
            assert text.stdout is not None
            text.stdout.readline()
            text.send_signal(signal.SIGINT)
            assert text.wait() == Exit.DONE
            assert text.stderr is not None
            assert not text.stderr.read()
        events = [each["event"] for each in directory.events()]
        assert events == ["started", "checkpoint begun"]
    finally:
        (tmp_path / "go").touch()
        (tmp_path / "end").touch()
        running.join()
    assert directory.status().progress is None
    assert not (tmp_path / "job" / "progress.json").exists()
    assert json.loads(following.communicate()[0].splitlines()[-1])["result"]["state"] == "ended"
    beat = (tmp_path / "job" / "heartbeat.prom").read_text().split()[-1]
    assert float(beat) > 0


def test_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the directory of the job, from which the next run removes them."""
    user_namespace("--map-root-user")  # skips the test if root of one cannot read the package
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    before = elsewhere.stat().st_mtime_ns
    directory = JobDirectory(tmp_path / "job")
    rest = directory.temporary / "pycriu-native-check-of-a-killed-run"
    rest.mkdir(parents=True)
    (tmp_path / "job" / "job.json").write_text('{"command": ["sleep", "2"], "directory": "/"}')
    assert Job(directory.path, ["sleep", "2"], every=0.1, unprivileged=True).run().exit_code == 0
    assert directory.status().checkpoints > 0, directory.status().message
    assert elsewhere.stat().st_mtime_ns == before
    assert not list(directory.temporary.iterdir())


def test_a_daemon_outside_of_the_tree(tmp_path: Path) -> None:
    """A process outside of the tree would not be saved: the checkpoint fails with its name."""
    script = "(setsid sleep 1000 &) ; sleep 2"
    result = Job(tmp_path / "job", ["sh", "-c", script], every=3).run()
    assert result.exit_code == 0
    events = (tmp_path / "job" / "events.jsonl").read_text()
    assert "(sleep); start them without" in events
    assert '"event": "checkpoint"' not in events


def test_a_process_that_is_started_meanwhile(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A descendant that is forked while the processes are listed does not fail the checkpoint."""
    target = spawn("import os, time\nserve(fork=lambda: os.fork() or time.sleep(1000))")
    monkeypatch.setattr(checkpoints, "all_pids", lambda: [target.ask("fork")])
    checkpoints.check_strays(target.pid)


EXECUTOR = """
import pickle, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing import get_context

if __name__ == "__main__":
    job = pickle.loads(bytes.fromhex(sys.argv[1]))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        print([executor.submit(job).result().exit_code for _ in range(2)])
"""


def test_on_an_executor(tmp_path: Path) -> None:
    """A job can be pickled and run by any executor; a second run has no effect."""
    log = tmp_path / "log"
    job = Job(tmp_path / "job", ["sh", "-c", f"echo once >> {log}; exit 3"])
    assert pickle.loads(pickle.dumps(job)) == job
    done = subprocess.run(
        [sys.executable, "-c", EXECUTOR, pickle.dumps(job).hex()],
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout == b"[3, 3]\n"
    assert log.read_text() == "once\n"


REFUSED: dict[str, Callable[[Path], Job]] = {
    "every=0": lambda path: Job(path, ["true"], every=0),
    "keep=0": lambda path: Job(path, ["true"], keep=0),
    "command=": lambda path: Job(path, "true"),
    "interrupted_code=76": lambda path: Job(path, ["true"], interrupted_code=76),
    "also='log'": lambda path: Job(path, ["true"], also=["log"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_values_that_are_refused(tmp_path: Path, what: str) -> None:
    """The error names the field and the value, and nothing is created."""
    with pytest.raises(ValueError, match=what):
        REFUSED[what](tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_directories_that_are_refused(tmp_path: Path) -> None:
    """The directory of another command, and one with other files, are refused."""
    Job(tmp_path / "job", ["true"]).run()
    with pytest.raises(ValueError, match="is the directory of another command"):
        Job(tmp_path / "job", ["false"]).run()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data").touch()
    with pytest.raises(ValueError, match="it contains files of something else"):
        Job(tmp_path / "other", ["true"]).run()


STRAY = "(setsid sleep 1000 &) ; echo begun; while :; do sleep 0.01; done"
"""A process that is not saved, so that no checkpoint can be taken."""


def test_checkpoints_that_fail(job: RunningJob) -> None:
    """The reason is printed when the first one fails, and again at the end; stop reports it."""
    job.words = ["sh", "-c", STRAY]
    process = job.start("--every", "1")
    eventually(lambda: "a checkpoint failed: the command has started" in job.messages(), "it")
    words = [sys.executable, "-m", "pycriu_native", "job", "stop", job.path]
    assert subprocess.run(words, stdout=subprocess.DEVNULL).returncode == Exit.NO
    assert process.wait() == INTERRUPTED
    assert job.messages().count("a checkpoint failed:") == 1
    assert "checkpoints to resume from: 0; the last one failed: the command" in job.messages()


def test_what_a_run_prints_at_the_end(job: RunningJob) -> None:
    """An exit code, where the output is, and why a later run starts nothing."""
    job.words = ["sh", "-c", "exit 3"]
    job.start()
    assert job.wait() == 3
    assert f"has ended with 3; its output: pycriu-native job log {job.path}" in job.messages()
    job.start()
    assert job.wait() == 3
    assert f"nothing was started: remove {job.path} to run it again" in job.messages()


def test_a_program_that_does_not_exist(job: RunningJob) -> None:
    """The message names it."""
    job.words = ["/nonexistent/program"]
    job.start()
    assert job.wait() == Exit.FAILED
    assert "'/nonexistent/program' cannot be started: No such file" in job.messages()


def test_a_directory_that_others_can_change(tmp_path: Path) -> None:
    """The directory is refused before the command starts: no checkpoint could be taken there."""
    directory = tmp_path / "job"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(OptionError, match="no other user can change"):
        Job(directory, ["true"]).run()
    assert not os.listdir(directory)
