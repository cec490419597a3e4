"""One request over CRIU's socket, and all messages up to its final response.

libcriu only builds the request and reads the final response (``_wire/requests.py``). This
module receives the messages in between. It keeps what libcriu discards (CRIU's error message and
errno), calls the hook, continues to receive while CRIU undoes a refused dump, and detects the death
of a worker whose child still has the socket open.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from .._native.ffi import checked, ffi, memory, native
from .._support.light_typing import TYPE_CHECKING, Any, cast
from .._support.unpatched import Lock, close, poll, readable
from .._system.process_tree import process_tree
from .._transport.connection import Connection
from .._wire.messages import EMPTY, NOTIFY, REQUEST_TYPES, decode_response, encode
from ..enums import Notify, Verb
from ..errors import DeadlineError, OptionError, Problem, ProtocolError, WorkerDiedError
from ..options.criu_opts import CriuOpts
from ..options.values import WireValue
from .notification import Hook, Notification

if TYPE_CHECKING:
    from .._recovery.recovery import Recovery
    from .safeguards import Safeguards

MAX_RESPONSE = 2**16
"""Bytes. CRIU's responses are below 2 KiB; a larger message is not from CRIU. (The allocator would
map and unmap a larger buffer for each call.)"""

MAX_WAIT = 2**31 - 1
"""The largest timeout of poll(2) in milliseconds: 24 days."""

GRACE = 10.0
"""Seconds for CRIU to undo its work after a cancel, before its worker is killed."""

BETWEEN_SCRIPTS = 100
"""Milliseconds between two looks for action scripts while CRIU undoes its work."""

POLL, SLOW_POLL = 0.001, 0.01
"""Seconds between two checks whether CRIU has stopped the processes of a pre-dump, at first and
later. A tracer in a pid namespace that is not visible here is not seen."""
OFTEN = 1.0
"""Seconds after which the checks are ``SLOW_POLL`` apart."""

UNDONE_BY_CRIU = (Verb.DUMP, Verb.PRE_DUMP, Verb.RESTORE)
"""Verbs that CRIU has to undo; for any other it is enough to kill the worker."""

_REQUIRED_PART: dict[Verb, str] = {
    Verb.DUMP: "dump",
    Verb.RESTORE: "restore",
    Verb.VERSION: "version",
    Verb.FEATURE_CHECK: "features",
    Verb.PAGE_SERVER: "ps",
}
"""The part that a response with ``success`` must have: libcriu does not check it, and would
crash."""


ACKNOWLEDGED = tuple(action for action in Notify if action is not Notify.POST_DUMP)
"""Notifications that are acknowledged in C if there is no hook and no recovery. (Notifications with
a pid differ from these.)"""

_ACTIONS: dict[str, Notify | str] = {action.value: action for action in Notify}
ACCEPT = encode("request", {"type": NOTIFY, "notify_success": True})
"""The reply to a notification with which CRIU continues."""
_REFUSE = encode("request", {"type": NOTIFY, "notify_success": False})


class Exchange:
    """The state of one call on its connection."""

    def __init__(
        self,
        connection: Connection,
        verb: Verb,
        hook: Hook | None = None,
        deadline: float | None = None,
        pid: int | None = None,
        safeguards: Safeguards | None = None,
        when_sent: Callable[[], Recovery | None] | None = None,
        break_off: Callable[[list[int], bool], object] | None = None,
    ) -> None:
        """``when_sent`` is called once CRIU has the request; the notifications go to what it
        returns. An error of it or of ``safeguards`` makes CRIU undo the call. ``break_off`` is
        called with ``tree`` when the call is cancelled: it makes CRIU fail at once. With True as
        second argument it ends action scripts only: if CRIU can no longer undo the call, and
        repeatedly after the first time, for the scripts that CRIU runs next.
        """
        self.connection = connection
        self.verb = verb
        self.pid = pid
        self.tree: list[int] = []
        """The dumped processes at the time that they were frozen, or the processes of a restore."""
        self.stopped_by: BaseException | None = None
        """Why the call is being undone: the exception of a hook or a signal, or the deadline."""
        self.deadline_passed = False
        """Whether the deadline is the reason."""
        self._when_sent = when_sent
        self._recovery: Recovery | None = None
        self._hook = hook
        self._safeguards = safeguards
        self._break_off = break_off
        self._final = False  # whether CRIU can no longer undo the call
        self._reply_pending = False  # whether CRIU waits for a reply: a refusal is enough then
        self._deadline = deadline  # on the monotonic clock
        self._cancels: deque[BaseException] = deque()
        self._closing = Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._buffer = memory("char[]", MAX_RESPONSE)
        self._receiver = ffi.new("struct pn_receiver *")
        receiver = self._receiver
        receiver.sock, receiver.pidfd, receiver.wake_fd = (
            connection.fd,
            connection.pidfd,
            self._wake,
        )
        receiver.buffer, receiver.capacity = self._buffer, MAX_RESPONSE
        recovers = safeguards is not None and safeguards.can_recover
        self._in_c = hook is None and not recovers  # notifications are acknowledged in C
        if self._in_c and connection.on_begin is None:
            self._acknowledge_in_c()

    def _acknowledge_in_c(self) -> None:
        receiver = self._receiver
        receiver.acknowledged, receiver.reply, _ = _acknowledged()
        receiver.n_acknowledged = len(ACKNOWLEDGED)

    def close(self) -> None:
        """Close what the exchange owns; it does not own the connection."""
        with self._closing:
            close(self._wake)
            self._wake = -1

    def cancel(self, reason: BaseException) -> None:
        """Cancel the call, from any thread. No effect after CRIU's final response."""
        self._cancels.append(reason)
        with self._closing:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def run(self, request: bytes) -> tuple[dict[str, WireValue], bytes]:
        """Send the request. Returns the final response, decoded and as bytes.

        Raises ``WorkerDiedError`` and ``ProtocolError``. Any other exception, also that of a hook,
        and the reason of a cancel are stored in ``stopped_by`` while CRIU undoes its work.
        """
        self._send(request)
        with self._undone_if_raised():
            if self._when_sent is not None:
                self._recovery = self._when_sent()
            if self._safeguards is not None and (is_stopped := self._safeguards.awaits_stop):
                often = time.monotonic() + OFTEN
                while not is_stopped():
                    if self._has_event(POLL if time.monotonic() < often else SLOW_POLL):
                        break
        while True:
            try:
                result = self._step()
            except (WorkerDiedError, ProtocolError):
                raise
            except BaseException as error:
                if self.stopped_by is not None:
                    self.connection.kill()
                    raise self._worker_died() from error
                self._stop(error)
                continue
            if result is not None:
                return result

    def _has_event(self, seconds: float) -> bool:
        """Whether there is a message, a cancel or the end of the worker within so many seconds."""
        fds = self.connection.fd, self.connection.pidfd, self._wake
        return readable(*(fd for fd in fds if fd >= 0), seconds=seconds) or self._is_late()

    def _step(self) -> tuple[dict[str, WireValue], bytes] | None:
        """Receive a message, and reply to a notification. Returns the final response."""
        data, fds = self._next()
        response = decode_response(data)
        if response is None:
            raise self._protocol_error(f"{len(data)} bytes that are not a message", fds)
        if response["type"] == NOTIFY:
            self._notify(response, fds)
            return None
        defect = _defect(self.verb, response)
        if defect:
            raise self._protocol_error(defect, fds)
        _close(fds)
        return response, data

    @contextlib.contextmanager
    def _undone_if_raised(self) -> Iterator[None]:
        """Undo the call if anything is raised meanwhile; CRIU has begun, and may not be left."""
        try:
            yield
        except BaseException as error:
            self._stop(error)

    def _stop(self, reason: BaseException) -> None:
        """Start to undo the call: the next notification of CRIU is refused."""
        if self.stopped_by is None:
            self.stopped_by = reason
            self._deadline = time.monotonic() + GRACE
            self._receiver.n_acknowledged = 0
            try:
                if self._break_off is not None and not self._reply_pending:
                    self._break_off(self.tree, self._final)
                self._continue_criu()
            except Exception as error:  # the next notification is refused nevertheless
                reason.add_note(f"CRIU was not interrupted: {error!r}")
            if self.verb not in UNDONE_BY_CRIU:
                self.connection.kill()
        elif reason is not self.stopped_by:
            self.stopped_by.add_note(f"while it was undone: {reason!r}")

    def _continue_criu(self) -> None:
        """Send SIGCONT to CRIU, in case another process has stopped it.

        Not to its children: during a restore they stop themselves, and CRIU waits for that. A
        pre-dump is an exception, because a child makes it.
        """
        self.connection.wake()
        if self.verb is Verb.PRE_DUMP and self.connection.pid:
            for child in process_tree(self.connection.pid)[1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, native.pn_sigcont)

    def _send(self, message: bytes) -> None:
        status = native.pn_send(self.connection.fd, message, len(message))
        if status in (-errno.EMSGSIZE, -errno.ENOBUFS):
            rule = f"they take {len(message)} bytes, more than one socket message holds here"
            problem = Problem("options", "all of them", rule)
            raise OptionError([problem], verb=str(self.verb))
        if status:
            raise self._worker_died() from OSError(-status, os.strerror(-status))

    def _next(self) -> tuple[bytes, list[int]]:
        """The next message and the descriptors that it carries."""
        receiver = self._receiver
        ended = False
        while True:
            remaining = -1
            if self._deadline is not None:
                seconds = max(0.0, self._deadline - time.monotonic())
                remaining = int(min(seconds * 1000, MAX_WAIT - 1)) + 1
                if self.stopped_by is not None:
                    remaining = min(remaining, BETWEEN_SCRIPTS)
            result = native.pn_receive(receiver, 0 if ended else remaining)
            while self._cancels:
                self._stop(self._cancels.popleft())
            if result == native.PN_RECEIVED_MESSAGE:
                return ffi.unpack(receiver.buffer, receiver.length), self._fds()
            if result == native.PN_RECEIVED_TRUNCATED:
                raise self._protocol_error("a message larger than any of CRIU's", self._fds())
            checked(result)
            if result == native.PN_RECEIVED_EOF or ended:
                raise self._worker_died()
            if result == native.PN_RECEIVED_TIMEOUT:
                if self._is_late():
                    self._deadline_passed()
                elif self.stopped_by is not None and self._break_off is not None:
                    with contextlib.suppress(Exception):
                        self._break_off(self.tree, True)
            else:
                # If CRIU has ended meanwhile, its response is in the socket.
                ended = self.connection.has_ended()

    def _fds(self) -> list[int]:
        return ffi.unpack(self._receiver.fds, self._receiver.n_fds) if self._receiver.n_fds else []

    def _protocol_error(self, what: str, fds: list[int]) -> ProtocolError:
        """The error for an invalid response; the worker is killed."""
        _close(fds)
        self.connection.kill()
        return ProtocolError(f"{self.connection.program} responded to {self.verb} with {what}")

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _deadline_passed(self) -> None:
        if self.stopped_by is None:
            of = "" if self.pid is None else f" of pid {self.pid}"
            message = f"{self.verb}{of}: the deadline passed"
            self.deadline_passed = True
            self._stop(DeadlineError(message, verb=str(self.verb), pid=self.pid))
            return
        # The call is being undone, and CRIU has not finished in time.
        if self.verb is Verb.RESTORE:
            self.tree += process_tree(self.connection.pid)[1:]
        self.connection.kill()
        self._deadline = None

    def _worker_died(self) -> WorkerDiedError:
        """The error for a worker that has ended; its remaining children are killed.

        A worker that has only closed its socket is undoing its work, and is not killed during that.
        Neither is the child that makes a pre-dump; it keeps the socket open until it ends.
        """
        until = time.monotonic() + GRACE
        self.connection.has_ended(GRACE if self.verb in UNDONE_BY_CRIU else 1.0)
        if self.verb is Verb.PRE_DUMP:
            hangup = poll()
            hangup.register(self.connection.fd, 0)
            hangup.poll(max(0.0, until - time.monotonic()) * 1000)
        self.connection.kill()
        return WorkerDiedError(f"{self.connection.program} ended before it responded")

    def _notify(self, response: dict[str, WireValue], fds: list[int]) -> None:
        body = cast(dict[str, WireValue], response.get("notify", {}))
        name = cast(str, body.get("script", ""))
        action = _ACTIONS.get(name, name)
        pid = cast("int | None", body.get("pid"))
        self._reply_pending = True
        with self._undone_if_raised():
            self._look(action, pid)
        fd = fds.pop(0) if fds else None
        _close(fds)
        external = None
        if self._hook is not None:
            external = self._call_hook(self._hook, Notification(action, self.verb, pid, fd))
        elif fd is not None:
            close(fd)
        if self.stopped_by is None and self._is_late():
            self._deadline_passed()  # during the hook: CRIU's next message can have arrived already
        # CRIU also unlocks the network to undo a dump; a refusal would leave it locked.
        accepted = self.stopped_by is None or action is Notify.NETWORK_UNLOCK
        if accepted and action in (Notify.POST_DUMP, Notify.POST_RESTORE):
            self._final = True
        reply = ACCEPT if accepted else _REFUSE
        if external and accepted:
            opts: WireValue = {"images_dir_fd": -1, "external": [*external]}
            reply = encode("request", {"type": NOTIFY, "notify_success": True, "opts": opts})
        try:
            self._send(reply)
        except OptionError as error:  # the names of the hook are too long for a message
            accepted = False
            self._stop(error)
            self._send(_REFUSE)
        self._reply_pending = False
        if accepted and self._recovery is not None:
            self._recovery.agreed(action)

    def _look(self, action: Notify | str, pid: int | None) -> None:
        """Read the state that is known at a notification."""
        if (on_begin := self.connection.on_begin) is not None:
            self.connection.on_begin = None
            on_begin()
            if self._in_c and self.stopped_by is None:
                self._acknowledge_in_c()
        if self._recovery is not None:
            self._recovery.look(action, self.connection.pid)
        if action in (Notify.QUERY_EXT_FILES, Notify.POST_DUMP):
            self._call_when_frozen(written=action is Notify.POST_DUMP)
        elif self.verb is Verb.RESTORE and pid is not None:
            # At setup-namespaces only the root process exists.
            self.tree = process_tree(pid) if action is Notify.POST_RESTORE else [pid]

    def _call_when_frozen(self, *, written: bool) -> None:
        """Call the safeguards with the dumped processes, which are frozen."""
        if self.pid is not None:
            frozen = None if self._recovery is None else self._recovery.frozen
            self.tree = process_tree(self.pid) if frozen is None else list(frozen)
        if self._safeguards is not None and self.stopped_by is None:
            call = self._safeguards.written if written else self._safeguards.frozen
            call(self.tree)

    def _call_hook(self, hook: Hook, notification: Notification) -> Iterable[str] | None:
        """Call the hook. Returns the names that it adds to ``external`` at ``query-ext-files``."""
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


