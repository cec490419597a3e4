"""The sections on starts from snapshots, and on jobs."""

from __future__ import annotations

from .page_text import Page, by_way, shown
from .snapshot_programs import FORKED, ZYGOTE

SNAPSHOTS = """
Each program loads its libraries, and then writes a line or answers an HTTP request. The time ends with this
first answer; the processor time includes the end of the process. *Cold start* starts the program anew;
*forkserver with preload* is that of multiprocessing, with the modules of the program; *criu restore* is the
`criu` program with the same images and options, into namespaces that exist before; *criu restore, and its
namespaces* includes their creation, as a start does; *start* is `Snapshot.start`, and *zygote* is
`Zygote.start`. The fork server and the zygote accept Python programs only. Images are on a tmpfs.

With CRIU's feature cache, a plain start of the small program was measured at 1.04 to 1.18 times `criu restore` in
five runs (two without other load: 13.2 and 15.6 ms, 15.4 and 15.9 ms), and at 0.97 to 1.08 times with the
namespaces (1.1 ms); of a program with much of the standard library at 1.04 to 1.14 and 0.99 to 1.08 times. Python
takes about 3 ms of a start: checks of the arguments, the host, the images and the program of CRIU, the request, and
the state for the undo of a failure. The fork server saves the time of CRIU's loader.
"""

PEER = """
habemus-papadum-criu 0.7.0 needs Python 3.12 or later, crit, and sudo with `closefrom_override`, so it is not part of
`make bench`. It was compared once, in a new Debian 13 (Python 3.13.5, CRIU 4.1.1, Linux
6.18, 2 processors, which other programs used too). The ways took turns; time to the first answer to a line of
input, median of 8 (lowest to highest):

|  | small | numpy |
|---|---|---|
| cold start | 108 ms (28 to 148) | 426 ms (268 to 579) |
| habemus-papadum-criu, `goblins.thaw` | 199 ms (128 to 319) | 350 ms (269 to 545) |
| start, share_memory=False | 53 ms (20 to 104) | 132 ms (91 to 170) |
| start, share_memory=True | 29 ms (10 to 79) | 71 ms (12 to 107) |
| zygote | 5 ms (2 to 11) | 11 ms (8 to 27) |
"""

AT_ONCE = """
Several copies started by eight threads. *First answer of each* counts from the first start.
"""

SHARED_MEMORY = """
A program whose memory is filled: what a copy has of its own, and what sharing costs. *Prepare* is done once
for a snapshot, *template ready* once for a process that starts copies.
"""

JOBS = """
A job of constant work writes to all of its memory. *Wall time of a checkpoint* is the time of a run with
checkpoints less that of a run without, for each checkpoint; the slow-down at an interval of ten minutes
follows from it. *Frozen* is the time for which the job was stopped. Images are on the disk.
"""

INCREMENTAL = """
Incremental checkpoints need a kernel that tracks changed memory. They were measured once, in a guest
whose processor is emulated, many times slower than this machine: compare only numbers of this table. The
job has 256 MiB, and writes to a 16th of it; median of 3 (lowest to highest):

|  | standing still | bytes |
|---|---|---|
| full (`incremental=0`) | 2.4 s (1.5 to 3.7) | 259 MiB |
| incremental | 0.34 s (0.33 to 0.42) | 18 MiB |
"""


def snapshots(page: Page) -> None:
    """Add the section on starts: for each program one start, and several at once."""
    page.say("## Starts from a snapshot\n" + SNAPSHOTS)
    rows = page.rows("snapshots")
    for program in dict.fromkeys(row["case"]["program"] for row in rows):
        page.say(f"### {program}\n")
        by_way(
            page,
            "snapshots",
            ("first answer", "processor time of a start"),
            "way",
            program=program,
        )
        several = [
            row
            for row in page.rows("snapshots", "starts in a second", program=program)
            if "copies" in row["case"]
        ]
        always = ("first answer of each", "starts in a second", "processor time of each")
        memory = ("private memory of each", "proportional share of each")
        measured = [what for what in memory if page.rows("snapshots", what, program=program)]
        whats = (*always, *measured)
        body = []
        for row in several:
            case = row["case"]
            found = [page.rows("snapshots", what, **case) for what in whats]
            cells = [shown(each[0]) if each else "" for each in found]
            body.append((str(case["copies"]), case["way"], *cells))
        page.say(AT_ONCE)
        page.table(("copies", "way", *whats), body)
    page.say(PEER)
    page.notes("snapshots", (ZYGOTE, FORKED, "habemus-papadum-criu"))


def shared_memory(page: Page) -> None:
    """Add the section on memory that copies share."""
    page.say("## Memory of copies\n" + SHARED_MEMORY)
    rows = page.rows("shared_memory")
    for mib in dict.fromkeys(row["case"]["MiB"] for row in rows):
        page.say(f"{mib} MiB:")
        once = [row for row in rows if row["case"] == {"MiB": mib}]
        page.table([row["what"] for row in once], [[shown(row) for row in once]])
        whats = dict.fromkeys(row["what"] for row in rows if "memory" in row["case"])
        by_way(page, "shared_memory", whats, "memory", MiB=mib)
    page.notes("shared_memory")


def jobs(page: Page) -> None:
    """Add the section on what checkpoints cost a job."""
    page.say("## Checkpoints of a job\n" + JOBS)
    rows = page.rows("jobs")
    for mib in dict.fromkeys(row["case"]["MiB"] for row in rows):
        page.say(f"{mib} MiB:")
        by_way(page, "jobs", dict.fromkeys(row["what"] for row in rows), MiB=mib)
    page.notes("jobs")
    page.say(INCREMENTAL)
