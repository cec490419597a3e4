"""Snapshots: a program that has loaded everything is saved once, and started many times.

The program calls :func:`pycriu_native.guest.wait` when it has loaded what is slow to load::

    from pycriu_native.snapshots import Snapshot

    snapshot = Snapshot.take([sys.executable, "app.py"], "app.snapshot")
    with snapshot.start(["--n", "3"], stdin=PIPE, stdout=PIPE, text=True) as process:
        out, _ = process.communicate(request, timeout=5)

Each copy has pid and mount namespaces of its own, and is a child of the process that starts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._support.lazy import fetch
from .process import Process
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
    "Process",
    "Record",
    "SharedTemplate",
    "Snapshot",
    "StartPhase",
    "StartTimings",
    "Zygote",
    "list_snapshots",
    "prepare",
]


def __getattr__(name: str) -> Any:
    """Names that need asyncio, which takes long to load."""
    return fetch(globals(), {"AsyncProcess": "aio_process"}, name)
