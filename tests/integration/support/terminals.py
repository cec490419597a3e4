"""Terminals whose master end the test holds, and sessions on them.

A :class:`Terminal` replaces a terminal emulator or an SSH server: it writes input, and reads
output. A :class:`Session` replaces a login shell (``session_leader.py``), which is the parent of
its job and owns the controlling terminal.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pycriu_native

from .processes import PATIENCE, kill

LEADER = Path(__file__).parents[1] / "programs" / "session_leader.py"


class Terminal:
    """The master end of a pty, as a terminal emulator uses it."""

    def __init__(self, master: int) -> None:
        self.master = master
        self.shown = ""
        """The output since the last input."""

    def type(self, text: str) -> None:
        """Write input, as keys do."""
        self.shown = ""
        os.write(self.master, text.encode())

    def foreground(self) -> int:
        """The foreground process group, which receives input and signals."""
        return os.tcgetpgrp(self.master)

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait for matching output, and return the match; ``^`` and ``$`` match at each line."""
        until = time.monotonic() + PATIENCE
        while True:
            result = re.search(pattern, self.shown, re.M)
            if result:
                return result
            remaining = max(0.0, until - time.monotonic())
            if not select.select([self.master], [], [], remaining)[0]:
                raise AssertionError(f"the terminal does not show {pattern!r}: {self.shown!r}")
            self.shown += os.read(self.master, 4096).decode(errors="replace").replace("\r", "")


class Session:
    """A session on a terminal, led by ``session_leader.py``."""

    def __init__(self, terminal: Terminal, slave: int, process: subprocess.Popen[bytes]) -> None:
        self.terminal = terminal
        self.slave = slave
        self.tty = os.ttyname(slave)
        """The path of the terminal."""
        self.job = 0
        """The pid of the leader's job, once the leader has reported it."""
        self._process = process

    def next_report(self) -> dict[str, Any]:
        """The leader's next report: ``pid``; ``status``; or ``error`` and ``message``."""
        assert self._process.stderr is not None
        report: dict[str, Any] = json.loads(self._process.stderr.readline())
        self.job = report.get("pid", self.job)
        return report

    def members(self) -> list[int]:
        """The running processes of the session, its leader last."""
        result = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                status = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(status[3]) == self._process.pid and status[0] != "Z":
                result.append(int(entry.name))
        return sorted(result, key=lambda pid: pid == self._process.pid)

    def end(self) -> None:
        """Kill all members."""
        while members := self.members():
            for pid in members:
                kill(pid)
        self._process.wait()


@contextmanager
def session(*arguments: object) -> Iterator[Session]:
    """A new terminal, and on it a session whose leader gets these arguments."""
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, str(LEADER), *map(str, arguments)],
        stdin=slave,
        stdout=slave,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(pycriu_native.__file__).parents[1]),
            "TERM": "dumb",  # no escape sequences between the words
        },
    )
    result = Session(Terminal(master), slave, process)
    try:
        yield result
    finally:
        result.end()
        assert process.stderr is not None
        process.stderr.close()
        os.close(master)
        os.close(slave)
