"""Write docs/performance.md and its plots from build/bench.json: ``python -m benchmarks.page``.

Every number on the page is from that file. matplotlib draws the plots (the extra ``bench``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .page_goals import goals
from .page_starts import jobs, shared_memory, snapshots
from .page_text import PLOTS, Page, Row, by_way, number, shown

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

HEAD = """\
# Performance

`make bench-page` writes this page from the results of `make bench`. Compared programs took turns in one
run. Each number is a median; the range in brackets is the middle half of the samples.
"""

CALLS = """
A call starts a thread, which fills libcriu's options, gets a worker, sends the request, passes
notifications to the hook, and reads the statistics. A *new worker* is a `criu` that is started for the
call, and ends after its response; compared with a *worker of a pool*, which is forked from a `criu` that
was loaded once, it needs the time of its start: dynamic loader, CRIU's libraries and configuration. The
call does not wait for the end of a worker of a pool, except after a restore, where CRIU is the parent of
the restored process until it ends. *Beyond CRIU's log* is the wall time of the call minus the time of
the last line in CRIU's log, which starts when CRIU has read the options.

Most of the time of a call is *the conversation*, in which CRIU works. Two things reduce it: `WorkerPool`,
and CRIU's feature cache (next section).
"""

COLD = """
*Its request alone* is the time that CRIU needs beyond its log: to read the request, to send each
notification, whose response is available at once, and to continue. The remaining time is that of this
library: about 130 system calls and 700 Python calls, executed once in each call, after CRIU has
displaced their data from the caches of the same processor. The row of the checks shows this effect: the
work is the same both times. Passing the call to its thread and waiting for the thread take another
tenth of a millisecond each. In two of five calls CRIU adds half a millisecond: the kernel runs the
process that waits for CRIU's last message on CRIU's processor (CRIU's sockets announce that the sender
sleeps next), where CRIU first frees its memory. Polling for that message instead of sleeping took
longer: CRIU, which the response wakes up on the caller's processor, then shares that processor.

`benchmarks/call_limit.py` leaves out what callers rely on, one part more each (the rows *without*): the
checks; the thread, which makes the call safe from signal handlers; and the safeguards, which mark
incomplete images, complete them, and recover a process whose CRIU was killed. Without all three, sixty
calls took 1.14 ms at best and 1.7 ms in the median, where complete calls, in turns with them, took 1.83
ms and 3.9 ms (the machine was busy). So 1 ms would need a second code path, with even less Python code.
"""

PROBES = """
CRIU probes the kernel in each call, unless it finds the results in `/run/criu.kdat`. It writes that file
only to a tmpfs, whose content does not survive a reboot (`criu/kerndat.c`). `feature_cache()` reports
whether the file can be written, the reason, and the option that helps; the logger
`pycriu_native.advice` reports it once at level INFO. If `/run` is not a tmpfs, CRIU can leave a temporary
file behind, which prevents all later writes of the cache; the report names this file too.

If CRIU cannot write a file in `/run`, workers that are forked from one CRIU (pools, batches, snapshots)
share the results of the first worker in memory: only the first dump or restore probes. For other calls
`keep_feature_cache()`, or `pycriu-native keep-cache`, makes CRIU probe once and stores the result for
every `criu` of the machine. No call does this implicitly, or mounts a tmpfs on `/run` in a private mount
namespace of the worker: if CRIU runs in another mount namespace than the process, it saves the process's
mounts as a namespace, which changes the images.
"""

SIZE = """
A worker is started by `clone(CLONE_VM | CLONE_VFORK)`, which does not copy page tables. libcriu and
pycriu use fork, which copies them: the time grows with the memory of the caller. Every new process gets
a copy of the caller's descriptors until it closes them: for 10,000 descriptors the kernel needs almost a
millisecond, also for C over libcriu. (A table that is shared by CLONE_FILES and copied by `close_range`
with CLOSE_RANGE_UNSHARE is copied up to the highest descriptor that is kept, and the worker's socket is
the highest one.) Warm workers are forked from a process without the caller's descriptors. All numbers
were measured with CRIU's feature cache; without it the time of the probes, which is equal for all,
exceeds the differences.
"""

THROUGHPUT = """
The limit is a copy of the same bytes by one thread, one MiB at a time: from memory to a file for the
dump, and from that file to new memory for the restore, for which the kernel has to allocate and clear
each page, as for CRIU. A dump also reads the pages of the process through pipes. *Past the page cache*
(`O_DIRECT`) is the speed of the disk; otherwise written data is in memory first, and the kernel writes
it to the disk later.
"""

MANY = """
`dump_many` and `restore_many` accept any executor; here it is threads of one Python process. They are
compared with `xargs -P` and the `criu` program, with the same number of concurrent CRIUs. The threads
prepare the next calls and their workers in the meantime.

