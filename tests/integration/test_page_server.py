"""``page_server``: the memory of a dump is sent to another host, and not stored on this one.

A ``criu page-server`` on the other host listens for one dump and writes ``pages-*.img`` and
``pagemap-*.img`` into its directory; all other images remain on this host. A restore needs both
sets in one directory. The server is given by address and port, or as a connected socket
(``PageServer(fd=...)``), such as that of a tunnel.

With ``tls`` both sides need certificates. ``tls_cacert`` has the trusted authority, ``tls_cert``
and ``tls_key`` are the certificate of this side, ``tls_cacrl`` lists revoked ones, and unless
``tls_no_cn_verify`` is set the server's certificate must match the address. After any failure the
process continues.

(A CRIU that refuses the server's certificate ends with SIGABRT, observed with 4.2.1, so the
exception is a ``WorkerDiedError``. With a connected socket, CRIU up to 4.2 does no handshake.)
"""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuError, CriuOpts, ImagesError, PageServer, dump, restore
from pycriu_native._transport.program import find_program

from .conftest import Spawn
from .support.certificates import Authority, Certificate
from .support.hosts import OURS, Host, cable, host
from .support.processes import kill

MEMORY = 4 * 2**20

WITH_MEMORY = f"""
    import hashlib, os
    memory = bytearray(os.urandom(2**20) * {MEMORY // 2**20})
    serve(checksum=lambda: hashlib.sha256(memory).hexdigest())
"""


@dataclass
class Server:
    """A ``criu page-server`` on another host."""

    address: str
    port: int
    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def name(self) -> PageServer:
        """The value of the field for a dump."""
        return PageServer(self.address, self.port, clear_text=True)

    def finish(self) -> int:
        """Wait until the server has served one dump; returns its exit status."""
        return self.process.wait(20)


Serve = Callable[..., Server]


@pytest.fixture
def far() -> Iterator[tuple[Host, str]]:
    """Another host, and its address."""
    with host() as other, cable(OURS, other) as (_, address):
        yield other, address


@pytest.fixture
def serve(far: tuple[Host, str], tmp_path: Path) -> Iterator[Serve]:
    """Start page servers on the other host, each with a separate directory."""
    other, address = far

    def start(*flags: str | Path) -> Server:
        number = len(os.listdir(tmp_path))
        directory = tmp_path / f"far-{number}"
        directory.mkdir()
        reader, writer = os.pipe()
        command = [*other.prefix, find_program(), "page-server", "-D", str(directory)]
        command += ["--address", address, "--port", str(7000 + number)]
        command += ["--status-fd", str(writer), "-o", "log", *map(str, flags)]
        try:
            process = subprocess.Popen(command, pass_fds=[writer], stdin=subprocess.DEVNULL)
            owned.callback(process.wait)
            owned.callback(kill, process.pid)
            os.close(writer)
            assert os.read(reader, 1) == b"\0", (directory / "log").read_text()
        finally:
            os.close(reader)
        return Server(address, 7000 + number, directory, process)

    with ExitStack() as owned:
        yield start


def _names(directory: Path) -> set[str]:
    """The kinds of images in a directory: ``pages`` of ``pages-1.img``."""
    return {path.name.partition("-")[0].removesuffix(".img") for path in directory.iterdir()}


def _pages(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("pages-*.img"))


def _together(images: Path, server: Server) -> Path:
    """Copy all images to the other host."""
    for path in images.iterdir():
        shutil.copy(path, server.directory)
    return server.directory


@pytest.mark.cures("pagemap-missing")
def test_pages_land_on_another_host(
    orphans: None, spawn: Spawn, images: Path, serve: Serve
) -> None:
    """This host has no page; with the images of both hosts the process is restored completely."""
    target = spawn(WITH_MEMORY)
    checksum = target.ask("checksum")
    server = serve()
    result = dump(target.pid, CriuOpts(images_directory=images, page_server=server.name))
    target.reap()
    assert server.finish() == 0
    assert result.statistics is not None
    assert result.statistics.pages_written * mmap.PAGESIZE == _pages(server.directory) > MEMORY
    assert {"pages", "pagemap"} <= _names(server.directory)
    assert not {"pages", "pagemap"} & _names(images)
    assert {"core", "mm", "pstree", "inventory"} <= _names(images)

    with pytest.raises(ImagesError, match=r"the images have no memory pages") as caught:
        restore(CriuOpts(images_directory=images, log_level=3))
    assert caught.value.options[0] == "page_server"
    target.end()  # reaps processes of the failed restore
    restore(CriuOpts(images_directory=_together(images, server)))
    assert target.ask("checksum") == checksum
    assert target.runs_on()


