"""The page of results: its text, tables and plots, and the numbers that they show."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

PLOTS = "performance"
"""The directory of the plots, beside the page."""

Row = dict[str, Any]


def number(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def shown(row: Row) -> str:
    """A number with its unit and spread."""
    spread = f" ({number(row['low'])} to {number(row['high'])})" if row["samples"] > 1 else ""
    return f"{number(row['median'])} {row['unit']}{spread}"


class Page:
    """The page: its text, and the source of its numbers."""

    def __init__(self, data: dict[str, Any], plots: Path) -> None:
        self.data = data
        self.plots = plots
        self.lines: list[str] = []

    def rows(self, benchmark: str, what: str | None = None, **case: object) -> list[Row]:
        """The rows of a benchmark with a number that match."""
        return [
            row
            for row in self.all(benchmark)
            if "median" in row
            and (what is None or row["what"] == what)
            and all(row["case"].get(key) == value for key, value in case.items())
        ]

    def all(self, benchmark: str) -> list[Row]:
        """All rows of a benchmark."""
        result: list[Row] = self.data["benchmarks"].get(benchmark, {}).get("rows", [])
        return result

    def say(self, text: str) -> None:
        """Add text."""
        self.lines.append(text.rstrip() + "\n")

    def table(self, head: Iterable[str], body: Iterable[Iterable[str]]) -> None:
        """Add a table."""
        names = list(head)
        lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        lines += ["| " + " | ".join(cells) + " |" for cells in body]
        self.lines.append("\n".join(lines) + "\n")

    def plot(self, name: str, alternative: str, draw: Callable[[Any], None]) -> None:
        """Add a plot."""
        plt.rcParams.update(
            # Text as text: without the outlines of its letters.
            {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9, "axes.grid": True}
        )
        figure, axes = plt.subplots(figsize=(6.4, 3.2))
        draw(axes)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.tight_layout()
        self.plots.mkdir(exist_ok=True)
        figure.savefig(self.plots / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
        self.lines.append(f"![{alternative}]({PLOTS}/{name}.svg)\n")

    def notes(self, benchmark: str, explained: Iterable[str] = ()) -> None:
        """Add the reasons for missing numbers, except for the ways that the text explains."""
        why: dict[str, list[str]] = {}
        for row in self.all(benchmark):
            if "median" not in row and row["case"].get("way") not in explained:
                case = ", ".join(f"{key} {value}" for key, value in row["case"].items())
                why.setdefault(row["notes"].removeprefix("not measured: "), []).append(
                    row["what"] + (f" ({case})" if case else "")
                )
        for reason, cases in why.items():
            self.say(f"*Not measured:* {'; '.join(cases)}: {reason}.")


def by_way(
    page: Page, benchmark: str, whats: Iterable[str], key: str = "by", **case: object
) -> None:
    """Add a table with a row for each way and a column for each measurement."""
    whats = [what for what in whats if page.rows(benchmark, what, **case)]
    rows = [row for what in whats for row in page.rows(benchmark, what, **case)]
    ways = list(dict.fromkeys(row["case"][key] for row in rows if key in row["case"]))
    body = []
    for way in ways:
        cells = [str(way)]
        for what in whats:
            result = page.rows(benchmark, what, **{key: way}, **case)
            cells.append(shown(result[0]) if result else "")
        body.append(cells)
    page.table(("", *whats), body)
