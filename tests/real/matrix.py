"""What tests of faults have found, as the tables of docs/reliability.md.

A test that has seen a cell says so with ``record``. The run prints the tables at its end, and
``make reliability`` has them written into the page, with what cannot be measured.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import pycriu_native

PAGE = "PYCRIU_NATIVE_RELIABILITY_PAGE"
"""The environment variable that names the file to write."""

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent


@dataclass(frozen=True)
class Cell:
    """What becomes of one fault."""

    verb: str
    what: str
    when: str
    gets: str
    """What the caller gets."""
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
    """One deadline, or cancel, and how long the process stood still after it."""

    verb: str
    when: str
    gets: str
    process: str
    seconds: float


cells: list[Cell] = []
instants: list[Instant] = []
lates: list[Late] = []
notes: list[str] = []
"""What else the page is to say, such as the seed."""


def _table(head: list[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def fault_table() -> list[str]:
    """All cells."""
    head = ["verb", "what", "when", "the caller gets", "the process", "the images", "left behind"]
    return _table(head, [astuple(cell) for cell in cells])


def instant_table() -> list[str]:
    """How often each outcome was seen, by the phase that was hit."""
    keys = list(dict.fromkeys((i.verb, i.what, i.phase) for i in instants))
    rows = []
    for key in keys:
        hits = [i for i in instants if (i.verb, i.what, i.phase) == key]
        outcomes = dict.fromkeys(i.outcome for i in hits)
        told = "; ".join(f"{o}: {sum(i.outcome == o for i in hits)}" for o in sorted(outcomes))
        rows.append((*key, str(len(hits)), told))
    return _table(["verb", "what", "phase", "hits", "outcome"], rows)


def late_table() -> list[str]:
    """The deadlines; of those in the same place, the longest time."""
    keys = list(dict.fromkeys((late.verb, late.when, late.gets, late.process) for late in lates))
    rows = []
    for key in keys:
        times = [x.seconds for x in lates if (x.verb, x.when, x.gets, x.process) == key]
        span = f"{min(times) * 1000:.0f} to {max(times) * 1000:.0f} ms"
        rows.append((*key, str(len(times)), span))
    return _table(["verb", "when", "the caller gets", "the process", "times", "took"], rows)


def report() -> list[str]:
    """What the run prints."""
    told = []
    for name, rows, table in (
        ("faults", cells, fault_table),
        ("faults at random instants", instants, instant_table),
        ("deadlines and cancels", lates, late_table),
    ):
        if rows:
            told += ["", f"{name}:", *table()]
    return told + notes


def elsewhere() -> list[str]:
    """The cells that other tests prove; each of these tests must exist."""
    rows = []
    for line in (HERE / "proved.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        what, gets, tests = (part.strip() for part in line.split("|"))
        links = []
        for test in tests.split():
            file, name = test.split("::")
            text = (TESTS / file).read_text()
            assert re.search(rf"def {name}\(", text), f"there is no {test}"
            links.append(f"[{name}](../tests/{file})")
        rows.append((what, gets, " ".join(links)))
    return _table(["what is done", "what comes of it", "shown by"], rows)


def write() -> None:
    """The page, if it was asked for."""
    path = os.environ.get(PAGE)
    if not path:
        return
    parts = {
        "measured": (
            f"Measured on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, kernel "
            f"{platform.release()}, CRIU {pycriu_native.version()}, libcriu "
            f"{pycriu_native.libcriu_version()}."
        ),
        "faults": "\n".join(fault_table()),
        "instants": "\n".join(instant_table()),
        "notes": "\n".join(notes),
        "lates": "\n".join(late_table()),
        "elsewhere": "\n".join(elsewhere()),
    }
    page = (HERE / "reliability.md.in").read_text()
    for name, text in parts.items():
        page = page.replace(f"@{name}@", text)
    Path(path).write_text(page)
