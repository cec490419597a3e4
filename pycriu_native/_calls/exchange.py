"""One request over CRIU's socket, and everything that comes back until its answer.

libcriu only makes the request and reads the final answer (``_wire/libcriu_request.py``). In
between, this module is on the line: it hears what libcriu drops (CRIU's own error message, its
errno for this call and no other), asks the hook, keeps on listening while CRIU undoes a refused
dump, and notices when the worker dies while a child that it forked still holds the socket.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable

from .._native.ffi import ffi, memory, native
from .._support.lazy import signal, socket
from .._support.light_typing import TYPE_CHECKING, cast
from .._support.unpatched import Lock, poll
from .._system.process_tree import process_tree
from .._transport.connection import Connection
from .._wire.messages import EMPTY, NOTIFY, REQUEST_TYPES, decode_response, encode
from ..enums import Notify, Verb
from ..errors import CriuError, DeadlineError, OptionError, Problem, ProtocolError, WorkerDiedError
from ..options.criu_opts import CriuOpts
from ..options.values import WireValue
from .notification import Hook, Notification

if TYPE_CHECKING:
    from .._recovery.recovery import Recovery

LARGEST_ANSWER = 2**16
"""Bytes: CRIU's answers are below 2 KiB; anything above this is not CRIU. (A larger buffer would
be mapped and unmapped for each.)"""

LONGEST_WAIT = 2**31 - 1
"""Milliseconds that poll(2) can wait at once: 24 days."""

GRACE = 10.0
"""Seconds that CRIU gets to undo its work after a cancel, before its worker is killed."""


UNDONE_BY_CRIU = (Verb.DUMP, Verb.PRE_DUMP, Verb.RESTORE)
"""Verbs that CRIU has to undo; any other is over when its worker is killed."""

_PROMISED: dict[Verb, str] = {
    Verb.DUMP: "dump",
    Verb.RESTORE: "restore",
    Verb.VERSION: "version",
    Verb.FEATURE_CHECK: "features",
    Verb.PAGE_SERVER: "ps",
}
"""What an answer that says yes must hold: libcriu reads it without a look, and would crash."""


UNHEARD = tuple(action for action in Notify if action is not Notify.POST_DUMP)
"""What is agreed to without a thought where there is no hook and nothing to rescue. (Notifications
that tell a pid are not equal to these.)"""

_ACTIONS: dict[str, Notify | str] = {action.value: action for action in Notify}
_YES, _NO = (
    encode("request", {"type": NOTIFY, "notify_success": agreed}) for agreed in (True, False)
)


class Exchange:
    """The state of one call on the line."""

    def __init__(
        self,
        line: Connection,
        verb: Verb,
        hook: Hook | None = None,
        deadline: float | None = None,
        pid: int | None = None,
        when_sent: Callable[[], Recovery | None] | None = None,
        when_written: Callable[[list[int]], object] | None = None,
        break_off: Callable[[list[int]], object] | None = None,
    ) -> None:
        """``when_sent`` is called once CRIU has the request; what it returns sees notifications.
        ``when_written`` is called with ``tree`` when a dump has written all, before the hook and
        while CRIU can still undo it: an error in it makes CRIU do that. ``break_off`` is called
        with ``tree`` when the call is to be undone: it makes CRIU's work fail at once.
        """
        self.line = line
        self.verb = verb
        self.pid = pid
        self.tree: list[int] = []
        """The processes that were dumped, as they stood frozen, or that are being restored."""
        self.stopped_by: BaseException | None = None
        """Why the call is being undone: what a hook or a signal raised, or the deadline."""
        self.out_of_time = False
        """Whether that is the deadline."""
        self._when_sent = when_sent
        self._recovery: Recovery | None = None
        self._hook = hook
        self._when_written = when_written
        self._break_off = break_off
        self._final = False  # whether CRIU does what cannot be undone any more
        self._is_asked = False  # whether CRIU waits for our answer: a refusal is enough then
        self._deadline = deadline  # on the monotonic clock
        self._cancels: deque[BaseException] = deque()
        self._closing = Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._buffer = memory("char[]", LARGEST_ANSWER)
        self._ear = ffi.new("struct pn_receiver *")
        ear = self._ear
        ear.sock, ear.pidfd, ear.wake = line.sock.fileno(), line.pidfd, self._wake
        ear.buffer, ear.size = self._buffer, LARGEST_ANSWER
        if hook is None and when_sent is None:
            quiet = _quiet()
            ear.quiet, ear.n_quiet = quiet.array, len(quiet.array)
            ear.yes = quiet.yes

    def close(self) -> None:
        """Give back what the exchange owns; the line is not its own."""
        with self._closing:
            os.close(self._wake)
            self._wake = -1

    def cancel(self, reason: BaseException) -> None:
        """Have the call undone, from any thread. Too late once CRIU sent its final answer."""
        self._cancels.append(reason)
        with self._closing:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def run(self, request: bytes) -> tuple[dict[str, WireValue], bytes]:
        """Send, listen, and return the final answer, decoded and as it came.

        Raises ``WorkerDiedError`` and ``ProtocolError``. What a hook raises, and the reason of
        a cancel, are kept in ``stopped_by`` while CRIU undoes its work.
        """
        self._send(request)
        if self._when_sent is not None:
            self._recovery = self._when_sent()
        while True:
            data, fds = self._next()
            answer = decode_response(data)
            if answer is None:
                raise self._nonsense(f"{len(data)} bytes that are no message", fds)
            if answer["type"] == NOTIFY:
                self._notify(answer, fds)
                continue
            flaw = _flaw(self.verb, answer)
            if flaw:
                raise self._nonsense(flaw, fds)
            _close(fds)
            return answer, data

    def _stop(self, reason: BaseException) -> None:
        """Begin to undo: CRIU's next notification will be refused."""
        if self.stopped_by is None:
            self.stopped_by = reason
            self._deadline = time.monotonic() + GRACE
            self._ear.n_quiet = 0
            if self._break_off is not None and not (self._final or self._is_asked):
                self._break_off(self.tree)
            self._wake_criu()
            if self.verb not in UNDONE_BY_CRIU:
                self.line.kill()
        elif reason is not self.stopped_by:
            self.stopped_by.add_note(f"while it was undone: {reason!r}")

    def _wake_criu(self) -> None:
        """Have it go on if somebody has stopped it.

        Its children are left alone, which stop themselves during a restore and are waited for;
        but a pre-dump is made by a child.
        """
        self.line.wake()
        if self.verb is Verb.PRE_DUMP and self.line.pid:
            for child in process_tree(self.line.pid)[1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGCONT)

    def _send(self, message: bytes) -> None:
        try:
            self.line.sock.sendall(message, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno in (errno.EMSGSIZE, errno.ENOBUFS):
                rule = f"they take {len(message)} bytes, more than a socket carries at once here"
                problem = Problem("options", "all of them", rule)
                raise OptionError([problem], verb=str(self.verb)) from None
            raise self._died() from error

    def _next(self) -> tuple[bytes, list[int]]:
        """The next message, and the descriptors that came with it."""
        ear = self._ear
        ended = False
        while True:
            remaining = -1
            if self._deadline is not None:
                seconds = max(0.0, self._deadline - time.monotonic())
                remaining = min(int(seconds * 1000) + 1, LONGEST_WAIT)
            heard = native.pn_receive(ear, 0 if ended else remaining)
            while self._cancels:
                self._stop(self._cancels.popleft())
            if heard == native.PN_HEARD_MESSAGE:
                return ffi.unpack(ear.buffer, ear.length), self._fds()
            if heard == native.PN_HEARD_TOO_MUCH:
                raise self._nonsense("more than a CRIU ever says at once", self._fds())
            if heard < 0:
                raise OSError(-heard, os.strerror(-heard))
            if heard == native.PN_HEARD_END or ended:
                raise self._died()
            if heard == native.PN_HEARD_TIMEOUT:
                if self._is_late():
                    self._out_of_time()
            else:
                # A CRIU that ended meanwhile has left its answer in the socket.
                ended = self.line.has_ended()

    def _fds(self) -> list[int]:
        return ffi.unpack(self._ear.fds, self._ear.n_fds) if self._ear.n_fds else []

    def _nonsense(self, what: str, fds: list[int]) -> ProtocolError:
        """The error for an answer that no CRIU gives; who gave it is not left running."""
        _close(fds)
        self.line.kill()
        return ProtocolError(f"{self.line.program} answered {self.verb} with {what}")

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _out_of_time(self) -> None:
        if self.stopped_by is None:
            of = "" if self.pid is None else f" of pid {self.pid}"
            message = f"{self.verb}{of}: the deadline passed"
            self.out_of_time = True
            self._stop(DeadlineError(message, verb=str(self.verb), pid=self.pid))
            return
        # It was told to stop and did not come back.
        if self.verb is Verb.RESTORE:
            self.tree += process_tree(self.line.pid)[1:]
        self.line.kill()
        self._deadline = None

    def _died(self) -> WorkerDiedError:
        """The error for a worker that is gone; whatever it left behind goes too.

        One that has only lost its socket is undoing its work, and must not be killed in that;
        nor must the child that makes a pre-dump, which holds the socket until it has ended.
        """
        until = time.monotonic() + GRACE
        self.line.has_ended(GRACE if self.verb in UNDONE_BY_CRIU else 1.0)
        if self.verb is Verb.PRE_DUMP:
            hung_up = poll()
            hung_up.register(self.line.sock.fileno(), 0)
            hung_up.poll(max(0.0, until - time.monotonic()) * 1000)
        self.line.kill()
        return WorkerDiedError(f"{self.line.program} ended before it answered")

    def _notify(self, answer: dict[str, WireValue], fds: list[int]) -> None:
        body = cast(dict[str, WireValue], answer.get("notify", {}))
        name = cast(str, body.get("script", ""))
        action = _ACTIONS.get(name, name)
        pid = cast("int | None", body.get("pid"))
        if self._recovery is not None:
            self._recovery.look(action, self.line.pid)
        self._is_asked = True
        if action is Notify.POST_DUMP:
            self._written()
        elif self.verb is Verb.RESTORE and pid is not None:
            # With setup-namespaces there is but the root.
            self.tree = process_tree(pid) if action is Notify.POST_RESTORE else [pid]
        fd = fds.pop(0) if fds else None
        _close(fds)
        external = None
        if self._hook is not None:
            external = self._call_hook(self._hook, Notification(action, self.verb, pid, fd))
        elif fd is not None:
            os.close(fd)
        if self.stopped_by is None and self._is_late():
            self._out_of_time()  # in the hook: CRIU's next word may be there already
        # The network is unlocked also while a dump is undone; refusing that would keep it locked.
        agreed = self.stopped_by is None or action is Notify.NETWORK_UNLOCK
        if agreed and action in (Notify.POST_DUMP, Notify.POST_RESTORE):
            self._final = True
        reply = _YES if agreed else _NO
        if external and agreed:
            more: WireValue = {"images_dir_fd": -1, "external": [*external]}
            reply = encode("request", {"type": NOTIFY, "notify_success": True, "opts": more})
        self._send(reply)
        self._is_asked = False
        if agreed and self._recovery is not None:
            self._recovery.agreed(action)

    def _written(self) -> None:
        """All images are on the file system, and the dumped still frozen."""
        if self.pid is not None:
            frozen = None if self._recovery is None else self._recovery.frozen
            self.tree = process_tree(self.pid) if frozen is None else list(frozen)
        if self._when_written is not None:
            try:
                self._when_written(self.tree)
            except (OSError, CriuError) as error:
                self._stop(error)

    def _call_hook(self, hook: Hook, notification: Notification) -> Iterable[str] | None:
        """Ask the hook; what it adds to ``external`` where CRIU asks for that."""
        undoing = self.stopped_by is not None
        if undoing and notification.action is not Notify.NETWORK_UNLOCK:
            _close([] if notification.fd is None else [notification.fd])
            return None
        try:
            returned = hook(notification)
            if notification.action is Notify.QUERY_EXT_FILES and returned is not None:
                return CriuOpts(external=cast("Iterable[str]", returned)).external
        except BaseException as refusal:
            self._stop(refusal)
        return None


class _Quiet:
    """Notifications that nothing needs to be done about, as C sees them, and the answer."""

    def __init__(self) -> None:
        self._held = [ffi.new("char[]", _said(name)) for name in UNHEARD] + [
            ffi.new("char[]", _YES)
        ]
        self.array = ffi.new(
            "struct pn_words[]", [(text, len(text) - 1) for text in self._held[:-1]]
        )
        self.yes = (self._held[-1], len(_YES))


_quiet = functools.cache(_Quiet)


def _said(name: Notify) -> bytes:
    """A notification that tells no pid, as CRIU sends it."""
    notify: WireValue = {"script": name.value}
    return encode("response", {"type": NOTIFY, "success": True, "notify": notify})


def _flaw(verb: Verb, answer: dict[str, WireValue]) -> str | None:
    """Why libcriu must not see this final answer, None if it may."""
    kind = answer["type"]
    if verb is Verb.PAGE_SERVER_CHILD:
        verb = Verb.PAGE_SERVER  # which is what CRIU answers there
    if kind == EMPTY and not answer["success"]:
        return None  # CRIU could not read the request
    if kind != REQUEST_TYPES[str(verb)]:
        return f"an answer to another request (type {kind})"
    promised = _PROMISED.get(verb)
    if not answer["success"] or promised is None:
        return None
    body = answer.get(promised)
    if not isinstance(body, dict):
        return f"a success that lacks its {promised!r} part"
    if verb is Verb.RESTORE and cast(int, body["pid"]) < 1:
        return f"the pid {body['pid']}"
    return None


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
