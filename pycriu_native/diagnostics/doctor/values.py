"""The result of ``doctor``."""

from __future__ import annotations

from ..._support.frozen_dataclass import dataclass
from ..._support.light_typing import Any
from ...findings import Finding, Severity, lines, rank

_SUMMARIES = {
    Severity.GOOD: "this machine can checkpoint",
    Severity.WARNING: "this machine can checkpoint; some things do not work",
    Severity.STOPS: "this machine cannot checkpoint",
}
IN_NAMESPACE = "this user can checkpoint in a user namespace; pycriu-native run creates one"
ID = "user-namespace"
"""The finding on a user namespace of the caller, if only that helps."""
HEADINGS = {
    "criu": "CRIU",
    "feature": "kernel features for CRIU",
    "rights": "rights",
    "network": "network",
    "system": "system",
}
"""Heading of each group of findings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Doctor:
    """The result of all checks. ``str()`` returns a text of several lines."""

    via: str
    """The CRIU that was checked."""
    findings: tuple[Finding, ...]
    """The results of all checks, group by group."""

    @property
    def severity(self) -> Severity:
        """The worst severity of all findings: ``STOPS``, ``WARNING``, or ``GOOD``."""
        worst = min(self.findings, key=rank).severity
        return Severity.GOOD if worst is Severity.NOTE else worst

    @property
    def summary(self) -> str:
        """Whether this machine can checkpoint, the checked CRIU, and the reason if it cannot."""
        stop = next((each for each in self.findings if each.severity is Severity.STOPS), None)
        here = _SUMMARIES[self.severity]
        if stop is None and any(each.id == ID for each in self.findings):
            here = IN_NAMESPACE
        why = "" if stop is None else f": {stop.subject}: {stop.message}"
        return f"{here} ({self.via}){why}"

    def of(self, id: str) -> Finding:
        """The finding with this id. Raises ``KeyError`` if there is none."""
        for finding in self.findings:
            if finding.id == id:
                return finding
        raise KeyError(id)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "via": self.via,
            "severity": str(self.severity),
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        features = [each for each in self.findings if each.group == "feature"]
        good = {each.id for each in features if each.severity is Severity.GOOD}
        headings = dict(HEADINGS)
        headings["feature"] += f" ({len(good)} of {len(features)} work)"
        shown = [each for each in self.findings if each.id not in good]
        return "\n".join([self.summary, *lines(shown, headings, "group")])
