"""Jobs for tests: started by the command line, killed, and compared with an uninterrupted run."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pycriu_native.jobs.directory import JobDirectory

from .processes import PATIENCE, eventually, is_alive, tree

STEPPER = Path(__file__).parents[1] / "programs" / "stepper.py"
PAUSE = "0.01"
OURS = ("command line", "in between", "supervisor")
"""The processes of a job before its command, the oldest first."""


def command_line(*words: str) -> subprocess.CompletedProcess[str]:
    """Run ``pycriu-native`` with these words."""
    return subprocess.run(
        [sys.executable, "-m", "pycriu_native", *words], capture_output=True, text=True, check=False
    )


@dataclass
class RunningJob:
    """A job in a separate directory."""

    place: Path
    prefix: Sequence[str] = ()
    """Words before the command line, such as ``setpriv``."""
    options: Sequence[str] = ("--every", "0.4", "--grace", "30")
    steps: int = 10**9
    python: str = sys.executable
    """The Python of the command."""
    words: list[str] = field(default_factory=list, init=False)
    """Another command than the usual one."""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        self.directory = JobDirectory(self.place / "job")
        self.path = str(self.directory.path)

    @property
    def command(self) -> list[str]:
        return self.words or [self.python, str(STEPPER), str(self.place), str(self.steps), PAUSE]

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """Start or resume it."""
        words = [sys.executable, "-m", "pycriu_native", "run", "--dir", self.path]
        words += ["--also", str(self.place / "out" / "*"), *self.options, *more]
        if "1h" in words and "--first" not in words:
            words += ["--first", "1h"]  # no checkpoint unless it is requested
        with open(self.place / "messages", "ab") as messages:
            self.process = subprocess.Popen(
                [*self.prefix, *words, "--", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
            )
        return self.process

    def messages(self) -> str:
        """The messages of the command line."""
        return (self.place / "messages").read_text()

    def wait(self) -> int:
        """The exit code of the command line, after all processes of the job have ended."""
        assert self.process is not None
        code = self.process.wait(PATIENCE * 2)
        eventually(lambda: not self.directory.is_busy(), "the end of the supervisor")
        return code

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something while the job runs."""

        def look() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.messages()
            return bool(condition())

        eventually(look, what)

    def has_begun(self) -> bool:
        """Whether the command has written output."""
        path = self.directory.path / "stdout"
        return path.exists() and path.stat().st_size > 0

    def events(self) -> list[str]:
        """The names of its events."""
        return [each["event"] for each in self.directory.events()]

    def messages_of(self, event: str) -> list[str]:
        """The messages of its events with this name."""
        return [each["message"] for each in self.directory.events() if each["event"] == event]

    def has_checkpoints(self, number: int) -> bool:
        return self.directory.status().checkpoints >= number

    def processes(self) -> list[int]:
        """The command line and its descendants, each after its parent."""
        assert self.process is not None
        return tree(self.process.pid)

    def criu(self) -> list[int]:
        """The processes of CRIU that work for it."""
        return [
            pid for number, pid in enumerate(self.processes()) if self.kind(number, pid) == "criu"
        ]

    def end(self) -> None:
        """Kill it."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.wait()

    def finish(self) -> int:
        """End the command, and resume it first if it is interrupted; returns its exit code."""
        (self.place / "finish").touch()
        return self.wait() if self.process and self.process.poll() is None else self._resumed()

    def _resumed(self) -> int:
        self.start()
        return self.wait()

    def kill_one(self, rng: random.Random) -> str:
        """Kill one process of the job at random; returns its kind."""
        pids = self.processes()
        kinds = {pid: self.kind(number, pid) for number, pid in enumerate(pids)}
        kind = rng.choice(sorted(set(kinds.values())))
        pid = rng.choice([pid for pid in pids if kinds[pid] == kind])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return kind

    def kind(self, number: int, pid: int) -> str:
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return "gone"
        if name == "criu":
            return "criu"
        if os.fsencode(STEPPER) in words.split(b"\0")[:2]:
            return "command"
        return OURS[number] if number < len(OURS) else "helper"


def contents(place: Path) -> dict[str, object]:
    """The contents of the files that the command has written, and the rows of its database."""
    result: dict[str, object] = {}
    for path in sorted((place / "out").iterdir()):
        if path.name == "database":
            with contextlib.closing(sqlite3.connect(path)) as database:
                assert [*database.execute("pragma integrity_check")] == [("ok",)]
                result[path.name] = [*database.execute("select * from rows order by number")]
        else:
            result[path.name] = path.read_bytes()
    return result


def check_exact(job: RunningJob, reference: Path) -> int:
    """Compare the files of a job with those of an uninterrupted run of the same number of steps.

    Returns that number.
    """
    steps = int((job.place / "steps").read_text())
    reference.mkdir()
    with open(reference / "stdout", "wb") as stdout:
        words = [sys.executable, str(STEPPER), str(reference), str(steps), "0"]
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=stdout, check=True)
    assert contents(job.place) == contents(reference)
    assert (job.directory.path / "stdout").read_bytes() == (reference / "stdout").read_bytes()
    return steps


def nothing_runs(job: RunningJob) -> bool:
    """Whether no process of the job's command is left on this machine."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and is_alive(int(name)):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                if os.fsencode(STEPPER) in words and os.fsencode(job.place) in words:
                    return False
    return True