The lower bound for each way is its processor time divided by the number of processors. The time of this
library consists of that of CRIU and that of Python, which makes each request and reads each response. A
shorter start of CRIU compensates for that: workers are forked from one CRIU that was loaded once, before
its `main()` starts, in a quarter of the time of a start. `version` consists only of the start and the
end of CRIU.

*Kept* and *impossible* refer to CRIU's feature cache (see above): without it each CRIU probes the kernel
first, which is most of its work, and equal for both.
"""

FROZEN = """
A process writes to all of its memory while it is dumped and left running. *Felt by the process* is the
longest time between two of its steps. A plain dump reads pages while the process is stopped, so the time
is proportional to its memory; pre-dump rounds and lazy migration reduce it.
"""

MIGRATION = """
The same process is migrated to another host: a network namespace behind a veth pair, so the network is as
fast as memory, and both sides share the processors. With post-copy (lazy migration) the process runs at
the destination before its memory was transferred, and waits for each page that it accesses.
"""

GUEST = """
Pre-dump rounds need a kernel that tracks changed memory. They were measured in a guest whose processor is
emulated, many times slower than this machine: compare only numbers of this table. The process runs
during pre-dumps, except for `frozen_time`. Rounds help if the process writes to part of its memory during
a round. If it writes to all of it, the last dump contains all of it, independent of the number of rounds.
"""

OPTIONS = """
Options are values. The results of the rules on options alone, and libcriu's form of the options, are
stored with the value, so using a `CriuOpts` again takes little time. The rules that check directories and
descriptors run in each call.
"""

FIRST_CALL = """
A command-line tool makes one call and ends, so the time from the start of the interpreter to its end
counts. *Processor time* is that of the program, of CRIU and of the processes that CRIU starts.

Most of it is Python's: each module takes a fifth of a millisecond or more to load. Therefore modules that
a call does not need are not loaded, and those that it needs only after CRIU has received the request are
loaded then, while CRIU starts and probes the kernel. A star import binds all public names; functions that
need many modules (`doctor`, `preflight`, `explain`, migrations, batches) load them in their first call.
The command line ends without unloading its modules, and runs the garbage collector rarely.

