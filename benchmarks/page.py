"""Write docs/performance.md and its plots from build/bench.json: ``python -m benchmarks.page``.

Every number on the page is one of the file's. matplotlib draws the plots (the extra ``bench``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PLOTS = "performance"

Row = dict[str, Any]

HEAD = """\
# How fast it is

Made by `make bench-page` from what `make bench` has measured. What is compared took turns in one
run; each number is a median, with the middle half of its samples in brackets.
"""

CALLS = """
A call is a thread of its own that fills libcriu's options, gets a worker, passes the request on
and the notifications back, and reads the statistics. What a worker of its own costs more than a
warm one is its start: the loader, CRIU's libraries and configuration. (Warm ones are forked from a
CRIU that was loaded once.) A worker of its own ends after its answer; a
warm worker's end is not waited for, but after a restore, where CRIU is the parent of what it has
restored until then. *Beyond CRIU's log* is the call's wall time less the time of the last line in
CRIU's log, which begins when CRIU has read the options.

Nearly all of a call is the conversation: CRIU's own work. Two things make it shorter:
`WorkerPool`, and what the next section is about.
"""

COLD = """
*Its request alone* is what CRIU itself takes beyond its log: to read the request, and to answer
and go on, with each of its questions answered at once by bytes that lie ready. The rest is ours:
some 130 system calls and 700 calls in Python, once in each call, after CRIU has worked with the same
processor's caches. The checks alone show what that costs: their work is the same both times. To
hand the call to its thread and to hear of its end takes another tenth of a millisecond each. And in
two of five calls half a millisecond is CRIU's: the kernel wakes who waits for CRIU's last word on
the processor on which CRIU said it (its sockets promise the kernel that the speaker is about to
sleep), where CRIU first takes down its own memory. To look for that word again and again instead of
sleeping made it worse: CRIU, whom our answer wakes on our processor, then shares it with us.
"""

PROBES = """
CRIU probes the kernel at each call, unless it finds what it knows in `/run/criu.kdat`. It keeps
that file only on a tmpfs, which does not outlive the kernel (`criu/kerndat.c`).
`feature_cache()` says whether it is kept here, why not, and what helps; the logger
`pycriu_native.advice` tells it once at INFO. A temporary file that CRIU leaves behind, which it
does where `/run` is no tmpfs, keeps it from ever writing the cache after that: it is named too.

Workers that are forked from one CRIU (pools, batches, snapshots) share what the first of them has found,
in memory, where CRIU can write no file in `/run`: only the first dump or restore probes. For other
calls `keep_feature_cache()`, or `pycriu-native keep-cache`, makes CRIU probe once and stores the
result where CRIU finds it, for every `criu` of the machine. No call does so by itself, nor mounts a
tmpfs on `/run` in a mount namespace of the worker's own: to a CRIU in another mount namespace than
the process, that process's mounts are a namespace to be saved, and the images would be others.
"""

SIZE = """
A worker is started by `clone(CLONE_VM | CLONE_VFORK)`, which copies no page table. libcriu and
pycriu fork, which does: they cost more, the more memory the caller has. What a new process gets of
its caller in any case is a copy of the descriptors, until it has closed them: 10,000 take the kernel
most of a millisecond, for C over libcriu too. (A table that is shared by CLONE_FILES and copied by
`close_range` with CLOSE_RANGE_UNSHARE is copied up to the highest descriptor that is kept, and the
worker's own socket is above all others.) Warm workers are forked from a process that has none of the
caller's. (All of this with CRIU's feature cache kept: the same in all ways, its probes would hide the rest.)
"""

THROUGHPUT = """
The limit is a copy of the same bytes by one thread, a MiB at a time: from memory to a file for the
dump, and from that file into fresh memory for the restore, where the kernel has to find and clear
each page, as it has to for CRIU. A dump also takes the pages out of the process through pipes. *Past
the page cache* (`O_DIRECT`) is what the disk itself does; without that, what is written is in
memory at first, and the kernel brings it to the disk later.
"""

MANY = """
`dump_many` and `restore_many` run on any executor; here on threads of one Python process. The
comparison is `xargs -P` with the `criu` program. As many CRIUs work at the same time in each; our
threads make the next calls ready meanwhile, their workers too.

No way can be faster than its processor time on all processors at once. Ours is CRIU's and that of
Python, which makes each request and hears each answer. What pays for that is CRIU's start: workers
are forked from one CRIU that was loaded once, before its `main()` begins, at a quarter of what
loading it costs. `version` is nothing but that start and the end of CRIU.

