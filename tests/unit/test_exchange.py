"""What a real CRIU cannot be made to do: nonsense, silence, death, strange orders.

A program in CRIU's place plays a script over the socket of its worker; everything else is as
always. libcriu believes every answer (it crashes on a success without its details, for one), so
an answer is judged before libcriu sees it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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
from pycriu_native._native.ffi import ffi, native
from pycriu_native._transport.connection import Connection
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
    """Send these bytes, with a descriptor."""
    return ["send-with-fd" if fd else "send", data.hex()]


def notify(name: str, pid: int | None = None, *, fd: bool = False) -> list[Step]:
    """Notify, and hear the acknowledgement."""
    body: dict[str, WireValue] = {"script": name}
    if pid is not None:
        body["pid"] = pid
    return [send(answer_of("notify", notify=body), fd=fd), RECEIVE]


def no(kind: str, **body: WireValue) -> bytes:
    """An answer that says no."""
    return encode("response", {"type": REQUEST_TYPES[kind], "success": False, **body})


GONE = answer_of("dump", dump={"restored": False})


@dataclass
class Play:
    """A program that plays a script."""

    program: Path
    images: Path

    def script(self, *steps: Step | list[Step]) -> Worker:
        """Hear the request, leave what a dump is looked at for, then do these."""
        flat: list[Any] = [RECEIVE, ["touch", str(self.images / "inventory.img")]]
        for step in steps:
            flat += step if step and isinstance(step[0], list) else [step]
        self.program.with_name(self.program.name + ".json").write_text(json.dumps(flat))
        return Worker(program=self.program)

    def dump(self, *steps: Step | list[Step], **more: Any) -> Any:
        """A dump with this script."""
        more.setdefault("via", self.script(*steps))
        # What a dumped process leaves to wait for: nothing, there is none.
        return dump(NOBODY, CriuOpts(images_directory=self.images), **more)

    def restore(self, *steps: Step | list[Step], **more: Any) -> Any:
        """A restore with this script."""
        if not (self.images / "pstree.img").exists():
            write_images(self.images)
        return restore(CriuOpts(images_directory=self.images), via=self.script(*steps), **more)

    def heard(self) -> list[Any]:
        """What the program received, the request first."""
        lines = self.program.with_name(self.program.name + ".heard").read_text().split()
        return [decode_request(bytes.fromhex(line)) for line in lines]

    def acknowledged(self) -> list[bool]:
        """How each notification was answered."""
        return [message["notify_success"] for message in self.heard()[1:]]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """A program of its own for each test."""
    program = tmp_path / "criu"
    program.write_text(f"#!{sys.executable} -SE\n" + FAKE.read_text())
    program.chmod(0o755)
    images = tmp_path / "images"
    images.mkdir()
    write_images(images)
    return Play(program, images)


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Any:
    """No test leaves a descriptor, a child or a thread."""
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    yield
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for child in children:
        program = Path(f"/proc/{child}/cmdline").read_text().split("\0")[0]
        assert not program.endswith("criu")


# ---- answers ----


def test_an_answer_that_fits(play: Play) -> None:
    """The script works at all: what a CRIU says is taken."""
    assert play.dump(send(GONE)).pid == NOBODY
    assert play.restore(send(answer_of("restore", restore={"pid": 77}))).pid == 77


@pytest.mark.parametrize("garbage", [b"\xff" * 20, b"\0", b"GET / HTTP/1.0\r\n\r\n"])
def test_garbage(play: Play, garbage: bytes) -> None:
    """What is no message ends the call; who sent it is not left running."""
    began = time.monotonic()
    with pytest.raises(ProtocolError, match=f"{len(garbage)} bytes that are no message") as caught:
        play.dump(["fork-and-hold"], send(garbage), ["wait-for-child"])  # it stays, if it may
    assert time.monotonic() - began < PATIENCE / 2
    _eventually(lambda: not _processes_of(play.program), "the end of what it had forked")
    assert isinstance(caught.value, ConnectionError)
    assert str(play.program) in str(caught.value)


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
def test_an_answer_to_another_request(play: Play, answer: bytes) -> None:
    """A type that was not asked for."""
    with pytest.raises(ProtocolError, match="dump with an answer to another request"):
        play.dump(send(answer), ["wait-for-end"])


def test_a_success_without_its_details(play: Play) -> None:
    """libcriu would read the missing part through a null pointer."""
    with pytest.raises(ProtocolError, match="a success that lacks its 'dump' part"):
        play.dump(send(answer_of("dump")), ["wait-for-end"])
    with pytest.raises(ProtocolError, match="a success that lacks its 'restore' part"):
        play.restore(send(answer_of("restore")), ["wait-for-end"])
    with pytest.raises(ProtocolError, match="a success that lacks its 'version' part"):
        version(via=play.script(send(answer_of("version")), ["wait-for-end"]))
    with pytest.raises(ProtocolError, match="a success that lacks its 'features' part"):
        feature_check(via=play.script(send(answer_of("feature-check")), ["wait-for-end"]))


@pytest.mark.parametrize("pid", [0, -1, -(2**31)])
def test_a_restored_pid_that_is_none(play: Play, pid: int) -> None:
    """A negative one would look like an error code, 0 like success without a process."""
    with pytest.raises(ProtocolError, match=f"the pid {pid}"):
        play.restore(send(answer_of("restore", restore={"pid": pid})), ["wait-for-end"])


def test_a_refusal_without_a_type(play: Play) -> None:
    """CRIU answers so when it cannot read a request: a failure, with CRIU's words."""
    with pytest.raises(CriuError, match="CRIU says: no such luck") as caught:
        play.dump(send(no("empty", cr_errmsg="no such luck")))
    assert not isinstance(caught.value, ProtocolError)


