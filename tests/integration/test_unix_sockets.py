"""``external_unix_connections``, ``external=["unix[inode]"]``, ``unix_sks``: external unix sockets.

There are two cases of a unix socket whose peer is outside of the tree:

* A *datagram* socket that is connected to a named socket, such as that of the system's log. The
  connection has no state, so the restored process is connected to the name again:
  ``external_unix_connections`` in the dump. (The restore does not need it.)
* *One end of a stream connection*, or of a socketpair. The data that the peer has received is
  unknown, so CRIU refuses it. If the process can continue with a new connection, name its socket by
  inode with ``external=["unix[inode]"]`` in the dump. The restore then gives it a connection with
  ``inherit_fds``, or connects it to the old name with ``external_unix_connections``. ``unix_sks``
  is the older form, without the ``unix[]``. (A *datagram* socket whose peer has no name cannot be
  saved.)
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    Notification,
    Notify,
    OptionError,
    Severity,
    aio,
    dump,
    preflight,
    restore,
)
from pycriu_native._failures.log_excerpt import known
from pycriu_native.images import check_images

from .conftest import Spawn
from .support import releases
from .support.leftovers import RUN
from .support.processes import PATIENCE, Target, reap_all

SENDER = """
    import socket
    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    client.connect({address!r})
    serve(send=lambda text: client.send(text.encode()), peer=lambda: repr(client.getpeername()))
"""
CLIENT = """
    import os, socket
    client = {socket}
    serve(
        send=lambda text: client.send(text.encode()),
        receive=lambda: client.recv(100).decode(),
        inode=lambda: os.fstat(client.fileno()).st_ino,
    )
"""
CONNECTED = "socket.socket(socket.AF_UNIX); client.connect({address!r})"


def a_daemon(kind: socket.SocketKind, address: str) -> socket.socket:
    """A socket of a process that is not dumped: this one."""
    daemon = socket.socket(socket.AF_UNIX, kind)
    daemon.settimeout(PATIENCE)
    daemon.bind(address)
    return daemon


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of the daemon's socket."""
    return str(tmp_path / "log") if request.param == "path" else f"\0log of {RUN}"


@pytest.fixture
def log(address: str) -> Iterator[socket.socket]:
    """A daemon that receives datagrams."""
    with a_daemon(socket.SOCK_DGRAM, address) as daemon:
        yield daemon


@pytest.fixture
def sender(spawn: Spawn, log: socket.socket, address: str) -> Target:
    """A process that sends datagrams to the daemon."""
    target = spawn(SENDER.format(address=address))
    assert arrives(target, log)
    return target


def arrives(sender: Target, log: socket.socket) -> bool:
    """Whether the daemon receives a datagram of the process."""
    text = f"message {sender.ask('ticks')}"
    sender.ask("send", text)
    return log.recv(100).decode() == text


def test_messages_arrive_after_the_restore(
    sender: Target, log: socket.socket, address: str, images: Path
) -> None:
    """The restored process is connected to the daemon's name."""
    opts = CriuOpts(images_directory=images, external_unix_connections=True)
    peer = sender.ask("peer")
    sender.ask("send", "sent before the dump")
    sender.dump(opts)
    assert log.recv(100) == b"sent before the dump"
    restore(opts)
    assert sender.ask("peer") == peer
    assert arrives(sender, log)


