"""doctor: whether this machine can checkpoint, and what to do where it cannot.

It gets CRIU's release, CRIU's own check and each feature of the kernel from CRIU, and reads the
rest from /proc and /sys. It changes nothing; CRIU may write its cache of the kernel's features, as
with any call.
"""

from __future__ import annotations

from ..._transport.base import Via
from ..._transport.worker import Worker
from ...errors import CriuError
from ...findings import Severity
from .values import Doctor

__all__ = ["Doctor", "doctor"]


def doctor(via: Via | None = None) -> Doctor:
    """Check everything that decides whether this machine can checkpoint.

    A caller without rights gets the result of ``unprivileged=True``. What CRIU cannot test because
    of an earlier finding is reported as unknown, not as missing.

    ``via`` as for the verbs. A worker runs ``criu check`` for each feature of CRIU 4.2:
    about 45 processes in about a second. A service answers for three features. A socket serves
    one request only, so it gets none. The rights are those of the caller, which a worker shares.

    Raises nothing that depends on the machine: a missing CRIU is a finding. Needs CRIU 3.17 for
    what CRIU answers.
    """
    from . import features, program, rights, system  # loaded at the first call

    via = via or Worker()
    findings = list(program.look(via)) if _takes_requests(via) else []
    checked = next((each for each in findings if each.id == "check"), None)
    unprivileged = checked is not None and "unprivileged" in checked.options
    if all(each.id != "criu" or each.severity is not Severity.STOPS for each in findings):
        findings += features.look(via, unprivileged=unprivileged)
    findings += rights.look()
    findings += system.look(via, unprivileged=unprivileged)
    return Doctor(via=_name(via), findings=tuple(findings))


def _takes_requests(via: Via) -> bool:
    """Whether a request leaves the connection usable; a socket serves only one."""
    try:
        return via.identity() is not None
    except CriuError:
        return True  # the request itself reports the error


def _name(via: Via) -> str:
    try:
        return via.name()
    except CriuError:
        return "no criu"
