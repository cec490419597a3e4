"""The exceptions of this package.

Every exception is a :class:`CriuError`, and most are also the builtin exception that fits, so
``except ProcessLookupError`` works as well. All of them can be pickled.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from ._support.frozen_dataclass import dataclass
from ._support.light_typing import Any

__all__ = [
    "CriuError",
    "DeadlineError",
    "ImagesError",
    "MigrationError",
    "MigrationInDoubtError",
    "MovedMemoryError",
    "NoSuchProcessError",
    "OptionError",
    "PeerLostError",
    "PermissionDeniedError",
    "PidInUseError",
    "Problem",
    "ProcessMismatchError",
    "ProgramError",
    "ProgramNotFoundError",
    "ProtocolError",
    "RestoreClaimedError",
    "ResumedError",
    "UnsupportedError",
    "WorkerDiedError",
]


class CriuError(Exception):
    """A call failed. This class itself is raised if no subclass fits.

    All arguments but the message are optional and become attributes:

    * ``verb``: the verb's name, such as ``"dump"``
    * ``pid``: the process of the call
    * ``code``: libcriu's return value (a negative errno of its table), or None
    * ``errno``: the errno that CRIU reported for the failure; a hint, 0 if it reported none
    * ``log``: path of CRIU's log, None if this call wrote none
    * ``lines``: CRIU's own error lines, from its log, else from its standard error
    * ``cause``, ``cure``: the likely cause and its remedy, if known
    * ``options``: fields of ``CriuOpts`` that help, the best one first

    If CRIU ended before it could undo a dump (``WorkerDiedError``, ``ProtocolError``, or
    ``DeadlineError`` if it had to be killed), the error has the damage as well, also in a note:

    * ``lost_connections``: TCP connections of the process that are closed or broken, each as
      ``address:port - address:port``, the process's end first
    * ``left_behind``: remains of CRIU as text, to be removed by hand. Memory that CRIU had mapped
      into the process needs no removal: it is freed with the process. A failed restore has this
      too: names that could not be removed or that were in its way, and the lock on the network,
      which remains until a restore succeeds
    """

    lost_connections: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()

    def __init__(
        self,
        message: str,
        *,
        verb: str | None = None,
        pid: int | None = None,
        code: int | None = None,
        errno: int | None = 0,
        log: str | None = None,
        lines: Sequence[str] = (),
        cause: str | None = None,
        cure: str | None = None,
        options: Sequence[str] = (),
    ) -> None:
        # The builtin base classes of the subclasses would take two arguments
        # as errno and text; with one argument str(error) is the message.
        try:
            message.encode()
        except UnicodeEncodeError:
            from ._support.kernel_text import encodable  # few texts need it

            message = encodable(message)
        super().__init__(message)
        self.message = message
        self.verb = verb
        self.pid = pid
        self.code = code
        self.errno: int | None = errno
        self.log = log
        self.lines = tuple(lines)
        self.cause = cause
        self.cure = cure
        self.options = tuple(options)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        # OSError stores errno outside of __dict__, and its __reduce__ omits the other attributes.
        return _rebuild, (type(self), self.message, {**self.__dict__, "errno": self.errno})


def _rebuild(kind: type[CriuError], message: str, attributes: dict[str, object]) -> CriuError:
    error = kind.__new__(kind, message)
    error.args = (message,)
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


_LONGEST = 5000
"""Characters of a value in a message: more than those of any path."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An option or argument that is not accepted."""

    field: str
    """The field of ``CriuOpts``, or the argument."""
    value: object
    """Its value."""
    rule: str
    """What is accepted, or why the value is refused."""

    def __str__(self) -> str:
        from ._support.kernel_text import escaped  # as in CriuError

        value = repr(self.value)
        if len(value) > _LONGEST:
            value = f"{value[:_LONGEST]}… ({len(value)} characters)"
        return f"{escaped(self.field)}={value}: {self.rule}"


class OptionError(CriuError, ValueError):
    """Options that CRIU, libcriu or the rules of runc do not accept; nothing was touched.

    ``problems`` lists all of them, not only the first.
    """

    def __init__(
        self, problems: Sequence[Problem], *, verb: str | None = None, pid: int | None = None
    ) -> None:
        self.problems = tuple(problems)
        subject = f"{verb}: " if verb else ""
        super().__init__(
            subject + "; ".join(str(problem) for problem in self.problems),
            verb=verb,
            pid=pid,
            options=[problem.field for problem in self.problems],
        )


class UnsupportedError(OptionError):
    """An option, function or feature that this libcriu, ``criu`` or kernel does not have."""