def test_another_daemon_of_that_name(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """A daemon that was restarted with the same name receives the messages."""
    address = str(tmp_path / "log")
    opts = CriuOpts(images_directory=images, external_unix_connections=True)
    with a_daemon(socket.SOCK_DGRAM, address) as log:
        target = spawn(SENDER.format(address=address))
        assert arrives(target, log)
        target.dump(opts)
    os.unlink(address)
    with pytest.raises(CriuError, match="start its owner before the restore"):
        restore(opts)
    target.until_free()
    with a_daemon(socket.SOCK_DGRAM, address) as log:
        restore(opts)
        assert arrives(target, log)


@pytest.mark.parametrize("given", [None, False])
def test_without_it_the_dump_is_refused(
    sender: Target, log: socket.socket, images: Path, given: bool | None
) -> None:
    """The error names the field; the process continues, and its messages arrive."""
    with pytest.raises(CriuError, match="external_unix_connections=True") as caught:
        dump(sender.pid, CriuOpts(images_directory=images, external_unix_connections=given))
    assert caught.value.options[0] == "external_unix_connections"
    assert sender.runs_on()
    assert arrives(sender, log)


def test_the_restore_does_without_it(sender: Target, log: socket.socket, images: Path) -> None:
    """The images have the name of the peer: a restore does not need the field."""
    sender.dump(CriuOpts(images_directory=images, external_unix_connections=True))
    restore(CriuOpts(images_directory=images))
    assert arrives(sender, log)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[socket.socket]:
    """A daemon that accepts connections."""
    with a_daemon(socket.SOCK_STREAM, str(tmp_path / "daemon")) as listening:
        listening.listen()
        yield listening


@pytest.fixture
def stream(
    spawn: Spawn, tmp_path: Path, daemon: socket.socket
) -> Iterator[tuple[Target, socket.socket]]:
    """A process with a stream connection, and the daemon's end of it."""
    target = spawn(CLIENT.format(socket=CONNECTED.format(address=str(tmp_path / "daemon"))))
    end, _ = daemon.accept()
    with end:
        end.settimeout(PATIENCE)
        assert talk(target, end)
        yield target, end


def talk(client: Target, end: socket.socket) -> bool:
    """Whether data arrives in both directions."""
    client.ask("send", "question")
    asked = end.recv(100)
    end.send(b"answer")
    return (asked, client.ask("receive")) == (b"question", "answer")


def test_half_of_a_stream_connection(stream: tuple[Target, socket.socket], images: Path) -> None:
    """The dump is refused with and without the field; the error has the cure."""
    client, end = stream
    opts = CriuOpts(images_directory=images, external_unix_connections=True)
    with pytest.raises(CriuError, match=r'external="unix\[ino\]".*inherit_fds') as caught:
        dump(client.pid, opts)
    assert caught.value.options == ("external", "inherit_fds")
    assert talk(client, end)
    with pytest.raises(CriuError, match=r'external="unix\[ino\]".* stream') as caught:
        dump(client.pid, CriuOpts(images_directory=images))
    assert talk(client, end)


def test_a_connection_named_in_a_notification(
    stream: tuple[Target, socket.socket], images: Path
) -> None:
    """The hook can name it, too, while the process is frozen, so that no new connection can be made
    before.
    """
    releases.required("3.19", "query-ext-files")
    client, end = stream
    inode = client.ask("inode")
    opts = CriuOpts(images_directory=images)

    def hook(notification: Notification) -> list[str] | None:
        asked = notification.action is Notify.QUERY_EXT_FILES
        return [f"unix[{inode}]"] if asked else None

    async def slow_hook(notification: Notification) -> list[str] | None:
        return hook(notification)

    with pytest.raises(OptionError, match="external=5"):
        dump(client.pid, opts, on_notify=lambda _: 5)
    assert talk(client, end)
    asyncio.run(aio.dump(client.pid, replace(opts, leave_running=True), on_notify=slow_hook))
    assert talk(client, end)
    dump(client.pid, opts, on_notify=hook)
    assert end.recv(100) == b""


@pytest.mark.parametrize("form", ["external", "unix_sks"])
def test_a_connection_given_to_the_restore(
    stream: tuple[Target, socket.socket], images: Path, form: str
) -> None:
    """A socket named by its inode is saved without its connection.

    The restored process has the connection of the restore's argument under the same descriptor.
    """
    client, end = stream
    inode = client.ask("inode")
    opts = CriuOpts(images_directory=images)
    if form == "external":
        dump(client.pid, replace(opts, external=[f"unix[{inode}]"]))
    else:
        dump(client.pid, replace(opts, unix_sks=[inode], external_unix_connections=True))
    client.reap()
    assert end.recv(100) == b""
    with pytest.raises(CriuError, match=r"inherit_fds=\[\(fd, .socket:\[inode\]") as caught:
        restore(opts)
    assert caught.value.options == ("inherit_fds", "external_unix_connections")
    client.until_free()
    ours, its = socket.socketpair()
    with ours:
        with its:
            restore(replace(opts, inherit_fds=[(its, f"socket:[{inode}]")]))
        ours.settimeout(PATIENCE)
        assert talk(client, ours)
        assert client.runs_on()


def test_a_connection_made_by_the_restore(
    stream: tuple[Target, socket.socket], daemon: socket.socket, images: Path
) -> None:
    """The restore connects to the old name, and the daemon accepts a new client."""
    client, _ = stream
    opts = CriuOpts(images_directory=images, external_unix_connections=True)
    client.dump(replace(opts, external=[f"unix[{client.ask('inode')}]"]))
    restore(opts)
    end, _ = daemon.accept()
    with end:
        end.settimeout(PATIENCE)
        assert talk(client, end)


def test_another_inode_does_not_help(stream: tuple[Target, socket.socket], images: Path) -> None:
    """With the inode of another socket in ``external`` the dump is refused."""
    client, end = stream
    inode = client.ask("inode")
    with pytest.raises(CriuError):
        dump(client.pid, CriuOpts(images_directory=images, external=[f"unix[{inode + 1}]"]))
    assert talk(client, end)


def test_unix_sks_needs_the_field(stream: tuple[Target, socket.socket], images: Path) -> None:
    """CRIU would ignore ``unix_sks`` alone without an error, so it is refused."""
    client, end = stream
    with pytest.raises(OptionError, match=r"unix_sks=.*needs external_unix_connections"):
        dump(client.pid, CriuOpts(images_directory=images, unix_sks=[client.ask("inode")]))
    assert talk(client, end)


def test_a_datagram_socket_whose_other_end_has_no_name(spawn: Spawn, images: Path) -> None:
    """The dump is refused: the socket could not be connected again. It continues to work."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours:
        ours.settimeout(PATIENCE)
        with its:
            scenario = CLIENT.format(socket=f"socket.socket(fileno={its.fileno()})")
            client = spawn(scenario, pass_fds=[its.fileno()])
        assert talk(client, ours)
        opts = CriuOpts(images_directory=images, external_unix_connections=True)
        with pytest.raises(CriuError, match="bind the other end to a name"):
            dump(client.pid, opts)
        assert talk(client, ours)


WAITS = """
    import socket
    client = socket.socket(socket.AF_UNIX)
    client.connect({address!r})
    serve(close=client.close)
"""


@pytest.mark.cures("unix-dangling")
def test_a_connection_that_waits_in_another_network_namespace(
    spawn: Spawn, images: Path, tmp_path: Path
) -> None:
    """CRIU does not see the listening socket; without the connection the process is dumped."""
    address, opts = str(tmp_path / "daemon"), CriuOpts(images_directory=images)
    with a_daemon(socket.SOCK_STREAM, address) as daemon:
        daemon.listen()
        target = spawn(WAITS.format(address=address), prefix=["unshare", "--net"])
        (finding,) = preflight(target.pid, opts).stops
        with pytest.raises(CriuError) as caught:
            dump(target.pid, opts)
        entry = known("unix-dangling")
        assert (finding.failure, caught.value.cause, caught.value.cure) == (
            entry.id,
            entry.cause,
            entry.cure,
        )
        target.ask("close")
        assert not preflight(target.pid, opts).stops
        target.dump(opts)


@pytest.mark.cures("unix-not-accepted")
@pytest.mark.parametrize("cure", ["accept", "close"])
def test_a_connection_that_is_not_accepted(
    spawn: Spawn, images: Path, tmp_path: Path, cure: str
) -> None:
    """It is in the images, and no option restores it; accepted or closed it is no obstacle."""
    address, opts = str(tmp_path / "daemon"), CriuOpts(images_directory=images)
    with a_daemon(socket.SOCK_STREAM, address) as daemon:
        daemon.listen()
        target = spawn(WAITS.format(address=address))
        (finding,) = preflight(target.pid, opts).no_restore
        target.dump(opts)
        entry = known("unix-not-accepted")
        (refused,) = (f for f in check_images(images) if f.severity is Severity.STOPS)
        with pytest.raises(CriuError) as caught:
            restore(opts)
        assert refused.message == caught.value.cause == entry.cause
        assert refused.cure == caught.value.cure == entry.cure
        reap_all()

        target = spawn(WAITS.format(address=address))
        daemon.accept()[0].close()  # that of the first process
        assert cure in finding.cure
        if cure == "close":
            target.ask("close")
            result = preflight(target.pid, opts)
            target.dump(result.opts)
            restore(result.for_restore())
        else:
            with daemon.accept()[0]:
                result = preflight(target.pid, opts)
                target.dump(result.opts)
            (need,) = result.restore_needs
            ours, theirs = socket.socketpair()
            with ours, theirs:
                restore(result.for_restore({need.key: theirs.fileno()}))
        assert target.runs_on()
