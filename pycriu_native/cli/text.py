"""Formatting of numbers, names and tables for text output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .._support.kernel_text import escaped as safe
from .._support.sizes import size_text as size

__all__ = ["columns", "count", "details", "micro", "pids", "remaining", "safe", "size", "time"]


def time(seconds: float) -> str:
    """A duration: ``3.21 s``, ``12.3 ms``, ``410 us``."""
    if seconds >= 120:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    if seconds >= 0.99995:
        return f"{seconds:.2f} s"
    if seconds >= 0.0009995:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.0f} us"


def remaining(seconds: float) -> str:
    """The remaining time, in whole seconds."""
    return time(seconds) if seconds >= 120 else f"{max(1, round(seconds))} s"


def micro(microseconds: int) -> str:
    """A duration in microseconds, the unit of CRIU's statistics."""
    return time(microseconds / 1e6)


def count(number: int, thing: str) -> str:
    """``1 file``, ``3 files``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


MOST_PIDS = 12
"""Pids, or ranges of them, that are shown."""


def pids(numbers: Sequence[int]) -> str:
    """Pids in a line, ``4242-4245`` for those in a row."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    shown = [str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts[:MOST_PIDS]]
    return " ".join(shown) + (" …" if len(parts) > MOST_PIDS else "")


def columns(rows: Iterable[Sequence[str]], *, indent: int = 0) -> list[str]:
    """Lines with aligned columns."""
    listed = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    return [(" " * indent + "  ".join(map(str.ljust, row, widths))).rstrip() for row in listed]


def details(headline: str, rows: Iterable[tuple[str, str | None]]) -> str:
    """A headline, and below it names and values in columns; those with None are left out."""
    shown = [(name, value) for name, value in rows if value is not None]
    return "\n".join([headline, *columns(shown, indent=2)])
