"""``tcp_established``, ``network_lock``, ``tcp_close`` and ``tcp_skip_in_flight``: TCP connections.

A connection has state at both ends, and the peer is not involved in a dump. So CRIU refuses a
process with a connection, unless an option is set:

* ``tcp_established`` saves the connection: sequence numbers, windows, and its queues. Until the
  restore, the kernel must not answer packets of the peer, since it would reset the connection. So
  CRIU drops them: with a table of nftables or with rules of iptables, as ``network_lock`` selects.
  The lock remains from the dump to the restore, which needs the field too, the same addresses, and
  the same network namespace.
* ``tcp_close`` drops the connection: the process is restored with a closed connection.
* ``tcp_skip_in_flight`` drops connections that the process has not accepted yet, and saves its
  listening socket.

CRIU locks in its own network namespace. If that is the namespace of the process (here the test's
thread enters it), it locks each connection. If CRIU runs outside of a namespace that is named as
``external``, it locks the namespace as a whole.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, Notify, OptionError, dump, restore

from .conftest import Spawn
from .support.hosts import Host, cable, host
from .support.processes import PATIENCE, Target
from .support.streams import Stream, each_lock, locks, needs_both, start_stream


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host, str]]:
    """The server's host, the client's host, and the server's address."""
    with host() as home, host() as far, cable(home, far) as (address, _):
        yield home, far, address


@pytest.fixture
def stream(hosts: tuple[Host, Host, str], spawn: Spawn) -> Stream:
    """A stream with more than a megabyte in the queues of both directions."""
    return start_stream(hosts, spawn)


@needs_both
@each_lock
def test_not_a_byte_is_lost_or_doubled(stream: Stream, images: Path, lock: str) -> None:
    """A server is saved and restored during a transfer; each end receives all data of the other.

    Meanwhile the client sends, and reads data that had arrived.
    """
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock=lock)
    assert locks(stream.home) == (False, False)
    with stream.home.entered():
        dump(stream.server.pid, opts)
    stream.server.reap()
    assert locks(stream.home) == (lock == "nftables", lock == "iptables")
    stream.client.ask("let")
    with stream.home.entered():
        restore(opts.only_for("restore"))  # the images have the type of the lock
    assert locks(stream.home) == (False, False)
    stream.goes_on()


@needs_both
@each_lock
def test_a_namespace_is_locked_as_a_whole(stream: Stream, images: Path, lock: str) -> None:
    """CRIU is outside of the server's namespace, which is external and not saved.

    Only then notifications about the network are sent, since the lock is a separate step.
    """
    opts = CriuOpts(images_directory=images, tcp_established=True)
    message: list[object] = []
    with open(stream.home.path) as namespace:
        inode = os.fstat(namespace.fileno()).st_ino
        dump(
            stream.server.pid,
            replace(opts, network_lock=lock, external=[f"net[{inode}]:home"]),
            on_notify=lambda notification: message.append(notification.action),
        )
        stream.server.reap()
        assert Notify.NETWORK_LOCK in message
        assert Notify.NETWORK_UNLOCK not in message
        assert locks(stream.home) == (lock == "nftables", lock == "iptables")
        stream.client.ask("let")
        restore(
            replace(opts, inherit_fds=[(namespace, "home")]),
            on_notify=lambda notification: message.append(notification.action),
        )
    assert Notify.NETWORK_UNLOCK in message
    assert locks(stream.home) == (False, False)
    stream.goes_on()


@needs_both
@each_lock
def test_a_copy_of_a_server_that_runs_on(stream: Stream, images: Path, lock: str) -> None:
    """With leave_running the lock is removed after the dump, and the stream continues."""
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock=lock)
    with stream.home.entered():
        dump(stream.server.pid, replace(opts, leave_running=True))
    assert locks(stream.home) == (False, False)
    stream.goes_on()