def test_without_it_pages_are_here(spawn: Spawn, images: Path) -> None:
    """Without ``page_server`` the pages are in the images directory."""
    target = spawn(WITH_MEMORY)
    dump(target.pid, CriuOpts(images_directory=images))
    assert _pages(images) > MEMORY


@pytest.mark.parametrize("form", ["mapping", "tuple", "value"])
def test_forms(spawn: Spawn, images: Path, serve: Serve, form: str) -> None:
    """A mapping, a tuple and ``PageServer`` name the same server."""
    target = spawn(WITH_MEMORY)
    server = serve()
    forms: dict[str, Any] = {
        "mapping": {"address": server.address, "port": server.port, "clear_text": True},
        "tuple": (server.address, server.port, None, True),
        "value": server.name,
    }
    opts = CriuOpts(images_directory=images, page_server=forms[form], leave_running=True)
    dump(target.pid, opts)
    assert server.finish() == 0
    assert _pages(server.directory) > MEMORY
    assert _pages(images) == 0
    assert target.runs_on()


def test_a_socket_that_is_handed_over(
    orphans: None, spawn: Spawn, images: Path, serve: Serve
) -> None:
    """CRIU uses the caller's connection, and the caller's descriptor remains open."""
    target = spawn(WITH_MEMORY)
    checksum = target.ask("checksum")
    server = serve()
    with socket.create_connection((server.address, server.port)) as connection:
        assert not connection.get_inheritable()
        page_server = PageServer(fd=connection.fileno(), clear_text=True)
        dump(target.pid, CriuOpts(images_directory=images, page_server=page_server))
        assert connection.getpeername() == (server.address, server.port)
    target.reap()
    assert server.finish() == 0
    assert _pages(images) == 0
    restore(CriuOpts(images_directory=_together(images, server)))
    assert target.ask("checksum") == checksum


@pytest.mark.parametrize("log_level", [None, 3])
def test_nobody_listens(
    far: tuple[Host, str], spawn: Spawn, images: Path, log_level: int | None
) -> None:
    """The error names the field (CRIU logs the reason at ``log_level=3`` only); the process
    continues.
    """
    target = spawn()
    opts = CriuOpts(
        images_directory=images,
        page_server=PageServer(far[1], 7999, clear_text=True),
        log_level=log_level,
    )
    with pytest.raises(CriuError, match=r"cannot be reached.*page_server") as caught:
        dump(target.pid, opts)
    assert caught.value.options[0] == "page_server"
    assert target.runs_on()


# ---- tls ----


@dataclass(frozen=True)
class Trust:
    """Two certificate authorities, of which both sides trust one."""

    authority: Authority
    stranger: Authority
    server: Certificate
    client: Certificate

    def of_server(self, certificate: Certificate | None = None) -> list[str | Path]:
        """The flags of a page server."""
        own = certificate or self.server
        flags: list[str | Path] = ["--tls", "--tls-cacert", self.authority.file]
        return [*flags, "--tls-cert", own.file, "--tls-key", own.key]

    def of_client(self, certificate: Certificate | None = None) -> dict[str, Any]:
        """The fields of a dump."""
        own = certificate or self.client
        fields: dict[str, Any] = {"tls": True, "tls_cacert": self.authority.file}
        return {**fields, "tls_cert": own.file, "tls_key": own.key}


@pytest.fixture
def trust(far: tuple[Host, str], tmp_path: Path) -> Trust:
    """Certificates for the other host's address."""
    authority = Authority.make(tmp_path / "authority")
    return Trust(
        authority=authority,
        stranger=Authority.make(tmp_path / "stranger"),
        server=authority.sign("server", far[1]),
        # A page server with an address also compares it with the client's certificate.
        client=authority.sign("client", far[1]),
    )


def _dump(pid: int, images: Path, server: Server, **fields: Any) -> None:
    opts = CriuOpts(images_directory=images, page_server=server.name, leave_running=True, **fields)
    dump(pid, opts, deadline=60)


