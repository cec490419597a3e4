"""The phases of the start of a copy, and their durations."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from ..errors import ImagesError


@dataclass(frozen=True, kw_only=True, slots=True)
class StartPhase:
    """A phase of a start. Times are seconds since the call began."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StartTimings:
    """The phases of one start in their order.

    Those of :meth:`.Snapshot.start` are ``check`` (arguments and machine), ``memory`` (the
    template, if memory is shared), ``namespaces`` (wait for their init process), ``worker`` (start
    of CRIU, and set-up of the namespaces), ``prepare`` (CRIU reads images and probes the kernel),
    ``restore`` (CRIU's ``restore_time``) and ``finish``. Those of :meth:`.Zygote.start` are
    ``check``, ``fork`` and ``finish``.
    """

    number: int
    """The number of the start."""
    way: str
    """``plain``, ``shared`` or ``zygote``."""
    phases: tuple[StartPhase, ...]

    @property
    def total(self) -> float:
        """Seconds from the call to its result."""
        return self.phases[-1].end if self.phases else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """Convert the result of ``to_dict`` back. ``ImagesError`` for another value."""
        try:
            phases = tuple(
                StartPhase(
                    name=str(each["name"]), begin=float(each["begin"]), end=float(each["end"])
                )
                for each in body["phases"]
            )
            return cls(number=int(body["number"]), way=str(body["way"]), phases=phases)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ImagesError(f"these are not the timings of a start: {error!r}") from None


class Stopwatch:
    """Measures the phases of a start."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._phases: list[StartPhase] = []

    def ends(self, name: str) -> None:
        """End a phase that began at the end of the previous one."""
        begin = self._phases[-1].end if self._phases else 0.0
        end = time.monotonic() - self._began
        self._phases.append(StartPhase(name=name, begin=begin, end=end))

    def ends_after(self, name: str, seconds: float, before: str) -> None:
        """End a phase that took ``seconds``, and the phase ``before`` it."""
        self.ends(name)
        last = self._phases.pop()
        between = max(last.begin, last.end - seconds)
        self._phases.append(StartPhase(name=before, begin=last.begin, end=between))
        self._phases.append(StartPhase(name=name, begin=between, end=last.end))

    def timings(self, number: int, way: str) -> StartTimings:
        """All phases; the last one ends now."""
        self.ends("finish")
        return StartTimings(number=number, way=way, phases=tuple(self._phases))
