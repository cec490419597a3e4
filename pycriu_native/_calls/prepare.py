"""Opens the directories of a call, and puts its options into a handle."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
from contextlib import ExitStack

from .._support.light_typing import TYPE_CHECKING, Any, cast
from .._support.no_fork import no_fork
from .._support.unpatched import close
from .._system import trusted_path
from .._wire.messages import Handle
from ..enums import Verb
from ..errors import ImagesError
from ..options.criu_opts import CriuOpts
from ..options.table import BY_FIELD, BY_WIRE, VERB_MASK
from ..options.value_types import Directory, FileDescriptor
from ..options.values import PageServer, WireValue, descriptor_number
from .request import Request, log_name, log_path

if TYPE_CHECKING:
    from .._transport.base import Via

NOTIFYING = (Verb.DUMP, Verb.PRE_DUMP, Verb.RESTORE)
"""Verbs with notifications, whose responses can make CRIU undo the call. (A page server would send
one after its response or before, to a socket that may be closed.)"""

SERVERS = (Verb.PAGE_SERVER, Verb.PAGE_SERVER_CHILD)

CREATING = (Verb.DUMP, Verb.PRE_DUMP, *SERVERS, Verb.CPUINFO_DUMP)
"""Verbs that write images, and so make a missing directory for them."""


LARGEST_REMEMBERED = 64 * 1024
"""Bytes of packed options that are kept with them for the next call."""


class Directories:
    """The images and work directory of a call, open while it runs."""

    def __init__(self, request: Request, owned: ExitStack) -> None:
        self._owned = owned
        self._request = request
        opts, verb = request.opts, request.verb
        serves_saved = bool(opts.lazy_pages) and verb in SERVERS
        self._make = "images_directory" if verb in CREATING and not serves_saved else None
        self.opened = {
            row.name: self._open(value, row.name)
            for row, value in opts.items()
            if isinstance(row.kind, Directory)
        }
        """Their descriptors, by field."""
        self.images = self.opened.get("images_directory")
        self.work = self.opened.get("work_directory")
        self.log = self.images if self.work is None else self.work
        """The directory of CRIU's log and statistics; None if only CRIU can open it."""
        if self.log is None and opts.images_dir is not None:
            with contextlib.suppress(OSError):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                self.log = os.open(opts.images_dir, flags)
                owned.callback(close, self.log)

    def _open(self, directory: object, field: str) -> int:
        if not isinstance(directory, str):
            return descriptor_number(directory)
        fd = open_directory(directory, field, self._request.via, make=field == self._make)
        self._owned.callback(close, fd)
        return fd


def open_directory(directory: str, field: str, via: Via | None, *, make: bool, **call: Any) -> int:
    """Open a directory of a call; ``make`` makes a missing one. Raises ``ImagesError``.

    ``call``: the verb and pid for the error, where it is not raised in a call.
    """
    allow_untrusted = via is not None and via.allow_untrusted
    try:
        return trusted_path.open_directory(directory, make=make, allow_untrusted=allow_untrusted)
    except OSError as error:
        with no_fork:
            from .._system.host import lack_of  # few directories are missing

        is_missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        why = lack_of(directory) if is_missing else error.strerror
        message = f"{field}={directory!r} cannot be used: {why}"
        raise ImagesError(message, errno=error.errno or 0, **call) from None


def fill(handle: Handle, request: Request, directories: Directories, owned: ExitStack) -> list[int]:
    """Put the options into libcriu's handle; returns the descriptors that CRIU must inherit."""
    keep: list[int] = []
    config = added_config(request, owned, keep)
    packed = None if config is not None else request.opts._remembered.packed
    if packed is not None:
        handle.load(packed)
    else:
        _set_options(handle, request, config, owned, keep)
    for field, fd in directories.opened.items():
        handle.set(BY_FIELD[field], fd)
    if request.verb in VERB_MASK:
        _set_by_call(handle, request)
    return keep