@pytest.mark.parametrize("given", [None, False])
def test_without_it_the_dump_is_refused(stream: Stream, images: Path, given: bool | None) -> None:
    """The error names the field; the process and its connection are unchanged."""
    with stream.home.entered(), pytest.raises(CriuError, match="tcp_established=True") as caught:
        dump(stream.server.pid, CriuOpts(images_directory=images, tcp_established=given))
    assert caught.value.options == ("tcp_established", "tcp_close")
    assert locks(stream.home) == (False, False)
    assert stream.server.runs_on()
    stream.goes_on()


def test_the_restore_needs_it_too(stream: Stream, images: Path) -> None:
    """A restore without it is refused with the name of the field, and the lock remains for the next
    attempt.
    """
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock="nftables")
    with stream.home.entered():
        dump(stream.server.pid, opts)
        stream.server.reap()
        with pytest.raises(CriuError, match="tcp_established=True or tcp_close=True") as caught:
            restore(CriuOpts(images_directory=images))
        assert caught.value.options == ("tcp_established", "tcp_close")
        stream.server.until_free()
        assert locks(stream.home) == (True, False)
        restore(opts.only_for("restore"))
    stream.goes_on()


OWN_LOCK = """
table inet mine {
    chain in { type filter hook input priority 0; tcp dport 7000 drop; }
    chain out { type filter hook output priority 0; tcp sport 7000 drop; }
}
"""


def test_skip_with_a_lock_of_ones_own(stream: Stream, images: Path, tmp_path: Path) -> None:
    """With another packet filter, such as on a router, CRIU's lock is not needed."""
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock="skip")
    (tmp_path / "lock").write_text(OWN_LOCK)
    stream.home.run("nft", "-f", str(tmp_path / "lock"))
    with stream.home.entered():
        dump(stream.server.pid, opts)
        stream.server.reap()
        stream.client.ask("let")
        restore(opts.only_for("restore"))
    stream.home.run("nft", "delete", "table", "inet", "mine")
    stream.goes_on()


SERVER = """
    import socket
    listener = socket.create_server(({address!r}, 7000))
    connections = []

    def attempt(what, *arguments):
        try:
            return repr(getattr(connections[-1], what)(*arguments))
        except OSError as error:
            return type(error).__name__

    serve(
        accept=lambda: connections.append(listener.accept()[0]),
        send=lambda: attempt("send", b"answer"),
        receive=lambda: attempt("recv", 100),
        connections=lambda: len(connections),
    )
"""


@pytest.fixture
def server(hosts: tuple[Host, Host, str], spawn: Spawn) -> Target:
    """A server that sends data only after a request."""
    home, _, address = hosts
    with home.entered():
        return spawn(SERVER.format(address=address))


@contextlib.contextmanager
def caller(hosts: tuple[Host, Host, str]) -> Iterator[socket.socket]:
    """A connection from the client's host to the server."""
    _, far, address = hosts
    with far.entered():
        connection = socket.create_connection((address, 7000), PATIENCE)
    with connection:
        yield connection


@pytest.mark.parametrize("quiet", [True, False])
def test_skip_without_a_lock_of_ones_own(
    server: Target, hosts: tuple[Host, Host, str], images: Path, quiet: bool
) -> None:
    """Without any lock a connection survives only if no packet arrives: the first packet without a
    process is answered with a reset. (A packet during the dump can fail the dump.)
    """
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock="skip")
    with caller(hosts) as connection, hosts[0].entered():
        server.ask("accept")
        server.dump(opts)
        assert locks(hosts[0]) == (False, False)
        if quiet:
            restore(opts.only_for("restore"))
            server.ask("send")
            assert connection.recv(100) == b"answer"
        else:
            connection.send(b"question")
            with pytest.raises(ConnectionResetError):
                connection.recv(100)


