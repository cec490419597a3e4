"""doctor: whether this machine can checkpoint, and what to do where it cannot.

It asks CRIU for its release, its check and each feature of the kernel, and reads the rest from
/proc and /sys. Nothing is changed; CRIU may write its cache of the kernel's features, as with
any call.
"""

from __future__ import annotations

from ..._transport.base import Via
from ..._transport.worker import Worker
from ...errors import CriuError
from . import features, program, rights, system
from .values import Doctor, DoctorFinding, DoctorSeverity

__all__ = ["Doctor", "DoctorFinding", "DoctorSeverity", "doctor"]


def doctor(via: Via | None = None) -> Doctor:
    """Everything that decides whether this machine can checkpoint, looked at now.

    ``via`` as for the verbs. A worker of our own is asked for each feature that CRIU 4.2 knows,
    which starts the program about 45 times (about a second); a service for three of them. A
    socket is not asked at all: it serves one request only. Rights are the caller's, which a
    worker shares.

    Raises nothing that a machine can be the cause of: a missing CRIU is a remark. Needs CRIU 3.17
    for what CRIU is asked.
    """
    via = via or Worker()
    remarks = list(program.look(via)) if _can_be_asked(via) else []
    if not remarks or all(remark.id != "criu" or _works(remark) for remark in remarks):
        remarks += features.look(via)
    return Doctor(via=_name(via), remarks=(*remarks, *rights.look(), *system.look(via)))


def _works(remark: DoctorFinding) -> bool:
    return remark.health is not DoctorSeverity.BAD


def _can_be_asked(via: Via) -> bool:
    """Whether a question leaves it to be asked again."""
    try:
        return via.identity() is not None
    except CriuError:
        return True  # the question says what is wrong


def _name(via: Via) -> str:
    try:
        return via.name()
    except CriuError:
        return "no criu"
