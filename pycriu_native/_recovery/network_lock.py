"""Finds and removes the network lock of a CRIU that was killed.

During a dump CRIU drops the packets of each TCP connection, or all packets of a network namespace
that it dumps. The rules are in CRIU's own network namespace or in the dumped one, in one of two
forms (criu/netfilter.c, criu/net.c of 4.2):

* a table of nftables, ``inet CRIU-<run id>`` (``run_id.py``), cut to 26 characters up to CRIU 4.2.
  Before 4.1 the name is ``CRIU-<pid>``, with the pid of the tree's root: such a table is removed
  only if it did not exist before.
* rules of iptables, two for each connection, with its addresses, its ports and CRIU's mark. For a
  whole namespace they are in a chain ``CRIU``, which does not identify the run: it is removed only
  if it did not exist before CRIU locked.

The lock of a dump that succeeded stays until the restore and is not removed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator

from .._system import nftables
from .._system.tcp_connections import Ends
from .._transport.process import ChildProcess
from .._transport.program import on_search_path
from ..errors import ProgramError

LONGEST_TABLE = len("CRIU-") + 21
"""Characters of the table's name up to CRIU 4.2: 32 bytes less "inet " and the end."""

MARK = "0xc114"
"""The mark of CRIU's own packets, which its rules accept (SOCCR_MARK)."""

CHAIN = "-N CRIU"
"""The line of the chain with the rules for a whole namespace."""

LARGEST_OUTPUT = 2**30
"""Bytes of the rules of iptables that are read."""

PATIENCE = 10.0
"""Time limit for an iptables program, in seconds."""


def delete_table(run: str) -> bool:
    """Remove the table of a run in the current namespace; False if there is none."""
    name = f"CRIU-{run}"
    return any([nftables.delete_table(name[:LONGEST_TABLE]), nftables.delete_table(name)])


def has_table(run: str) -> bool:
    """Whether the current namespace has the table of a run."""
    return nftables.has_table(f"CRIU-{run}")


def has_chain() -> bool:
    """Whether the current namespace has a chain CRIU."""
    return any(CHAIN in _saved(family) for family in _families())


def delete_rules(connections: Collection[Ends]) -> None:
    """Remove CRIU's rules for these connections."""
    for family, words in list(_rules(connections)):
        _run(family, "-w", "-D", *words)


def count_rules(connections: Collection[Ends]) -> int:
    """The number of CRIU's rules for these connections."""
    return len(list(_rules(connections))) if connections else 0


def _rules(connections: Collection[Ends]) -> Iterator[tuple[str, list[str]]]:
    """Program and arguments of each of CRIU's rules for these connections."""
    both = {*connections, *(ends.turned() for ends in connections)}
    for family in _families():
        for line in _saved(family):
            words = line.split()  # CRIU's have no quoted words
            if words[:1] == ["-A"] and _rule_for(words) in both:
                yield family, words[1:]


def delete_chain() -> None:
    """Remove the chain CRIU and the jumps to it."""
    for family in _families():
        if CHAIN not in _saved(family):
            continue
        for place in ("INPUT", "OUTPUT"):
            while _run(family, "-w", "-D", place, "-j", "CRIU")[0] == 0:
                pass
        _run(family, "-w", "-F", "CRIU")
        _run(family, "-w", "-X", "CRIU")


def _rule_for(words: list[str]) -> Ends | None:
    """The connection of a rule; None for a rule that is not CRIU's."""
    given = dict(itertools.pairwise(words))
    if f"-m mark ! --mark {MARK}" in " ".join(words).lower() and given.get("-j") == "DROP":
        with contextlib.suppress(KeyError, ValueError):
            hosts = [given[flag].partition("/")[0] for flag in ("-s", "-d")]
            return Ends(hosts[0], int(given["--sport"]), hosts[1], int(given["--dport"]))
    return None


def _families() -> Iterator[str]:
    return filter(None, map(on_search_path, ("iptables", "ip6tables")))


def _saved(family: str) -> list[str]:
    """The chains and rules of the filter table, as the arguments that create them."""
    # Without -t filter, which makes the programs load a kernel module.
    status, message = _run(family, "-w", "-S")
    return [] if status else message.splitlines()


def _run(program: str, *words: str) -> tuple[int | None, str]:
    """Exit status and output of a program, which inherits this thread's network namespace."""
    try:
        process = ChildProcess.start([program, *words], {})
    except ProgramError:
        return None, ""
    process.largest_stderr = LARGEST_OUTPUT
    process.wait(PATIENCE)
    return process.status, process.final_stderr
