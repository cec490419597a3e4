"""The metrics of a job, in Prometheus' text format."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

BEAT = 15.0
"""Seconds between two heartbeats of a supervisor."""

OF_JOB = (
    ("checkpoints_total", "checkpoints", "Checkpoints that were taken."),
    ("incremental_checkpoints_total", "incremental", "Checkpoints that were incremental."),
    ("checkpoint_failures_total", "failures", "Checkpoints that failed."),
    ("resumes_total", "resumed", "Restores from a checkpoint."),
    ("restarts_total", "restarted", "Starts from the beginning again."),
    ("last_checkpoint_timestamp_seconds", "last_success", "When the last checkpoint was complete."),
    ("last_checkpoint_duration_seconds", "last_duration", "Seconds that the last checkpoint took."),
    ("last_checkpoint_frozen_seconds", "last_frozen", "Seconds for which the command was frozen."),
    ("last_checkpoint_bytes", "last_bytes", "Size of the last checkpoint, without its parents."),
    ("last_checkpoint_parents", "last_parents", "Parents of the last checkpoint; 0: it is full."),
)
"""Name, field of ``JobStatus``, and description."""

OF_STORAGE = (
    ("uploads_total", "uploads", "Checkpoints that were uploaded."),
    ("upload_failures_total", "failures", "Uploads that failed."),
    ("last_upload_timestamp_seconds", "last_upload", "When the last upload was complete."),
    ("last_upload_bytes", "last_bytes", "Size of the last upload."),
)
"""The same of ``StorageStatus``."""

Row = tuple[str, str, float | None]


def _rows(status: object, table: Iterable[tuple[str, str, str]]) -> list[Row]:
    """The rows of a table, each with the name, the description and the value."""
    return [(name, text, getattr(status, field)) for name, field, text in table]


def job_metrics(directory: Path, status: object, *, running: bool) -> str:
    """The metrics of a ``JobStatus``."""
    first = ("running", "Whether the command runs.", int(running))
    return _metrics(directory, [first, *_rows(status, OF_JOB)])


def storage_metrics(directory: Path, status: object) -> str:
    """The metrics of a ``StorageStatus``."""
    return _metrics(directory, _rows(status, OF_STORAGE))


def heartbeat(directory: Path, moment: float) -> str:
    """The metric of the supervisor's last activity."""
    text = f"When the supervisor last ran; written every {BEAT:g} seconds."
    return _metrics(directory, [("heartbeat_timestamp_seconds", text, moment)])


def _metrics(directory: Path, rows: Iterable[Row]) -> str:
    """The text of metrics. Those whose names end with ``_total`` are counters."""
    label = os.fsencode(directory).decode(errors="replace")  # the format is UTF-8
    label = label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    lines = []
    for name, text, value in rows:
        if value is not None:
            full = f"pycriu_native_job_{name}"
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}"]
            lines.append(f'{full}{{directory="{label}"}} {value}')
    return "\n".join(lines) + "\n"
