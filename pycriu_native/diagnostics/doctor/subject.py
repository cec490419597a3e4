"""The subject of a check of ``doctor``, which makes its findings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partialmethod
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
        """A finding of any severity."""
        more |= {"id": self.id, "group": self.group, "subject": self.name, "options": self.options}
        return Finding(severity=severity, message=message, **more)

    good = partialmethod(finding, Severity.GOOD)
    """A check that passed."""
    note = partialmethod(finding, Severity.NOTE)
    """A result for information."""
    warning = partialmethod(finding, Severity.WARNING)
    """A check after which something does not work."""
    stops = partialmethod(finding, Severity.STOPS)
    """A check after which nothing works."""