*Kept* and *impossible* speak of CRIU's feature cache (see above): without it each CRIU probes the
kernel first, which is most of its work, and the same in both ways.
"""

FROZEN = """
A process that writes all over its memory while it is dumped and left running. *Felt by the
process* is the longest time between two of its steps. Pages are taken while it stands still, so a
plain dump stops it in proportion to its memory; pre-dump rounds and lazy migration shorten that.
"""

MIGRATION = """
The same process, moved to another host: a network namespace behind a veth pair, so that the network
is as fast as memory and both sides share the processors. With post-copy (lazy migration) it runs
there before its memory has come, and waits for each page that it touches until all has.
"""

GUEST = """
Pre-dump rounds, on a kernel that tracks changed memory: in a guest whose processor is emulated,
many times slower than this machine. Compare within this table only. The process runs on during the
pre-dumps, but for the moment that `frozen_time` tells. Rounds pay for a process that writes to part
of its memory while a round is written; one that writes to all of it in that time has all of it
dumped in the end, however many rounds there were.
"""

OPTIONS = """
Options are values: what a verb's rules on the options alone have found, and what libcriu made of
them, is remembered with the value, so a `CriuOpts` that is used again costs little. The rules that
look at directories and descriptors are asked each time.
"""

FIRST_CALL = """
A command-line tool makes one call and ends, so what counts is the time from the interpreter's start
to its end. *Processor time* is that of the program, of CRIU and of what CRIU starts.

Most of it is Python's: each module that is loaded takes a fifth of a millisecond and more. So what a
call does not need is not loaded, and what it needs only after CRIU has the request is loaded then:
CRIU starts and probes the kernel meanwhile. A star import binds all public names; functions whose
work takes many modules (`doctor`, `preflight`, `explain`, migrations, batches) load these when they
are called. The command line ends without taking its modules apart, and seldom collects garbage.

Three rows are lower bounds. *A script without this package* sends a request that is encoded
beforehand, checks nothing and answers nothing. It takes more than 1.15 times *the criu program and an
empty interpreter*, so that no library in Python can have that. *The modules that calls need* are
Python's own and cffi's: enumerations, a thread and locks, exit stacks, caches. *An interpreter with
click* takes most or all of 60 ms by itself: click loads `inspect`, `ast`, `tokenize`, `uuid`,
`datetime` and `typing`. 60 ms over *the criu program* would need a second parser of command lines
beside click, which had to accept and refuse the same. By valgrind, an empty interpreter executes 40 million instructions,
one with these modules 68 million, one with click 171 million, `pycriu-native --version` 209 million.
"""

IMPORTS = """
Our classes are dataclasses to whoever asks, but are made without importing `dataclasses`, which
brings `inspect` along and compiles source text for each class. `typing`, `re`, `json`, `logging`
and the modules of ours that few programs use are loaded when they are needed.
"""


class Page:
    """The page under way: its text, and where its numbers come from."""

    def __init__(self, data: dict[str, Any], plots: Path) -> None:
        self.data = data
        self.plots = plots
        self.lines = [HEAD]

    def rows(self, benchmark: str, what: str | None = None, **case: object) -> list[Row]:
        """The rows of a benchmark that have a number and fit."""
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
        plt.rcParams.update({"svg.hashsalt": name, "font.size": 9, "axes.grid": True})
        figure, axes = plt.subplots(figsize=(6.4, 3.2))
        draw(axes)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.tight_layout()
        self.plots.mkdir(exist_ok=True)
        figure.savefig(self.plots / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
        self.lines.append(f"![{alternative}]({PLOTS}/{name}.svg)\n")

    def notes(self, benchmark: str) -> None:
        """Why some numbers are not there."""
        why: dict[str, list[str]] = {}
        for row in self.all(benchmark):
            if "median" not in row:
                case = ", ".join(f"{key} {value}" for key, value in row["case"].items())
                why.setdefault(row["notes"], []).append(
                    row["what"] + (f" ({case})" if case else "")
                )
        for reason, cases in why.items():
            self.say(f"*Not measured:* {'; '.join(cases)}: {reason}.")


def number(value: float) -> str:
    """Three digits that say something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def shown(row: Row) -> str:
    """A number with its unit and spread."""
    spread = f" ({number(row['low'])} to {number(row['high'])})" if row["samples"] > 1 else ""
    return f"{number(row['median'])} {row['unit']}{spread}"


