"""The exit codes, each with its meaning for scripts."""

from __future__ import annotations

from enum import IntEnum

from .. import errors


class Exit(IntEnum):
    """The exit code of a command. Other codes: 128 and the number of the signal that ended it."""

    meaning: str
    """For help and documentation."""

    def __new__(cls, value: int, meaning: str) -> Exit:
        made = int.__new__(cls, value)
        made._value_ = value
        made.meaning = meaning
        return made

    DONE = 0, "done"
    FAILED = 1, "CRIU failed, and undid its work"
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
    LOST = 9, "CRIU or the peer ended before its response"
    DEADLINE = 10, "the deadline passed, and CRIU undid its work"
    NO = 11, "the command worked; the result of its check is negative"
    IN_DOUBT = (
        12,
        "a migration with an unknown outcome, or a failed restore whose processes ran; the message "
        "says how to resolve it",
    )
    OUTPUT = 13, "the command worked, but its output could not be written"
    BUG = 70, "a defect of pycriu-native"
    INTERRUPTED = 130, "interrupted by Ctrl-C, and CRIU undid its work"


CALL_EXITS = (
    Exit.FAILED,
    Exit.UNSUPPORTED,
    Exit.IMAGES,
    Exit.PERMISSION,
    Exit.NO_CRIU,
    Exit.LOST,
    Exit.DEADLINE,
)
"""The codes of commands that call CRIU with images."""

BY_ERROR: dict[str, Exit] = {
    "UnsupportedError": Exit.UNSUPPORTED,
    "OptionError": Exit.REFUSED,
    "NoSuchProcessError": Exit.NO_PROCESS,
    "ProcessMismatchError": Exit.NO_PROCESS,
    "PidInUseError": Exit.PID_TAKEN,
    "RestoreClaimedError": Exit.PID_TAKEN,
    "ImagesError": Exit.IMAGES,
    "MovedMemoryError": Exit.IMAGES,
    "PermissionDeniedError": Exit.PERMISSION,
    "ProgramNotFoundError": Exit.NO_CRIU,
    "ProgramError": Exit.NO_CRIU,
    "DeadlineError": Exit.DEADLINE,
    "MigrationInDoubtError": Exit.IN_DOUBT,
    "ResumedError": Exit.IN_DOUBT,
    "PeerLostError": Exit.LOST,
    "WorkerDiedError": Exit.LOST,
    "ProtocolError": Exit.LOST,
}
"""The code for an error: by its class's name, or that of the nearest base class."""


def exit_of(error: errors.CriuError) -> Exit:
    """The exit code for an error of the library."""
    for kind in type(error).__mro__:
        if kind.__name__ in BY_ERROR:
            return BY_ERROR[kind.__name__]
    return Exit.FAILED