Several rows are lower bounds. *A script without this package* sends a request that is encoded beforehand,
without checks and without hooks. *The modules that calls need* are Python's own and cffi's:
enumerations, a thread and locks, exit stacks, caches. A script that imports them uses 1.3 times the
processor time of *the criu program and an empty interpreter*, so a library cannot reach 1.15 times. To
start the worker before other modules are imported would save the time of CRIU's loader, 2 ms: CRIU
probes the kernel when it has received the request. *An interpreter with click* takes 30 ms more than an
empty one: click loads `inspect`, `ast`, `tokenize`, `uuid`, `datetime` and `typing`. 60 ms over *the criu
program* would require a second parser of command lines in addition to click, with the same results.
According to valgrind, an empty interpreter executes 40 million instructions, one with these modules 68
million, one that makes one dump 159 million, one with click 171 million, `pycriu-native --version` 209
million.
"""

IMPORTS = """
The package's dataclasses satisfy `dataclasses.is_dataclass` and the functions of that module, but are
created without importing `dataclasses`, which imports `inspect` and compiles source text for each class.
`typing`, `re`, `json`, `logging` and rarely used modules of the package are loaded on first use.
"""


def calls(page: Page) -> None:
    """Add the section on one call and its steps."""
    page.say("## The steps of one call\n" + CALLS)
    by_way(page, "calls", ("version", "dump, left running", "beyond CRIU's log"))
    page.say(COLD)
    by_way(page, "calls", ("all that is ours", "all checks"))
    steps = list(dict.fromkeys(row["what"] for row in page.rows("calls") if "by" in row["case"]))
    skip = (
        *("version", "dump, left running", "beyond CRIU's log"),
        *("all that is ours", "all checks"),
    )
    ways = ("a worker of a pool", "a new worker")
    body = []
    for step in steps:
        if step in skip:
            continue
        cells = [page.rows("calls", step, by=way) for way in ways]
        body.append([step, *(shown(result[0]) if result else "" for result in cells)])
    page.say("The steps of a call, with `log_level=4` for the time in CRIU's log:")
    page.table(("step", *ways), body)
    page.notes("calls")


def size(page: Page) -> None:
    """Add the section on times that grow with the caller."""
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
            axes.xaxis.set_major_formatter("{x:.0f}")
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
    """The result for the largest process."""
    result = page.rows("throughput", what, by=by, on=on)
    return f"{number(result[-1]['median'])} {result[-1]['unit']}" if result else "not measured"


def advice(page: Page) -> None:
    """Add a table of the options for each purpose, with the results."""

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
        ("purpose", "option", "measured with the largest process"),
        (
            (
                "shortest stop, with free memory",
                "images on a tmpfs, copied from there later",
                f"dump: tmpfs {say(ours, 'tmpfs')}, disk {say(ours, 'disk')}",
            ),
            (
                "images on this machine",
                "images on the disk, with CRIU's defaults",
                f"dump: {say('4.3, writeback', 'disk')}; direct {say(direct, 'disk')}; "
                f"restore: {say('4.3, writeback', 'disk', 'restore')}; "
                f"direct {say(direct, 'disk', 'restore')}",
            ),
            (
                "no use of the page cache",
                '`image_io_mode="direct"` (CRIU 4.3)',
                f"after a dump it contains: {say(direct, 'disk', cache)}, by default "
                f"{say('4.3, writeback', 'disk', cache)}",
            ),
            (
                "images on another machine",
                "`page_server`: pages are sent when they are read, and written once",
                f"dump: {say(server, 'tmpfs')} to a socket of this machine",
            ),
            (
                "small images, or a slow disk or network",
                '`compress="block"` (4.3, built with LZ4), `decompress_threads=0` on restore',
                f"dump: {say(packed, 'disk')}; restore: {say(packed, 'disk', 'restore')}",
            ),
            (
                "continue before all memory is transferred",
                "`lazy_pages`, or a post-copy migration",
                f"stopped for: {lazily}" if lazily else "not measured",
            ),
        ),
    )


def throughput(page: Page) -> None:
    """Add the section on large processes."""
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
    """Add the section on many concurrent calls."""
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
    """The cells of one way."""
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
    """Return a function that adds a section with one table."""

    def section(page: Page) -> None:
        page.say(f"## {title}\n{text}")
        whats = dict.fromkeys(row["what"] for row in page.rows(name))
        if key:
            by_way(page, name, whats, key)
        else:
            page.table(("", ""), ((row["what"], shown(row)) for row in page.rows(name)))
        page.notes(name)

    return section


def stopped(page: Page, benchmark: str) -> None:
    """Add a table for each size, with a row for each way and a column for each time."""
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
    """Add the section on stopped processes: dumps, migrations, pre-dumps in a guest."""
    page.say("## How long a process is stopped\n" + FROZEN)
    stopped(page, "frozen")
    for name, text in (("migration", MIGRATION), ("guest", GUEST)):
        if name in page.data["benchmarks"]:
            page.say(text)
            stopped(page, name)


WITH_FROZEN = ("migration", "guest")
"""Benchmarks in the section on stopped processes."""

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
    "snapshots": snapshots,
    "shared_memory": shared_memory,
    "jobs": jobs,
}


def other(page: Page, name: str) -> None:
    """Add the rows of a benchmark without a section, unchanged."""
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
    """Read the results and write the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.page", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "build" / "bench.json")
    parser.add_argument("--out", type=Path, default=DOCS / "performance.md")
    arguments = parser.parse_args()
    if not arguments.file.exists():
        sys.exit(f"{arguments.file} does not exist: run make bench first")
    page = Page(json.loads(arguments.file.read_text()), arguments.out.parent / PLOTS)
    page.say(HEAD)
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
    arguments.out.write_text("\n".join(page.lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
