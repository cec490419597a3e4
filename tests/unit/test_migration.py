"""The control connection of a migration, with peers that violate the protocol.

The destination writes files as root and runs what is in them, so no input is trusted: names,
numbers, sizes, order. The tests need no CRIU.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycriu_native import (
    CriuError,
    CriuOpts,
    DeadlineError,
    ImagesError,
    MigrationError,
    MigrationInDoubtError,
    MigrationMode,
    PeerLostError,
    ShrinkingRounds,
    Verb,
)
from pycriu_native._support import lazy
from pycriu_native.migration import endpoint, image_transfer, watchdog_process
from pycriu_native.migration import source as source_module
from pycriu_native.migration.common import Phases, Workspace, problems_with
from pycriu_native.migration.control_channel import HEADER, MAGIC, Channel, Kind, greet
from pycriu_native.migration.deadline import MigrationDeadline
from pycriu_native.migration.destination import Destination
from pycriu_native.migration.handover import Handover, HeldCall, State
from pycriu_native.migration.page_relay import FORCE_CLOSE, PageRelay
from pycriu_native.migration.restored_copy import RestoredCopy
from pycriu_native.migration.restored_copy import State as CopyState
from pycriu_native.migration.source import Source
from pycriu_native.migration.watchdog import Watchdog
from pycriu_native.results import DumpResult
from pycriu_native.testing import ScriptedCriu


class Peer:
    """The other end, which sends any bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def say(self, kind: int, data: bytes, size: int | None = None) -> None:
        """Send a frame; ``size`` is a wrong size."""
        self.sock.sendall(HEADER.pack(kind, len(data) if size is None else size) + data)

    def send_message(self, word: str, **fields: Any) -> None:
        """Send a message."""
        self.say(Kind.MESSAGE, json.dumps({"word": word, **fields}).encode())


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Peer]]:
    """A channel and its peer."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, peer_timeout=30, until=MigrationDeadline(), on_pages=lambda data: None)
    with theirs:
        yield channel, Peer(theirs)
        channel.close()


BAD_NAMES = (
    "../x",
    "a/b",
    "/etc/passwd",
    ".hidden",
    "..",
    "",
    "a\0b",
    "x" * 201,
    "parent",
    "é",
    "dump.log",
    "a\nb",
    " a",
    "-rf",
)


@pytest.mark.parametrize("name", [*BAD_NAMES, None, 7, ["a"]])
def test_names_that_are_no_file_names(
    ends: tuple[Channel, Peer], tmp_path: Path, name: object
) -> None:
    """Invalid names are refused, and nothing is written outside of the directory or in it."""
    channel, peer = ends
    peer.send_message("file", name=name, size=1)
    peer.say(Kind.PIECE, b"x")
    with pytest.raises(PeerLostError, match="a file with the name"):
        _receive(channel, tmp_path, files=1, bytes=1)
    assert os.listdir(tmp_path) == ["1"]
    assert os.listdir(tmp_path / "1") == []


@given(st.text(max_size=300))
def test_a_name_that_is_taken_is_a_plain_one(name: str) -> None:
    """Accepted names stay in their directory, are not hidden, and are no option of a command."""
    try:
        taken = image_transfer.checked_name(name)
    except PeerLostError:
        return
    assert taken == name == os.path.basename(name)
    assert name not in ("", ".", "..")
    assert name[0] not in ".-"
    assert name.isascii()
    assert name.isprintable()
    assert len(name) <= 200


def _receive(channel: Channel, root: Path, last: int = 0, **announcement: Any) -> int:
    announcement.setdefault("number", 1)
    return image_transfer.receive(channel, str(root), announcement, last, lambda size: None)


@pytest.mark.parametrize(
    "announcement",
    [
        {"number": 2, "files": 1, "bytes": 1},
        {"number": 0, "files": 1, "bytes": 1},
        {"number": "1", "files": 1, "bytes": 1},
        {"number": True, "files": 1, "bytes": 1},
        {"number": 1, "files": -1, "bytes": 1},
        {"number": 1, "files": 10**6, "bytes": 1},
        {"number": 1, "files": 1},
        {"number": 1, "files": 1, "bytes": 2**62},
        {"number": 1, "files": 1, "bytes": 1.5},
    ],
)
def test_announcements_that_cannot_be(
    ends: tuple[Channel, Peer], tmp_path: Path, announcement: dict[str, Any]
) -> None:
    """Rounds arrive in order, with valid numbers."""
    with pytest.raises(PeerLostError):
        _receive(ends[0], tmp_path, **announcement)
    assert os.listdir(tmp_path) == []


def test_more_than_there_is_room_for(ends: tuple[Channel, Peer], tmp_path: Path) -> None:
    """The lack of space is reported before a byte is written."""
    with pytest.raises(MigrationError, match="do not fit"):
        _receive(ends[0], tmp_path, files=1, bytes=2**61)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("size", "pieces"), [(5, [b"x"]), (4, [b"xxxxx"]), (4, [b""]), (2**40, [b"x"])]
)
def test_sizes_that_lie(
    ends: tuple[Channel, Peer], tmp_path: Path, size: int, pieces: list[bytes]
) -> None:
    """More bytes than announced, more than the file's size, and an empty transfer are refused."""
    channel, peer = ends
    peer.send_message("file", name="core-1.img", size=size)
    for piece in pieces:
        peer.say(Kind.PIECE, piece)
    with pytest.raises(PeerLostError, match="bytes"):
        _receive(channel, tmp_path, files=1, bytes=4)


