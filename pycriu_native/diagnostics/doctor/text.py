"""A doctor's answer for people to read."""

from __future__ import annotations

from collections.abc import Iterator

from ..._support.kernel_text import encodable
from .values import Doctor, DoctorSeverity

_SUMS = {
    DoctorSeverity.GOOD: "this machine can checkpoint",
    DoctorSeverity.WARNING: "this machine can checkpoint; some things do not work",
    DoctorSeverity.BAD: "this machine cannot checkpoint",
}
_HEADS = {
    "criu": "CRIU",
    "feature": "what the kernel can do for CRIU",
    "rights": "rights",
    "network": "network",
    "system": "system",
}


def rendered(doctor: Doctor) -> str:
    """The sum, then the remarks by group; good features are counted only."""
    return encodable("\n".join(_lines(doctor)))


def _lines(doctor: Doctor) -> Iterator[str]:
    yield f"{_SUMS[doctor.health]} ({doctor.via})"
    for group, head in _HEADS.items():
        remarks = [remark for remark in doctor.remarks if remark.group == group]
        if not remarks:
            continue
        yield f"{head}:"
        good = [remark for remark in remarks if remark.health is DoctorSeverity.GOOD]
        if group == "feature" and good:
            yield f"  {DoctorSeverity.GOOD:8} {len(good)} of {len(remarks)} features"
        for remark in remarks:
            if group == "feature" and remark.health is DoctorSeverity.GOOD:
                continue
            yield f"  {remark.health:8} {remark.title}: {remark.value}"
            if remark.costs:
                yield f"           {remark.costs}"
            if remark.cure:
                yield f"           cure: {remark.cure}"