def test_a_refusal_with_its_errno_and_words(play: Play) -> None:
    """CRIU's errno and message of this very call, which libcriu drops."""
    with pytest.raises(CriuError) as caught:
        play.dump(send(no("dump", cr_errno=3, cr_errmsg="Can't find it")))
    assert isinstance(caught.value, ProcessLookupError)
    assert caught.value.errno == 3
    assert "Can't find it" in str(caught.value)


def test_two_answers(play: Play) -> None:
    """The first counts; nobody waits for another."""
    assert play.dump(send(GONE), send(no("dump"))).pid == NOBODY


def test_an_answer_that_is_too_large(play: Play) -> None:
    """64 KiB are no answer of CRIU's; they are neither kept nor cut and believed."""
    with pytest.raises(ProtocolError, match="more than a CRIU ever says"):
        play.dump(send(no("dump", cr_errmsg="x" * 2**16)), ["wait-for-end"])


# ---- silence and death ----


def test_an_end_before_the_answer(play: Play) -> None:
    """The worker exits without a word."""
    with pytest.raises(WorkerDiedError, match="ended before it answered") as caught:
        play.dump(["exit", "3"])
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.status == 3


def test_a_worker_that_is_killed(play: Play) -> None:
    """The signal is told."""
    with pytest.raises(WorkerDiedError) as caught:
        play.dump(notify("pre-dump"), ["kill"])
    assert caught.value.status == -9


def test_a_worker_that_dies_while_its_child_holds_the_socket(play: Play) -> None:
    """The socket's end never comes, so the worker itself is watched; the child is ended too."""
    with pytest.raises(WorkerDiedError):
        play.dump(["fork-and-hold"], ["kill"])
    _eventually(lambda: not _processes_of(play.program), "the end of the worker's child")


@contextmanager
def _pre_dumping(play: Play, *steps: Step) -> Iterator[exchange_module.Exchange]:
    """An exchange about a pre-dump with a worker that plays this script."""
    line = play.script(*steps).connect()
    exchange = exchange_module.Exchange(line, Verb.PRE_DUMP)
    try:
        yield exchange
    finally:
        exchange.close()
        line.wait()