def goals(page: Page) -> None:
    """What was set out for, against which peer or limit, and what was found."""
    lines: list[tuple[str, str, str, str, bool]] = []

    def at_most(what: str, against: str, most: float, unit: str, found: list[Row]) -> None:
        for row in found[:1]:
            wanted = f"at most {most:g} {unit}".strip()
            lines.append((what, against, wanted, shown(row), row["median"] <= most))

    at_most(
        "a call beyond CRIU's log, warm worker",
        "limit: CRIU's own log",
        1,
        "ms",
        page.rows("calls", "beyond CRIU's log", by="a warm worker"),
    )
    at_most(
        "`import`",
        "over an empty interpreter",
        10,
        "ms",
        page.rows("imports", "over an empty interpreter", module="pycriu_native"),
    )
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
    for way in ("a warm worker", "a worker of its own"):
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
    ours = page.rows("size", "dump, left running", by="a warm worker", MiB=8192)
    for other in ("C over libcriu", "pycriu"):
        theirs = page.rows("size", "dump, left running", by=other, MiB=8192)
        if ours and theirs:
            ratio = theirs[0]["median"] / ours[0]["median"]
            response = f"{ratio:.1f} ({shown(ours[0])}, against {shown(theirs[0])})"
            wanted = "40 times as fast or more"
            lines.append(("a dump from 8 GiB", other, wanted, response, ratio >= 40))
    for what, least in (("version", 1.5), ("dump", 1), ("restore", 1)):
        for row in page.rows("many", f"{what}: times faster"):
            case = row["case"]
            whole = f"{what}, {case['processes']} times, {case['parallel']} at once"
            if what != "version":
                whole += f", feature cache {case['cache']}"
            elif case["cache"] != "kept":
                continue  # it probes nothing
            is_met = row["median"] >= least
            goal = f"{least:g} times as fast or more"
            lines.append((whole, "`xargs -P` with the `criu` program", goal, shown(row), is_met))
    page.say(
        "## Goals\n\nA goal that is met by a run is raised to what that run has found, rounded.\n"
    )
    page.table(
        ("what", "against", "goal", "found", ""),
        ((*line[:4], "met" if line[4] else "**missed**") for line in lines),
    )


def by_way(page: Page, benchmark: str, whats: Iterable[str], key: str = "by") -> None:
    """A table: ways down, things across."""
    whats = [what for what in whats if page.rows(benchmark, what)]
    ways = list(dict.fromkeys(row["case"][key] for w in whats for row in page.rows(benchmark, w)))
    body = []
    for way in ways:
        cells = [way]
        for what in whats:
            result = page.rows(benchmark, what, **{key: way})
            cells.append(shown(result[0]) if result else "")
        body.append(cells)
    page.table(("", *whats), body)


def calls(page: Page) -> None:
    """One call, and where its time goes."""
    page.say("## One call, and where its time goes\n" + CALLS)
    by_way(page, "calls", ("version", "dump, left running", "beyond CRIU's log"))
    page.say(COLD)
    by_way(page, "calls", ("all that is ours", "all checks"))
    steps = list(dict.fromkeys(row["what"] for row in page.rows("calls") if "by" in row["case"]))
    skip = (
        *("version", "dump, left running", "beyond CRIU's log"),
        *("all that is ours", "all checks"),
    )
    ways = ("a warm worker", "a worker of its own")
    body = []
    for step in steps:
        if step in skip:
            continue
        cells = [page.rows("calls", step, by=way) for way in ways]
        body.append([step, *(shown(result[0]) if result else "" for result in cells)])
    page.say("From the call to its return, with `log_level=4` for CRIU's own account:")
    page.table(("step", *ways), body)
    page.notes("calls")


def size(page: Page) -> None:
    """What grows with the caller."""
    page.say("## The size of the caller\n" + SIZE)
    for what, name in (("version", "size-version"), ("dump, left running", "size-dump")):
        found = page.rows("size", what, threads=1, descriptors=10)
        if not found:
            continue

        def draw(axes: Any, found: list[Row] = found, what: str = what) -> None:
            for way in dict.fromkeys(row["case"]["by"] for row in found):
                line = [row for row in found if row["case"]["by"] == way]
                axes.errorbar(
                    [row["case"]["MiB"] for row in line],
                    [row["median"] for row in line],
                    yerr=[
                        [row["median"] - row["low"] for row in line],
                        [row["high"] - row["median"] for row in line],
                    ],
                    marker="o",
                    capsize=3,
                    label=way,
                )
            axes.set_xscale("log", base=2)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("memory of the caller, MiB")
            axes.set_ylabel(f"{what}, ms")

        page.plot(name, f"{what} by the caller's memory", draw)
    cases = list(
        dict.fromkeys(
            (row["case"]["MiB"], row["case"]["threads"], row["case"]["descriptors"])
            for row in page.rows("size", "dump, left running")
        )
    )
    ways = list(dict.fromkeys(row["case"]["by"] for row in page.rows("size", "dump, left running")))
    body = []
    for mib, threads, descriptors in cases:
        cells = [f"{mib} MiB, {threads} threads, {descriptors} descriptors"]
        for way in ways:
            found = page.rows(
                "size",
                "dump, left running",
                by=way,
                MiB=mib,
                threads=threads,
                descriptors=descriptors,
            )
            cells.append(shown(found[0]) if found else "")
        body.append(cells)
    page.say("A dump, left running:")
    page.table(("the caller", *ways), body)
    page.notes("size")


