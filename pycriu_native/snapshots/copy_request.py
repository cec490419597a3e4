"""The parameters of a copy: arguments, environment, working directory, streams."""

from __future__ import annotations

import contextlib
import json
import os
import time
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from .. import guest
from .._support.lazy import socket
from .._support.unpatched import sleep
from ..errors import CriuError, OptionError, Problem
from . import streams
from .arguments import (
    Environment,
    Text,
    absolute,
    are_texts,
    decoded,
    directory_problems,
    environment_problems,
)
from .record import Record
from .streams import Stream, TextMode

LAST_STREAM = 2
"""The number of standard error."""

LARGEST_START = 16 * 1024 * 1024
"""Limit of arguments and environment in bytes. (execve(2) has 6 MiB.)"""

PATIENCE = 10.0
"""Seconds in which a copy reads what exceeds the buffer of its socket."""


@dataclass(frozen=True)
class CopyRequest:
    """The arguments of a start that are sent to the copy."""

    args: Sequence[Text] | None
    streams: tuple[Stream, Stream, Stream]
    mode: TextMode
    env: Environment | None
    extra_env: Environment | None
    cwd: Text | None
    pass_fds: Collection[int] = ()

    def problems(self, record: Record, *, by_criu: bool = True) -> Iterator[Problem]:
        """Problems of the arguments. ``by_criu``: CRIU installs the streams, not a zygote."""
        named = {"args": self.args, "env": self.env, "extra_env": self.extra_env, "cwd": self.cwd}
        if record.guest_key is None:
            for name, value in named.items():
                if value is not None:
                    rule = "the program was saved without_guest: it cannot be changed"
                    yield Problem(name, value, rule)
        else:
            yield from self._guest_problems()
        yield from streams.check(self.streams, record.stream_keys, by_criu=by_criu)
        yield from self._descriptor_problems(record)

    def _guest_problems(self) -> Iterator[Problem]:
        if self.args is not None and not are_texts(self.args):
            rule = "a sequence of str, bytes or paths without NUL characters is accepted"
            yield Problem("args", self.args, rule)
        for name, variables in (("env", self.env), ("extra_env", self.extra_env)):
            if variables is not None:
                yield from environment_problems(name, variables)
        if self.cwd is not None:
            yield from directory_problems(self.cwd)

    def _descriptor_problems(self, record: Record) -> Iterator[Problem]:
        if not self.pass_fds:
            return
        if not record.forks:
            rule = (
                "accepted if the program calls pycriu_native.guest.wait(), which receives the "
                "descriptors; other programs read only a line"
            )
            yield Problem("pass_fds", self.pass_fds, rule)
            return
        if wrong := [fd for fd in self.pass_fds if not is_open(fd)]:
            yield Problem("pass_fds", wrong, "numbers of open descriptors are accepted")
            return
        if used := set(self.descriptors) & set(record.descriptors):
            free = max(record.descriptors) + 1
            rule = (
                "the saved program has other files open with these numbers; numbers from "
                f"{free} on are free: fcntl.fcntl(fd, fcntl.F_DUPFD, {free})"
            )
            yield Problem("pass_fds", sorted(used), rule)
        if len(self.descriptors) > guest.MOST_DESCRIPTORS:
            rule = f"at most {guest.MOST_DESCRIPTORS} descriptors are accepted"
            yield Problem("pass_fds", len(self.descriptors), rule)

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that the copy gets with the same numbers, beside its streams."""
        return sorted({fd for fd in self.pass_fds if fd > LAST_STREAM})

    def command(self, record: Record) -> list[str]:
        args = record.command[1:] if self.args is None else map(os.fsdecode, self.args)
        return [*record.command[:1], *args]

    def line(self, number: int) -> bytes:
        """The line that a copy reads: see :class:`pycriu_native.guest.Start`.

        ``OptionError`` if it is too large.
        """
        start = guest.Start(
            number=number,
            arguments=None if self.args is None else [os.fsdecode(each) for each in self.args],
            environment=decoded(self.env),
            variables=decoded(self.extra_env),
            directory=None if self.cwd is None else absolute(self.cwd),
            seed=os.urandom(32).hex(),
        )
        members = start._asdict()
        if self.descriptors:
            members["descriptors"] = self.descriptors
        line = json.dumps(members).encode() + b"\n"
        if len(line) > LARGEST_START:
            rule = f"arguments and environment are too large: {LARGEST_START} bytes are accepted"
            raise OptionError([Problem("args", f"{len(line)} bytes", rule)], verb="start")
        return line


def send_line(guest_socket: socket.socket, line: bytes, fds: Sequence[int] = ()) -> None:
    """Write a line, with descriptors, to a process that runs, or reads later what the buffer holds.

    The buffer holds all of it where its size is not limited (``net.core.wmem_max``, without
    CAP_NET_ADMIN). ``CriuError`` if the process does not read the rest.
    """
    if len(line) > 65536:
        for option in (socket.SO_SNDBUF, 32):  # SO_SNDBUFFORCE, beyond the limit
            with contextlib.suppress(OSError):
                guest_socket.setsockopt(socket.SOL_SOCKET, option, 2 * len(line))
    rest, until = memoryview(line), time.monotonic() + PATIENCE
    # Not by socket.send_fds, which ignores the flags.
    more = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    while rest:
        try:
            sent = guest_socket.sendmsg([rest], more, socket.MSG_DONTWAIT)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise CriuError("the copy does not read its arguments", verb="start") from None
            sleep(0.001)
        else:
            rest, more = rest[sent:], []


def is_open(fd: object) -> bool:
    """Whether this is the number of an open descriptor of this process."""
    if type(fd) is not int:
        return False
    try:
        os.fstat(fd)
    except (OSError, OverflowError):
        return False
    return True
