"""Responses that a real CRIU does not send: garbage, silence, sudden exits, unusual orders.

A scripted program replaces CRIU at the worker's socket; all other parts are the real ones. libcriu
does not validate responses (it crashes, for example, on a success without details), so each
response is validated before libcriu decodes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    DeadlineError,
    Features,
    ImagesError,
    Notification,
    Notify,
    ProtocolError,
    Worker,
    WorkerDiedError,
    dump,
    feature_check,
    pre_dump,
    restore,
    version,
)
from pycriu_native._calls import exchange as exchange_module
from pycriu_native._calls import requirements
from pycriu_native._calls.hook_invocation import HookInvocation
from pycriu_native._native.ffi import ffi, native
from pycriu_native._transport.connection import Connection
from pycriu_native._transport.forwarding_via import ForwardingVia
from pycriu_native._transport.spawn import DEFAULT_SPAWN_OPTIONS, SpawnOptions
from pycriu_native._transport.worker import PATIENCE, WorkerConnection
from pycriu_native._wire.messages import REQUEST_TYPES, decode_request, encode
from pycriu_native.enums import Verb
from pycriu_native.options.values import WireValue
from pycriu_native.testing import answer_of, write_images

NOBODY = 2**22 + 1
FAKE = Path(__file__).parents[0] / "support" / "fake_criu.py"

Step = list[str]
RECEIVE: Step = ["receive"]


def send(data: bytes, *, fd: bool = False) -> Step:
    """Send bytes together with a descriptor."""
    return ["send-with-fd" if fd else "send", data.hex()]


def notify(name: str, pid: int | None = None, *, fd: bool = False) -> list[Step]:
    """Send a notification and receive its acknowledgement."""
    body: dict[str, WireValue] = {"script": name}
    if pid is not None:
        body["pid"] = pid
    return [send(answer_of("notify", notify=body), fd=fd), RECEIVE]


def no(kind: str, **body: WireValue) -> bytes:
    """A response that reports a failure."""
    return encode("response", {"type": REQUEST_TYPES[kind], "success": False, **body})


GONE = answer_of("dump", dump={"restored": False})


@dataclass
class FakeCriu:
    """A program that runs a script in place of CRIU."""

    program: Path
    images: Path

    def script(self, *steps: Step | list[Step]) -> Worker:
        """Receive the request, write what is read after a dump, then run the steps."""
        flat: list[Any] = [RECEIVE, ["touch", str(self.images / "inventory.img")]]
        for step in steps:
            flat += step if step and isinstance(step[0], list) else [step]
        self.program.with_name(self.program.name + ".json").write_text(json.dumps(flat))
        return Worker(program=self.program)

    def dump(self, *steps: Step | list[Step], **more: Any) -> Any:
        """Dump with this script."""
        more.setdefault("via", self.script(*steps))
        # There is no dumped process to wait for.
        return dump(NOBODY, CriuOpts(images_directory=self.images), **more)

    def restore(self, *steps: Step | list[Step], **more: Any) -> Any:
        """Restore with this script."""
        if not (self.images / "pstree.img").exists():
            write_images(self.images)
        return restore(CriuOpts(images_directory=self.images), via=self.script(*steps), **more)

    def received(self) -> list[Any]:
        """The messages that the program received, the request first."""
        lines = self.program.with_name(self.program.name + ".received").read_text().split()
        return [decode_request(bytes.fromhex(line)) for line in lines]

    def acknowledged(self) -> list[bool]:
        """The acknowledgement of each notification."""
        return [message["notify_success"] for message in self.received()[1:]]


@pytest.fixture
def fake(tmp_path: Path) -> FakeCriu:
    """A program of its own for each test."""
    program = tmp_path / "criu"
    program.write_text(f"#!{sys.executable} -SE\n" + FAKE.read_text())
    program.chmod(0o755)
    images = tmp_path / "images"
    images.mkdir()
    write_images(images)
    return FakeCriu(program, images)


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Any:
    """No test leaves a descriptor, a child or a thread."""
    descriptors, threads = len(os.listdir("/proc/self/fd")), set(os.listdir("/proc/self/task"))
    yield  # what earlier tests started may end meanwhile
    until = time.monotonic() + PATIENCE  # a thread can end a moment after its work
    while not set(os.listdir("/proc/self/task")) <= threads:
        assert time.monotonic() < until
        time.sleep(0.002)
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for child in children:
        program = Path(f"/proc/{child}/cmdline").read_text().split("\0")[0]
        assert not program.endswith("criu")


# ---- answers ----


def test_a_valid_response(fake: FakeCriu) -> None:
    """A valid response is accepted."""
    assert fake.dump(send(GONE)).pid == NOBODY
    assert fake.restore(send(answer_of("restore", restore={"pid": 77}))).pid == 77


@pytest.mark.parametrize("garbage", [b"\xff" * 20, b"\0", b"GET / HTTP/1.0\r\n\r\n"])
def test_garbage(fake: FakeCriu, garbage: bytes) -> None:
    """Bytes that are not a message end the call and the process that sent them."""
    began = time.monotonic()
    with pytest.raises(
        ProtocolError, match=f"{len(garbage)} bytes that are not a message"
    ) as caught:
        fake.dump(["fork-and-hold"], send(garbage), ["wait-for-child"])  # it stays unless killed
    assert time.monotonic() - began < PATIENCE / 2
    _eventually(lambda: not _processes_of(fake.program), "the end of what it had forked")
    assert isinstance(caught.value, ConnectionError)
    assert str(fake.program) in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        answer_of("restore", restore={"pid": 1}),
        answer_of("check"),
        answer_of("empty"),
        no("restore"),
        answer_of("pre-dump"),
    ],
)
def test_a_response_of_another_type(fake: FakeCriu, answer: bytes) -> None:
    """A response of another type is an error."""
    with pytest.raises(ProtocolError, match="dump with a response to another request"):
        fake.dump(send(answer), ["wait-for-end"])


def test_a_success_without_its_details(fake: FakeCriu) -> None:
    """A success without details is an error; libcriu would dereference a null pointer."""
    with pytest.raises(ProtocolError, match="a success without its 'dump' part"):
        fake.dump(send(answer_of("dump")), ["wait-for-end"])
    with pytest.raises(ProtocolError, match="a success without its 'restore' part"):
        fake.restore(send(answer_of("restore")), ["wait-for-end"])
    with pytest.raises(ProtocolError, match="a success without its 'version' part"):
        version(via=fake.script(send(answer_of("version")), ["wait-for-end"]))
    with pytest.raises(ProtocolError, match="a success without its 'features' part"):
        feature_check(via=fake.script(send(answer_of("feature-check")), ["wait-for-end"]))


@pytest.mark.parametrize("pid", [0, -1, -(2**31)])
def test_a_restored_pid_that_is_none(fake: FakeCriu, pid: int) -> None:
    """A pid of 0 or below is an error: libcriu would return it as success or an error code."""
    with pytest.raises(ProtocolError, match=f"the pid {pid}"):
        fake.restore(send(answer_of("restore", restore={"pid": pid})), ["wait-for-end"])


def test_a_refusal_without_a_type(fake: FakeCriu) -> None:
    """CRIU's response to a request that it cannot parse is a failure with CRIU's message."""
    with pytest.raises(CriuError, match="CRIU reports: no such luck") as caught:
        fake.dump(send(no("empty", cr_errmsg="no such luck")))
    assert not isinstance(caught.value, ProtocolError)


def test_a_refusal_with_its_errno_and_words(fake: FakeCriu) -> None:
    """The error has CRIU's errno and message of this call, which libcriu drops."""
    with pytest.raises(CriuError) as caught:
        fake.dump(send(no("dump", cr_errno=3, cr_errmsg="Can't find it")))
    assert isinstance(caught.value, ProcessLookupError)
    assert caught.value.errno == 3
    assert "Can't find it" in str(caught.value)


