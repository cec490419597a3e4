"""A simulated CRIU for the tests of programs that use this library.

It needs no privilege, no ``criu`` program and no kernel feature. On a thread of the calling process
it responds to requests with success, or with the failures that the test sets::

    from pycriu_native import CriuOpts, PidInUseError, restore
    from pycriu_native.testing import Failure, ScriptedCriu

    criu = ScriptedCriu(restored_pid=77)
    assert restore(CriuOpts(images_directory=directory), via=criu).pid == 77
    assert criu.sent[-1].opts["images_dir_fd"] >= 0

    criu = ScriptedCriu(failures={"restore": Failure.PID_IN_USE})

Only CRIU is simulated: options are checked, libcriu encodes the request, hooks are called, errors
have their causes. No process is changed. A dump writes a small image set that a restore accepts as
complete; ``write_images`` writes one without a dump.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, cast

from ._system.descriptors import where
from ._transport.connection import Connection, widen
from ._transport.spawn import DEFAULT_SPAWN_OPTIONS, SpawnOptions
from ._wire.messages import NOTIFY, REQUEST_TYPES, decode_request, encode
from ._wire.protobuf import image_of, message
from .enums import Notify, Verb
from .errors import Problem
from .options.values import WireValue
from .results import Version

_T = TypeVar("_T")

_LARGEST = 8 * 2**20

_VERBS = {number: name for name, number in REQUEST_TYPES.items()}

_SERVER = 2**22
"""The pid of a page server, which is killed when it is closed: larger than any of the kernel's."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure of the simulated CRIU: its response, and its log."""

    errno: int = 0
    """``cr_errno`` of the response; 0: none."""
    message: str = ""
    """``cr_errmsg`` of the response."""
    log: str = ""
    """The text of the log in the work directory; the cause is read from it."""

    PID_IN_USE: ClassVar[Failure]
    """A restore whose pid is in use: ``PidInUseError``."""
    NO_SUCH_PROCESS: ClassVar[Failure]
    """A dump of a process that does not exist: ``NoSuchProcessError``."""
    TCP_CONNECTION: ClassVar[Failure]
    """A dump of an established connection; the error suggests ``tcp_established=True``."""


Failure.PID_IN_USE = Failure(
    errno=17, log="Error (criu/cr-restore.c:1): Can't fork for 77: File exists\n"
)
Failure.NO_SUCH_PROCESS = Failure(errno=3)
Failure.TCP_CONNECTION = Failure(
    log="Error (criu/sk-inet.c:1): inet: Connected TCP socket, "
    "consider using --tcp-established option.\n"
)


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that the simulated CRIU received."""

    data: bytes
    """The ``CriuReq`` as received."""
    verb: str
    """Its type: ``dump``, ``restore``, ``version`` … (``criu_req_type``)."""
    opts: Mapping[str, Any]
    """Its options by their names in ``rpc.proto``; empty for ``version`` and ``feature-check``."""
    directories: Mapping[str, str]
    """The directory of each descriptor in the options, and the content of the call's configuration
    file."""


@dataclass
class ScriptedCriu:
    """The simulated CRIU, for the argument ``via`` of calls. Can be used by several threads."""

    version: str | Version = "99.0"
    """The release that it reports; options that this release does not know are refused."""
    features: Sequence[str] = ("mem_track", "lazy_pages", "pidfd_store")
    """The kernel features that it reports (``feature_check``)."""
    restored_pid: int = 1234
    """The pid in the response to a restore."""
    notify: Mapping[str | Verb, Sequence[str | Notify]] = field(default_factory=dict)
    """The notifications of each verb in their order, sent if the call has a hook. One that the hook
    refuses makes the call fail, as with CRIU."""
    failures: Mapping[str | Verb, Failure] = field(default_factory=dict)
    """The verbs that fail."""
    allow_untrusted: bool = False
    """As in :class:`~pycriu_native.Worker`."""
    sent: list[Sent] = field(default_factory=list)
    """The received requests in order; a call first requests release and features."""

    ours: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Version.parse(str(self.version))
        known = [str(verb) for verb in Verb if str(verb) in REQUEST_TYPES]
        for name in ("notify", "failures"):
            for verb in getattr(self, name):
                if str(verb) not in known:
                    rule = f"a request is accepted: {', '.join(known)}"
                    raise ValueError(f"{name}: {verb!r} is none that CRIU receives; {rule}")

    def identity(self) -> tuple[object, ...] | None:
        """The release and features, which determine what is supported."""
        return "scripted", str(self.version), tuple(self.features)

    def name(self) -> str:
        """The name in messages."""
        return "the scripted CRIU"

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """No argument is refused."""
        return iter(())

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """A connection to a thread that responds to one request."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        widen(ours)
        threading.Thread(target=self._serve, args=(theirs,), name="scripted CRIU").start()
        return Connection(ours.detach(), program=self.name())

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):  # the caller may have closed its end
            data = sock.recv(_LARGEST)
            if not data:
                return
            request = decode_request(data)
            if request is None:
                raise ValueError("the data is not a request")
            opts = cast(dict[str, Any], request.get("opts", {}))
            sent = Sent(data, _VERBS[cast(int, request["type"])], opts, directories_of(opts))
            self.sent.append(sent)
            sock.sendall(self._answer(sock, sent))
            if sent.verb == "page-server-child" and sock.recv(_LARGEST):
                sock.sendall(answer_of("wait-pid", status=0))

    def _answer(self, sock: socket.socket, sent: Sent) -> bytes:
        failure = _of_verb(self.failures, sent.verb)
        if failure is None:
            if sent.verb in ("dump", "pre-dump") and "images_dir_fd" in sent.directories:
                write_images(sent.directories["images_dir_fd"], sent.opts.get("pid", os.getpid()))
            if self._agreed(sock, sent):
                return self._yes(sent.verb)
            failure = Failure()
        _write_log(sent, failure.log)
        named: dict[str, WireValue] = {"cr_errno": failure.errno, "cr_errmsg": failure.message}
        response = {name: value for name, value in named.items() if value}
        return answer_of(sent.verb, success=False, **response)

    def _agreed(self, sock: socket.socket, sent: Sent) -> bool:
        """Send the notifications. Returns whether all were accepted."""
        if not sent.opts.get("notify_scripts"):
            return True
        for action in _of_verb(self.notify, sent.verb) or ():
            body: dict[str, WireValue] = {"script": str(action)}
            if action in (Notify.SETUP_NAMESPACES, Notify.POST_RESTORE):
                body["pid"] = self.restored_pid
            sock.sendall(answer_of("notify", notify=body))
            reply = decode_request(sock.recv(_LARGEST))
            if reply is None or reply["type"] != NOTIFY or not reply.get("notify_success"):
                return False
        return True

    def _yes(self, verb: str) -> bytes:
        body: dict[str, dict[str, WireValue]] = {}
        match verb:
            case "version":
                release = Version.parse(str(self.version))
                body["version"] = {"major_number": release.major, "minor_number": release.minor}
                if release.sublevel:
                    body["version"]["sublevel"] = release.sublevel
            case "feature-check":
                body["features"] = dict.fromkeys(self.features, True)
            case "dump":
                body["dump"] = {"restored": False}
            case "restore":
                body["restore"] = {"pid": self.restored_pid}
            case "page-server" | "page-server-child":
                body["ps"] = {"pid": _SERVER, "port": 27}
        return answer_of(verb, **body)


