"""A lazy dump serves its pages on the requested address only.

CRIU up to 4.2 ignores the address in the request, so the call also writes it to a configuration
file.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, Notification, Notify, dump

from .conftest import Spawn
from .support.features import needs_lazy_pages
from .support.processes import children


class _Enough(Exception):
    """The exception of the hook when it has seen the address of CRIU."""


def _listening() -> list[str]:
    """The listening addresses of child processes, in the form of /proc/net/tcp."""
    inodes = set()
    for pid in children():
        for fd in os.scandir(f"/proc/{pid}/fd"):
            inodes.add(os.readlink(fd.path))
    return [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and f"socket:[{line.split()[9]}]" in inodes
    ]


@needs_lazy_pages
@pytest.mark.parametrize("own_file", [False, True], ids=["", "with a file of the caller's"])
def test_only_the_given_address(spawn: Spawn, images: Path, tmp_path: Path, own_file: bool) -> None:
    """CRIU listens on loopback only; after the refusal of the hook, the process continues with all
    of its memory.
    """
    target = spawn("memory = bytearray(2**20)\nserve(size=lambda: len(memory))")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    seen: list[str] = []

    def hook(notification: Notification) -> None:
        if notification.action is Notify.STATUS_READY:
            seen.extend(_listening())
            raise _Enough

    config = tmp_path / "criu.conf"
    config.write_text("log-pid\n")
    opts = CriuOpts(
        images_directory=images,
        lazy_pages=True,
        page_server=("127.0.0.1", port),
        config_file=config if own_file else None,
    )
    with pytest.raises(_Enough):
        dump(target.pid, opts, on_notify=hook)
    assert seen == [f"0100007F:{port:04X}"]
    assert target.ask("size") == 2**20
    assert target.runs_on()


ECHO = """
    import socket
    line = socket.create_connection(("127.0.0.1", {port}))

    def echo():
        line.sendall(b"x")
        return line.recv(1).decode()

    serve(echo=echo)
"""


@needs_lazy_pages
def test_connections_outlive_a_lazy_dump_that_is_undone(spawn: Spawn, images: Path) -> None:
    """CRIU would leave them locked and in repair mode; the table of the lock is removed, too."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = spawn(ECHO.format(port=server.getsockname()[1]))
        line, _ = server.accept()

        def hook(notification: Notification) -> None:
            if notification.action is Notify.STATUS_READY:
                raise _Enough

        opts = CriuOpts(
            images_directory=images,
            lazy_pages=True,
            page_server=("127.0.0.1", 7099),
            tcp_established=True,
            network_lock="nftables",
        )
        with line:
            with pytest.raises(_Enough):
                dump(target.pid, opts, on_notify=hook)
            line.sendall(b"y")
            assert target.ask("echo") == "y"
            assert line.recv(1) == b"x"