def test_tcp_close(server: Target, hosts: tuple[Host, Host, str], images: Path) -> None:
    """The dump closes the connection at the peer, and the process is restored with a closed
    connection. The listening socket accepts new ones.
    """
    opts = CriuOpts(images_directory=images, tcp_close=True)
    with caller(hosts) as connection, hosts[0].entered():
        server.ask("accept")
        connection.send(b"question")
        assert server.ask("receive") == "b'question'"
        server.dump(opts)
        assert connection.recv(100) == b""
        restore(opts)
        assert server.ask("receive") == "b''"
        assert server.ask("send") == "BrokenPipeError"
    with caller(hosts) as connection:
        server.ask("accept")
        server.ask("send")
        assert connection.recv(100) == b"answer"


def test_saved_and_then_dropped(
    server: Target, hosts: tuple[Host, Host, str], images: Path
) -> None:
    """The restore can drop a saved connection: the peer gets a reset when it sends next.

    (With iptables CRIU up to 4.2 leaves its lock; the table of nftables is removed.)
    """
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock="nftables")
    with caller(hosts) as connection, hosts[0].entered():
        server.ask("accept")
        server.dump(opts)
        restore(CriuOpts(images_directory=images, tcp_close=True))
        assert locks(hosts[0]) == (False, False)
        assert server.ask("receive") == "b''"
        connection.send(b"question")
        with pytest.raises(ConnectionResetError):
            connection.recv(100)


def test_tcp_close_on_the_restore_too(
    server: Target, hosts: tuple[Host, Host, str], images: Path
) -> None:
    """Images without their connections need the field in the restore, which is refused
    without it.
    """
    with caller(hosts), hosts[0].entered():
        server.ask("accept")
        server.dump(CriuOpts(images_directory=images, tcp_close=True))
        with pytest.raises(CriuError, match="tcp_close=True on restore") as caught:
            restore(CriuOpts(images_directory=images, tcp_established=True))
        assert caught.value.options == ("tcp_close",)
        server.until_free()
        restore(CriuOpts(images_directory=images, tcp_close=True))
    assert server.runs_on()


def test_established_and_close_contradict(server: Target, images: Path) -> None:
    """With both options CRIU would drop the connections; the library refuses them together."""
    with pytest.raises(OptionError, match="not together with tcp_close"):
        dump(server.pid, CriuOpts(images_directory=images, tcp_established=True, tcp_close=True))
    assert server.runs_on()


@pytest.mark.parametrize("given", [None, False])
def test_a_connection_in_flight_is_refused(
    server: Target, hosts: tuple[Host, Host, str], images: Path, given: bool | None
) -> None:
    """A connection in the queue of a listening socket, not accepted yet, cannot be saved, not even
    with tcp_established. It continues, and can be accepted.
    """
    opts = CriuOpts(images_directory=images, tcp_established=True, tcp_skip_in_flight=given)
    with caller(hosts) as connection:
        with (
            hosts[0].entered(),
            pytest.raises(CriuError, match="tcp_skip_in_flight=True") as caught,
        ):
            dump(server.pid, opts)
        assert caught.value.options == ("tcp_skip_in_flight",)
        server.ask("accept")
        server.ask("send")
        assert connection.recv(100) == b"answer"


def test_tcp_skip_in_flight(server: Target, hosts: tuple[Host, Host, str], images: Path) -> None:
    """The connection in flight is dropped, an accepted one is kept, new ones can be made."""
    opts = CriuOpts(images_directory=images, tcp_established=True, tcp_skip_in_flight=True)
    with caller(hosts) as accepted:
        server.ask("accept")
        with caller(hosts) as waiting:
            with hosts[0].entered():
                server.dump(opts)
                restore(opts.only_for("restore"))
            with pytest.raises(ConnectionResetError):
                waiting.recv(100)
        server.ask("send")
        assert accepted.recv(100) == b"answer"
    assert server.ask("connections") == 1
    with caller(hosts) as later:
        server.ask("accept")
        server.ask("send")
        assert later.recv(100) == b"answer"