def _measured(page: Page, what: str, by: str, on: str) -> str:
    """A number of the largest process that was measured."""
    result = page.rows("throughput", what, by=by, on=on)
    return f"{number(result[-1]['median'])} {result[-1]['unit']}" if result else "not measured"


def advice(page: Page) -> None:
    """Which to choose when, by what was measured."""

    def say(by: str, on: str, what: str = "dump") -> str:
        return _measured(page, what, by, on)

    ours, direct, packed = "pycriu_native", "4.3, direct", "4.3, compressed"
    cache = "left in the page cache"
    felt = {
        row["case"]["by"]: f"{number(row['median'])} {row['unit']}"
        for row in page.rows("migration", "felt by the process")
    }
    lazily = ", ".join(f"{by} {felt[by]}" for by in ("stop-and-copy", "post-copy") if by in felt)
    server = "page server on loopback"
    page.table(
        ("to", "choose", "because here, for the largest process"),
        (
            (
                "stop for the shortest time, with memory to spare",
                "images on a tmpfs, and copy them from there",
                f"dump: tmpfs {say(ours, 'tmpfs')}, disk {say(ours, 'disk')}",
            ),
            (
                "keep the images on this machine",
                "images on the disk, as CRIU writes them by default",
                f"dump: {say('4.3, writeback', 'disk')}; direct {say(direct, 'disk')}; "
                f"restore: {say('4.3, writeback', 'disk', 'restore')}; "
                f"direct {say(direct, 'disk', 'restore')}",
            ),
            (
                "leave the page cache to others",
                '`image_io_mode="direct"` (CRIU 4.3)',
                f"a dump leaves there: {say(direct, 'disk', cache)}, by default "
                f"{say('4.3, writeback', 'disk', cache)}",
            ),
            (
                "have the images on another machine",
                "`page_server`: pages are sent as they are read, and written once",
                f"dump: {say(server, 'tmpfs')} to a socket of this machine",
            ),
            (
                "save room, or a slow disk or network",
                '`compress="block"` (4.3, built with LZ4), `decompress_threads=0` on restore',
                f"dump: {say(packed, 'disk')}; restore: {say(packed, 'disk', 'restore')}",
            ),
            (
                "run again before all memory has come",
                "`lazy_pages`, or a post-copy migration",
                f"it stood still for: {lazily}" if lazily else "not measured",
            ),
        ),
    )


def throughput(page: Page) -> None:
    """Large processes."""
    page.say("## Large processes\n" + THROUGHPUT)
    advice(page)
    cases = list(
        dict.fromkeys((r["case"]["on"], r["case"]["MiB"]) for r in page.rows("throughput"))
    )
    for on, mib in cases:
        page.say(f"{mib} MiB, images on {on}:")
        result = page.rows("throughput", on=on, MiB=mib)
        whats = list(dict.fromkeys(row["what"] for row in result))
        body = []
        for way in dict.fromkeys(row["case"]["by"] for row in result):
            cells = [page.rows("throughput", what, on=on, MiB=mib, by=way) for what in whats]
            body.append([way, *(shown(each[0]) if each else "" for each in cells)])
        page.table(("", *whats), body)
    page.notes("throughput")


def many(page: Page) -> None:
    """Many at once."""
    page.say("## Many at once\n" + MANY)
    rows = page.rows("many")
    cases = dict.fromkeys((row["case"]["cache"], row["case"]["parallel"]) for row in rows)
    for cache, parallel in cases:
        of = {"cache": cache, "parallel": parallel}
        count = page.rows("many", **of)[0]["case"]["processes"]
        page.say(f"{count} processes, {parallel} at once, feature cache {cache}:")
        body = []
        for what in ("version", "dump", "restore"):
            if what == "version" and cache != "kept":
                continue
            for row in page.rows("many", what, **of):
                body.append([what, *_one_way(page, row, of)])
        page.table(
            (
                "",
                "by",
                "wall time",
                f"least, by processor time on {page.data['machine']['processors']}",
                "CRIU's, each process",
                "Python's, each process",
                "times as fast as the program",
            ),
            body,
        )
    page.notes("many")


