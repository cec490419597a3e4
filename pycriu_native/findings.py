"""Findings: the results that ``preflight``, ``doctor`` and ``images.check_images`` report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum, StrEnum

from ._support.frozen_dataclass import dataclass
from ._support.kernel_text import encodable
from ._support.light_typing import Any

__all__ = ["Finding", "Severity"]


class Severity(StrEnum):
    """Effect of a finding on the operation that was checked; the worst comes first.

    The operation is a dump for ``preflight``, a restore for ``check_images``, and any checkpoint
    on this machine for ``doctor``.
    """

    STOPS = "stops"
    """The operation fails."""
    NEEDS_OPTION = "needs option"
    """The dump fails without the options in ``sets``. ``preflight`` only."""
    NO_RESTORE = "no restore"
    """The dump works, and a restore on this machine by this caller fails. ``preflight`` only."""
    LOST = "lost"
    """The dump works, and the restored process lacks this. ``preflight`` only."""
    WARNING = "warning"
    """The operation may fail or differ, or some processes or options do not work."""
    NOTE = "note"
    """The operation works; this is for information, or could not be checked."""
    GOOD = "good"
    """The check passed. ``doctor`` only."""


_ORDER = list(Severity)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One result of a check. ``str()`` is one line of text; ``to_dict()`` has all fields."""

    id: str
    """Stable name of the finding; for ``check_images``, of the check that made it."""
    severity: Severity
    """Effect on the operation."""
    message: str
    """The text of the finding."""
    subject: str = ""
    """Its subject. Default: ``pid``, ``fd`` and ``path`` in one text."""
    pid: int | None = None
    """The process. None: the process tree as a whole, or this machine."""
    fd: int | None = None
    """The descriptor in that process."""
    path: str | None = None
    """The file, mount or device."""
    group: str = ""
    """``doctor`` only: ``criu``, ``feature``, ``rights``, ``network`` or ``system``."""
    costs: str = ""
    """What does not work because of it."""
    cure: str = ""
    """The remedy, if possible a command or an option. Empty: there is none."""
    options: tuple[str, ...] = ()
    """Fields of ``CriuOpts`` that help."""
    sets: tuple[tuple[str, Any], ...] = ()
    """``preflight`` only: those fields with their values for the dump."""
    failure: str | None = None
    """Key of ``known_failures.json``: the failure of CRIU that the finding predicts."""

    def __post_init__(self) -> None:
        parts = [] if self.pid is None else [f"pid {self.pid}"]
        parts += [] if self.fd is None else [f"fd {self.fd}"]
        parts += [] if self.path is None else [self.path]
        object.__setattr__(self, "subject", self.subject or ", ".join(parts))

    @property
    def summary(self) -> str:
        """Subject and message."""
        return encodable(f"{self.subject}: {self.message}" if self.subject else self.message)

    def __str__(self) -> str:
        costs = f": {self.costs}" if self.costs else ""
        cure = f"; {self.cure}" if self.cure else ""
        return encodable(f"{self.summary}{costs}{cure}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; ``sets`` is a dict."""
        import dataclasses

        return {
            **{each.name: getattr(self, each.name) for each in dataclasses.fields(self)},
            "severity": str(self.severity),
            "options": list(self.options),
            "sets": plain_options(self.sets),
        }


def plain_options(options: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Names and values of options as plain data for JSON."""
    return {name: _plain(value) for name, value in options}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return value.name.lower() if isinstance(value, IntEnum) else value


def rank(finding: Finding) -> int:
    """Sort key: the worst severity has the lowest."""
    return _ORDER.index(finding.severity)


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Each finding once, the worst first; equal ones in the order given."""
    return tuple(sorted(dict.fromkeys(findings), key=rank))


def lines(
    findings: Iterable[Finding], headings: Mapping[str, str], field: str = "severity"
) -> Iterator[str]:
    """The findings as text, under headings by the value of a field; empty sections are left out."""
    given = list(findings)
    for value, heading in headings.items():
        members = [each for each in given if getattr(each, field) == value]
        if members:
            yield f"{heading}:"
        for each in members:
            mark = "" if field == "severity" else f"{each.severity:8} "
            yield f"    {mark}{each.summary}"
            for label, text in (("costs", each.costs), ("cure", each.cure)):
                if text:
                    yield encodable(f"        {label}: {text}")
