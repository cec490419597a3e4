"""Write docs/reliability.md: ``python -m tests.integration.faults.reliability PAGE ROWS...``.

``ROWS`` are files that runs of the fault tests wrote (``matrix.py``), those of this machine first.
``reliability.md.in`` is the text, and ``proved.txt`` has the rows that other tests verify.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import matrix
from .matrix import Run

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1]


def page(runs: Sequence[Run]) -> str:
    """The whole page."""
    runs = _together(runs)
    text = (HERE / "reliability.md.in").read_text()
    parts = {name: _of_each(runs, rows, make) for name, (rows, make) in matrix.TABLES.items()}
    parts["measured"] = "\n".join(_measured(runs))
    parts["notes"] = "\n".join(note for run in runs for note in run.notes)
    parts["proved"] = "\n".join(_proved())
    for name, part in parts.items():
        assert f"@{name}@" in text, f"reliability.md.in lacks @{name}@"
        text = text.replace(f"@{name}@", part)
    return text


def _together(runs: Sequence[Run]) -> list[Run]:
    """Merge the runs of each CRIU and kernel."""
    result: dict[str, Run] = {}
    for run in runs:
        if _name(run) not in result:
            result[_name(run)] = run
            continue
        one = result[_name(run)]
        for rows, _ in matrix.TABLES.values():
            getattr(one, rows).extend(getattr(run, rows))
        one.notes += run.notes
        one.soaked |= run.soaked
    return list(result.values())


def _name(run: Run) -> str:
    facts = run.facts
    return f"CRIU {facts['criu']} on kernel {facts['kernel'].partition('-')[0]}"


def _measured(runs: Sequence[Run]) -> list[str]:
    head = {"date": "date", "kernel": "kernel", "criu": "CRIU", "libcriu": "libcriu"}
    head["load"] = "load, on processors"
    rows = [[run.facts.get(name, "not noted") for name in head] for run in runs]
    return matrix.table([*head.values()], rows)


def _of_each(runs: Sequence[Run], rows: str, make: Callable[[Run], list[str]]) -> str:
    """The runs' tables, each below its name."""
    message = []
    for run in runs:
        if getattr(run, rows):
            message += [f"{_name(run)}:", "", *make(run), ""]
    return "\n".join(message[:-1]) or "Not measured by the runs of this page."


def _proved() -> list[str]:
    """The rows that other tests verify; each of these tests must exist."""
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
    return matrix.table(["fault", "result", "shown by"], rows)


def main() -> None:
    """Write the page."""
    place, *files = sys.argv[1:]
    if not files:
        sys.exit(__doc__)
    Path(place).write_text(page([matrix.load(Path(file)) for file in files]))


if __name__ == "__main__":
    main()
