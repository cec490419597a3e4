"""The results of the fault tests: the rows of the tables of docs/reliability.md.

Each test appends its cells here. The run prints the tables at its end; with
``PYCRIU_NATIVE_FAULT_ROWS`` it also keeps its rows in that file, as JSON, and ``reliability.py``
makes the page from the files of all runs: this machine's, and those of guests with other kernels.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import pycriu_native

ROWS = "PYCRIU_NATIVE_FAULT_ROWS"
"""The environment variable that names the file to keep the rows in."""


@dataclass(frozen=True)
class Cell:
    """The outcome of one fault."""

    verb: str
    what: str
    when: str
    gets: str
    """The error or result that the caller gets."""
    process: str
    images: str
    left: str = "nothing"


@dataclass(frozen=True)
class Instant:
    """One fault at a random instant."""

    verb: str
    what: str
    phase: str
    outcome: str


@dataclass(frozen=True)
class Late:
    """One deadline or cancel, and the time for which the process was stopped after it."""

    verb: str
    when: str
    gets: str
    process: str
    seconds: float


@dataclass(frozen=True)
class Count:
    """The resources in use after a number of calls."""

    calls: int
    resident: int
    """Bytes of memory."""
    descriptors: int
    children: int
    threads: int


@dataclass
class Run:
    """The results of one run."""

    facts: dict[str, str] = field(default_factory=dict)
    """Date, kernel, releases, and the load on so many processors; of a run that is kept."""
    cells: list[Cell] = field(default_factory=list)
    instants: list[Instant] = field(default_factory=list)
    lates: list[Late] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    soaked: dict[str, int] = field(default_factory=dict)
    """The number of calls of each kind that the counts cover."""
    notes: list[str] = field(default_factory=list)
    """More facts for the page, such as the seed."""

    def __bool__(self) -> bool:
        return any(getattr(self, one.name) for one in fields(self) if one.name != "facts")


THIS = Run()
cells, instants, lates, notes = THIS.cells, THIS.instants, THIS.lates, THIS.notes


def table(head: list[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def fault_table(run: Run) -> list[str]:
    """All cells."""
    head = ["verb", "what", "when", "the caller gets", "the process", "the images", "left behind"]
    return table(head, [astuple(cell) for cell in run.cells])


def instant_table(run: Run) -> list[str]:
    """The number of each outcome, by phase."""
    keys = list(dict.fromkeys((i.verb, i.what, i.phase) for i in run.instants))
    rows = []
    for key in keys:
        hits = [i for i in run.instants if (i.verb, i.what, i.phase) == key]
        outcomes = dict.fromkeys(i.outcome for i in hits)
        message = "; ".join(f"{o}: {sum(i.outcome == o for i in hits)}" for o in sorted(outcomes))
        rows.append((*key, str(len(hits)), message))
    return table(["verb", "what", "phase", "hits", "outcome"], rows)


def late_table(run: Run) -> list[str]:
    """The deadlines; for equal places the longest time."""
    keys = list(
        dict.fromkeys((late.verb, late.when, late.gets, late.process) for late in run.lates)
    )
    rows = []
    for key in keys:
        times = [x.seconds for x in run.lates if (x.verb, x.when, x.gets, x.process) == key]
        span = f"{min(times) * 1000:.0f} to {max(times) * 1000:.0f} ms"
        rows.append((*key, str(len(times)), span))
    return table(["verb", "when", "the caller gets", "the process", "times", "took"], rows)


def count_table(run: Run) -> list[str]:
    """The resources counted during many calls."""
    head = ["calls", "resident memory in KiB", "descriptors", "children", "threads"]
    rows = [
        (f"{c.calls:,}", f"{c.resident // 1024:,}", *map(str, astuple(c)[2:])) for c in run.counts
    ]
    made = ", ".join(f"{name}: {count:,}" for name, count in run.soaked.items())
    return [*table(head, rows), "", f"Calls of each kind: {made}."]


TABLES = {
    "faults": ("cells", fault_table),
    "faults at random instants": ("instants", instant_table),
    "deadlines and cancels": ("lates", late_table),
    "many calls": ("counts", count_table),
}
"""By title: the rows and the function that makes their table."""


def report() -> list[str]:
    """The lines that the run prints."""
    message = []
    for title, (rows, make) in TABLES.items():
        if getattr(THIS, rows):
            message += ["", f"{title}:", *make(THIS)]
    return message + notes


def keep() -> None:
    """Write the rows to the file in ``PYCRIU_NATIVE_FAULT_ROWS``, if it is set."""
    path = os.environ.get(ROWS)
    if not path or not THIS:
        return
    THIS.facts = {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "kernel": platform.release(),
        "criu": str(pycriu_native.version()),
        "libcriu": str(pycriu_native.libcriu_version()),
        "load": f"{os.getloadavg()[2]:.0f} on {os.cpu_count()}",
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(asdict(THIS), indent=1) + "\n")


def load(path: Path) -> Run:
    """Read the rows of an earlier run."""
    result: dict[str, Any] = json.loads(path.read_text())
    kinds = {"cells": Cell, "instants": Instant, "lates": Late, "counts": Count}
    for name, kind in kinds.items():
        result[name] = [kind(**row) for row in result[name]]
    return Run(**result)
