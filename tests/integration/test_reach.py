"""Connections to CRIU: a worker, a running service, a descriptor of the caller."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    OptionError,
    ProgramNotFoundError,
    Service,
    Socket,
    check,
    dump,
    feature_check,
    restore,
    restore_child,
    version,
)
from pycriu_native._transport.program import find_program

from .conftest import Spawn
from .support.processes import eventually, kill
from .support.workers import start_worker


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A ``criu service`` of this test."""
    address = tmp_path / "service.socket"
    process = subprocess.Popen(
        [find_program(), "service", "--address", str(address), "-W", str(tmp_path), "-o", "log"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(address.exists, "the service's socket")
        yield Service(address)
    finally:
        kill(process.pid)
        process.wait()


def test_a_service(service: Service, spawn: Spawn, images: Path) -> None:
    """Every call works with a running service."""
    assert version(via=service) == version()
    assert feature_check(via=service) == feature_check()
    check(via=service)
    target = spawn()
    opts = CriuOpts(images_directory=images)
    received: list[str] = []
    target.dump(opts, via=service, on_notify=lambda n: received.append(n.action))
    assert "post-dump" in received
    assert restore(opts, via=service).pid == target.pid
    assert target.runs_on()


@pytest.mark.cures("file-kind")
def test_a_fifo_instead_of_a_file(service: Service, spawn: Spawn, images: Path) -> None:
    """A service may have another file system: CRIU finds the FIFO, and its error is explained."""
    target = spawn('file = open(HERE / "file", "w+")\nserve()')
    opts = CriuOpts(images_directory=images)
    target.dump(opts, via=service)
    path = target.directory / "file"
    saved = path.rename(target.directory / "saved")
    os.mkfifo(path)
    with pytest.raises(CriuError, match="a FIFO is where a file was") as caught:
        restore(opts, via=service)
    assert caught.value.cure == "put the file back as it was"
    saved.replace(path)
    assert restore(opts, via=service).pid == target.pid
    assert target.runs_on()


def test_what_a_service_cannot_do(service: Service, images: Path) -> None:
    """Child processes and inherited descriptors are refused by name, before a request is sent."""
    images.mkdir()
    opts = CriuOpts(images_directory=images)
    with pytest.raises(OptionError, match="cannot restore the caller"):
        restore_child(opts, via=service)
    with open(os.devnull) as null, pytest.raises(OptionError, match="cannot inherit"):
        restore(CriuOpts(images_directory=images, inherit_fds=[(null, "pipe:[1]")]), via=service)


def test_no_service(tmp_path: Path) -> None:
    """A missing socket, and one without a listener, are reported."""
    with pytest.raises(ProgramNotFoundError, match="no criu service"):
        version(via=Service(tmp_path / "nothing"))
    dead = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as abandoned:
        abandoned.bind(str(dead))
    with pytest.raises(ProgramNotFoundError, match="no criu service answers"):
        version(via=Service(dead))


def test_a_descriptor_of_the_callers(spawn: Spawn, images: Path) -> None:
    """A worker of the caller serves one request; its descriptor remains open."""
    target = spawn()
    ours, process = start_worker()
    with ours:
        opts = CriuOpts(images_directory=images, leave_running=True)
        dump(target.pid, opts, via=Socket(ours))
        os.fstat(ours.fileno())
    assert process.wait() == 0
    assert target.runs_on()
    assert (images / "inventory.img").exists()
