"""The part of a call after CRIU's response. Loaded while CRIU works on the request."""

from __future__ import annotations

from .._integrity import statistics
from .._recovery.created_children import reap_made
from .._recovery.half_restored import end_processes, half_restored
from .._support.light_typing import TYPE_CHECKING
from .._support.unpatched import poll
from ..enums import Verb
from ..results import DumpStatistics, RestoreStatistics
from . import logs  # noqa: F401
from .failure import failure_of
from .request import Request

if TYPE_CHECKING:
    from .._transport.connection import Connection

poll()  # ``select`` is loaded with this module: a hook may change the root later

__all__ = ["end", "end_processes", "failure_of", "half_restored", "reap_made", "statistics_of"]


def end(connection: Connection, request: Request, *, succeeded: bool) -> None:
    """End the connection; CRIU then exits, or has become another program."""
    if succeeded and request.opts.exec_cmd is not None:
        connection.detach()
    elif succeeded and (request.verb is not Verb.RESTORE or request.sibling):
        connection.close_async()
    else:
        if request.verb is Verb.PRE_DUMP:
            connection.kill()  # a killed child of it may have left processes in its group
        connection.wait()  # until CRIU has ended, it is the parent of what it has restored


def statistics_of(
    request: Request, directory: int | None
) -> DumpStatistics | RestoreStatistics | None:
    """CRIU's statistics of a call that succeeded, where it writes any."""
    verb = request.verb
    if directory is None:
        return None
    if verb is Verb.DUMP and request.opts.lazy_pages:
        return None  # CRIU resets the counters when it serves pages, and writes wrong numbers
    if verb in (Verb.DUMP, Verb.PRE_DUMP):
        return statistics.read_dump(directory)
    return statistics.read_restore(directory) if verb is Verb.RESTORE else None
