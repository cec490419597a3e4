"""What can go wrong, as data.

Every error of this package is a :class:`CriuError`, and also the builtin exception that
fits, so ``except ProcessLookupError`` works as well. All of them pickle.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from ._support.frozen_dataclass import dataclass, field
from ._support.kernel_text import encodable
from ._support.light_typing import Any

__all__ = [
    "CriuError",
    "DeadlineError",
    "ImagesError",
    "MigrationError",
    "MigrationInDoubtError",
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
    "UnsupportedError",
    "WorkerDiedError",
]


class CriuError(Exception):
    """A verb failed. Raised as itself when no more precise class fits.

    All arguments but the message are optional and become attributes:

    * ``verb``: the verb's name, such as ``"dump"``
    * ``pid``: the process it was about
    * ``code``: what libcriu returned (a negative errno of its table), or None
    * ``errno``: what CRIU reported as the errno of the failure; a hint, 0 when it named none
    * ``log``: path of CRIU's log, None when this call left none
    * ``lines``: CRIU's own error lines, from its log, else from its standard error
    * ``cause``, ``cure``: the likely cause in plain words and what helps, where known
    * ``options``: fields of ``CriuOpts`` that help, best first

    Of a dump whose CRIU was gone before it could undo its work (``WorkerDiedError``,
    ``ProtocolError``, or ``DeadlineError`` when it had to be killed), also what that has cost; a
    note of the error says the same in words:

    * ``lost_connections``: TCP connections of the process that are over, or do not work any
      more, each as ``address:port - address:port``, the process's own end first
    * ``left_behind``: what is still there of CRIU's, in words: to be removed by hand, but for the
      memory that CRIU had mapped into the process, which goes with the process. Any restore that
      failed has this: names that could not be removed, or that were in its way, and the lock on
      the network, which stays until a restore succeeds
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
        # The builtin exceptions that the subclasses also are would take two arguments of
        # OSError for errno and text; one argument keeps str(error) the message.
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
        # OSError keeps errno outside __dict__, and its own __reduce__ knows none of the rest.
        return _rebuild, (type(self), self.message, {**self.__dict__, "errno": self.errno})


def _rebuild(kind: type[CriuError], message: str, attributes: dict[str, object]) -> CriuError:
    error = kind.__new__(kind, message)
    error.args = (message,)
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the options of a call."""

    field: str
    """The field of ``CriuOpts``, or the argument, that is wrong."""
    value: object
    """What it was given."""
    rule: str
    """What is accepted, or why this is refused."""

    def __str__(self) -> str:
        return f"{self.field}={self.value!r}: {self.rule}"


class OptionError(CriuError, ValueError):
    """Options that CRIU, libcriu or runc's rules refuse; nothing was touched.

    ``problems`` lists all that is wrong, not only the first.
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


class ProgramNotFoundError(CriuError, FileNotFoundError):
    """There is no ``criu`` program to run."""


class ProgramError(CriuError, OSError):
    """The program could not be started, or it cannot work on this kernel."""


class PermissionDeniedError(CriuError, PermissionError):
    """CRIU lacks a capability for what was asked."""


class NoSuchProcessError(CriuError, ProcessLookupError):
    """The process to dump does not exist."""


class ProcessMismatchError(NoSuchProcessError):
    """The pid does not stand for the process that was meant: another host, pid namespace or life of
    the number. Nothing was dumped.
    """


class PidInUseError(CriuError, FileExistsError):
    """A pid that the images need is taken, often by the process that was dumped."""


class ImagesError(CriuError, OSError):
    """A directory or file of the images cannot be used: missing, read-only, full, incomplete."""


class RestoreClaimedError(CriuError, FileExistsError):
    """Another run of the same :class:`~pycriu_native.RestoreJob` has restored the images, or may
    have. Nothing was restored.
    """


class WorkerDiedError(CriuError, ConnectionError):
    """CRIU ended, or its socket closed, before it answered."""

    status: int | None = None
    """Its exit status, or the negative number of the signal that ended it; None if unknown."""


class ProtocolError(CriuError, ConnectionError):
    """What answered is no CRIU, or not one that keeps to the protocol."""


class DeadlineError(CriuError, TimeoutError):
    """The deadline of a call passed; CRIU undid what it had begun."""


class MigrationError(CriuError):
    """A migration was given up, and the source runs on; nothing is left at the destination.

    ``phase`` is what was being done, ``by_peer`` whether the other side gave up first.
    """

    def __init__(
        self, message: str, *, phase: str | None = None, by_peer: bool = False, **more: Any
    ) -> None:
        more.setdefault("verb", "migrate")
        super().__init__(message, **more)
        self.phase = phase
        self.by_peer = by_peer


class PeerLostError(MigrationError, ConnectionError):
    """The other side of a migration was lost: closed, silent for too long, or no peer at all."""


class MigrationInDoubtError(MigrationError):
    """The destination said its last word and does not know whether the source heard it.

    The restored process, ``pid``, is stopped (SIGSTOP), so that never two of them run. Where
    the source's call returned, ``kill -CONT`` it; where it raised, the source runs, and this one
    is to be killed.
    """


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a failure comes down to: the builtin's class, the cause, the cure."""

    kind: type[CriuError] = CriuError
    cause: str | None = None
    cure: str | None = None
    options: tuple[str, ...] = field(default=())
    line: str | None = None
    """The line of CRIU's that says so."""


BY_ERRNO: dict[int, type[CriuError]] = {
    errno.ESRCH: NoSuchProcessError,
    errno.EEXIST: PidInUseError,
    errno.EPERM: PermissionDeniedError,
    errno.EACCES: PermissionDeniedError,
    errno.ENOSPC: ImagesError,
    errno.EROFS: ImagesError,
}
"""Which class an errno that CRIU reports stands for; the log, where it speaks, decides first."""