def test_a_file_twice(ends: tuple[Channel, Peer], tmp_path: Path) -> None:
    """A second file of the same name is refused: it could overwrite the first."""
    channel, peer = ends
    for _ in range(2):
        peer.send_message("file", name="core-1.img", size=1)
        peer.say(Kind.PIECE, b"x")
    with pytest.raises(PeerLostError, match="twice"):
        _receive(channel, tmp_path, files=2, bytes=2)


def test_what_is_whole_arrives(tmp_path: Path) -> None:
    """Files arrive unchanged; the second directory has the first as its parent."""
    sender, receiver = socket.socketpair()
    there = tmp_path / "there"
    here = tmp_path / "here"
    there.mkdir()
    (here / "1").mkdir(parents=True)
    (here / "2").mkdir()
    (here / "1" / "pages-1.img").write_bytes(os.urandom(3 * 2**20 + 5))
    (here / "1" / "dump.log").write_text("stays")
    (here / "2" / "empty.img").touch()
    out = Channel(sender, peer_timeout=30, until=MigrationDeadline(), on_pages=lambda data: None)
    come = Channel(receiver, peer_timeout=30, until=MigrationDeadline(), on_pages=lambda data: None)
    sent: list[int] = []

    def send() -> None:
        for number in (1, 2):
            image_transfer.send(out, str(here / str(number)), number, sent.append)

    thread = threading.Thread(target=send)
    thread.start()
    for number in (1, 2):
        image_transfer.receive(
            come, str(there), come.expect("images"), number - 1, lambda size: None
        )
    thread.join()
    out.close()
    come.close()
    assert sum(sent) == 3 * 2**20 + 5
    pages = "1/pages-1.img"
    assert (there / pages).read_bytes() == (here / pages).read_bytes()
    assert sorted(os.listdir(there / "1")) == ["pages-1.img"]
    assert os.readlink(there / "2" / "parent") == "../1"
    assert (there / "2" / "empty.img").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("kind", "data", "size"),
    [
        (9, b"", None),
        (Kind.MESSAGE, b"no JSON", None),
        (Kind.MESSAGE, b"[1]", None),
        (Kind.MESSAGE, b'{"word": 1}', None),
        (Kind.MESSAGE, b"", 65537),
        (Kind.PIECE, b"", 2**20 + 1),
        (Kind.PAGES, b"", 2**32 - 1),
        (Kind.ALIVE, b"x", None),
        (Kind.PIECE, b"x", None),
    ],
)
def test_frames_that_are_none(
    ends: tuple[Channel, Peer], kind: int, data: bytes, size: int | None
) -> None:
    """The channel is closed at once, and no memory is allocated for the message."""
    channel, peer = ends
    peer.say(kind, data, size)
    with pytest.raises(PeerLostError):
        channel.expect("go")
    assert channel.lost is not None
    with pytest.raises(PeerLostError):
        channel.send_message("anything")


