"""Thousands of calls: no memory, descriptor, child or thread remains.

Real dumps and restores, refused options, failures of CRIU and queries are repeated. By default the
run is short; ``make soak`` makes 10,000 calls. The counts are printed, and stored for
docs/reliability.md.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, Notification, check, dump, restore, version

from .conftest import Spawn
from .faults import matrix
from .faults.matrix import Count
from .support.leftovers import Snapshot
from .support.processes import eventually, reap_all

CALLS = int(os.environ.get("PYCRIU_NATIVE_SOAK", "60"))
BOUND = 2 * 2**20
"""Bytes that the resident memory can grow after a third of the calls, for any number of calls."""


def _resident() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


@pytest.mark.timeout(7200)
def test_nothing_grows(spawn: Spawn, images: Path, orphans: None) -> None:
    """Memory is bounded after a warm-up; the numbers of descriptors, children and threads are
    constant.
    """
    target = spawn()
    for_good = CriuOpts(images_directory=images)

    def there_and_back() -> None:
        dump(target.pid, for_good)
        target.end()
        reap_all()
        restore(for_good)

    def refuse(notification: Notification) -> None:
        raise ValueError("no")

    whole = CriuOpts(images_directory=images, leave_running=True)
    kinds: dict[str, Callable[[], object]] = {
        "version": version,
        "check": check,
        "a dump": lambda: dump(target.pid, whole),
        "a dump and a restore": there_and_back,
        "a dump of no process": lambda: dump(2**22 - 1, whole),
        "a dump that its hook refuses": lambda: dump(target.pid, whole, on_notify=refuse),
        "a refused option": lambda: dump(target.pid, CriuOpts(images_directory=images, timeout=-1)),
        "a deadline": lambda: dump(target.pid, whole, deadline=0.001),
    }
    counts = matrix.THIS.soaked
    counts.update(dict.fromkeys(kinds, 0))
    names = list(kinds)
    table = matrix.THIS.counts
    before = Snapshot.take()
    for number in range(CALLS):
        name = names[number % len(names)]
        counts[name] += 1
        try:
            kinds[name]()
        except (CriuError, ValueError):
            assert name not in ("version", "check", "a dump", "a dump and a restore")
        if number % max(1, CALLS // 10) == 0 or number == CALLS - 1:
            now = Snapshot.take()
            counted = (len(now.descriptors), len(now.children), now.threads)
            table.append(Count(number + 1, _resident(), *counted))
            # A separate thread waits for an ended worker.
            eventually(lambda: Snapshot.take().grown_since(before) == {}, "nothing that grows")
    assert table[-1].resident - table[len(table) // 3].resident < BOUND
    assert target.runs_on()
