"""Ports and addresses that are not available for the sockets of the images.

``check_images`` and the error of the restore name what uses them; after the cure the restore
succeeds.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, restore
from pycriu_native.findings import Finding, Severity
from pycriu_native.images import check_images

from .conftest import Spawn
from .support.hosts import host
from .support.processes import Target, reap_all

BOUND = """
    import socket
    sock = socket.socket({domain}, {kind})
    {options}
    sock.bind(({address!r}, 0))
    {more}
    serve(port=lambda: sock.getsockname()[1])
"""
SHARED = "sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSE{0}, 1)"
ACCEPTS = """
    sock.listen(); import threading
    def accept():
        while True: sock.accept()[0].close()
    threading.Thread(target=accept, daemon=True).start()
"""


def scenario(
    kind: str = "STREAM", more: str = "", options: str = "", domain: str = "", address: str = ""
) -> str:
    """A process with one bound socket."""
    return BOUND.format(
        domain=f"socket.AF_INET{domain}",
        kind=f"socket.SOCK_{kind}",
        more=more.strip(),
        options=options,
        address=address or "127.0.0.1",
    )


def errors(images: Path) -> list[Finding]:
    """The errors of a check for a restore."""
    return [each for each in check_images(images) if each.severity is Severity.STOPS]


@pytest.fixture
def saved(spawn: Spawn, images: Path) -> Callable[[str], tuple[Target, int]]:
    """Start a process, and dump it; returns the process and its port."""

    def save(text: str, act: Callable[[int], object] | None = None) -> tuple[Target, int]:
        target = spawn(text)
        port = target.ask("port")
        if act is not None:
            act(port)
        target.dump(CriuOpts(images_directory=images))
        return target, port

    return save


def fails(images: Path, target: Target) -> CriuError:
    """The error of a restore, after which no process remains."""
    with pytest.raises(CriuError) as caught:
        restore(CriuOpts(images_directory=images, work_directory=images.parent))
    reap_all()
    target.until_free()
    return caught.value


def works(images: Path, target: Target) -> None:
    """The check has no error, and the restore succeeds."""
    assert errors(images) == []
    restore(CriuOpts(images_directory=images))
    assert target.runs_on()


def end_a_connection(port: int, host: str = "127.0.0.1") -> None:
    """Make a connection that the other end closes first, and that is in TIME_WAIT there."""
    with socket.create_connection((host, port)) as connection:
        assert connection.recv(1) == b""


LISTENERS = {
    "IPv4": scenario(more=ACCEPTS),
    "every address": scenario(more=ACCEPTS, address="0.0.0.0"),
    "both families": scenario(more=ACCEPTS, domain="6", address="::"),
}


@pytest.mark.parametrize("name", LISTENERS)
@pytest.mark.usefixtures("orphans")
def test_connections_that_have_ended(
    name: str, saved: Callable[..., tuple[Target, int]], images: Path
) -> None:
    """Ended connections occupy the port of a listener without SO_REUSEADDR for some time."""
    target, port = saved(LISTENERS[name], end_a_connection)
    (found,) = errors(images)
    error = fails(images, target)
    for text in (found.message, str(error.cause)):
        assert "TIME_WAIT" in text
    for cure in (found.cure, str(error.cure)):
        assert 0 < int(cure.split("try again in ")[1].split(" s")[0]) <= 60
    assert f"port {port} " in str(error.cause)

    command = found.cure.split("at once: ")[1].split()
    if shutil.which("ss") is None:
        pytest.skip("there is no ss to free the port with")
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if errors(images):
        pytest.skip("this kernel cannot forget a connection early (CONFIG_INET_DIAG_DESTROY)")
    works(images, target)


@pytest.mark.usefixtures("orphans")
def test_ended_connections_of_a_socket_that_shares_its_port(
    saved: Callable[..., tuple[Target, int]], images: Path
) -> None:
    """Ended connections are no obstacle for a socket with SO_REUSEADDR."""
    works(images, saved(scenario(more=ACCEPTS, options=SHARED.format("ADDR")), end_a_connection)[0])


OTHERS = {
    "a listener": (scenario(more="sock.listen()"), socket.SOCK_STREAM, True),
    "a bound socket": (scenario(more="sock.listen()"), socket.SOCK_STREAM, False),
    "a datagram socket": (scenario("DGRAM"), socket.SOCK_DGRAM, False),
}


@pytest.mark.cures("tcp-bind")
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.usefixtures("orphans")
def test_a_port_that_another_process_has(
    name: str, saved: Callable[..., tuple[Target, int]], images: Path
) -> None:
    """A socket of another process has the port, whether it listens or is only bound."""
    text, kind, listens = OTHERS[name]
    target, port = saved(text)
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", port))
        if listens:
            other.listen()
        (found,) = errors(images)
        assert "end that process" in found.cure
        error = fails(images, target)
        assert "in use here" in str(error.cause) or f"port {port} of a socket" in str(error.cause)
    works(images, target)


@pytest.mark.usefixtures("orphans")
@pytest.mark.parametrize("kind", ["STREAM", "DGRAM"])
def test_a_port_that_two_share(
    kind: str, saved: Callable[..., tuple[Target, int]], images: Path
) -> None:
    """Another process can have the port as well, with SO_REUSEPORT on both sockets."""
    more = "sock.listen()" if kind == "STREAM" else ""
    target, port = saved(scenario(kind, more, SHARED.format("PORT")))
    with socket.socket(socket.AF_INET, getattr(socket, f"SOCK_{kind}")) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))
        if kind == "STREAM":
            other.listen()
        works(images, target)


ONLY_IPV6 = "sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)"
BESIDE = {
    "beside one of IPv4": (scenario("{}", "{}", ONLY_IPV6, "6", "::"), socket.AF_INET, "0.0.0.0"),
    "beside one of IPv6": (scenario("{}", "{}", address="0.0.0.0"), socket.AF_INET6, "::"),
}


def opened(family: int, kind: str, address: str, port: int) -> socket.socket:
    """A socket with this address and port; one of IPv6 has IPV6_V6ONLY."""
    sock = socket.socket(family, getattr(socket, f"SOCK_{kind}"))
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((address, port))
    if kind == "STREAM":
        sock.listen()
    return sock


@pytest.mark.parametrize("kind", ["STREAM", "DGRAM"])
@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.usefixtures("orphans")
def test_a_port_of_the_other_family(
    name: str, kind: str, saved: Callable[..., tuple[Target, int]], images: Path
) -> None:
    """With IPV6_V6ONLY only a socket of the same family is an obstacle."""
    text, family, address = BESIDE[name]
    target, port = saved(text.format(kind, "sock.listen()" if kind == "STREAM" else ""))
    with opened(family, kind, address, port):
        own = socket.AF_INET if family == socket.AF_INET6 else socket.AF_INET6
        with opened(own, kind, "0.0.0.0" if own == socket.AF_INET else "::", port):
            (found,) = errors(images)
            error = fails(images, target)
            assert f"pid {os.getpid()}, " in found.message
            assert f"pid {os.getpid()} " in str(error.cause)
        works(images, target)


@pytest.mark.parametrize("option", ["ADDR", "PORT"])
@pytest.mark.usefixtures("orphans")
def test_a_port_of_udp_that_the_other_shares(
    option: str, saved: Callable[..., tuple[Target, int]], images: Path
) -> None:
    """A port of UDP can be shared if the other socket has one of CRIU's options."""
    target, port = saved(scenario("DGRAM"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, getattr(socket, f"SO_REUSE{option}"), 1)
        other.bind(("127.0.0.1", port))
        works(images, target)


@pytest.mark.usefixtures("orphans")
def test_an_address_that_is_not_here(spawn: Spawn, images: Path) -> None:
    """The error for a missing address has the command that adds it."""
    address, text = "10.77.0.1", scenario(more="sock.listen()", address="10.77.0.1")
    with host() as home, home.entered():
        home.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        target = spawn(text)
        target.dump(CriuOpts(images_directory=images))
        home.run("ip", "address", "del", f"{address}/32", "dev", "lo")
        (found,) = errors(images)
        error = fails(images, target)
        assert address in found.message
        assert address in str(error.cause)
        assert found.cure == error.cure
        home.run(*found.cure.replace("DEVICE", "lo").split())
        works(images, target)
        target.end()
