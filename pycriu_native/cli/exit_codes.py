"""The exit codes, each with its meaning for scripts."""

from __future__ import annotations

from enum import IntEnum

from .. import errors


class Exit(IntEnum):
    """How a command ended. Other numbers: 128 and the number of the signal that ended it."""

    meaning: str
    """For help and documentation."""

    def __new__(cls, value: int, meaning: str) -> Exit:
        made = int.__new__(cls, value)
        made._value_ = value
        made.meaning = meaning
        return made

    DONE = 0, "done"
    FAILED = 1, "CRIU failed, and has undone what it had begun"
    REFUSED = 2, "the command line or the options are wrong; nothing was touched"
    UNSUPPORTED = (
        3,
        "this libcriu, criu, kernel or installation lacks something; nothing was touched",
    )
    NO_PROCESS = 4, "there is no such process"
    PID_TAKEN = 5, "a pid that the images need is in use"
    IMAGES = 6, "the images or their directory cannot be used"
    PERMISSION = 7, "a permission or capability is missing"
    NO_CRIU = 8, "there is no criu, or it does not start"
    LOST = 9, "CRIU or the other side ended before it had answered"
    DEADLINE = 10, "the deadline passed, and CRIU has undone what it had begun"
    NO = 11, "the command worked, and its answer is no"
    IN_DOUBT = 12, "a migration with an unknown outcome; the message has the next step"
    OUTPUT = 13, "the command worked, and its output cannot be written"
    BUG = 70, "a defect of pycriu-native"
    INTERRUPTED = 130, "interrupted by Ctrl-C, and CRIU has undone what it had begun"


BY_ERROR: dict[str, Exit] = {
    "UnsupportedError": Exit.UNSUPPORTED,
    "OptionError": Exit.REFUSED,
    "NoSuchProcessError": Exit.NO_PROCESS,
    "ProcessMismatchError": Exit.NO_PROCESS,
    "PidInUseError": Exit.PID_TAKEN,
    "RestoreClaimedError": Exit.PID_TAKEN,
    "ImagesError": Exit.IMAGES,
    "PermissionDeniedError": Exit.PERMISSION,
    "ProgramNotFoundError": Exit.NO_CRIU,
    "ProgramError": Exit.NO_CRIU,
    "DeadlineError": Exit.DEADLINE,
    "MigrationInDoubtError": Exit.IN_DOUBT,
    "PeerLostError": Exit.LOST,
    "WorkerDiedError": Exit.LOST,
    "ProtocolError": Exit.LOST,
}
"""By the name of the error's class, or of the nearest class that it derives from."""


def exit_of(error: errors.CriuError) -> Exit:
    """The exit code for an error of the library."""
    for kind in type(error).__mro__:
        if kind.__name__ in BY_ERROR:
            return BY_ERROR[kind.__name__]
    return Exit.FAILED