def test_the_child_that_makes_a_pre_dump_is_left_to_finish(play: Play, tmp_path: Path) -> None:
    """Its worker is killed; the child, whose end can cost the process its life, is not."""
    done = tmp_path / "done"
    with (
        _pre_dumping(play, ["fork-and-finish", str(done)], ["kill"]) as exchange,
        pytest.raises(WorkerDiedError),
    ):
        exchange.run(b"a request")
    assert done.exists()
    assert not _processes_of(play.program)


def test_the_child_that_makes_a_pre_dump_is_set_going(play: Play, tmp_path: Path) -> None:
    """Somebody has stopped it: a cancel has it go on, and finish."""
    done = tmp_path / "done"
    steps: list[Step] = [["fork-and-stop", str(done)], ["wait-for-child"], ["exit", "0"]]
    with _pre_dumping(play, *steps) as exchange:

        def cancel_it() -> None:
            _eventually(lambda: "T" in _processes_of(play.program), "its stop")
            exchange.cancel(Refused())

        cancel = threading.Thread(target=cancel_it)
        cancel.start()
        with pytest.raises(WorkerDiedError):
            exchange.run(b"a request")
        cancel.join()
    assert done.exists()


def test_what_a_failed_pre_dump_has_forked_is_ended(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker tells that its child was killed, but not what that child had started."""
    features = Features(mem_track=True, lazy_pages=True, pidfd_store=True, mem_compression=True)
    monkeypatch.setattr(requirements, "program_features", lambda via: features)
    via = play.script(["fork-and-hold"], send(no("pre-dump")))
    with pytest.raises(CriuError):
        pre_dump(NOBODY, CriuOpts(images_directory=play.images), via=via)
    _eventually(lambda: not _processes_of(play.program), "the end of what it had forked")


def test_an_end_while_a_notification_is_answered(play: Play) -> None:
    """The answer goes nowhere: no signal (SIGPIPE), no hang."""
    with pytest.raises(WorkerDiedError):
        play.dump(
            send(answer_of("notify", notify={"script": "pre-dump"})),
            ["exit", "0"],
            on_notify=lambda _: _eventually(
                lambda: _processes_of(play.program) in ([], ["Z"]), "the worker's end"
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


def test_notifications_reach_the_hook(play: Play) -> None:
    """In order, with the pid where there is one, and each is acknowledged."""
    heard: list[Notification] = []
    play.dump(
        notify("pre-dump"),
        notify("network-lock"),
        notify("post-dump"),
        notify("setup-namespaces", 55),
        send(GONE),
        on_notify=heard.append,
    )
    assert [note.action for note in heard] == [
        Notify.PRE_DUMP, Notify.NETWORK_LOCK, Notify.POST_DUMP, Notify.SETUP_NAMESPACES,
    ]  # fmt: skip
    assert [note.pid for note in heard] == [None, None, None, 55]
    assert {note.verb.value for note in heard} == {"dump"}
    assert play.acknowledged() == [True] * 4


def test_without_a_hook_everything_is_agreed_to(play: Play) -> None:
    """Nobody to ask: yes."""
    play.dump(notify("pre-dump"), notify("of-the-future"), send(GONE))
    assert play.acknowledged() == [True, True]


RESTORED = answer_of("restore", restore={"pid": NOBODY})


def test_what_needs_no_thought_is_agreed_to_without_python(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a restore without a hook only what tells a pid is looked at: the rest never gets there."""
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
    assert play.restore(*message, send(RESTORED), deadline=60).pid == NOBODY
    assert looked_at == ["of-the-future", "post-restore", "pre-resume"]
    assert play.acknowledged() == [True] * len(message)


def test_nothing_is_agreed_to_without_a_thought_once_it_is_undone(play: Play) -> None:
    """The deadline of a restore without a hook passes: the next notification is refused."""
    with pytest.raises(DeadlineError):
        play.restore(
            notify("pre-restore"),
            ["sleep", "0.3"],
            notify("pre-resume"),
            send(no("restore")),
            deadline=0.15,
        )
    assert play.acknowledged()[-1] is False


@pytest.mark.parametrize("in_time", [True, False])
def test_nothing_is_agreed_to_without_a_thought_when_it_is_late(in_time: bool) -> None:
    """What comes when there is no more time is looked at, though it would need no thought."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        exchange = exchange_module.Exchange(Connection(ours, program="criu"), Verb.RESTORE)
        theirs.send(answer_of("notify", notify={"script": "pre-restore"}))
        if in_time:
            theirs.send(RESTORED)
        heard = native.pn_receive(exchange._ear, 60_000 if in_time else 0)
        exchange.close()
        assert heard == native.PN_HEARD_MESSAGE
        response = ffi.unpack(exchange._ear.buffer, exchange._ear.length)
        assert (response == RESTORED) == in_time
        if not in_time:
            with pytest.raises(BlockingIOError):
                theirs.recv(64)


def test_an_unknown_name_reaches_the_hook_as_it_is(play: Play) -> None:
    """A newer CRIU may say more than this release knows; text of any bytes comes through."""
    heard: list[Notification] = []
    play.dump(
        notify("of-the-future"),
        notify("\udcff\udcfe"),
        notify(""),
        send(GONE),
        on_notify=heard.append,
    )
    assert [note.action for note in heard] == ["of-the-future", "\udcff\udcfe", ""]
    assert not any(isinstance(note.action, Notify) for note in heard)


def test_a_descriptor_belongs_to_the_hook(play: Play) -> None:
    """The one that comes along is open, close-on-exec, and the hook's to close."""
    read: list[bytes] = []

    def hook(note: Notification) -> None:
        assert note.fd is not None
        assert not os.get_inheritable(note.fd)
        with open(note.fd, "rb") as pipe:
            read.append(pipe.read())

    play.dump(notify("orphan-pts-master", fd=True), send(GONE), on_notify=hook)
    assert read == [b"from the other side"]


def test_a_descriptor_that_nobody_takes_is_closed(play: Play) -> None:
    """Without a hook, or beside an answer. (The fixture counts descriptors.)"""
    play.dump(notify("orphan-pts-master", fd=True), send(GONE, fd=True))
    with pytest.raises(ProtocolError):
        play.dump(send(b"\xff", fd=True), ["wait-for-end"])


class Refused(Exception):
    """What a hook of these tests raises."""


def test_a_hook_that_raises_refuses(play: Play) -> None:
    """CRIU is told no, has the time to undo its work, and then the hook's own error comes.

    While the dump is undone the hook hears of nothing but the network's unlocking, which is
    agreed to: a refusal would keep the network locked.
    """
    heard: list[str] = []

    def hook(note: Notification) -> None:
        heard.append(note.action)
        if note.action == "post-dump":
            raise Refused("not now")

    with pytest.raises(Refused, match="not now"):
        play.dump(
            notify("network-lock"),
            notify("post-dump"),
            notify("something-else"),
            notify("network-unlock"),
            send(no("dump", cr_errno=125)),
            on_notify=hook,
        )
    assert heard == ["network-lock", "post-dump", "network-unlock"]
    assert play.acknowledged() == [True, False, False, True]


@pytest.mark.parametrize("emptied", [False, True])
def test_images_that_are_gone_call_the_dump_off(play: Play, emptied: bool) -> None:
    """Somebody removes them while CRIU is at it: it must not end the process that they held."""

    def remove(notification: Notification) -> None:
        if notification.action is Notify.PRE_DUMP:
            shutil.rmtree(play.images)
            if emptied:
                play.images.mkdir()

    with pytest.raises(ImagesError, match="was called off") as caught:
        play.dump(
            notify("pre-dump"),
            notify("post-dump"),
            notify("network-unlock"),
            send(no("dump")),
            on_notify=remove,
        )
    assert play.acknowledged() == [True, False, True]
    assert caught.value.options == ("images_directory",)


def test_a_worker_that_dies_when_all_is_saved(play: Play) -> None:
    """The process is gone and only the images have it: the error says so, and leaves them be."""
    with pytest.raises(WorkerDiedError) as caught:
        play.dump(notify("post-dump"), ["kill"])
    assert f"pid {NOBODY} ended, after all images were written" in caught.value.__notes__


def test_a_second_error_while_it_is_undone_is_noted(play: Play) -> None:
    """The first is the cause; the second is not lost."""

    def hook(note: Notification) -> None:
        raise Refused(note.action)

    with pytest.raises(Refused, match="post-dump") as caught:
        play.dump(notify("post-dump"), notify("network-unlock"), send(no("dump")), on_notify=hook)
    assert any("network-unlock" in note for note in caught.value.__notes__)
    assert play.acknowledged() == [False, True]


def test_a_refusal_that_comes_too_late(play: Play) -> None:
    """CRIU says yes all the same: the error comes with the result, not instead of it."""

    def hook(note: Notification) -> None:
        raise Refused("too late")

    with pytest.raises(Refused) as caught:
        play.dump(notify("post-dump"), send(GONE), on_notify=hook)
    assert caught.value.__notes__


def test_a_worker_that_dies_while_it_undoes(play: Play) -> None:
    """The hook's error comes, with a note that CRIU did not undo its work."""

    def hook(note: Notification) -> None:
        raise Refused("not now")

    with pytest.raises(Refused) as caught:
        play.dump(notify("post-dump"), ["kill"], on_notify=hook)
    assert any("did not undo" in note for note in caught.value.__notes__)


# ---- deadlines ----


def test_a_deadline_refuses_the_next_notification(play: Play) -> None:
    """CRIU undoes its work, and then the deadline is told."""
    with pytest.raises(DeadlineError) as caught:
        play.dump(
            notify("pre-dump"),
            notify("post-dump"),
            notify("network-unlock"),
            send(no("dump")),
            deadline=0.001,
            on_notify=lambda _: time.sleep(0.05),
        )
    assert isinstance(caught.value, TimeoutError)
    assert play.acknowledged() == [False, False, True]


def test_a_worker_that_does_not_come_back_is_ended(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No notification, no answer: it gets some time to undo its work, and is then killed."""
    monkeypatch.setattr(exchange_module, "GRACE", 0.05)
    with pytest.raises(DeadlineError) as caught:
        play.dump(["fork-and-hold"], ["wait-for-end"], deadline=0.05)
    assert any("was ended" in note for note in caught.value.__notes__)
    _eventually(lambda: not _processes_of(play.program), "the worker's end")


def test_a_worker_that_was_stopped_is_set_going(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can undo its work then; to kill it in the middle can cost the process its life."""
    monkeypatch.setattr(exchange_module, "GRACE", 60.0)
    woken = tmp_path / "woken"
    began = time.monotonic()
    with pytest.raises(DeadlineError) as caught:
        play.dump(["stop"], ["touch", str(woken)], send(no("dump")), deadline=3.0)
    assert time.monotonic() - began < exchange_module.GRACE / 2
    assert woken.exists()
    assert not hasattr(caught.value, "__notes__")  # nothing of a CRIU that had to be ended


def test_an_answer_during_an_interruption(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CRIU that answers and ends while an interruption is passed on has undone its work."""
    monkeypatch.setattr(WorkerConnection, "wake", lambda line: line.has_ended(60.0))
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            play.dump(["sleep", "2"], send(no("dump")))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert "undone" in "".join(caught.value.__notes__)


def test_a_deadline_that_is_not_reached(play: Play) -> None:
    """Nothing is different then."""
    assert play.dump(notify("post-dump"), send(GONE), deadline=60).pid == NOBODY


def test_the_program_is_left_as_it_was(play: Play) -> None:
    """Calls in parallel do not hear each other's answers."""
    from concurrent.futures import ThreadPoolExecutor

    # Before, since a program that a child of another thread still has open cannot be run.
    programs = [play.program.with_name(f"criu{number}") for number in range(12)]
    for program in programs:
        shutil.copy(play.program, program)

    def one(number: int) -> int:
        mine = Play(programs[number], play.images)
        answer = send(answer_of("restore", restore={"pid": 1000 + number}))
        pid: int = mine.restore(answer).pid
        return pid

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(12))) == [1000 + number for number in range(12)]
