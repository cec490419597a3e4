"""doctor: checks whether this machine can checkpoint, and names cures for what is missing.

CRIU reports its release, the result of its own check and each feature of the kernel; the rest is
read from /proc and /sys. Nothing is changed, except that CRIU may write its cache of the kernel's
features, as in any call.
"""

from __future__ import annotations

from ..._checks.arguments import check_types
from ..._support.frozen_dataclass import replace
from ..._system.process_identity import has_proc
from ..._transport.base import Via
from ..._transport.worker import Worker, worker_of
from ...errors import CriuError
from ...findings import Finding, Severity
from ...options.criu_opts import CriuOpts
from .values import Doctor

__all__ = ["Doctor", "doctor"]

BY_NAMESPACE = ("check", "capability:CAP_SYS_ADMIN")
"""Findings that do not stop checkpoints in a user namespace of the caller's own."""
IN_BOTH = (*BY_NAMESPACE, "seccomp")
"""Those that do not make a check of that namespace needless."""


def doctor(via: Via | None = None) -> Doctor:
    """Check whether this machine can checkpoint.

    For a caller without privileges, the result is that of ``unprivileged=True``. If CRIU has not
    enough rights for that either, it is that of ``unprivileged=True`` in a user namespace, which a
    child process creates. Features that CRIU cannot test because of an earlier finding are reported
    as unknown, not as missing.

    ``via`` as for the verbs. A worker runs ``criu check`` for each feature of CRIU 4.2:
    about 45 processes in about a second. A service reports three features. A socket serves one
    request only, so it gets none. The capabilities are those of the caller, as in a worker.

    Raises no exception that depends on the machine: a missing CRIU is a finding. Needs CRIU 3.17
    for the results of CRIU.
    """
    from . import features, program, rights, system, user_namespace  # loaded at the first call

    check_types(CriuOpts(), via, "doctor")
    via = via or Worker()
    if not has_proc():
        return Doctor(via=_name(via), findings=(system.proc(),))
    findings = list(program.look(via)) if _takes_requests(via) else []
    checked = next((each for each in findings if each.id == "check"), None)
    unprivileged = checked is not None and "unprivileged" in checked.options
    if all(each.id != "criu" or each.severity is not Severity.STOPS for each in findings):
        findings += features.look(via, unprivileged=unprivileged)
    findings += rights.look()
    findings += system.look(via, unprivileged=unprivileged)
    worker = worker_of(via)
    lacks = [each for each in findings if each.id in BY_NAMESPACE and _stops(each)]
    if (
        worker is not None
        and lacks
        and not any(_stops(each) for each in findings if each.id not in IN_BOTH)
    ):
        namespace = user_namespace.look(worker)
        findings.append(namespace)
        if namespace.severity is Severity.WARNING:
            findings = [
                replace(each, severity=Severity.WARNING) if each in lacks else each
                for each in findings
            ]
    return Doctor(via=_name(via), findings=tuple(findings))


def _stops(finding: Finding) -> bool:
    return finding.severity is Severity.STOPS


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
        return "no usable criu"
