"""Whether two sockets can have one port: the rules of the library, compared with the kernel."""

from __future__ import annotations

import errno
import itertools
import os
import socket

import pytest

from pycriu_native._system.port_conflicts import Binding, conflict_of

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
