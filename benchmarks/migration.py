"""Downtime of a post-copy migration, against a full dump and restore of the same process.

Run as root: ``python benchmarks/migration.py [--mib 1024] [--runs 3] [--json FILE]``. Source and
destination are on this machine, with network, pid and mount namespaces of their own and a veth
pair between them; so the network is as fast as memory, and both sides share the processors.

``downtime``: from CRIU's first move against the process until the source has heard that it runs
there. ``first answer``: until the process has itself answered a question (a file that it
writes); for post-copy it has to fetch the pages of its interpreter for that, one by one. For dump
and restore both are from the start of the dump, to the end of the restore and to the answer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pycriu_native import CriuOpts, MigrationMode, dump, migrate_out, restore
from tests.real.hosts import OURS, cable, host
from tests.real.migrating import destination, far_pid
from tests.real.processes import Target, adopt_orphans, kill, start

PIPE_MAX_SIZE = Path("/proc/sys/fs/pipe-max-size")

PROCESS = """
    import hashlib, os
    memory = bytearray(os.urandom(1 << 20) * {mib})
    serve(alive=lambda: memory[0])
"""


def made(directory: Path, mib: int) -> Target:
    """A process with so much memory."""
    far_pid()
    return start(directory, PROCESS.format(mib=mib))


def answer_of(target: Target, since: float, told: list[float]) -> threading.Thread:
    """Ask as soon as the process is frozen; the answer comes from whoever runs first."""

    def ask() -> None:
        target.ask("alive")
        told.append(time.monotonic() - since)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def by_dump_and_restore(directory: Path, mib: int) -> dict[str, float]:
    """The same host, one after the other; the copy over the network would come on top."""
    target = made(directory / "process", mib)
    opts = CriuOpts(images_directory=directory / "images")
    began = time.monotonic()
    reaper = threading.Thread(target=target.process.wait)
    reaper.start()
    dump(target.pid, opts)
    reaper.join()
    told: list[float] = []
    asker = answer_of(target, began, told)
    restore(opts)
    down = time.monotonic() - began
    asker.join()
    kill(target.pid)
    return {"downtime": down, "first answer": told[0], "total": down}


def by_migration(directory: Path, mib: int, mode: MigrationMode) -> dict[str, float]:
    """Between two hosts."""
    target = made(directory / "process", mib)
    told: list[float] = []
    askers: list[threading.Thread] = []
    with ExitStack() as owned:
        other = owned.enter_context(host())
        _, address = owned.enter_context(cable(OURS, other))
        there = owned.enter_context(destination(other, address, directory, more={"insecure": True}))
        reaper = threading.Thread(target=target.process.wait)
        reaper.start()

        def hook(notification: Any) -> None:
            if notification.action == "pre-dump":
                askers.append(frozen_asker(time.monotonic()))

        def frozen_asker(since: float) -> threading.Thread:
            def ask() -> None:
                while there.next().get("notification") != "post-resume":
                    pass
                target.ask("alive")
                told.append(time.monotonic() - since)

            thread = threading.Thread(target=ask)
            thread.start()
            return thread

        result = migrate_out(
            target.pid, CriuOpts(), to=there.place, mode=mode, insecure=True, on_notify=hook
        )
        reaper.join()
        askers[0].join()
    return {
        "downtime": result.downtime,
        "first answer": told[0],
        "total": result.duration,
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=1024, help="memory of the process")
    parser.add_argument("--runs", type=int, default=3, help="runs of each, of which the median")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--quick", action="store_true", help="one run with 256 MiB")
    given = parser.parse_args()
    if given.quick:
        given.mib, given.runs = 256, 1
    if os.geteuid():
        parser.error("needs root")
    adopt_orphans(True)
    before = PIPE_MAX_SIZE.read_text()
    ways: dict[str, Any] = {"dump and restore": by_dump_and_restore}
    for mode in (MigrationMode.STOP_AND_COPY, MigrationMode.POST_COPY):
        ways[str(mode)] = lambda directory, mib, mode=mode: by_migration(directory, mib, mode)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    try:
        PIPE_MAX_SIZE.write_text(str(max(int(before), 2**22)))
        for _ in range(given.runs):
            for name, way in ways.items():
                with tempfile.TemporaryDirectory(prefix="migration-benchmark-") as directory:
                    runs[name].append(way(Path(directory), given.mib))
    finally:
        PIPE_MAX_SIZE.write_text(before)
    medians = {
        name: {key: statistics.median(one[key] for one in told) for key in told[0]}
        for name, told in runs.items()
    }
    full = medians["dump and restore"]["downtime"]
    print(f"{given.mib} MiB, median of {given.runs}, seconds")
    print(f"{'':18}{'downtime':>10}{'first answer':>15}{'total':>8}{'of full':>9}")
    for name, one in medians.items():
        print(
            f"{name:18}{one['downtime']:10.3f}{one['first answer']:15.3f}"
            f"{one['total']:8.2f}{one['downtime'] / full:9.1%}"
        )
    if given.json:
        given.json.write_text(json.dumps({"mib": given.mib, "medians": medians, "runs": runs}))


if __name__ == "__main__":
    main()