def missing_extra(what: str, package: str, extra: str) -> UnsupportedError:
    """The error for a package that this installation lacks, with the extra that installs it."""
    rule = f"{what} needs the package {package}: pip install 'pycriu-native[{extra}]'"
    return UnsupportedError([Problem("installation", None, rule)])


class ProgramNotFoundError(CriuError, FileNotFoundError):
    """No ``criu`` program was found."""


class ProgramError(CriuError, OSError):
    """The program could not be started, or it cannot work on this kernel."""


class PermissionDeniedError(CriuError, PermissionError):
    """CRIU lacks a capability that the call needs."""


class NoSuchProcessError(CriuError, ProcessLookupError):
    """The process to dump does not exist."""


class ProcessMismatchError(NoSuchProcessError):
    """The pid belongs to another process than the given one: another host, another pid namespace,
    or a reused number. Nothing was dumped.
    """


class PidInUseError(CriuError, FileExistsError):
    """A pid that the images need is in use, often by the process that was dumped."""


class ImagesError(CriuError, OSError):
    """A directory or file of the images cannot be used: missing, read-only, full, incomplete."""


def images_error(what: str, error: OSError) -> ImagesError:
    """The error for a file or directory of the images that cannot be used."""
    return ImagesError(f"{what}: {error.strerror}", errno=error.errno or 0)


class MovedMemoryError(CriuError):
    """Memory was moved since the parent images were made, or that cannot be excluded.

    Linux does not mark pages as changed if mremap(2) moves them with their page table, so that a
    dump with ``parent_image`` would have the former contents of their new address. It was undone
    or not begun, and the process continues to run. A dump without ``parent_image`` saves all
    memory.
    """


class RestoreClaimedError(CriuError, FileExistsError):
    """Another run of the same :class:`~pycriu_native.RestoreJob` has restored the images, or may
    have. Nothing was restored.
    """


class ResumedError(CriuError):
    """A restore failed after CRIU had resumed the processes, so that they ran, if only briefly.

    CRIU resumes one thread after the other. A process that ends, or executes another program,
    before CRIU has resumed all of its threads makes the restore fail, and CRIU kills the processes
    that remain. What they did before has happened; a second restore does it again.
    """

    status: int | None = None
    """The exit status of the root process of :func:`pycriu_native.restore_child`, ``pid``, which is
    reaped; negative for a signal (SIGKILL can be CRIU's); None if it is not known."""


class WorkerDiedError(CriuError, ConnectionError):
    """CRIU ended, or its socket was closed, before its response."""

    status: int | None = None
    """Its exit status, or the negative number of the signal that ended it; None if unknown."""


class ProtocolError(CriuError, ConnectionError):
    """The response is not from CRIU, or violates CRIU's protocol."""


class DeadlineError(CriuError, TimeoutError):
    """The deadline of a call passed; CRIU undid its work."""


class MigrationError(CriuError):
    """A migration was cancelled; the source continues to run, and nothing remains at the
    destination.

    ``phase`` is the phase of the migration, ``by_peer`` whether the peer cancelled first.
    """

    def __init__(
        self, message: str, *, phase: str | None = None, by_peer: bool = False, **more: Any
    ) -> None:
        more.setdefault("verb", "migrate")
        super().__init__(message, **more)
        self.phase = phase
        self.by_peer = by_peer


class PeerLostError(MigrationError, ConnectionError):
    """The peer of a migration was lost: it closed the connection, or sent nothing for too long."""


class MigrationInDoubtError(MigrationError):
    """The destination sent its final message and does not know whether the source received it.

    The restored process, ``pid``, is stopped (SIGSTOP), so that two copies never run at the same
    time. If the call of the source returned, continue it with ``kill -CONT``; if that call raised,
    the source runs, and this copy has to be killed.
    """


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The diagnosis of a failure: exception class, cause, cure."""

    kind: type[CriuError] = CriuError
    cause: str | None = None
    cure: str | None = None
    options: tuple[str, ...] = ()
    line: str | None = None
    """The line of CRIU's log with the cause."""


BY_ERRNO: dict[int, type[CriuError]] = {
    errno.ESRCH: NoSuchProcessError,
    errno.EEXIST: PidInUseError,
    errno.EPERM: PermissionDeniedError,
    errno.EACCES: PermissionDeniedError,
    errno.ENOSPC: ImagesError,
    errno.EROFS: ImagesError,
}
"""The exception class for an errno of CRIU; a cause found in the log takes precedence."""
