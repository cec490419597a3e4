"""Writes two tables of the fields that were tested with each CRIU and kernel.

They come from the results of the tests (``outcomes.py``). The table in ``docs/scenarios.md`` has
the test files of each field; this module writes its other columns. ``docs/kernels.md`` has the
other tests, the reason for each skipped test, and a section for the arm64 guests. A section does
not change if there are no results of its guests.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "integration"
PAGE = ROOT / "docs" / "kernels.md"
SCENARIOS = ROOT / "docs" / "scenarios.md"
MARK = "<!-- scenarios -->\n\n"

HEAD = """# Kernels and releases

The results of the tests with real processes in QEMU guests with other kernels and other releases of
CRIU. `make test-vm` writes this page. Each number in brackets refers to a reason below the tables.

"""

ARM64_HEAD = """
## arm64

`make test-arm64` writes this section; `python -m tools.vm.suite arm64 -- FILE...` does so with some
test files only. PAC is the pointer authentication of Arm processors. Numbers in brackets refer to
reasons below the table.

"""


@dataclass(frozen=True, slots=True)
class Run:
    """The results of one guest."""

    facts: dict[str, Any]

    @property
    def title(self) -> str:
        """The head of a column: the releases of CRIU and of the kernel."""
        return f"CRIU {self.facts['criu']}, kernel {re.split('[-+]', self.facts['kernel'])[0]}"

    @property
    def arm64_title(self) -> str:
        """The head of a column of the arm64 table, with page size and pointer authentication."""
        pac = "with" if self.facts["pointer_authentication"] else "without"
        return f"{self.title}, {self.facts['page_size'] // 1024}K pages, {pac} PAC"

    def of_files(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Outcome and reason of each test of these files."""
        prefixes = tuple(f"tests/integration/{name}::" for name in names)
        return [
            (o, why) for test, (o, why) in self.facts["tests"].items() if test.startswith(prefixes)
        ]


@dataclass(frozen=True, slots=True)
class Row:
    """A feature, and the test files for it."""

    what: str
    files: tuple[str, ...]


