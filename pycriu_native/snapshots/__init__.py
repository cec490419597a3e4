"""Snapshots: save a program once after its start-up, and start copies of it.

The program calls :func:`pycriu_native.guest.wait` at the end of its slow start-up::

    from pycriu_native.snapshots import Snapshot

    snapshot = Snapshot.take([sys.executable, "app.py"], "app.snapshot")
    with snapshot.start(["--n", "3"], stdin=PIPE, stdout=PIPE, text=True) as process:
        out, _ = process.communicate(request, timeout=5)

Each copy has separate pid and mount namespaces, and is a child of the process that starts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._support.lazy import fetch
from .process import SnapshotProcess
from .record import Host, MappedFile, Record
from .shared_template import SharedTemplate
from .snapshot import Snapshot, list_snapshots
from .template import prepare
from .timings import StartPhase, StartTimings
from .zygote import Zygote

if TYPE_CHECKING:
    from .aio_process import AsyncProcess

__all__ = [
    "AsyncProcess",
    "Host",
    "MappedFile",
    "Record",
    "SharedTemplate",
    "Snapshot",
    "SnapshotProcess",
    "StartPhase",
    "StartTimings",
    "Zygote",
    "list_snapshots",
    "prepare",
]


if not TYPE_CHECKING:  # type checkers would accept any name

    def __getattr__(name: str) -> object:
        """Import names that need asyncio on first use, for a short import time."""
        return fetch(globals(), {"AsyncProcess": "aio_process"}, name)


def __dir__() -> list[str]:
    return __all__
