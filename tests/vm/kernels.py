"""``docs/kernels.md``: which field was seen working with which CRIU on which kernel.

Made from what the guests' tests came to (``outcomes.py``). The README's table of scenarios says
which file of tests shows which field.
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
PAGE = ROOT / "docs" / "kernels.md"

HEAD = """# Kernels and releases

What the tests with real processes came to in guests (QEMU) with other kernels and other releases
of CRIU. `make test-vm` makes this page. Each number in brackets is a reason below the tables.

"""


@dataclass(frozen=True, slots=True)
class Run:
    """What came out in one guest."""

    facts: dict[str, Any]

    @property
    def title(self) -> str:
        """CRIU and kernel, which head a column."""
        return f"CRIU {self.facts['criu']}, kernel {self.facts['kernel'].partition('-')[0]}"

    def of_file(self, name: str) -> list[tuple[str, str]]:
        """Outcome and reason of each test of a file."""
        prefix = f"tests/real/{name}::"
        return [
            (o, why) for test, (o, why) in self.facts["tests"].items() if test.startswith(prefix)
        ]


class Reasons:
    """Reasons with numbers, for the foot of the page."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, reason: str) -> int:
        """The number of a reason, a new one for a new reason."""
        return self._numbers.setdefault(reason, len(self._numbers) + 1)

    def lines(self) -> list[str]:
        """All of them."""
        return [f"{number}. {reason}" for reason, number in self._numbers.items()]


def write(places: Sequence[Path]) -> None:
    """Write the page from the results under each place; one that has none is left out."""
    runs = [_together(sorted(place.glob("**/outcomes.json"))) for place in places]
    if any(runs):
        PAGE.write_text(page([run for run in runs if run]))


def _together(files: list[Path]) -> Run | None:
    """What the guests of one kind came to, each with a part of the tests."""
    found = [json.loads(file.read_text()) for file in files]
    if not found:
        return None
    tests = {test: outcome for one in found for test, outcome in one["tests"].items()}
    return Run({**found[-1], "tests": tests})


def page(runs: Sequence[Run]) -> str:
    """The whole page."""
    reasons = Reasons()
    fields = _scenarios()
    shown = {name for _, name in fields}
    others = sorted(path.name for path in (ROOT / "tests/real").glob("test_*.py"))
    rest = [(_story(name), name) for name in others if name not in shown]
    lines = [
        *(
            "| CRIU | libcriu | kernel | Python | date | passed | skipped | failed |",
            "|---" * 8 + "|",
        ),
        *(_summary(run) for run in runs),
        *("", "## Fields", "", *_table(fields, runs, reasons)),
        *("", "## The rest", "", *_table(rest, runs, reasons)),
        *("", "## Why tests were skipped", "", *reasons.lines()),
    ]
    return HEAD + "\n".join(lines) + "\n"


def _summary(run: Run) -> str:
    counts = Counter(outcome for outcome, _ in run.facts["tests"].values())
    words = [run.facts[key] for key in ("criu", "libcriu", "kernel", "python", "date")]
    words += [str(counts[outcome]) for outcome in ("passed", "skipped", "failed")]
    return f"| {' | '.join(words)} |"


def _table(rows: list[tuple[str, str]], runs: Sequence[Run], reasons: Reasons) -> list[str]:
    head = " | ".join(["what", "tests", *(run.title for run in runs)])
    lines = [f"| {head} |", "|---" * (2 + len(runs)) + "|"]
    for what, name in rows:
        cells = [_cell(run.of_file(name), reasons) for run in runs]
        lines.append(f"| {what} | [{name}](../tests/real/{name}) | {' | '.join(cells)} |")
    return lines


def _cell(outcomes: list[tuple[str, str]], reasons: Reasons) -> str:
    counts = Counter(outcome for outcome, _ in outcomes)
    numbers = sorted({reasons.number(why) for outcome, why in outcomes if outcome == "skipped"})
    marks = f" [{', '.join(map(str, numbers))}]" if numbers else ""
    if not outcomes:
        return "not run"
    if counts["failed"]:
        return f"**{counts['failed']} of {len(outcomes)} failed**{marks}"
    if not counts["passed"]:
        return f"no{marks}"
    return ("yes" if not numbers else f"{counts['passed']} of {len(outcomes)}") + marks


def _scenarios() -> list[tuple[str, str]]:
    """The README's fields, each with its file of tests."""
    text = (ROOT / "README.md").read_text().partition("<!-- scenarios -->")[2]
    return re.findall(r"^\| (.+?) \| \[(test_\w+\.py)\]", text, re.M)


def _story(name: str) -> str:
    """The first sentence of a file's docstring."""
    told = ast.get_docstring(ast.parse((ROOT / "tests/real" / name).read_text())) or ""
    return " ".join(told.partition("\n\n")[0].split()).rstrip(".").replace("|", "\\|")