@functools.cache
def _acknowledged() -> tuple[Any, tuple[Any, int], list[Any]]:
    """The notifications that C acknowledges, the reply, and the bytes of all, which are kept."""
    held = [ffi.new("char[]", each) for each in (*map(_notification, ACKNOWLEDGED), ACCEPT)]
    array = ffi.new("struct pn_bytes[]", [(text, len(text) - 1) for text in held[:-1]])
    return array, (held[-1], len(ACCEPT)), held


def _notification(name: Notify) -> bytes:
    """A notification without a pid, as CRIU sends it."""
    notify: WireValue = {"script": name.value}
    return encode("response", {"type": NOTIFY, "success": True, "notify": notify})


def _defect(verb: Verb, response: dict[str, WireValue]) -> str | None:
    """Why libcriu must not receive this final response; None if it may."""
    kind = response["type"]
    if verb is Verb.PAGE_SERVER_CHILD:
        verb = Verb.PAGE_SERVER  # the type of CRIU's response
    if kind == EMPTY and not response["success"]:
        return None  # CRIU could not read the request
    if kind != REQUEST_TYPES[str(verb)]:
        return f"a response to another request (type {kind})"
    required = _REQUIRED_PART.get(verb)
    if not response["success"] or required is None:
        return None
    body = response.get(required)
    if not isinstance(body, dict):
        return f"a success without its {required!r} part"
    if verb is Verb.RESTORE and cast(int, body["pid"]) < 1:
        return f"the pid {body['pid']}"
    return None


def _close(fds: list[int]) -> None:
    for fd in fds:
        close(fd)
