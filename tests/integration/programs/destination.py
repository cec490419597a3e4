"""The destination of a migration: a program on a host of its own.

``python -m tests.integration.programs.destination JSON`` calls ``migrate_in`` and reports on
standard output, one JSON value a line, its address, each notification, and the result or the error
with what was left behind. It then runs until its standard input ends, since its pid namespace is
also that of the restored process. In JSON are ``opts``, ``listen`` (address and port),
and, for tests that break things, ``die_at``, the notification at which it is killed, ``wait_at``,
at which it waits for a line, ``raise_at``, at which its hook refuses, ``hide``, a directory that is
empty there, and ``program``, the ``criu`` to use.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pycriu_native import (
    CriuError,
    CriuOpts,
    Notification,
    Worker,
    migrate_in,
)


def say(**what: Any) -> None:
    """Report one value to the test."""
    print(json.dumps(what), flush=True)


def left_behind(before: set[str]) -> dict[str, Any]:
    """New processes, descriptors and temporary files since the start."""
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            descriptors[name] = os.readlink(f"/proc/self/fd/{name}")
    processes = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                processes[entry.name] = (entry / "comm").read_text().strip()
    return {
        "processes": processes,
        "descriptors": sorted(set(descriptors.values())),
        "files": sorted(set(os.listdir(tempfile.gettempdir())) - before),
    }


def main() -> None:
    """Run as the first process of the namespace; a child receives the migration."""
    given = json.loads(sys.argv[1])
    if "hide" in given:
        subprocess.run(["mount", "-t", "tmpfs", "hidden", given["hide"]], check=True)
    child = os.fork()
    if not child:
        arrive(given)
        return
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.01)


def arrive(given: dict[str, Any]) -> None:
    """Receive one process."""
    tempfile.tempdir = given["temporary"]
    before = set(os.listdir(tempfile.gettempdir()))

    def hook(notification: Notification) -> None:
        say(notification=str(notification.action))
        if notification.action == given.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if notification.action == given.get("wait_at"):
            sys.stdin.readline()
        if notification.action == given.get("raise_at"):
            raise RuntimeError("the hook refuses")

    family = socket.AF_INET6 if ":" in given["listen"] else socket.AF_INET
    with socket.create_server((given["listen"], 0), family=family) as listener:
        say(port=listener.getsockname()[1], pid=os.getpid(), **left_behind(before))
        try:
            result = migrate_in(
                CriuOpts.from_dict(given["opts"]),
                listen=listener,
                on_notify=hook,
                via=Worker(program=given.get("program")),
                **given.get("arguments", {}),
            )
        except (CriuError, RuntimeError) as error:
            message: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
        else:
            message = {
                "result": result.pid,
                "pages": result.page_bytes,
                "images": result.image_bytes,
                "phases": list(result.phases),
            }
    say(**message, **left_behind(before))
    sys.stdin.read()


if __name__ == "__main__":
    main()