def test_two_responses(fake: FakeCriu) -> None:
    """The first response counts; a second is not read."""
    assert fake.dump(send(GONE), send(no("dump"))).pid == NOBODY


def test_a_response_that_is_too_large(fake: FakeCriu) -> None:
    """A response of 64 KiB is an error; it is neither kept nor truncated and decoded."""
    with pytest.raises(ProtocolError, match="a message larger than any of CRIU's"):
        fake.dump(send(no("dump", cr_errmsg="x" * 2**16)), ["wait-for-end"])


# ---- silence and death ----


def test_an_end_before_the_response(fake: FakeCriu) -> None:
    """The worker exits without a response."""
    with pytest.raises(WorkerDiedError, match="ended before it responded") as caught:
        fake.dump(["exit", "3"])
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.status == 3


def test_a_worker_that_is_killed(fake: FakeCriu) -> None:
    """The error names the signal."""
    with pytest.raises(WorkerDiedError) as caught:
        fake.dump(notify("pre-dump"), ["kill"])
    assert caught.value.status == -9


def test_a_worker_that_dies_while_its_child_holds_the_socket(fake: FakeCriu) -> None:
    """The socket stays open, so the worker's exit ends the call; the child is ended too."""
    with pytest.raises(WorkerDiedError):
        fake.dump(["fork-and-hold"], ["kill"])
    _eventually(lambda: not _processes_of(fake.program), "the end of the worker's child")