def _one_way(page: Page, wall: Row, of: dict[str, Any]) -> list[str]:
    """The cells of one way to do it."""
    what, way, count = wall["what"], wall["case"]["by"], wall["case"]["processes"]
    (work,), (own,) = (
        page.rows("many", f"{what}: {whose}", by=way, **of)
        for whose in ("processor time", "our own")
    )
    least = (work["median"] + own["median"]) / page.data["machine"]["processors"]
    ours = way == "pycriu_native"
    (faster,) = page.rows("many", f"{what}: times faster", **of)
    each = [f"{number(row['median'] / count * 1e3)} ms" for row in (work, own)]
    return [way, shown(wall), f"{number(least)} s", *each, shown(faster) if ours else ""]


def simple(name: str, title: str, text: str, key: str) -> Callable[[Page], None]:
    """A section of one table."""

    def section(page: Page) -> None:
        page.say(f"## {title}\n{text}")
        whats = dict.fromkeys(row["what"] for row in page.rows(name))
        if key:
            by_way(page, name, whats, key)
        else:
            page.table(("", ""), ((row["what"], shown(row)) for row in page.rows(name)))
        page.notes(name)

    return section


def standing_still(page: Page, benchmark: str) -> None:
    """A table for each size: ways down, times across."""
    result = page.rows(benchmark)
    for mib in dict.fromkeys(row["case"]["MiB"] for row in result):
        page.say(f"{mib} MiB:")
        whats = list(dict.fromkeys(row["what"] for row in result))
        body = []
        for way in dict.fromkeys(row["case"]["by"] for row in result):
            cells = [page.rows(benchmark, what, MiB=mib, by=way) for what in whats]
            body.append([way, *(shown(each[0]) if each else "" for each in cells)])
        page.table(("", *whats), body)
    page.notes(benchmark)


def frozen(page: Page) -> None:
    """Standing still: here, moved, and where memory is tracked."""
    page.say("## How long a process stands still\n" + FROZEN)
    standing_still(page, "frozen")
    for name, text in (("migration", MIGRATION), ("guest", GUEST)):
        if name in page.data["benchmarks"]:
            page.say(text)
            standing_still(page, name)


WITH_FROZEN = ("migration", "guest")
"""Benchmarks that the section on standing still shows."""

SECTIONS: dict[str, Callable[[Page], None]] = {
    "calls": calls,
    "probes": simple("probes", "CRIU's feature cache", PROBES, "cache"),
    "size": size,
    "options": simple("options", "Options", OPTIONS, ""),
    "first_call": simple("first_call", "A program with one call", FIRST_CALL, "by"),
    "imports": simple("imports", "The import", IMPORTS, "module"),
    "throughput": throughput,
    "many": many,
    "frozen": frozen,
}


def other(page: Page, name: str) -> None:
    """A benchmark that this page has no section for: its rows as they are."""
    result = page.data["benchmarks"][name]
    rows = result.get("rows") if isinstance(result, dict) else None
    if not isinstance(rows, list) or not all(isinstance(r, dict) and "what" in r for r in rows):
        page.say(f"## {name}\n\n```json\n{json.dumps(result, indent=1)}\n```")
        return
    page.say(f"## {name}\n\n{result.get('about', '')}")
    body = []
    for row in rows:
        case = ", ".join(f"{key} {value}" for key, value in row.get("case", {}).items())
        body.append(
            (row["what"], case, shown(row) if "median" in row else "", row.get("notes", ""))
        )
    page.table(("", "", "", ""), body)


def main() -> None:
    """Read, and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.page", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "build" / "bench.json")
    parser.add_argument("--out", type=Path, default=DOCS / "performance.md")
    asked = parser.parse_args()
    if not asked.file.exists():
        sys.exit(f"{asked.file} does not exist: run make bench first")
    page = Page(json.loads(asked.file.read_text()), asked.out.parent / PLOTS)
    about = page.data["machine"]
    response = ", ".join(f"{name} {value}" for name, value in about.items() if value != "")
    kind = " A quick run: few and small samples." if page.data["quick"] else ""
    page.say(f"{page.data['when']}: {response}.{kind}")
    goals(page)
    for name, section in SECTIONS.items():
        if name in page.data["benchmarks"]:
            section(page)
    for name in page.data["benchmarks"]:
        if name not in SECTIONS and name not in WITH_FROZEN:
            other(page, name)
    asked.out.write_text("\n".join(page.lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
