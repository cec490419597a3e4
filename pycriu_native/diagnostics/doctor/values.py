"""What doctor says, as values: a remark on each thing that decides, and all of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

__all__ = ["Doctor", "DoctorFinding", "DoctorSeverity"]


class DoctorSeverity(StrEnum):
    """How good a thing is for checkpoints."""

    GOOD = "good"
    """Nothing is lost."""
    INFO = "info"
    """To know; nothing is lost."""
    WARNING = "warning"
    """Some processes or options do not work; the remark says which."""
    BAD = "bad"
    """Nothing works."""


_ORDER = list(DoctorSeverity)


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorFinding:
    """One thing that decides whether this machine can checkpoint."""

    id: str
    """What it is, in a word of this package that stays; ``feature:NAME`` has CRIU's own name."""
    group: str
    """What it belongs to: ``criu``, ``feature``, ``rights``, ``network``, ``system``."""
    title: str
    """What it is, for people."""
    health: DoctorSeverity
    """How good it is."""
    value: str
    """What was found."""
    costs: str = ""
    """What does not work because of it."""
    cure: str = ""
    """The command that cures it, or what else to do."""

    def __str__(self) -> str:
        costs = f": {self.costs}" if self.costs else ""
        cure = f"; {self.cure}" if self.cure else ""
        return f"{self.title}: {self.value}{costs}{cure}"

    def to_dict(self) -> dict[str, str]:
        """Plain data for JSON."""
        return {field.name: str(getattr(self, field.name)) for field in dataclasses.fields(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Doctor:
    """Everything that decides whether this machine can checkpoint. ``str()`` is for people."""

    via: str
    """The CRIU that was asked."""
    remarks: tuple[DoctorFinding, ...]
    """All that was looked at, group by group."""

    @property
    def health(self) -> DoctorSeverity:
        """The worst of all remarks; GOOD if nothing is lost."""
        worst = max((remark.health for remark in self.remarks), key=_ORDER.index)
        return DoctorSeverity.GOOD if worst is DoctorSeverity.INFO else worst

    def of(self, id: str) -> DoctorFinding:
        """The remark with this id; ``KeyError`` if there is none."""
        for remark in self.remarks:
            if remark.id == id:
                return remark
        raise KeyError(id)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "via": self.via,
            "health": str(self.health),
            "remarks": [remark.to_dict() for remark in self.remarks],
        }

    def __str__(self) -> str:
        from .text import rendered

        return rendered(self)
