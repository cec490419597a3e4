"""The goals of the benchmarks: each with the program or limit of the comparison, and the result."""

from __future__ import annotations

from .page_text import Page, Row, number, shown
from .snapshot_programs import COLD, CRIU_RESTORE, FORKED, PLAIN, SHARED, ZYGOTE

Line = tuple[str, str, str, str, bool]
"""What, against what, the goal, the result, and whether it is met."""

SLOW = 500.0
"""The cold start, in milliseconds, from which the goal of a shared start counts."""


def goals(page: Page) -> None:
    """Add the goals, with the program or limit of the comparison, and the results."""
    lines: list[Line] = []

    def at_most(what: str, against: str, most: float, unit: str, found: list[Row]) -> None:
        for row in found[:1]:
            goal = f"at most {most:g} {unit}".strip()
            lines.append((what, against, goal, shown(row), row["median"] <= most))

    at_most(
        "a call beyond CRIU's log, worker of a pool",
        "limit: CRIU's own log",
        1,
        "ms",
        page.rows("calls", "beyond CRIU's log", by="a worker of a pool"),
    )
    imported = [
        page.rows("imports", "over an empty interpreter", module=name)
        for name in ("pycriu_native", "pycriu")
    ]
    if all(imported):
        here, there = (rows[0] for rows in imported)
        share = here["median"] / there["median"]
        result = f"{share:.2f} ({shown(here)}, against {shown(there)})"
        what = "`import`, over an empty interpreter"
        lines.append((what, "pycriu", "at most 0.4 times", result, share <= 0.4))
    needed = "an interpreter with the modules that calls need"
    for by, most in (
        ("from pycriu_native import dump", 1.3),
        ("from pycriu_native import *", 1.4),
    ):
        at_most(
            f"a program with `{by}` and one dump",
            f"the `criu` program and {needed}, together",
            most,
            "times",
            page.rows("first_call", f"of criu and {needed}", by=by),
        )
    at_most(
        "`pycriu-native dump`",
        "over the `criu` program and an interpreter with click, together",
        60,
        "ms",
        page.rows("first_call", "over criu and an interpreter with click"),
    )
    for what, most in (("make, check, apply: from scratch", 50), ("check, apply: once more", 12)):
        at_most(f"options: {what}", "", most, "µs", page.rows("options", what))
    for way in ("a worker of a pool", "a new worker"):
        found = page.rows("size", "dump, left running", by=way)
        if found:
            slow, fast = (pick(found, key=lambda row: row["median"]) for pick in (max, min))
            ratio = slow["median"] / fast["median"]
            response = f"{ratio:.2f} ({shown(slow)} to {shown(fast)})"
            lines.append(
                (
                    f"a dump by {way}, any size of the caller",
                    "its slowest, against its fastest",
                    "at most 1.1 times",
                    response,
                    ratio <= 1.1,
                )
            )
    ours = page.rows("size", "dump, left running", by="a worker of a pool", MiB=8192)
    for other in ("C over libcriu", "pycriu"):
        theirs = page.rows("size", "dump, left running", by=other, MiB=8192)
        if ours and theirs:
            ratio = theirs[0]["median"] / ours[0]["median"]
            response = f"{ratio:.1f} ({shown(ours[0])}, against {shown(theirs[0])})"
            goal = "30 times as fast or more"
            lines.append(("a dump from 8 GiB", other, goal, response, ratio >= 30))
    for what, least in (("version", 1.5), ("dump", 1), ("restore", 1)):
        for row in page.rows("many", f"{what}: times faster"):
            case = row["case"]
            whole = f"{what}, {case['processes']} times, {case['parallel']} at once"
            if what != "version":
                whole += f", feature cache {case['cache']}"
            elif case["cache"] != "kept":
                continue  # its CRIU does not probe the kernel
            is_met = row["median"] >= least
            goal = f"{least:g} times as fast or more"
            lines.append((whole, "`xargs -P` with the `criu` program", goal, shown(row), is_met))
    starts(page, lines)
    page.say(
        "## Goals\n\nWhen a run meets a goal, the goal is changed to the rounded result of that run.\n"
    )
    page.table(
        ("what", "against", "goal", "measured", ""),
        ((*line[:4], "met" if line[4] else "**missed**") for line in lines),
    )


def starts(page: Page, lines: list[Line]) -> None:
    """Add the goals of starts from a snapshot; of several programs, the worst one is shown."""
    programs = dict.fromkeys(
        row["case"]["program"] for row in page.rows("snapshots", "first answer", way=COLD)
    )

    def middle(program: str, way: str) -> float | None:
        found = page.rows("snapshots", "first answer", program=program, way=way)
        return float(found[0]["median"]) if found else None

    def ratios(way: str, other: str) -> list[tuple[float, str, float, float]]:
        pairs = [(name, middle(name, way), middle(name, other)) for name in programs]
        return [(one / two, name, one, two) for name, one, two in pairs if one and two]

    for what, way, other, least in (
        (f"a shared start, where a cold start takes {SLOW:g} ms or more", COLD, SHARED, 10.0),
        ("a plain start", CRIU_RESTORE, PLAIN, 1 / 1.1),
        ("a start by a zygote", FORKED, ZYGOTE, 1.0),
    ):
        found = [each for each in ratios(way, other) if way != COLD or each[2] >= SLOW]
        if not found:
            continue
        ratio, name, one, two = min(found)
        result = f"{name}: {number(ratio)} ({number(two)} ms, against {number(one)} ms)"
        goal = f"{least:.3g} times as fast or more, each program"
        lines.append((what, way, goal, result, ratio >= least))
    rates = page.rows("snapshots", "starts in a second", program="numpy", way=SHARED)
    if rates:
        best = max(rates, key=lambda row: row["median"])
        what = f"starts of numpy, {best['case']['copies']} copies by 8 threads"
        lines.append((what, "", "50 in a second or more", shown(best), best["median"] >= 50))
    memory = page.rows("snapshots", "private memory of each", way=SHARED)
    if memory:
        most = max(memory, key=lambda row: row["median"])
        what = "private memory of each of 16 copies, shared"
        result = f"{most['case']['program']}: {shown(most)}"
        lines.append((what, "", "at most 20 MB, each program", result, most["median"] <= 19.07))
