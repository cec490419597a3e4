"""Whether two sockets can have one port: the rules of the library, compared with the kernel."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import sys
from pathlib import Path

import pytest

from pycriu_native._failures.unbound_socket import look_closer
from pycriu_native._integrity.image_files import ImageFiles
from pycriu_native._system.port_conflicts import Binding, conflict_of
from pycriu_native.errors import CriuError, Diagnosis

from .support.image_sets import write

KINDS = {
    "TCP": (socket.SOCK_STREAM, 6),
    "UDP": (socket.SOCK_DGRAM, 17),
    "UDP-Lite": (socket.SOCK_DGRAM, 136),
}
ADDRESSES = (
    (socket.AF_INET, "0.0.0.0", False),
    (socket.AF_INET, "127.0.0.1", False),
    (socket.AF_INET, "127.0.0.2", False),
    (socket.AF_INET6, "::", False),
    (socket.AF_INET6, "::", True),
    (socket.AF_INET6, "::1", False),
    (socket.AF_INET6, "::1", True),
    (socket.AF_INET6, "::ffff:127.0.0.1", False),
    (socket.AF_INET6, "::ffff:0.0.0.0", False),
)
PAIRS = tuple(itertools.product(ADDRESSES, repeat=2))


def opened(
    binding: Binding, kind: int, *, reuse: bool = False, share: bool = False
) -> socket.socket:
    """A socket that is bound to this address and port, with these options."""
    try:
        sock = socket.socket(binding.family, kind, binding.protocol)
    except OSError as error:
        pytest.skip(f"this kernel has no such sockets: {error}")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share)
    if binding.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, binding.only_ipv6)
    try:
        sock.bind((binding.address, binding.port))
    except OSError:
        sock.close()
        raise
    return sock


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[int, int]:
    """A type of sockets, and its protocol."""
    return KINDS[request.param]


def lets_in(binding: Binding, kind: int, **options: bool) -> bool:
    """Whether the kernel binds a socket."""
    try:
        opened(binding, kind, **options).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


@pytest.fixture
def port(kind: tuple[int, int]) -> int:
    """A port that is free on every address, and that the kernel does not choose by itself."""
    numbers = range(20_000 + os.getpid() % 10_000, 32_000)
    every = (Binding(socket.AF_INET6, kind[1], "::", number) for number in numbers)
    return next(binding.port for binding in every if lets_in(binding, kind[0]))


def test_each_pair_of_addresses(kind: tuple[int, int], port: int) -> None:
    """The kernel refuses the second socket exactly if both collide; the conflict has our pid."""
    for one, other in PAIRS:
        first, second = (
            Binding(family, kind[1], address, port, only_ipv6)
            for family, address, only_ipv6 in (one, other)
        )
        with opened(first, kind[0]) as sock:
            if kind[0] == socket.SOCK_STREAM:
                sock.listen()
            refused = not lets_in(second, kind[0])
            assert second.collides(first) is refused, (one, other)
            conflict = conflict_of(second)
        assert (conflict is not None) is refused, (one, other)
        assert conflict is None or (conflict.pid, conflict.certain) == (os.getpid(), True)


@pytest.mark.parametrize("listens", [False, True], ids=["bound", "listening"])
@pytest.mark.parametrize("share", [False, True], ids=["", "SO_REUSEPORT"])
@pytest.mark.parametrize("reuse", [False, True], ids=["", "SO_REUSEADDR"])
def test_a_port_that_the_other_shares(
    reuse: bool, share: bool, listens: bool, kind: tuple[int, int], port: int
) -> None:
    """The kernel binds CRIU's socket, which has both options, exactly if there is no conflict."""
    if listens and kind[0] != socket.SOCK_STREAM:
        pytest.skip("only TCP sockets listen")
    binding = Binding(socket.AF_INET, kind[1], "127.0.0.1", port)
    with opened(binding, kind[0], reuse=reuse, share=share) as sock:
        if listens:
            sock.listen()
        conflict = conflict_of(binding)
        refused = not lets_in(binding, kind[0], reuse=True, share=True)
    assert (conflict is not None) is refused
    # No table has a TCP socket that is bound only.
    owner = None if kind[0] == socket.SOCK_STREAM and not listens else os.getpid()
    assert conflict is None or (conflict.pid, conflict.certain) == (owner, True)


def test_only_what_is_in_the_way_is_named(kind: tuple[int, int], port: int) -> None:
    """Beside a socket of IPv6 only, the port of IPv4 is free."""
    dual = Binding(socket.AF_INET6, kind[1], "::", port)
    with opened(Binding(socket.AF_INET6, kind[1], "::", port, only_ipv6=True), kind[0]):
        assert conflict_of(Binding(socket.AF_INET, kind[1], "0.0.0.0", port)) is None
        assert conflict_of(dual) is not None


def inet_entry(number: int, family: int, *addresses: str, port: int) -> dict[str, object]:
    """An entry of ``files.img``: a TCP socket with a local and a remote address."""
    packed = [socket.inet_pton(family, each) for each in addresses]
    words = [
        [int.from_bytes(each[at : at + 4], sys.byteorder) for at in range(0, len(each), 4)]
        for each in packed
    ]
    entry = {
        "id": number, "ino": number, "family": int(family), "type": 1, "proto": 6, "state": 1,
        "src_port": port, "dst_port": 80, "flags": "0x0", "backlog": 0, "src_addr": words[0],
        "dst_addr": words[1], "opts": {"so_sndbuf": 1, "so_rcvbuf": 1, "so_snd_tmo_sec": 0,
        "so_snd_tmo_usec": 0, "so_rcv_tmo_sec": 0, "so_rcv_tmo_usec": 0},
        "fown": {"uid": 0, "euid": 0, "signum": 0, "pid_type": 0, "pid": 0},
    }  # fmt: skip
    return {"type": "INETSK", "id": number, "isk": entry}


def test_addresses_in_images(tmp_path: Path) -> None:
    """Both ends of each socket are read; other files are left out."""
    owner = {"uid": 0, "euid": 0, "signum": 0, "pid_type": 0, "pid": 0}
    event = {"id": 1, "flags": 0, "fown": owner, "counter": 0}
    others = {"type": "EVENTFD", "id": 1, "efd": event}
    four = inet_entry(2, socket.AF_INET, "127.0.0.1", "10.0.0.1", port=7000)
    six = inet_entry(3, socket.AF_INET6, "::1", "fe80::2", port=7001)
    write(tmp_path, "files.img", "FILES", others, four, six)
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files = ImageFiles(directory)
        local, remote = files.bindings(), files.bindings("remote")
    finally:
        os.close(directory)
    assert local == {
        2: Binding(socket.AF_INET, 6, "127.0.0.1", 7000),
        3: Binding(socket.AF_INET6, 6, "::1", 7001),
    }
    assert [(each.address, each.port) for each in remote.values()] == [
        ("10.0.0.1", 80),
        ("fe80::2", 80),
    ]


def test_a_port_of_more_than_16_bits(tmp_path: Path) -> None:
    """CRIU uses 16 bits of a port in the images, and so does the explanation of its failure."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        entry = inet_entry(2, socket.AF_INET, "127.0.0.1", "10.0.0.1", port=port | 1 << 16)
        write(tmp_path, "files.img", "FILES", entry)
        found = look_closer(Diagnosis(CriuError), str(tmp_path), 2, os.strerror(errno.EADDRINUSE))
    assert found.cause is not None
    assert f"has TCP port {port} of a socket in the images" in found.cause
