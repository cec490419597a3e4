"""A preflight for people to read."""

from __future__ import annotations

from collections.abc import Iterator

from ..._support.kernel_text import encodable
from .values import Finding, Preflight, Severity, Verdict

_HEADS = {
    Severity.STOPS: "stops the dump",
    Severity.NEEDS_OPTION: "needs an option",
    Severity.NO_RESTORE: "makes a restore here fail",
    Severity.LOST: "is lost",
    Severity.NOTE: "to mind",
}
_SUMS = {
    Verdict.WORKS: "can be dumped",
    Verdict.NEEDS_OPTIONS: "can be dumped with these options",
    Verdict.NO_RESTORE: "can be dumped, and cannot be restored here",
    Verdict.FAILS: "cannot be dumped",
}


def rendered(result: Preflight) -> str:
    """The verdict, the options, the findings by severity and the size."""
    return encodable("\n".join(_lines(result)))


def _lines(result: Preflight) -> Iterator[str]:
    count = len(result.pids)
    others = "" if count < 2 else f" and {count - 1} other process{'es' * (count > 2)}"
    yield f"process {result.pid}{others}: {_SUMS[result.verdict]}"
    if result.verdict in (Verdict.NEEDS_OPTIONS, Verdict.NO_RESTORE):
        for name, value in result.changes().items():
            yield f"    {name}={value!r}"
    for severity, head in _HEADS.items():
        results = [finding for finding in result.findings if finding.severity is severity]
        if results:
            yield f"{head}:"
            for finding in results:
                yield from _finding(finding)
    if result.size.total:
        yield f"images: about {in_units(result.size.total)}"


def _finding(finding: Finding) -> Iterator[str]:
    subject = f"{finding.subject}: " if finding.subject else ""
    yield f"    {subject}{finding.words}"
    if finding.cure:
        yield f"        {finding.cure}"


def in_units(size: float) -> str:
    """Bytes as people write them."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
