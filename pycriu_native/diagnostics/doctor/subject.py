"""The subject of a check of ``doctor``, which makes its findings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...findings import Finding, Severity

Findings = Iterator[Finding]
"""What a check yields."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Fields of all findings on it. The methods take the message, ``costs`` and ``cure``."""

    id: str
    group: str
    name: str
    options: tuple[str, ...] = ()

    def finding(self, severity: Severity, message: str, **more: Any) -> Finding:
        more |= {"id": self.id, "group": self.group, "subject": self.name, "options": self.options}
        return Finding(severity=severity, message=message, **more)

    def good(self, message: str, **more: Any) -> Finding:
        """A check that passed."""
        return self.finding(Severity.GOOD, message, **more)

    def note(self, message: str, **more: Any) -> Finding:
        """A result for information."""
        return self.finding(Severity.NOTE, message, **more)

    def warning(self, message: str, **more: Any) -> Finding:
        """A check after which something does not work."""
        return self.finding(Severity.WARNING, message, **more)

    def stops(self, message: str, **more: Any) -> Finding:
        """A check after which nothing works."""
        return self.finding(Severity.STOPS, message, **more)