def write_images(directory: str | os.PathLike[str], pid: int = 1234) -> None:
    """Write the images of a process without memory, which a simulated restore accepts."""
    alive = message((1, 1), (3, message((1, 1))))
    files = {
        "inventory.img": image_of("INVENTORY", message((1, 2))),
        "pstree.img": image_of("PSTREE", message((1, pid), (2, 0), (3, pid), (4, pid), (5, pid))),
        f"core-{pid}.img": image_of("CORE", alive),
        f"mm-{pid}.img": image_of("MM", message((1, 1))),
        f"fs-{pid}.img": image_of("FS", message((1, 1), (2, 1))),
        f"ids-{pid}.img": image_of("IDS", message((1, 1), (2, 1), (3, 1), (4, 1))),
        "files.img": image_of("FILES", message((1, 1), (2, 1))),
        f"pagemap-{pid}.img": image_of("PAGEMAP", message((1, 1))),
        "pages-1.img": b"",
    }
    for name, data in files.items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(data)


def _of_verb(script: Mapping[str | Verb, _T], verb: str) -> _T | None:
    return next((value for name, value in script.items() if str(name) == verb), None)


def answer_of(kind: str, **body: WireValue) -> bytes:
    """A ``CriuResp`` with ``success``; ``kind`` is a name of ``criu_req_type``.

    CRIU uses the same type for both kinds of page server.
    """
    number = REQUEST_TYPES["page-server" if kind == "page-server-child" else kind]
    return encode("response", {"type": number, "success": True, **body})


def directories_of(opts: Mapping[str, Any]) -> dict[str, str]:
    """The paths of the directories of a request, whose descriptors must be open.

    The key ``config_file`` has the content of the call's configuration file.
    """
    result = {}
    for name in ("images_dir_fd", "work_dir_fd"):
        with contextlib.suppress(OSError):
            result[name] = where(opts.get(name, -1))
    if str(opts.get("config_file")).startswith("/proc/"):
        with contextlib.suppress(OSError), open(opts["config_file"], "rb") as file:
            result["config_file"] = os.fsdecode(file.read())
    return result


def _write_log(sent: Sent, text: str) -> None:
    directory = sent.directories.get("work_dir_fd", sent.directories.get("images_dir_fd"))
    name = sent.opts.get("log_file")
    if text and directory and name:
        with open(os.path.join(directory, name), "w") as log:
            log.write(text)
