"""From options to a filled handle: the directories opened, each row applied, descriptors kept."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from contextlib import ExitStack

from .._support.light_typing import cast
from .._system import trusted_path
from .._system.host import lack_of
from .._wire.messages import Handle
from ..enums import Verb
from ..errors import ImagesError
from ..options.criu_opts import CriuOpts
from ..options.table import BY_FIELD, BY_WIRE, VERB_MASK
from ..options.value_types import Directory, FileDescriptor
from ..options.values import PageServer, WireValue, descriptor_number
from .request import Request, log_name

HEARD = (Verb.DUMP, Verb.PRE_DUMP, Verb.RESTORE)
"""Verbs whose notifications are asked for: they are how a call is undone. (A page server sends
one, after its answer or before, to a socket on which nobody may listen any more.)"""

CREATING = (Verb.DUMP, Verb.PRE_DUMP, Verb.PAGE_SERVER, Verb.PAGE_SERVER_CHILD, Verb.CPUINFO_DUMP)
"""Verbs that write images, and so make a missing directory for them."""


LARGEST_REMEMBERED = 64 * 1024
"""Bytes of packed options that are kept with them for the next call."""


class Directories:
    """The images and work directory of a call, open while it runs."""

    def __init__(
        self, opts: CriuOpts, verb: Verb, owned: ExitStack, *, allow_untrusted: bool = False
    ) -> None:
        self._owned = owned
        self._trusting = allow_untrusted
        self._make = "images_directory" if verb in CREATING else None
        self.opened = {
            row.name: self._open(value, row.name)
            for row, value in opts.items()
            if isinstance(row.kind, Directory)
        }
        """Their descriptors, by field."""
        self.images = self.opened.get("images_directory")
        self.work = self.opened.get("work_directory")
        self.log = self.images if self.work is None else self.work
        """Where CRIU puts its log and statistics; None with ``images_dir`` alone."""

    def _open(self, directory: object, field: str) -> int:
        if not isinstance(directory, str):
            return descriptor_number(directory)
        try:
            fd = trusted_path.open_directory(
                directory, make=field == self._make, allow_untrusted=self._trusting
            )
        except OSError as error:
            raise ImagesError(
                f"{field}={directory!r} cannot be used: "
                + (lack_of(directory) if error.errno == errno.ENOENT else str(error.strerror)),
                errno=error.errno or 0,
            ) from None
        self._owned.callback(os.close, fd)
        return fd


def fill(handle: Handle, request: Request, directories: Directories, owned: ExitStack) -> list[int]:
    """Put the options into libcriu's handle; which descriptors CRIU inherits for them."""
    keep: list[int] = []

    def inherited(value: WireValue) -> WireValue:
        """The value, with each descriptor in it under a number that CRIU can inherit."""
        if isinstance(value, list):
            return [inherited(item) for item in value]
        if not isinstance(value, dict) or "fd" not in value:
            return value
        fd = cast(int, value["fd"])
        # 0 to 2 are its own stdio there; it closes each once it has it, also if named again.
        if request.via.ours and (fd <= 2 or fd in keep):
            fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            owned.callback(os.close, fd)
        keep.append(fd)
        return {**value, "fd": fd}

    opts = request.opts
    config = lazy_address(request, owned, keep)
    packed = None if config is not None else opts._remembered.packed
    if packed is not None:
        handle.load(packed)
    else:
        if config is not None:
            handle.set(BY_WIRE["config_file"], config)
        lasting = config is None
        for row, value in opts.items():
            kind = row.kind
            if row.wire is None or isinstance(kind, Directory):
                continue
            if config is not None and row.wire == "config_file":
                continue  # it is in there
            wire = kind.wire(value)
            if isinstance(wire, (list, dict)):
                wire = inherited(wire)
            elif isinstance(kind, FileDescriptor):
                lasting = False
            handle.set(row, wire)
        if lasting and not keep and handle.packed_size() <= LARGEST_REMEMBERED:
            opts._remembered.packed = handle.packed()
    for field, fd in directories.opened.items():
        handle.set(BY_FIELD[field], fd)
    if request.verb in VERB_MASK:
        if request.opts.log_file is None and not request.opts.log_to_stderr:
            handle.set(BY_WIRE["log_file"], log_name(request))
        if not request.inside and request.verb in HEARD:
            handle.set_wire("notify_scripts", True)  # who is frozen cannot answer
        if request.sibling:
            handle.set_wire("rst_sibling", True)
        if request.pid is not None:
            handle.set(BY_WIRE["pid"], request.pid)
    return keep


def lazy_address(request: Request, owned: ExitStack, keep: list[int]) -> str | None:
    """A configuration file with the address on which a lazy dump serves its pages.

    CRIU up to 4.2 ignores that address in the request, and would listen on every address of the
    machine; in the request's configuration file it is honoured, and so is a connected socket
    in place of an address, which CRIU inherits. A file of the caller's is copied in before it.
    """
    server = request.opts.page_server
    lazily = request.verb is Verb.DUMP and request.opts.lazy_pages
    if not lazily or not isinstance(server, PageServer):
        return None
    fd = os.memfd_create("criu-config", os.MFD_CLOEXEC)
    owned.callback(os.close, fd)
    text = b""
    if request.opts.config_file is not None:
        # One that is missing CRIU would skip; the rules have seen to that.
        with contextlib.suppress(OSError), open(request.opts.config_file, "rb") as file:
            text = file.read().rstrip(b"\n") + b"\n"
    if server.fd is None:
        where = f"address {server.address}\nport {server.port}\n"
    else:
        socket = server.fd
        if socket <= 2:
            socket = fcntl.fcntl(socket, fcntl.F_DUPFD_CLOEXEC, 3)
            owned.callback(os.close, socket)
            keep.append(socket)  # under its own number the request names it already
        where = f"ps-socket {socket}\n"
    os.write(fd, text + os.fsencode(where))
    return f"/proc/{os.getpid()}/fd/{fd}"
