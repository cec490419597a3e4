"""Signals to a job at any time: during its start, its resumption, a dump, and its end."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pycriu_native.jobs import INTERRUPTED, Job, State, pending_signals
from pycriu_native.jobs.control import request_checkpoint

from .support.jobs import RunningJob, check_exact, nothing_runs
from .support.processes import PATIENCE, eventually

SIGNALS = int(os.environ.get("PYCRIU_NATIVE_JOB_SIGNALS", "3"))
"""Signals in each test with random times; ``make test-jobs`` uses 50."""

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _size_of_events(job: RunningJob) -> int:
    path = job.directory.path / "events.jsonl"
    return path.stat().st_size if path.exists() else 0


def _to_one(job: RunningJob, number: int) -> None:
    assert job.process is not None
    job.process.send_signal(number)


def _to_all(job: RunningJob, number: int) -> None:
    """Send a signal to all processes, as schedulers do."""
    for pid in job.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.parametrize("storage", [False, True], ids=["local", "storage"])
@pytest.mark.parametrize("send", [_to_one, _to_all])
def test_at_random_instants(
    job: RunningJob, tmp_path: Path, send: Callable[[RunningJob, int], None], storage: bool
) -> None:
    """The exit code is 75 after the handlers are installed; before that nothing is started; the
    final output is exact.
    """
    if storage:
        pytest.importorskip("fsspec", reason="the storage of jobs needs fsspec")
        job.options = (*job.options, "--storage", str(tmp_path / "storage"))
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    codes: dict[int, int] = {}
    for _ in range(SIGNALS):
        before = _size_of_events(job)
        process = job.start()
        at = rng.choice(["start", "restore or dump", "later"])
        if at == "restore or dump":
            job.until(job.criu, "CRIU at work")
        elif at == "later":
            number = job.directory.status().checkpoints + 1
            job.until(lambda number=number: job.has_checkpoints(number), "a checkpoint")  # type: ignore[misc]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, 1.5 if at == "start" else 0.3))
        stop = rng.choice(STOPPING)
        handled = _catches(process.pid, signal.SIGUSR1)  # Python itself has a handler of SIGINT
        send(job, stop)
        code = job.wait()
        codes[code] = codes.get(code, 0) + 1
        story = f"seed {seed}, {stop!r} at {at}: {code}, {job.messages()}"
        if handled:
            assert code == INTERRUPTED, story
        elif code != INTERRUPTED:  # Python prints a traceback if SIGINT comes while it starts
            assert code == -stop or (stop == signal.SIGINT and code == 1), story
            assert _size_of_events(job) == before, story
        assert not job.directory.path.exists() or job.directory.status().state in (
            *(State.NEW, State.INTERRUPTED),
        )
        eventually(lambda: nothing_runs(job), f"the end of the command ({story})")
    assert job.finish() == 0, (seed, job.messages())
    steps = check_exact(job, tmp_path / "reference")
    print(f"{SIGNALS} signals, exit codes {codes}, {steps} steps")


HANDLED = "trap 'exit 7' TERM; echo begun; while :; do sleep 0.01; done"


@pytest.mark.parametrize("send", [_to_one, _to_all])
def test_a_command_that_handles_it(
    job: RunningJob, send: Callable[[RunningJob, int], None]
) -> None:
    """An exit code other than 0 after a signal counts as an interruption, and no checkpoint is
    removed.
    """
    job.words = ["sh", "-c", HANDLED]
    job.start("--every", "1h")
    begun = job.directory.path / "stdout"
    job.until(lambda: begun.exists() and begun.stat().st_size, "its start")
    send(job, signal.SIGTERM)
    assert job.wait() == INTERRUPTED
    assert job.directory.status().state is State.INTERRUPTED


WITH_PENDING_SIGNALS = """
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.kill(os.getpid(), signal.SIGUSR1)
signal.setitimer(signal.ITIMER_REAL, 0.01)
while len(signal.sigpending()) < 2:
    time.sleep(0.01)