def test_tls(orphans: None, spawn: Spawn, images: Path, serve: Serve, trust: Trust) -> None:
    """With trusted certificates the pages arrive, and the process can be restored."""
    target = spawn(WITH_MEMORY)
    checksum = target.ask("checksum")
    server = serve(*trust.of_server())
    _dump(target.pid, images, server, **trust.of_client())
    assert server.finish() == 0
    assert _pages(images) == 0
    target.end()
    restore(CriuOpts(images_directory=_together(images, server)))
    assert target.ask("checksum") == checksum


@pytest.mark.cures("tls")
def test_the_servers_certificate_is_wrong(
    spawn: Spawn, images: Path, serve: Serve, trust: Trust
) -> None:
    """A server with an untrusted certificate receives no page; the error names tls."""
    target = spawn(WITH_MEMORY)
    server = serve(*trust.of_server(trust.stranger.sign("server", "192.0.2.1")))
    with pytest.raises(CriuError, match="tls") as caught:
        _dump(target.pid, images, server, **trust.of_client())
    assert caught.value.options[0] == "tls"
    assert any("NOT trusted" in line for line in caught.value.lines)
    assert target.runs_on()
    assert server.finish() != 0
    assert _pages(server.directory) == 0


def test_our_certificate_is_wrong(
    spawn: Spawn, images: Path, serve: Serve, trust: Trust, far: tuple[Host, str]
) -> None:
    """The server closes the connection without a reason; the error names tls."""
    target = spawn(WITH_MEMORY)
    server = serve(*trust.of_server())
    with pytest.raises(CriuError, match="tls") as caught:
        _dump(target.pid, images, server, **trust.of_client(trust.stranger.sign("we", far[1])))
    assert "tls" in caught.value.options
    assert target.runs_on()
    assert server.finish() != 0
    assert _pages(server.directory) == 0


@pytest.mark.parametrize("encrypted", ["us", "them"])
def test_one_side_without_tls(
    spawn: Spawn, images: Path, serve: Serve, trust: Trust, encrypted: str
) -> None:
    """Both sides must use tls; otherwise the error names it."""
    target = spawn(WITH_MEMORY)
    server = serve(*(trust.of_server() if encrypted == "them" else []))
    with pytest.raises(CriuError, match="tls") as caught:
        _dump(target.pid, images, server, **(trust.of_client() if encrypted == "us" else {}))
    assert "tls" in caught.value.options
    assert target.runs_on()
    assert _pages(server.directory) == 0


def test_tls_no_cn_verify(
    spawn: Spawn, images: Path, tmp_path: Path, serve: Serve, trust: Trust
) -> None:
    """A trusted certificate for another address is refused, unless the name is not verified."""
    target = spawn(WITH_MEMORY)
    elsewhere = trust.authority.sign("elsewhere", "192.0.2.1")
    with pytest.raises(CriuError, match="tls_no_cn_verify") as caught:
        _dump(target.pid, images, serve(*trust.of_server(elsewhere)), **trust.of_client())
    assert "tls_no_cn_verify" in caught.value.options
    assert target.runs_on()

    server = serve(*trust.of_server(elsewhere))
    again = tmp_path / "again"
    _dump(target.pid, again, server, **trust.of_client(), tls_no_cn_verify=True)
    assert server.finish() == 0
    assert _pages(server.directory) > MEMORY
    assert target.runs_on()


def test_tls_cacrl(spawn: Spawn, images: Path, tmp_path: Path, serve: Serve, trust: Trust) -> None:
    """A certificate that its authority has revoked is refused; others of that list are not."""
    target = spawn(WITH_MEMORY)
    nobody = trust.authority.revocations()
    server = serve(*trust.of_server())
    _dump(target.pid, images, server, **trust.of_client(), tls_cacrl=nobody)
    assert server.finish() == 0

    revoked = trust.authority.revocations(trust.server)
    server = serve(*trust.of_server())
    with pytest.raises(CriuError, match="revoked") as caught:
        _dump(target.pid, tmp_path / "again", server, **trust.of_client(), tls_cacrl=revoked)
    assert caught.value.options[0] == "tls"
    assert any("revoked" in line for line in caught.value.lines)
    assert target.runs_on()
    assert _pages(server.directory) == 0