@contextmanager
def _pre_dumping(fake: FakeCriu, *steps: Step) -> Iterator[exchange_module.Exchange]:
    """A pre-dump exchange with a worker that runs this script."""
    line = fake.script(*steps).connect()
    exchange = exchange_module.Exchange(line, Verb.PRE_DUMP)
    try:
        yield exchange
    finally:
        exchange.close()
        line.wait()


def test_the_child_that_makes_a_pre_dump_is_left_to_finish(fake: FakeCriu, tmp_path: Path) -> None:
    """The worker is killed; its child is not, because its end can kill the dumped process."""
    done = tmp_path / "done"
    with (
        _pre_dumping(fake, ["fork-and-finish", str(done)], ["kill"]) as exchange,
        pytest.raises(WorkerDiedError),
    ):
        exchange.run(b"a request")
    assert done.exists()
    assert not _processes_of(fake.program)


def test_a_stopped_child_that_makes_a_pre_dump_is_continued(fake: FakeCriu, tmp_path: Path) -> None:
    """A cancel continues a stopped child, which then finishes."""
    done = tmp_path / "done"
    steps: list[Step] = [["fork-and-stop", str(done)], ["wait-for-child"], ["exit", "0"]]
    with _pre_dumping(fake, *steps) as exchange:

        def cancel_it() -> None:
            _eventually(lambda: "T" in _processes_of(fake.program), "its stop")
            exchange.cancel(Refused())

        cancel = threading.Thread(target=cancel_it)
        cancel.start()
        with pytest.raises(WorkerDiedError):
            exchange.run(b"a request")
        cancel.join()
    assert done.exists()