def _set_options(
    handle: Handle, request: Request, config: str | None, owned: ExitStack, keep: list[int]
) -> None:
    """Set each option with a field in requests; keep their packed form if it can be reused."""
    opts = request.opts
    in_config = {"log_file"} if log_path(opts) else set()
    if config is not None:
        handle.set(BY_WIRE["config_file"], config)
        in_config.add("config_file")
    lasting = config is None
    for row, value in opts.items():
        kind = row.kind
        if row.wire is None or row.wire in in_config or isinstance(kind, Directory):
            continue
        wire = kind.wire(value)
        if isinstance(wire, (list, dict)):
            wire = _inheritable(wire, request.via.ours, owned, keep)
        elif isinstance(kind, FileDescriptor):
            lasting = False
        handle.set(row, wire)
    if lasting and not keep and handle.packed_size() <= LARGEST_REMEMBERED:
        opts._remembered.packed = handle.packed()


def _inheritable(value: WireValue, ours: bool, owned: ExitStack, keep: list[int]) -> WireValue:
    """The value, with numbers of descriptors that CRIU can inherit; these are added to ``keep``."""
    if isinstance(value, list):
        return [_inheritable(item, ours, owned, keep) for item in value]
    if not isinstance(value, dict) or "fd" not in value:
        return value
    fd = cast(int, value["fd"])
    # 0 to 2 are CRIU's stdio; and it closes each descriptor after its first use.
    if ours and (fd <= 2 or fd in keep):
        fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        owned.callback(close, fd)
    keep.append(fd)
    return {**value, "fd": fd}


def _set_by_call(handle: Handle, request: Request) -> None:
    """Set the fields that are not options, such as the pid, and defaults that a call knows."""
    if request.opts.log_file is None and not request.opts.log_to_stderr:
        handle.set(BY_WIRE["log_file"], log_name(request.opts, request.verb))
    if not request.inside and request.verb in NOTIFYING:  # a frozen caller could not respond
        handle.set_wire("notify_scripts", True)
    if request.sibling:
        handle.set_wire("rst_sibling", True)
    if request.pid is not None:
        handle.set(BY_WIRE["pid"], request.pid)
    deadline, timeout = request.deadline, BY_WIRE["timeout"]
    if (
        request.verb in (Verb.DUMP, Verb.PRE_DUMP)
        and request.opts.timeout is None
        and deadline is not None
        and deadline < cast(int, timeout.default)
    ):
        # An interruption does not end CRIU's wait for a process that does not stop.
        handle.set(timeout, max(1, math.ceil(deadline)))


def added_config(request: Request, owned: ExitStack, keep: list[int]) -> str | None:
    """A configuration file with the options without a field in requests; None if there are none.

    A file of the caller is copied to its beginning.
    """
    opts = request.opts
    filed = {row.name: value for row, value in opts.items() if row.in_config}
    if log_path(opts):
        filed["log_file"] = opts.log_file  # a request takes no path (criu/cr-service.c)
    text = CriuOpts(**filed).to_config() if filed else ""
    text += _lazy_address(request, owned, keep)
    if not text:
        return None
    before = ""
    if opts.config_file is not None:
        # CRIU would skip a missing one; the option rules refuse that.
        with contextlib.suppress(OSError), open(opts.config_file, "rb") as file:
            before = os.fsdecode(file.read().rstrip(b"\n") + b"\n")
    fd = os.memfd_create("criu-config", os.MFD_CLOEXEC)
    owned.callback(close, fd)
    os.write(fd, os.fsencode(before + text))
    return f"/proc/{os.getpid()}/fd/{fd}"


def _lazy_address(request: Request, owned: ExitStack, keep: list[int]) -> str:
    """The address on which a lazy dump, or a server of saved pages, serves its pages.

    CRIU up to 4.2 ignores the address in the request, and would listen on all addresses of the
    machine; it uses an address, or an inherited connected socket, in a configuration file. A port
    of 0 is refused there, and not needed.
    """
    server = request.opts.page_server
    lazily = request.verb in (Verb.DUMP, *SERVERS) and request.opts.lazy_pages
    if not lazily or not isinstance(server, PageServer):
        return ""
    if server.fd is None:
        port = f"port {server.port}\n" if server.port else ""
        return f"address {server.address}\n{port}"
    socket = server.fd
    if socket <= 2:
        socket = fcntl.fcntl(socket, fcntl.F_DUPFD_CLOEXEC, 3)
        owned.callback(close, socket)
        keep.append(socket)  # other numbers are in the request already
    return f"ps-socket {socket}\n"