def test_the_refusal_of_a_peer(ends: tuple[Channel, Peer]) -> None:
    """An error of the peer is raised with its class, also before its turn."""
    channel, peer = ends
    peer.send_message("failed", why="no room")
    with pytest.raises(MigrationError, match="no room") as caught:
        channel.expect("go")
    assert caught.value.by_peer
    assert channel.refused is not None
    assert channel.lost is None


def test_a_peer_that_sends_nothing() -> None:
    """A peer that sends nothing is lost; one that sends keepalives is not."""
    ours, theirs = socket.socketpair()
    mute = Channel(ours, peer_timeout=0.4, until=MigrationDeadline(), on_pages=lambda data: None)
    with theirs, pytest.raises(PeerLostError, match=r"nothing was received .* for 0\.4 s"):
        mute.expect("go")
    mute.close()
    remaining, right = (
        Channel(end, peer_timeout=3.0, until=MigrationDeadline(), on_pages=lambda data: None)
        for end in socket.socketpair()
    )
    time.sleep(4)
    right.send_message("go")
    assert remaining.expect("go") == {"word": "go"}
    remaining.close()
    right.close()


def test_a_deadline_leaves_the_channel(ends: tuple[Channel, Peer]) -> None:
    """An error is raised once; after it a message can be sent, and its response received."""
    ours, theirs = socket.socketpair()
    channel = Channel(
        ours, peer_timeout=30, until=MigrationDeadline(0.1), on_pages=lambda data: None
    )
    with theirs:
        with pytest.raises(DeadlineError):
            channel.expect("go")
        Peer(theirs).send_message("go")
        assert channel.expect("go")["word"] == "go"
        channel.close()


def test_another_protocol() -> None:
    """A peer with another greeting is refused."""
    for response in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2, MAGIC[:-2] + b"2\n", b""):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(5)
            theirs.sendall(response)
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(PeerLostError):
                greet(ours)


def test_a_greeting_byte_by_byte() -> None:
    """The timeout is for the whole handshake: a slow peer does not block others."""
    ours, theirs = socket.socketpair()
    over = threading.Event()

    def trickle() -> None:
        for byte in MAGIC:
            if over.wait(0.3):
                return
            with contextlib.suppress(OSError):
                theirs.send(bytes([byte]))

    thread = threading.Thread(target=trickle)
    with ours, theirs:
        ours.settimeout(0.5)
        thread.start()
        began = time.monotonic()
        with pytest.raises(PeerLostError, match="timed out"):
            greet(ours)
        over.set()
        thread.join()
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("size", [24, 32])
def test_the_last_message_of_the_daemon_is_not_sent(size: int) -> None:
    """The relay responds in the form of CRIU 4.1 and 4.2; requests are passed on."""
    near, far = socket.socketpair()
    request = bytes([7]) + bytes(size - 2) + b"\1"
    came: list[bytes] = []
    here = Channel(near, peer_timeout=30, until=MigrationDeadline(), on_pages=lambda data: None)
    there = Channel(
        far,
        peer_timeout=30,
        until=MigrationDeadline(),
        on_pages=lambda data: came.append(bytes(data)),
    )
    with PageRelay(serves=False) as relay:
        relay.start(here)
        relay.theirs.sendall(request + FORCE_CLOSE + bytes(size - 4))
        relay.theirs.settimeout(10)
        assert relay.theirs.recv(100) == bytes(4)
        there.send_message("go")
        here.expect("go")
        until = time.monotonic() + 10
        while not came and time.monotonic() < until:
            time.sleep(0.01)
        assert b"".join(came) == request
    here.close()
    there.close()


def test_errors_pickle() -> None:
    """Errors are passed on with their attributes."""
    import pickle

    error: CriuError = MigrationError("no", phase="pages", by_peer=True)
    again = pickle.loads(pickle.dumps(error))
    assert (again.phase, again.by_peer, str(again)) == ("pages", True, "no")


# ---- what a destination says of itself ----


WATCHDOG = cast(Any, SimpleNamespace(set_cleanup=lambda *_, **__: None))


def _source(channel: Channel, workspace: Workspace) -> Source:
    return Source(
        target=os.getpid(),
        opts=CriuOpts(),
        mode=MigrationMode.STOP_AND_COPY,
        workspace=workspace,
        channel=channel,
        relay=None,
        watchdog=cast(Any, None),
        phases=Phases(),
        via=ScriptedCriu(),
        on_notify=None,
        should_continue=ShrinkingRounds(),
    )


