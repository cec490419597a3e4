"""The page server as a call: detached, and as a child."""

from __future__ import annotations

import os
import select
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    ImagesError,
    OptionError,
    WorkerDiedError,
    cpuinfo_check,
    cpuinfo_dump,
    dump,
    page_server,
    page_server_child,
    restore,
)

from .conftest import Spawn
from .support.features import needs_cpuinfo
from .support.processes import eventually, is_alive

LOOPBACK = "127.0.0.1"


def test_a_child_that_is_waited_for(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """The pages of a dump are written to the server's directory only; then the server ends."""
    target = spawn("memory = bytearray(b'x' * 2**20)\nserve(total=lambda: sum(memory))")
    total = target.ask("total")
    there = tmp_path / "there"
    server_opts = CriuOpts(images_directory=there, page_server=(LOOPBACK, 0))
    with page_server_child(server_opts) as server:
        assert server.result.port > 0
        with pytest.raises(TimeoutError):
            server.wait(timeout=0.05)
        to = f"{LOOPBACK}:{server.result.port}"
        dump(target.pid, CriuOpts(images_directory=images, page_server=to))
        assert server.wait() == 0
        assert server.wait() == 0
    target.reap()
    assert not list(images.glob("pages-*.img"))
    pages = list(there.glob("pages-*.img"))
    assert sum(file.stat().st_size for file in pages) > 2**20
    for file in images.iterdir():
        if not (there / file.name).exists():
            (there / file.name).write_bytes(file.read_bytes())
    restore(CriuOpts(images_directory=there))
    assert target.ask("total") == total


def test_closing_ends_the_server(tmp_path: Path) -> None:
    """``close`` ends a server without a client, and its port is free."""
    opts = CriuOpts(images_directory=tmp_path / "there", page_server=(LOOPBACK, 0))
    with page_server_child(opts) as server:
        assert is_alive(server.result.pid)
    server.close()
    eventually(lambda: not is_alive(server.result.pid), "the server's end")
    with socket.socket() as probe:
        probe.bind((LOOPBACK, server.result.port))


def test_closing_after_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``close`` kills no process whose pid CRIU has freed after a ``wait`` that timed out."""
    opts = CriuOpts(images_directory=tmp_path / "there", page_server=(LOOPBACK, 0))
    killed: list[int] = []
    with page_server_child(opts) as server:
        with pytest.raises(TimeoutError):
            server.wait(timeout=0.05)
        os.kill(server.result.pid, signal.SIGKILL)
        assert server._connection is not None
        select.select([server._connection.fd], [], [])
        monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    assert killed == []


def test_waiting_after_the_end_of_criu(tmp_path: Path) -> None:
    """It is an error with the cause, and no ``BrokenPipeError``."""
    opts = CriuOpts(images_directory=tmp_path / "there", page_server=(LOOPBACK, 0))
    with page_server_child(opts) as server:
        assert server._connection is not None
        for pid in (server.result.pid, server._connection.pid):
            os.kill(pid, signal.SIGKILL)
        select.select([server._connection.fd], [], [])
        with pytest.raises(WorkerDiedError, match="ended before the page server"):
            server.wait(10)


def test_detached(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """A detached server serves one dump, and ends."""
    target = spawn()
    there = tmp_path / "there"
    server = page_server(CriuOpts(images_directory=there, page_server=f"{LOOPBACK}:0"))
    assert is_alive(server.pid)
    to = (LOOPBACK, server.port)
    dump(target.pid, CriuOpts(images_directory=images, page_server=to, leave_running=True))
    eventually(lambda: not is_alive(server.pid), "the server's end")
    assert list(there.glob("pages-*.img"))
    assert target.runs_on()


def test_only_the_given_address(tmp_path: Path) -> None:
    """Without an address CRIU would listen on all of them: this is refused, and so is a
    host name.
    """
    for where in [("", 0), ("localhost", 0)]:
        with pytest.raises(OptionError, match="page_server"):
            page_server(CriuOpts(images_directory=tmp_path / "there", page_server=where))
    with pytest.raises(OptionError, match="every address"):
        page_server(CriuOpts(images_directory=tmp_path / "there"))
    assert not (tmp_path / "there").exists()
    opts = CriuOpts(images_directory=tmp_path / "there", page_server=(LOOPBACK, 0))
    with page_server_child(opts) as server:
        inodes = {
            os.readlink(f"/proc/{server.result.pid}/fd/{fd}")
            for fd in os.listdir(f"/proc/{server.result.pid}/fd")
        }
        listening = [
            line.split()[1]
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if line.split()[3] == "0A" and f"socket:[{line.split()[9]}]" in inodes
        ]
        assert listening == [f"0100007F:{server.result.port:04X}"]


@pytest.mark.cures("page-server-bind")
def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """The error names the port; on another port the server starts."""
    opts = CriuOpts(images_directory=tmp_path / "there", page_server=(LOOPBACK, 0))
    with socket.create_server((LOOPBACK, 0)) as other:
        taken = replace(opts, page_server=other.getsockname())
        with pytest.raises(CriuError, match="choose another port") as caught:
            page_server(taken)
        assert caught.value.options == ("page_server",)
    with page_server_child(opts) as server:
        assert is_alive(server.result.pid)


@needs_cpuinfo
@pytest.mark.cures("no-cpuinfo")
def test_cpuinfo(images: Path) -> None:
    """The features of this processor are written, and match it; without them the cure is named."""
    opts = CriuOpts(images_directory=images)
    images.mkdir(exist_ok=True)
    with pytest.raises(ImagesError, match="run cpuinfo_dump"):
        cpuinfo_check(opts)
    assert cpuinfo_dump(opts).images == str(images)
    assert (images / "cpuinfo.img").stat().st_size > 0
    cpuinfo_check(opts)
