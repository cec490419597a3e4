"""Recovery of a process after its CRIU was killed during a dump.

The kernel resumes the processes that a killed CRIU had stopped. What remains is the network lock
(``network_lock.py``), connections in repair mode (``_system/tcp_connections.py``), a cgroup that
CRIU had frozen or thawed, and CRIU's code in their memory (``parasite.py``). :class:`Recovery`
reads the state in notifications, while CRIU runs, and restores it afterwards, on the call's thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .._support.frozen_dataclass import dataclass
from .._support.light_typing import TYPE_CHECKING
from .._support.no_fork import no_fork
from .._system.network_namespace import in_network_of
from .._system.process import is_running
from .._system.process_tree import process_tree
from .._system.tcp_connections import Ends, connections_of, end_repair, reusing
from ..enums import Notify
from ..options.criu_opts import CriuOpts
from . import network_lock
from .parasite import left_in
from .run_id import run_id
from .state_before import StateBefore
from .temporary_files import remove_temporary

if TYPE_CHECKING:
    from .link_remaps import DumpLinks


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoveryResult:
    """The state of the processes after recovery, and what could not be recovered."""

    ended: tuple[int, ...] = ()
    """The pids of processes to dump that have ended."""
    saved: bool = False
    """Whether CRIU had written all images by then."""
    lost_connections: tuple[str, ...] = ()
    """TCP connections that have ended or do not work, as ``address:port - address:port``."""
    left_behind: tuple[str, ...] = ()
    """Remains of CRIU on this host, which the user has to remove unless the text says otherwise."""

    def __str__(self) -> str:
        message = []
        if self.ended:
            pids = ", ".join(map(str, self.ended))
            how = "ended, after all images were written" if self.saved else "did not survive it"
            message.append(f"pid {pids} {how}")
        if self.lost_connections:
            message.append("these connections are lost: " + ", ".join(self.lost_connections))
        message += [f"left behind: {thing}" for thing in self.left_behind]
        return "; ".join(message)


class Recovery:
    """The state of one dump, for recovery after CRIU is killed."""

    def __init__(self, pid: int, opts: CriuOpts, before: StateBefore) -> None:
        self._pid = pid
        self._opts = opts
        self._by_table = getattr(opts.network_lock, "name", "") == "NFTABLES"
        self._before = before
        self._links: DumpLinks | None = None
        if opts.link_remap:
            with no_fork:
                from .link_remaps import DumpLinks  # few dumps need it

            self._links = DumpLinks()
        self._run: str | None = None
        self._reuse: set[int] = set()
        self._connections: dict[int, Ends] = {}
        self._tree = [pid]
        self.frozen: list[int] | None = None
        """The pids of the frozen processes; None before CRIU reports that it has frozen them."""
        self._saved = False
        self._written = False
        self._may_lock = False
        self._looked = False
        self._chain_before: bool | None = None  # None: no namespace was locked as a whole

    def close(self) -> None:
        """Close its descriptors."""
        if self._links is not None:
            self._links.close()

    def look(self, action: Notify | str, worker: int) -> None:
        """Read what is not readable later; CRIU waits for the response to the notification."""
        if action is Notify.POST_DUMP:
            self._written = True
        with contextlib.suppress(OSError):
            if not self._looked:
                self._looked = True
                if self._links is not None:
                    self._links.look(process_tree(self._pid))
                # 0: the pid of a service is not known. CRIU locks nothing before its first
                # notification.
                self._run = self._run_of(worker) if worker else None
            if action is Notify.NETWORK_LOCK and not self._by_table:
                with in_network_of(self._pid):
                    self._chain_before = network_lock.has_chain()
            # The tree is frozen at query-ext-files (CRIU 3.19). At both notifications CRIU has not
            # changed a connection yet.
            established = self._opts.tcp_established
            if action is Notify.QUERY_EXT_FILES or (established and action is Notify.PRE_DUMP):
                self._tree = process_tree(self._pid)
                if action is Notify.QUERY_EXT_FILES:
                    self.frozen = self._tree
                    if self._links is not None:
                        self._links.look(self._tree)
                if established:
                    self._connections = connections_of(self._tree)
                    self._reuse = reusing(self._tree)

    def _run_of(self, worker: int) -> str | None:
        """The name of CRIU's table, without the prefix ``CRIU-``."""
        run = run_id(worker)
        if run is not None:
            return run
        with in_network_of(self._pid):  # before 4.1 the table has the pid's name
            return None if network_lock.has_table(str(self._pid)) else str(self._pid)

    def agreed(self, action: Notify | str) -> None:
        """Record that CRIU has received a positive response to a notification."""
        self._may_lock = True
        if action is Notify.POST_DUMP:
            self._saved = True

    def after(self) -> RecoveryResult:
        """Recover what is possible, after CRIU has ended."""
        remaining = list(self._before.freezer.put_back())
        remaining += remove_temporary(self._before.time, (f"/proc/{self._pid}/root",), killed=True)
        tree = process_tree(self._pid)
        connections = self._connections | connections_of(tree)
        ended = tuple(pid for pid in self._tree if not is_running(pid))
        if not (self._before.was_there or self._saved):
            ended = ()  # not by this call
        if ended and self._saved:
            # The connections exist only in the images now, and a restore removes the lock.
            remaining += ["CRIU's network lock, until the restore"] if connections else []
            return RecoveryResult(ended=ended, saved=True, left_behind=tuple(remaining))
        if self._links is not None:
            remaining += self._links.remove(needed=self._written)
        for where in self._namespaces():
            try:
                with where:
                    remaining += self._unlock(set(connections.values()))
            except OSError as error:
                remaining.append(f"perhaps CRIU's network lock ({error})")
        remaining += left_in(tree)
        failed = end_repair(tree, self._reuse)
        working = connections_of(tree).keys() - failed
        lost = sorted(str(ends) for inode, ends in connections.items() if inode not in working)
        return RecoveryResult(
            ended=ended,
            saved=self._saved,
            lost_connections=tuple(lost),
            left_behind=tuple(dict.fromkeys(remaining)),
        )

    def _namespaces(self) -> Iterator[contextlib.AbstractContextManager[object]]:
        """The namespaces that CRIU may have locked: the caller's and that of the tree."""
        yield contextlib.nullcontext()
        with contextlib.suppress(OSError):
            if not os.path.samefile("/proc/thread-self/ns/net", f"/proc/{self._pid}/ns/net"):
                yield in_network_of(self._pid)

    def _unlock(self, connections: set[Ends]) -> Iterator[str]:
        if self._run is not None:
            network_lock.delete_table(self._run)
        elif self._may_lock and self._by_table:
            yield "perhaps a table inet CRIU-... of nftables: this CRIU's run id is not known"
        if connections and not self._by_table:
            network_lock.delete_rules(connections)
        if self._chain_before is False:
            network_lock.delete_chain()
        elif self._chain_before:
            yield "the chain CRIU of iptables, which existed before"