@pytest.mark.parametrize(
    "peer_timeout", [None, "5", -1, 1e9, float("inf"), float("nan"), True, [1]], ids=repr
)
def test_peer_timeouts_that_are_refused(
    ends: tuple[Channel, Peer], tmp_path: Path, peer_timeout: object
) -> None:
    """An invalid peer_timeout is refused: it bounds the wait of the frozen process."""
    channel, peer = ends
    peer.send_message("hello", peer_timeout=peer_timeout)
    source = _source(channel, Workspace(CriuOpts(images_directory=tmp_path / "images")))
    with pytest.raises(PeerLostError, match="the peer sent peer_timeout="):
        source.run()


@pytest.mark.parametrize("told", [{}, {"pid": "x"}, {"pid": -1}, {"pid": 1.5}], ids=repr)
def test_a_pid_that_is_none(ends: tuple[Channel, Peer], told: dict[str, Any]) -> None:
    """An invalid pid is refused with an error of this package, before ``go`` is sent."""
    channel, peer = ends
    peer.send_message("prepared", **told)
    handover = Handover(channel, Phases(), WATCHDOG, None)
    with pytest.raises(PeerLostError, match="the peer sent pid="):
        handover.await_copy()
    assert handover.state is State.HERE


def test_a_report_that_never_comes(
    ends: tuple[Channel, Peer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The migration is complete then: a silent destination does not delay the end."""
    monkeypatch.setattr(source_module, "REPORT_TIMEOUT", 0.1)
    source = _source(ends[0], Workspace(CriuOpts(images_directory=tmp_path / "images")))
    began = time.monotonic()
    result = source._result(
        DumpResult(pid=1, images="", log=None, statistics=None, duration=0, pid_free=True)
    )
    assert time.monotonic() - began < 10
    assert result.restore is None


# ---- the states of a process that migrates ----


def _handover(channel: Channel, state: State) -> Handover:
    handover = Handover(channel, Phases(), WATCHDOG, None)
    handover.state = state
    return handover


def _transition(handover: Handover, name: str) -> None:
    if name == "keep":
        handover.keep(MigrationError("no", by_peer=True))
    else:
        getattr(handover, name)()


HANDOVERS = {
    ("await_copy", State.HERE): (State.HERE, []),
    ("go", State.HERE): (State.UNDECIDED, ["go"]),
    ("give_up", State.UNDECIDED): (State.GIVEN_UP, ["done"]),
    ("keep", State.HERE): (State.KEPT, []),
    ("keep", State.UNDECIDED): (State.KEPT, []),
    ("keep", State.KEPT): (State.KEPT, []),
    ("join", State.GIVEN_UP): (State.GIVEN_UP, []),
}
"""State after a transition, and messages sent; every other pair is refused."""


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("name", ["await_copy", "go", "give_up", "keep", "join"])
def test_transitions_of_the_source(
    ends: tuple[Channel, Peer], monkeypatch: pytest.MonkeyPatch, name: str, state: State
) -> None:
    """Each step of the source is possible in its states only, and sends its message."""
    channel, peer = ends
    sent: list[str] = []
    monkeypatch.setattr(channel, "send_message", lambda word, **_: sent.append(word))
    if name != "go":
        peer.send_message("prepared", pid=7)
    peer.send_message("running")
    handover = _handover(channel, state)
    if (name, state) not in HANDOVERS:
        with pytest.raises(AssertionError, match=f"the handover is {state.value}"):
            _transition(handover, name)
        assert (handover.state, sent) == (state, [])
        return
    _transition(handover, name)
    assert (handover.state, sent) == HANDOVERS[name, state]


def test_the_source_waits_until_no_copy_runs(ends: tuple[Channel, Peer]) -> None:
    """A failure after ``go`` is sent to the destination, whose refusal ends the wait."""
    channel, peer = ends
    peer.send_message("running")
    peer.send_message("failed", why="as requested")
    handover = _handover(channel, State.UNDECIDED)
    handover.peer_timeout = 3600
    handover.keep(PeerLostError("no"))
    assert handover.state is State.KEPT
    assert b"the source cancelled" in peer.sock.recv(4096)


@pytest.mark.parametrize("letter", ["x", "\u20ac", "\U0001f600"])
def test_reasons_of_any_length(ends: tuple[Channel, Peer], letter: str) -> None:
    """A long reason, such as the message of a caller's exception, is shortened to one message."""
    channel, peer = ends
    channel.send_failed(letter * 100_000)
    handover = _handover(channel, State.UNDECIDED)
    assert handover.withdraw(ValueError(letter * 100_000))
    peer.send_message("failed", why="as requested")
    handover.keep(ValueError(letter * 100_000))
    assert handover.state is State.KEPT
    for begin in (letter, "the source was interrupted", "the source cancelled"):
        kind, size = HEADER.unpack(peer.sock.recv(HEADER.size, socket.MSG_WAITALL))
        body = json.loads(peer.sock.recv(size, socket.MSG_WAITALL))
        assert (kind, body["word"]) == (Kind.MESSAGE, "failed")
        assert body["why"].startswith(begin)


def test_a_source_that_withdraws_first(ends: tuple[Channel, Peer]) -> None:
    """The process is not given up after a message to the destination to end its copy."""
    channel, peer = ends
    handover = _handover(channel, State.UNDECIDED)
    assert handover.withdraw(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        handover.give_up()
    assert handover.state is State.UNDECIDED
    assert b"the source was interrupted" in peer.sock.recv(4096)


def test_a_source_that_withdraws_too_late(
    ends: tuple[Channel, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the process was given up, ``withdraw`` sends no message, and the copy continues."""
    sent: list[str] = []
    monkeypatch.setattr(ends[0], "send_message", lambda word, **_: sent.append(word))
    handover = _handover(ends[0], State.UNDECIDED)
    handover.give_up()
    assert not handover.withdraw(KeyboardInterrupt())
    assert sent == ["done"]


def test_a_reason_that_is_answered_at_once(
    ends: tuple[Channel, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interruption is raised, even if the destination answers before ``cancel`` returns."""
    handover = _handover(ends[0], State.HERE)
    call = HeldCall(SimpleNamespace(verb=Verb.DUMP, via=SimpleNamespace(connect=None)), handover)
    call.held = True
    monkeypatch.setattr(ends[0], "send_message", lambda *_, **__: call.cancel_deferred())
    call.cancel(reason := KeyboardInterrupt())
    assert call._cancelled is reason


def test_a_watchdog_that_is_killed() -> None:
    """The migration continues without its watchdog, whose last message may be unread."""
    watchdog = Watchdog()
    try:
        pid = watchdog._process.pid
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        watchdog.set_cleanup()
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        watchdog.set_cleanup()
        watchdog.set_cleanup()
    finally:
        watchdog.close()


def test_an_error_at_the_source_after_the_end() -> None:
    """The cure of a copy in doubt distinguishes it: the process does not run at the source."""
    destination = cast(
        Any,
        SimpleNamespace(
            _copy=SimpleNamespace(undo=lambda **_: True, pid=7),
            peer_timeout=10.0,
            channel=SimpleNamespace(refused=None),
            phases=Phases(),
        ),
    )
    with pytest.raises(MigrationInDoubtError) as caught:
        Destination._undo(destination, PeerLostError("no"))
    before, _, after = str(caught.value).partition("kill -CONT 7")
    assert "its error says that the process runs at the destination" in before
    assert "another error" in after
    assert "kill -KILL 7" in after


COPIES = {
    ("prepare", CopyState.ABSENT): CopyState.PREPARED,
    ("finalize", CopyState.PREPARED): CopyState.UNCONFIRMED,
    ("own", CopyState.UNCONFIRMED): CopyState.OWNED,
}


@pytest.mark.parametrize("state", CopyState)
@pytest.mark.parametrize("name", ["prepare", "finalize", "own"])
def test_transitions_of_the_destination(name: str, state: CopyState) -> None:
    """Each step is possible in one state only, and sends its cleanup to the watchdog."""
    cleanups: list[dict[str, Any]] = []
    watchdog = SimpleNamespace(set_cleanup=lambda *_, **cleanup: cleanups.append(cleanup))
    copy = RestoredCopy(cast(Any, watchdog))
    copy.state = state
    arguments: tuple[Any, ...] = (os.getpid(), []) if name == "prepare" else ()
    if (name, state) not in COPIES:
        with pytest.raises(AssertionError, match=f"the copy is {state.value}"):
            getattr(copy, name)(*arguments)
        assert (copy.state, cleanups) == (state, [])
        return
    getattr(copy, name)(*arguments)
    assert copy.state is COPIES[name, state]
    assert len(cleanups) == 1


@pytest.mark.parametrize(
    ("state", "refused", "effect"),
    [
        (CopyState.ABSENT, False, "none"),
        (CopyState.PREPARED, False, "ended"),
        (CopyState.PREPARED, True, "ended"),
        (CopyState.UNCONFIRMED, False, "stopped"),
        (CopyState.UNCONFIRMED, True, "ended"),
    ],
)
def test_what_a_failure_does_to_the_copy(
    monkeypatch: pytest.MonkeyPatch, state: CopyState, refused: bool, effect: str
) -> None:
    """A copy is stopped, not killed, only if the source may have given its process up."""
    effects: list[str] = []
    for name, result in (("end_tree", "ended"), ("stop_tree", "stopped")):
        monkeypatch.setattr(watchdog_process, name, lambda *_, e=result: effects.append(e))
    copy = RestoredCopy(cast(Any, None))
    copy.state = state
    assert copy.undo(refused=refused) is (effect == "stopped")
    assert effects == ([] if effect == "none" else [effect])


def test_a_name_that_dns_cannot_represent() -> None:
    """Such a name is refused as an unknown one, and reported as one by either side."""
    for name in ("a..b", "x" * 70):
        [problem] = endpoint.problems_with(f"{name}:7000", "to", CriuOpts(), False)
        assert "network address" in problem.rule
        until = MigrationDeadline(5.0)
        with pytest.raises(PeerLostError, match="not a host name"):
            endpoint.connect(f"{name}:7000", CriuOpts(), until, True)
        with pytest.raises(MigrationError, match="cannot listen"):
            endpoint.accept(f"{name}:7000", CriuOpts(), until, True)


def test_a_name_with_an_address_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """The destination listens on a name that has no address of IPv4."""
    known = socket.getaddrinfo("::1", 0, type=socket.SOCK_STREAM)
    monkeypatch.setattr(lazy.socket, "getaddrinfo", lambda *_, **__: known)
    with pytest.raises(MigrationError, match="no source connected before the deadline"):
        endpoint.accept("six:0", CriuOpts(), MigrationDeadline(0.1), False)


def test_connections_without_data_delay_no_source() -> None:
    """The destination accepts a source behind connections of others that send nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as owned:
        address = listener.getsockname()
        silent = [owned.enter_context(socket.create_connection(address)) for _ in range(3)]
        source: list[object] = []

        def connect() -> None:
            until = MigrationDeadline(60.0)
            source.append(endpoint.connect(address, CriuOpts(), until, True))

        thread = threading.Thread(target=connect)
        thread.start()
        destination = endpoint.accept(listener, CriuOpts(), MigrationDeadline(60.0), True)
        thread.join()
        [here] = source
        assert isinstance(here, socket.socket)
        with here, destination:
            assert here.getsockname() == destination.getpeername()
        for each in silent:
            each.settimeout(60)
            assert each.recv(1) == b""  # the others are closed


@pytest.mark.parametrize("name", ["to", "listen"])
def test_sockets_that_are_refused(name: str) -> None:
    """A closed socket, one without a peer, a datagram socket, and at the source a listening one."""
    closed = socket.socket()
    closed.close()
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with (
        closed,
        socket.socket() as unconnected,
        pair[0] as datagrams,
        pair[1],
        socket.create_server(("127.0.0.1", 0)) as listening,
    ):
        for each in (closed, unconnected, datagrams):
            [problem] = endpoint.problems_with(each, name, CriuOpts(), True)
            assert (problem.field, problem.value) == (name, each)
            assert "connected" in problem.rule
        found = list(endpoint.problems_with(listening, name, CriuOpts(), True))
        assert [each.field for each in found] == (["to"] if name == "to" else [])


def test_images_directories_that_cannot_be_made(tmp_path: Path) -> None:
    """One in a directory that does not exist is refused; the error of the system is one of ours."""
    opts = CriuOpts(images_directory=tmp_path / "none" / "images")
    [problem] = problems_with(opts)
    assert problem.rule == "its parent directory does not exist"
    with pytest.raises(ImagesError, match="cannot be made: No such file"):
        Workspace(opts)