class Reasons:
    """The numbered reasons at the end of the page."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, reason: str) -> int:
        """The number of a reason; a new reason gets the next number."""
        return self._numbers.setdefault(reason, len(self._numbers) + 1)

    def lines(self) -> list[str]:
        """The lines of the list."""
        return [f"{number}. {reason}" for reason, number in self._numbers.items()]


def write(places: Sequence[Path], arm64: Sequence[Path]) -> None:
    """Write both tables from the results in each directory; one without results is left out."""
    first, mark, second = PAGE.read_text().partition(ARM64_HEAD)
    if runs := _runs(places):
        first = page(runs)
        SCENARIOS.write_text(scenarios(SCENARIOS.read_text(), runs))
    if runs := _runs(arm64):
        mark, second = ARM64_HEAD, arm64_section(runs)
    PAGE.write_text(first + mark + second)


def _runs(places: Sequence[Path]) -> list[Run]:
    return [run for run in map(_run, places) if run]


def tests(place: Path) -> dict[str, tuple[str, str]]:
    """Outcome and reason of each test, from several guests; the last guest has priority."""
    return {test: message for part in _parts(place) for test, message in part["tests"].items()}


def _parts(place: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(place.glob("**/outcomes.json"))]


def _run(place: Path) -> Run | None:
    parts = _parts(place)
    return Run({**parts[-1], "tests": tests(place)}) if parts else None


def scenarios(text: str, runs: Sequence[Run]) -> str:
    """The page of scenarios with a column for each run in its table."""
    before, _, behind = text.partition(MARK)
    behind = behind[behind.index("\n\n") :]
    columns = " | ".join(run.title for run in runs)
    lines = [f"| field | scenario | {columns} |", "|---" * (2 + len(runs)) + "|"]
    for row in _rows(text):
        files = ", ".join(f"[{name}](../tests/integration/{name})" for name in row.files)
        cells = " | ".join(_share(run.of_files(row.files)) for run in runs)
        lines.append(f"| {row.what} | {files} | {cells} |")
    return before + MARK + "\n".join(lines) + behind


def page(runs: Sequence[Run]) -> str:
    """The whole page."""
    reasons = Reasons()
    titles = [run.title for run in runs]
    fields, rest = _all_rows()
    lines = [
        *_summaries(runs),
        *("", "## Fields", "", *_table(fields, runs, titles, reasons)),
        *("", "## Other features", "", *_table(rest, runs, titles, reasons)),
        *("", "## Reasons for skipped tests", "", *reasons.lines()),
    ]
    return HEAD + "\n".join(lines) + "\n"


def arm64_section(runs: Sequence[Run]) -> str:
    """The table of the guests and their results."""
    reasons = Reasons()
    fields, rest = _all_rows()
    rows = [row for row in (*fields, *rest) if any(run.of_files(row.files) for run in runs)]
    lines = [
        *_summaries(runs),
        *("", *_table(rows, runs, [run.arm64_title for run in runs], reasons)),
        *("", *reasons.lines()),
    ]
    return "\n".join(lines) + "\n"


def _all_rows() -> tuple[list[Row], list[Row]]:
    """The features of the fields, and one for each other file."""
    fields = _rows(SCENARIOS.read_text())
    shown = {name for row in fields for name in row.files}
    others = sorted(str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*.py"))
    return fields, [Row(_story(name), (name,)) for name in others if name not in shown]


def _summaries(runs: Sequence[Run]) -> list[str]:
    head = "| CRIU | libcriu | kernel | Python | date | passed | skipped | failed |"
    return [head, "|---" * 8 + "|", *map(_summary, runs)]


def _summary(run: Run) -> str:
    counts = Counter(outcome for outcome, _ in run.facts["tests"].values())
    words = [run.facts[key] for key in ("criu", "libcriu", "kernel", "python", "date")]
    words += [str(counts[outcome]) for outcome in ("passed", "skipped", "failed")]
    return f"| {' | '.join(words)} |"


def _table(
    rows: Sequence[Row], runs: Sequence[Run], titles: Sequence[str], reasons: Reasons
) -> list[str]:
    head = " | ".join(["what", "tests", *titles])
    lines = [f"| {head} |", "|---" * (2 + len(runs)) + "|"]
    for row in rows:
        files = ", ".join(f"[{name}](../tests/integration/{name})" for name in row.files)
        cells = [_cell(run.of_files(row.files), reasons) for run in runs]
        lines.append(f"| {row.what} | {files} | {' | '.join(cells)} |")
    return lines


def _cell(outcomes: list[tuple[str, str]], reasons: Reasons) -> str:
    numbers = sorted({reasons.number(why) for outcome, why in outcomes if outcome == "skipped"})
    marks = f" [{', '.join(map(str, numbers))}]" if numbers else ""
    return _share(outcomes) + marks


def _share(outcomes: list[tuple[str, str]]) -> str:
    """The number of passed tests, or one word if it is sufficient."""
    counts = Counter(outcome for outcome, _ in outcomes)
    if not outcomes:
        return "not run"
    if counts["failed"]:
        return f"**{counts['failed']} of {len(outcomes)} failed**"
    if not counts["passed"]:
        return "no"
    return f"{counts['passed']} of {len(outcomes)}" if counts["skipped"] else "yes"


def _rows(text: str) -> list[Row]:
    """The fields of the page of scenarios, each with its test files."""
    table = text.partition(MARK)[2].partition("\n\n")[0]
    return [
        Row(what, tuple(re.findall(r"tests/integration/((?:faults/)?test_\w+\.py)", files)))
        for what, files in re.findall(r"^\| (.+?) \| (\[test_.+?) \|", table, re.M)
    ]


def _story(name: str) -> str:
    """The first sentence of a file's docstring."""
    message = ast.get_docstring(ast.parse((TESTS / name).read_text())) or ""
    return " ".join(message.partition("\n\n")[0].split()).rstrip(".").replace("|", "\\|")