print("begun", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
print(*sorted(each.name for each in signal.sigpending()), flush=True)
"""


def test_pending_in_the_command(job: RunningJob) -> None:
    """A signal that was sent to all processes is not pending in the resumed command; those that the
    command has sent to itself are.
    """
    job.words = [sys.executable, "-c", WITH_PENDING_SIGNALS, str(job.place / "finish")]
    job.start("--every", "1h")
    output = job.directory.path / "stdout"
    job.until(lambda: output.exists() and output.stat().st_size, "its start")
    command = job.processes()[-1]
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGWINCH):
        os.kill(command, number)
    _to_all(job, signal.SIGTERM)
    assert job.wait() == INTERRUPTED
    assert job.finish() == 0
    assert output.read_text().split() == ["begun", "SIGALRM", "SIGUSR1", "SIGWINCH"]


RECEIVES = """
import os, signal, sys, time
received = []
signal.signal(signal.SIGTERM, lambda *_: received.append(1))
print("begun", flush=True)
while not received:
    time.sleep(0.01)
    if os.path.exists(sys.argv[1] + "/finish"):
        sys.exit(0)
print("received", flush=True)
while not os.path.exists(sys.argv[1] + "/finish"):
    time.sleep(0.01)
"""
ENDS = {
    "exit code": "sys.exit(7)",
    "signal": "signal.signal(signal.SIGTERM, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGTERM)",
}


def _has_uploaded(job: RunningJob, number: int) -> bool:
    status = job.directory.storage_status()
    return status is not None and status.uploaded == number


@pytest.mark.parametrize("before", [0, 1], ids=["the first", "a later one"])
@pytest.mark.parametrize("where", ["here", "another host"])
@pytest.mark.parametrize("end", ENDS)
def test_received_before_the_last_checkpoint(
    job: RunningJob, tmp_path: Path, end: str, where: str, before: int
) -> None:
    """If the command has received the signal, and is saved before it ends, the job is resumed from
    the checkpoint before, or starts over. That checkpoint is not removed.
    """
    if where == "another host":
        pytest.importorskip("fsspec", reason="the storage of jobs needs fsspec")
        job.options = (*job.options, "--storage", str(tmp_path / "storage"))
    job.options = (*job.options, "--every", "1h", "--keep", "1")
    job.words = [sys.executable, "-c", RECEIVES + ENDS[end], str(job.place)]
    job.start()
    output = job.directory.path / "stdout"
    job.until(lambda: output.exists() and output.stat().st_size, "its start")
    if before:
        job.until(lambda: job.directory.status().state is State.RUNNING, "its state")
        request_checkpoint(job.directory, PATIENCE)
        if where == "another host":
            job.until(lambda: _has_uploaded(job, 1), "its upload")
    os.kill(job.processes()[-1], signal.SIGTERM)
    job.until(lambda: "received" in output.read_text(), "the handler")
    _to_one(job, signal.SIGTERM)
    assert job.wait() == INTERRUPTED
    assert job.directory.status().checkpoints == before + 1
    if where == "another host":
        shutil.rmtree(job.directory.path)
    assert job.finish() == 0, job.messages()
    events = job.events()
    assert events.count("checkpoint doubted") == 1
    assert (job.directory.status().restarted == 0) is bool(before)
    assert output.read_text() == "begun\n"


def test_a_failure_of_its_own(job: RunningJob) -> None:
    """A command that fails again after the resumption from an earlier checkpoint has ended."""
    code = (
        "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)\nsys.exit(7)"
    )
    job.words = [sys.executable, "-c", code, str(job.place / "finish")]
    job.start("--every", "1h")
    job.until(lambda: job.directory.status().state is State.RUNNING, "its start")
    for _ in range(2):
        request_checkpoint(job.directory, PATIENCE)
    _to_one(job, signal.SIGUSR1)
    assert job.wait() == INTERRUPTED
    assert job.finish() == 7
    status = job.directory.status()
    assert (status.state, status.resumed, status.restarted) == (State.ENDED, 2, 0)


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\0" * 8 + b"\3\0\0\0\x1d\0\0", b"\0" * 12])
def test_an_image_of_another_form(tmp_path: Path, data: bytes) -> None:
    """The image is not changed, and the checkpoint is kept: the dump can have ended the command."""
    image = tmp_path / "core-5.img"
    image.write_bytes(data)
    pending_signals.remove(tmp_path)
    assert image.read_bytes() == data


def test_an_exit_code_of_its_own(tmp_path: Path) -> None:
    """75, and 128 plus a signal's number, are treated like other exit codes of the command."""
    for code in (75, 128 + signal.SIGTERM):
        result = Job(tmp_path / str(code), ["sh", "-c", f"exit {code}"]).run()
        assert (result.state, result.exit_code) == (State.ENDED, code)


def test_before_the_start(job: RunningJob, tmp_path: Path) -> None:
    """Nothing is started or resumed, no checkpoint is removed, and the next run continues."""
    process = job.start("--every", "1h")
    eventually(lambda: _catches(process.pid, signal.SIGUSR1), "its handlers")
    process.send_signal(signal.SIGUSR1)
    assert job.wait() == INTERRUPTED
    assert "SIGUSR1 was received before the command was started" in job.messages()
    assert not (job.directory.path / "stdout").exists()
    assert job.finish() == 0
    assert job.directory.status().restarted == 0
    check_exact(job, tmp_path / "reference")


def test_while_another_one_runs_it(job: RunningJob) -> None:
    """A run that waits for the job to be free ends at once, and starts nothing."""
    code = (
        "import sys\nfrom pycriu_native.jobs import Job\n"
        "sys.exit(Job(sys.argv[1], sys.argv[2:]).run(wait=None).exit_code)"
    )
    first = job.start("--every", "1h")
    job.until(lambda: job.directory.status().state is State.RUNNING, "its start")
    words = [sys.executable, "-c", code, job.path, *job.command]
    with subprocess.Popen(words, cwd=job.place) as second:
        eventually(lambda: _catches(second.pid, signal.SIGTERM), "its handlers")
        second.terminate()
        assert second.wait(60) == 77
    assert first.poll() is None


def test_handlers_of_the_caller(tmp_path: Path) -> None:
    """After a run the caller's handlers are restored."""
    before = [signal.getsignal(number) for number in (*STOPPING, signal.SIGUSR2)]
    assert Job(tmp_path / "job", ["true"]).run().exit_code == 0
    assert [signal.getsignal(number) for number in (*STOPPING, signal.SIGUSR2)] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_signals_of_the_command(tmp_path: Path) -> None:
    """The command has no blocked or ignored signals."""
    Job(tmp_path / "job", ["cat", "/proc/self/status"]).run()
    lines = dict(
        line.split(":\t") for line in (tmp_path / "job" / "stdout").read_text().splitlines()
    )
    assert int(lines["SigBlk"], 16) == 0
    ignored = int(lines["SigIgn"], 16)
    assert not [number for number in STOPPING if ignored >> (number - 1) & 1]


ENDS_MEANWHILE = """
import os, sys
print("started", flush=True)
while not os.path.exists(sys.argv[1]):
    pass
"""


def test_an_end_at_the_last_checkpoint(job: RunningJob) -> None:
    """A command that ends when its last checkpoint has begun has ended: that is no failure."""
    progress = job.directory.path / "progress.json"
    job.words = [sys.executable, "-c", ENDS_MEANWHILE, str(progress)]
    process = job.start("--every", "1h", "--first", "1h")
    output = job.directory.path / "stdout"
    job.until(lambda: output.exists() and output.stat().st_size, "its start")
    process.terminate()
    assert job.wait() in (0, INTERRUPTED), job.messages()
    assert job.directory.status().failures == 0
    assert "a checkpoint failed" not in job.messages()