def test_what_a_failed_pre_dump_has_forked_is_ended(
    fake: FakeCriu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker reports its killed child; processes that the child started are ended too."""
    features = Features(mem_track=True, lazy_pages=True, pidfd_store=True, mem_compression=True)
    monkeypatch.setattr(requirements, "program_features", lambda via: features)
    via = fake.script(["fork-and-hold"], send(no("pre-dump")))
    with pytest.raises(CriuError):
        pre_dump(NOBODY, CriuOpts(images_directory=fake.images), via=via)
    _eventually(lambda: not _processes_of(fake.program), "the end of what it had forked")


def test_an_end_while_a_notification_is_answered(fake: FakeCriu) -> None:
    """An acknowledgement to a closed socket causes neither SIGPIPE nor a hang."""
    with pytest.raises(WorkerDiedError):
        fake.dump(
            send(answer_of("notify", notify={"script": "pre-dump"})),
            ["exit", "0"],
            on_notify=lambda _: _eventually(
                lambda: _processes_of(fake.program) in ([], ["Z"]), "the worker's end"
            ),
        )


def _processes_of(program: Path) -> list[str]:
    """The states of the processes that run a program; a zombie's command line is empty."""
    result = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if str(program).encode() in (process / "cmdline").read_bytes():
                    result.append((process / "stat").read_text().rpartition(")")[2].split()[0])
            except OSError:
                continue
    return result


def _eventually(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, f"{what} did not come"
        time.sleep(0.002)


# ---- notifications ----


def test_notifications_reach_the_hook(fake: FakeCriu) -> None:
    """The hook gets notifications in order, with the pid if there is one; each is acknowledged."""
    result: list[Notification] = []
    fake.dump(
        notify("pre-dump"),
        notify("network-lock"),
        notify("post-dump"),
        notify("setup-namespaces", 55),
        send(GONE),
        on_notify=result.append,
    )
    assert [note.action for note in result] == [
        Notify.PRE_DUMP, Notify.NETWORK_LOCK, Notify.POST_DUMP, Notify.SETUP_NAMESPACES,
    ]  # fmt: skip
    assert [note.pid for note in result] == [None, None, None, 55]
    assert {note.verb.value for note in result} == {"dump"}
    assert fake.acknowledged() == [True] * 4


def test_without_a_hook_everything_is_agreed_to(fake: FakeCriu) -> None:
    """Without a hook each notification is acknowledged with success."""
    fake.dump(notify("pre-dump"), notify("of-the-future"), send(GONE))
    assert fake.acknowledged() == [True, True]


RESTORED = answer_of("restore", restore={"pid": NOBODY})


def test_what_needs_no_thought_is_agreed_to_without_python(
    fake: FakeCriu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a hook Python handles of a restore only pids, descriptors and unknown names."""
    looked_at: list[WireValue] = []
    notify_as_it_is = exchange_module.Exchange._notify

    def look(
        exchange: exchange_module.Exchange, answer: dict[str, WireValue], fds: list[int]
    ) -> None:
        looked_at.append(cast("dict[str, WireValue]", answer["notify"])["script"])
        notify_as_it_is(exchange, answer, fds)

    monkeypatch.setattr(exchange_module.Exchange, "_notify", look)
    names = (
        "pre-restore",
        "post-setup-namespaces",
        "pre-resume",
        "network-unlock",
        "of-the-future",
    )
    message = [*map(notify, names), notify("post-restore", NOBODY), notify("pre-resume", fd=True)]
    assert fake.restore(*message, send(RESTORED), deadline=60).pid == NOBODY
    assert looked_at == ["of-the-future", "post-restore", "pre-resume"]
    assert fake.acknowledged() == [True] * len(message)


@pytest.mark.parametrize("accepted", [True, False])
def test_the_begin_of_the_work(accepted: bool, fake: FakeCriu) -> None:
    """Python is called before the reply to the first notification, and once; an error refuses it
    and all others.
    """
    received: list[int] = []

    def on_begin() -> None:
        received.append(len(fake.received()))
        assert accepted

    names = ("pre-restore", "pre-resume", "network-unlock")
    connection = fake.script(*map(notify, names), send(RESTORED)).connect()
    connection.on_begin = on_begin
    exchange = exchange_module.Exchange(connection, Verb.RESTORE)
    try:
        exchange.run(encode("request", {"type": REQUEST_TYPES["restore"]}))
    finally:
        exchange.close()
        connection.wait()
    assert received == [1]  # the request
    assert fake.acknowledged() == [accepted, accepted, True]
    assert (exchange.stopped_by is None) == accepted


def test_the_notification_after_the_deadline_is_refused(fake: FakeCriu) -> None:
    """After the deadline of a restore without a hook the next notification is refused."""
    with pytest.raises(DeadlineError):
        fake.restore(
            notify("pre-restore"),
            ["sleep", "0.3"],
            notify("pre-resume"),
            send(no("restore")),
            deadline=0.15,
        )
    assert fake.acknowledged()[-1] is False


@pytest.mark.parametrize(("often", "seconds"), [(1000.0, 0.001), (0.0, 0.01)])
def test_a_tracer_that_is_not_seen(
    monkeypatch: pytest.MonkeyPatch, often: float, seconds: float
) -> None:
    """It is in another pid namespace: /proc is read less often then."""
    waits: list[float] = []
    monkeypatch.setattr(exchange_module, "OFTEN", often)
    monkeypatch.setattr(
        exchange_module.Exchange, "_has_event", lambda _, seconds: waits.append(seconds)
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection = Connection(ours.detach(), program="criu")
    safeguards: Any = SimpleNamespace(can_recover=False, awaits_stop=lambda: len(waits) == 2)
    exchange = exchange_module.Exchange(connection, Verb.RESTORE, safeguards=safeguards)
    with theirs:
        theirs.send(RESTORED)
        exchange.run(b"a request")
    exchange.close()
    connection.close()
    assert waits == [seconds] * 2


@pytest.mark.parametrize("in_time", [True, False])
def test_python_handles_notifications_after_the_deadline(in_time: bool) -> None:
    """After the deadline Python handles notifications that C would acknowledge alone."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        exchange = exchange_module.Exchange(Connection(ours.detach(), program="criu"), Verb.RESTORE)
        theirs.send(answer_of("notify", notify={"script": "pre-restore"}))
        if in_time:
            theirs.send(RESTORED)
        result = native.pn_receive(exchange._receiver, 60_000 if in_time else 0)
        exchange.close()
        assert result == native.PN_RECEIVED_MESSAGE
        response = ffi.unpack(exchange._receiver.buffer, exchange._receiver.length)
        assert (response == RESTORED) == in_time
        if not in_time:
            with pytest.raises(BlockingIOError):
                theirs.recv(64)


def test_an_unknown_name_reaches_the_hook_as_it_is(fake: FakeCriu) -> None:
    """A notification of a newer CRIU reaches the hook with its name, also if that is not UTF-8."""
    result: list[Notification] = []
    fake.dump(
        notify("of-the-future"),
        notify("\udcff\udcfe"),
        notify(""),
        send(GONE),
        on_notify=result.append,
    )
    assert [note.action for note in result] == ["of-the-future", "\udcff\udcfe", ""]
    assert not any(isinstance(note.action, Notify) for note in result)


def test_a_descriptor_belongs_to_the_hook(fake: FakeCriu) -> None:
    """A received descriptor is open and close-on-exec; the hook closes it."""
    read: list[bytes] = []

    def hook(note: Notification) -> None:
        assert note.fd is not None
        assert not os.get_inheritable(note.fd)
        with open(note.fd, "rb") as pipe:
            read.append(pipe.read())

    fake.dump(notify("orphan-pts-master", fd=True), send(GONE), on_notify=hook)
    assert read == [b"from the other side"]


def test_a_descriptor_without_a_hook_is_closed(fake: FakeCriu) -> None:
    """A descriptor that no hook receives is closed. (The fixture counts descriptors.)"""
    fake.dump(notify("orphan-pts-master", fd=True), send(GONE, fd=True))
    with pytest.raises(ProtocolError):
        fake.dump(send(b"\xff", fd=True), ["wait-for-end"])


class Refused(Exception):
    """The exception that hooks of these tests raise."""


@pytest.mark.parametrize("is_refused", [True, False])
def test_a_descriptor_that_the_hook_did_not_get_is_closed(is_refused: bool) -> None:
    """An interruption comes before the hook, or the hook is a coroutine function, which needs
    ``pycriu_native.aio``.
    """

    async def hook(notification: Notification) -> None:
        raise AssertionError("the hook runs")

    fd = os.open(os.devnull, os.O_RDONLY)
    action = Notify.ORPHAN_PTS_MASTER
    invocation = HookInvocation(hook, Notification(action, Verb.RESTORE, fd=fd))
    if is_refused:
        assert invocation.refuse(KeyboardInterrupt())
    invocation.run()
    with pytest.raises(KeyboardInterrupt if is_refused else TypeError):
        invocation.wait()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_hook_that_raises_refuses(fake: FakeCriu) -> None:
    """CRIU gets a refusal and time to undo its work; then the hook's own error is raised.

    While the dump is undone the hook gets only the network's unlocking, which is
    acknowledged: a refusal would keep the network locked.
    """
    result: list[str] = []

    def hook(note: Notification) -> None:
        result.append(note.action)
        if note.action == "post-dump":
            raise Refused("not now")

    with pytest.raises(Refused, match="not now"):
        fake.dump(
            notify("network-lock"),
            notify("post-dump"),
            notify("something-else"),
            notify("network-unlock"),
            send(no("dump", cr_errno=125)),
            on_notify=hook,
        )
    assert result == ["network-lock", "post-dump", "network-unlock"]
    assert fake.acknowledged() == [True, False, False, True]


@pytest.mark.parametrize("emptied", [False, True])
def test_removed_images_refuse_the_dump(fake: FakeCriu, emptied: bool) -> None:
    """Images removed during the dump: CRIU is refused, so that it does not end the process."""

    def remove(notification: Notification) -> None:
        if notification.action is Notify.PRE_DUMP:
            shutil.rmtree(fake.images)
            if emptied:
                fake.images.mkdir()

    with pytest.raises(ImagesError, match="was undone") as caught:
        fake.dump(
            notify("pre-dump"),
            notify("post-dump"),
            notify("network-unlock"),
            send(no("dump")),
            on_notify=remove,
        )
    assert fake.acknowledged() == [True, False, True]
    assert caught.value.options == ("images_directory",)


def test_a_worker_that_dies_when_all_is_saved(fake: FakeCriu) -> None:
    """The process has ended: the error reports this, and its images are kept."""
    with pytest.raises(WorkerDiedError) as caught:
        fake.dump(notify("post-dump"), ["kill"])
    assert f"pid {NOBODY} ended, after all images were written" in caught.value.__notes__


def test_a_second_error_while_it_is_undone_is_noted(fake: FakeCriu) -> None:
    """The first error is raised; the second is added as a note."""

    def hook(note: Notification) -> None:
        raise Refused(note.action)

    with pytest.raises(Refused, match="post-dump") as caught:
        fake.dump(notify("post-dump"), notify("network-unlock"), send(no("dump")), on_notify=hook)
    assert any("network-unlock" in note for note in caught.value.__notes__)
    assert fake.acknowledged() == [False, True]


def test_a_refusal_that_comes_too_late(fake: FakeCriu) -> None:
    """CRIU succeeds despite the refusal: the error has the result."""

    def hook(note: Notification) -> None:
        raise Refused("too late")

    with pytest.raises(Refused) as caught:
        fake.dump(notify("post-dump"), send(GONE), on_notify=hook)
    assert caught.value.__notes__


def test_a_worker_that_dies_while_it_undoes(fake: FakeCriu) -> None:
    """The hook's error is raised, with a note that CRIU did not undo its work."""

    def hook(note: Notification) -> None:
        raise Refused("not now")

    with pytest.raises(Refused) as caught:
        fake.dump(notify("post-dump"), ["kill"], on_notify=hook)
    assert any("did not undo" in note for note in caught.value.__notes__)


class _Observed(ForwardingVia):
    """A worker whose success is counted."""

    successes = 0

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        connection = self.via.connect(keep, spawn_options)
        connection.on_success = self._count
        return connection

    def _count(self) -> None:
        self.successes += 1


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("succeeds", [False, True])
def test_the_success_of_the_work(succeeds: bool, refused: bool, fake: FakeCriu) -> None:
    """Python is called once if CRIU has succeeded and the call was not interrupted before."""

    def hook(note: Notification) -> None:
        if refused:
            raise Refused(note.action)

    via = _Observed(fake.script(notify("post-dump"), send(GONE if succeeds else no("dump"))))
    expected = Refused if refused else CriuError
    with contextlib.nullcontext() if succeeds and not refused else pytest.raises(expected):
        dump(NOBODY, CriuOpts(images_directory=fake.images), via=via, on_notify=hook)
    assert via.successes == (succeeds and not refused)


# ---- deadlines ----


def test_a_deadline_refuses_the_next_notification(fake: FakeCriu) -> None:
    """CRIU undoes its work; then DeadlineError is raised."""
    with pytest.raises(DeadlineError) as caught:
        fake.dump(
            notify("pre-dump"),
            notify("post-dump"),
            notify("network-unlock"),
            send(no("dump")),
            deadline=0.001,
            on_notify=lambda _: time.sleep(0.05),
        )
    assert isinstance(caught.value, TimeoutError)
    assert fake.acknowledged() == [False, False, True]


def test_a_silent_worker_is_killed(fake: FakeCriu, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent worker gets time to undo its work and is then killed."""
    monkeypatch.setattr(exchange_module, "GRACE", 0.05)
    with pytest.raises(DeadlineError) as caught:
        fake.dump(["fork-and-hold"], ["wait-for-end"], deadline=0.05)
    assert any("was ended" in note for note in caught.value.__notes__)
    _eventually(lambda: not _processes_of(fake.program), "the worker's end")


def test_a_stopped_worker_is_continued(
    fake: FakeCriu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A continued worker undoes its work; killing it earlier can kill the dumped process."""
    monkeypatch.setattr(exchange_module, "GRACE", 60.0)
    woken = tmp_path / "woken"
    began = time.monotonic()
    with pytest.raises(DeadlineError) as caught:
        fake.dump(["stop"], ["touch", str(woken)], send(no("dump")), deadline=3.0)
    assert time.monotonic() - began < exchange_module.GRACE / 2
    assert woken.exists()
    assert not hasattr(caught.value, "__notes__")  # nothing of a CRIU that was killed


def test_an_answer_during_an_interruption(fake: FakeCriu, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CRIU that answers and ends while an interruption is passed on has undone its work."""
    monkeypatch.setattr(WorkerConnection, "wake", lambda line: line.has_ended(60.0))
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            fake.dump(["sleep", "2"], send(no("dump")))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert "undone" in "".join(caught.value.__notes__)


def test_a_deadline_that_is_not_reached(fake: FakeCriu) -> None:
    """A deadline that is not reached has no effect."""
    assert fake.dump(notify("post-dump"), send(GONE), deadline=60).pid == NOBODY


def test_the_program_is_left_as_it_was(fake: FakeCriu) -> None:
    """Parallel calls do not receive each other's responses."""
    from concurrent.futures import ThreadPoolExecutor

    # Written first: a program that a child of another thread has open for writing cannot be run.
    programs = [fake.program.with_name(f"criu{number}") for number in range(12)]
    for program in programs:
        shutil.copy(fake.program, program)

    def one(number: int) -> int:
        mine = FakeCriu(programs[number], fake.images)
        answer = send(answer_of("restore", restore={"pid": 1000 + number}))
        pid: int = mine.restore(answer).pid
        return pid

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(12))) == [1000 + number for number in range(12)]
