"""Support for programs ported from C, which call libcriu's functions through ``lib``.

Each runs in a process of its own: libcriu forks its caller, has static state, and has one set of
hooks and global options for each process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from pycriu_native import Worker, ffi, lib

ROOT = Path(__file__).parents[3]

START = (
    "import errno, os, sys\n"
    "from tests.integration.support.ported import begin, ffi, lib, scripted, tell\n"
)


def words(program: str, *arguments: object) -> list[str]:
    """The command of a program, which begins with START."""
    return [sys.executable, "-c", START + textwrap.dedent(program), *map(str, arguments)]


def environment() -> dict[str, str]:
    """The environment in which it finds this module."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(program: str, *arguments: object) -> list[Any]:
    """Run a program that ends with ``tell``, and return its report."""
    ended = subprocess.run(
        words(program, *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        env=environment(),
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    message: list[Any] = json.loads(ended.stdout.splitlines()[-1])  # CRIU prints there too
    return message


# ---- in the program ----


def tell(*values: object) -> None:
    """Send a report to the test."""
    print(json.dumps(values))


def begin(images: str | None = None, pid: int | str | None = None, log: str | None = None) -> None:
    """Initialize the global options, with what every call needs."""
    assert lib.criu_init_opts() == 0
    assert lib.criu_set_service_binary(os.fsencode(Worker().name())) == 0
    if images is not None:
        os.makedirs(images, exist_ok=True)
        lib.criu_set_images_dir_fd(os.open(images, os.O_RDONLY | os.O_DIRECTORY))
    if pid is not None:
        lib.criu_set_pid(int(pid))
    if log is not None:
        assert lib.criu_set_log_file(os.fsencode(log)) == 0


def scripted(*answers: str) -> tuple[int, Any]:
    """A descriptor for ``criu_set_service_fd`` with prepared responses, given in hexadecimal.

    The second value returns the types of the received requests.
    """
    import socket

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for answer in answers:
        ours.send(bytes.fromhex(answer))

    def requests() -> list[int]:
        ours.setblocking(False)
        result: list[int] = []
        while True:
            try:
                message = ours.recv(65536)
            except ConnectionResetError:
                continue  # a response was not read; the requests are still there
            except BlockingIOError:
                return result
            if not message:
                return result
            result.append(message[1])  # the first field is the type

    return theirs.detach(), requests


__all__ = ["begin", "environment", "ffi", "lib", "run", "scripted", "tell", "words"]
