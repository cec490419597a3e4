"""Source and destination of migrations: separate hosts and a process to migrate."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycriu_native import CriuOpts, MigrationResult, migrate_out

from .hosts import Host, run
from .processes import PATIENCE, Target, children_of, is_alive, kill, state

SOURCE_TREE = Path(__file__).parents[3]


@dataclass
class Destination:
    """``destination.py`` on another host: network, pid and mount namespaces of its own."""

    process: subprocess.Popen[bytes]
    address: str
    temporary: Path
    reports: list[dict[str, Any]] = field(default_factory=list)

    def next(self) -> dict[str, Any]:
        """Its next report."""
        assert self.process.stdout is not None
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        assert poll.poll(PATIENCE * 1000), f"the destination sends nothing after {self.reports}"
        line = self.process.stdout.readline()
        assert line, f"the destination ended after {self.reports}"
        report: dict[str, Any] = json.loads(line)
        self.reports.append(report)
        return report

    def until(self, *names: str) -> dict[str, Any]:
        """Its first report with one of these keys."""
        while True:
            message = self.next()
            if any(name in message for name in names):
                return message

    @property
    def place(self) -> tuple[str, int]:
        """Its address and port."""
        return self.address, next(report["port"] for report in self.reports if "port" in report)

    @property
    def init(self) -> int:
        """The pid, in the caller's namespace, of the first process of its pid namespace."""
        [pid] = children_of(self.process.pid)
        return pid

    def pids(self) -> dict[int, str]:
        """The processes in its pid namespace that are no zombies: pid for the caller, command."""
        expected = os.readlink(f"/proc/{self.process.pid}/ns/pid_for_children")
        result = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(entry / "ns/pid") == expected and state(int(entry.name)) != "Z":
                    result[int(entry.name)] = (entry / "comm").read_text().strip()
        return result

    def go_on(self) -> None:
        """End its wait."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def is_clean(self) -> bool:
        """Whether only it and its parent run there, and its files are removed."""
        ours = {self.init, *self._children(self.init)}
        return set(self.pids()) <= ours and not os.listdir(self.temporary)

    def _children(self, pid: int) -> list[int]:
        """Its children that run ``destination.py``: no restored process and no watchdog."""
        result = []
        for one in children_of(pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                if (
                    b"tests.integration.programs.destination"
                    in Path(f"/proc/{one}/cmdline").read_bytes()
                ):
                    result.append(one)
        return result

    @property
    def pid(self) -> int:
        """The caller's pid of the process that runs ``migrate_in``."""
        return self._children(self.init)[0]

    def inside(self, pid: int) -> int:
        """The caller's pid of a process with this pid there."""
        for one in self.pids():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{one}/status").read_text()
                if re.search(rf"^NSpid:.*\b{pid}$", text, re.M):
                    return one
        raise AssertionError(f"no process {pid} there")


@contextlib.contextmanager
def destination(
    there: Host, address: str, directory: Path, opts: dict[str, Any] | None = None, **given: Any
) -> Iterator[Destination]:
    """Start a destination; it listens when the context is entered."""
    temporary = directory / "there"
    temporary.mkdir()
    arguments = {"opts": opts or {}, "listen": address, "temporary": str(temporary), **given}
    enter = ["nsenter", f"--net={there.path}"] if there.name else []
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    unshare += ["--propagation", "private"]
    with open(directory / "there.err", "wb") as errors:
        process = subprocess.Popen(
            [
                *enter,
                *unshare,
                sys.executable,
                "-m",
                "tests.integration.programs.destination",
                json.dumps(arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=SOURCE_TREE,
            bufsize=0,
            start_new_session=True,
        )
    made = Destination(process, address, temporary)
    try:
        made.next()
        yield made
    finally:
        with contextlib.suppress(OSError, ValueError):
            kill(made.init)
        kill(process.pid)
        process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()


@contextlib.contextmanager
def shaped(address: str, rate: str) -> Iterator[None]:
    """Limit the rate of data to an address, so that pages take time."""
    words = run("ip", "-o", "route", "get", address).split()
    device = words[words.index("dev") + 1]
    shape = ["rate", rate, "burst", "256kb", "latency", "400ms"]
    run("tc", "qdisc", "add", "dev", device, "root", "tbf", *shape)
    try:
        yield
    finally:
        run("tc", "qdisc", "del", "dev", device, "root")


class Leaving:
    """A ``migrate_out`` in a separate thread."""

    def __init__(self, target: Target, there: Destination, **given: Any) -> None:
        self.error: BaseException | None = None
        self.result: MigrationResult | None = None
        self._thread = threading.Thread(target=self._run, args=(target, there, given))
        self._thread.start()

    def _run(self, target: Target, there: Destination, given: dict[str, Any]) -> None:
        opts = given.pop("opts", CriuOpts())
        try:
            self.result = migrate_out(target.pid, opts, to=there.place, **given)
        except BaseException as error:
            self.error = error

    @property
    def under_way(self) -> bool:
        """Whether it still runs."""
        return self._thread.is_alive()

    def join(self) -> BaseException | None:
        """Wait for its end and return its error."""
        self._thread.join()
        return self.error


def far_pid() -> None:
    """Give the next process a pid that is also free in a new pid namespace."""
    Path("/proc/sys/kernel/ns_last_pid").write_text("20000")


@contextlib.contextmanager
def reaped(target: Target) -> Iterator[None]:
    """Reap the target as soon as it ends, as a parent has to."""
    thread = threading.Thread(target=target.process.wait)
    thread.start()
    yield
    if is_alive(target.pid):
        os.kill(target.pid, signal.SIGKILL)
    thread.join()
