"""CRIU's lock on the network, which a CRIU that was killed leaves behind: found and taken away.

While a process with connections is dumped, CRIU drops the packets of each connection, or all
packets of a network namespace that it dumps. It does so where it runs, or in that namespace, in
one of two ways (criu/netfilter.c, criu/net.c of 4.2):

* a table of nftables, ``inet CRIU-<run id>``, cut to 26 characters up to CRIU 4.2. The run id is
  a UUID that CRIU makes when it starts, and tells nobody; it stands in its memory, twice. A table
  of that name is this run's and no other's. Before 4.1 the name is ``CRIU-<pid>``, with the pid of
  the tree's root: such a table is taken away only if it was not there before.
* rules of iptables, two for each connection, which name its addresses, its ports and CRIU's mark;
  for a whole namespace a chain ``CRIU``, which has no mark of its run: it is taken away only if
  it was not there when CRIU was about to lock.

What a dump that succeeded has locked stays locked until the restore, and is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shlex
import struct
from collections.abc import Collection, Iterable, Iterator

from .._native.ffi import native
from .._support.lazy import socket
from .._system.process import read_small
from .._system.tcp_connections import Ends
from .._transport.process import ChildProcess
from .._transport.program import SEARCH_PATH
from .._transport.spawn import spawn
from ..errors import ProgramError

NETLINK_NETFILTER = 12
NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
BATCH_BEGIN, BATCH_END = 0x10, 0x11
GET_TABLE, DELETE_TABLE = NFTABLES << 8 | 1, NFTABLES << 8 | 2
REQUEST, ACK = 1, 4
NLMSG_ERROR = 2
TABLE_NAME = 1  # NFTA_TABLE_NAME
PROTO_INET = 1  # NFPROTO_INET

LONGEST_TABLE = len("CRIU-") + 21
"""Characters of the table's name up to CRIU 4.2: 32 bytes less "inet " and the end."""

MARK = "0xc114"
"""What CRIU marks its own packets with: its rules let them through (SOCCR_MARK)."""

PATIENCE = 10.0
"""Seconds that an iptables program gets."""

_RUN_ID = re.compile(rb"-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\0")
_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}(?:-[0-9a-f]{4}){2}-[0-9a-f]{12}")
UUID_LENGTH = 36


# ---- whose lock ----


_places: dict[tuple[int, ...], tuple[int, ...]] = {}
"""Where in the variables of a program its run id stands: the same in each of its processes."""


_lately: tuple[int, ...] = ()
"""The addresses at which the last one stood: those of the next, if it grows from the same seed."""


def run_id(pid: int) -> str | None:
    """The run id of a CRIU that is alive, from its memory; None where it is not found."""
    global _lately
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            result = _text_at(memory, _lately)
            if result is None:
                addresses = tuple(_addresses(pid, memory))
                result = _text_at(memory, addresses)
                _lately = addresses  # at once: other threads look too
        finally:
            os.close(memory)
    except OSError:
        return None
    return result


def _addresses(pid: int, memory: int) -> Iterator[int]:
    """Where the run id stands in a CRIU."""
    link = f"/proc/{pid}/exe"
    program, file = os.readlink(link), os.stat(link)
    # The first page of it is enough: the program comes before its libraries.
    maps = os.fsdecode(read_small(f"/proc/{pid}/maps", once=True))
    data = list(_data_of(program, maps.splitlines()))
    which = (file.st_dev, file.st_ino, file.st_mtime_ns)
    if not _places.get(which):
        everything = b"".join(os.pread(memory, end - start, start) for start, end in data)
        _places[which] = tuple(_where_twice(everything))
    for place in _places[which]:
        for start, end in data:
            if place < end - start:
                yield start + place
                break
            place -= end - start


def _text_at(memory: int, addresses: tuple[int, ...]) -> str | None:
    """The UUID that stands at all of these addresses."""
    result = set()
    with contextlib.suppress(OSError):  # nothing is there
        result = {os.pread(memory, UUID_LENGTH, address) for address in addresses}
    if len(result) != 1:
        return None
    text = result.pop()
    return text.decode() if _UUID.fullmatch(text) else None


def _where_twice(data: bytes) -> list[int]:
    """The places of the UUID that stands there twice: for CRIU, and for its library compel.

    Another one, of the dump that this one builds on, stands there once.
    """
    result: dict[bytes, list[int]] = {}
    for match in _RUN_ID.finditer(data):
        start = match.end() - 1 - UUID_LENGTH
        text = data[max(0, start) : match.end() - 1]
        if _UUID.fullmatch(text):
            result.setdefault(text, []).append(start)
    twice = [places for places in result.values() if len(places) > 1]
    return twice[0] if len(twice) == 1 else []


def _data_of(program: str, lines: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Where a program's variables are: its own writable pages and the nameless ones behind."""
    is_own = False
    for line in lines:
        where, access, _, _, _, *path = line.split(None, 5)
        was_own, is_own = is_own, path == [program] or (is_own and not path)
        if was_own and not is_own:
            return
        if is_own and "w" in access:
            start, _, end = where.partition("-")
            yield int(start, 16), int(end, 16)


# ---- where ----


@contextlib.contextmanager
def in_network_of(pid: int) -> Iterator[bool]:
    """Be in a process's network namespace, with this thread alone; False if it is ours."""
    with (
        open("/proc/thread-self/ns/net", "rb") as ours,
        open(f"/proc/{pid}/ns/net", "rb") as theirs,
    ):
        if os.path.sameopenfile(ours.fileno(), theirs.fileno()):
            yield False
            return
        _enter(theirs.fileno())
        try:
            yield True
        finally:
            _enter(ours.fileno())


def _enter(fd: int) -> None:
    status = native.pn_enter_network(fd)
    if status:
        raise OSError(-status, "a network namespace cannot be entered")


# ---- nftables ----


def delete_table(run: str) -> bool:
    """Take away the table of a run in the namespace that we are in; False if there is none."""
    name = f"CRIU-{run}"
    return any([_delete(name[:LONGEST_TABLE]), _delete(name)])


def has_table(run: str) -> bool:
    """Whether there is the table of a run in the namespace that we are in."""
    name = f"CRIU-{run}"
    return _ask(_message(GET_TABLE, REQUEST, PROTO_INET, 0, _attribute(name)), name)


def _message(kind: int, flags: int, family: int, resource: int, body: bytes = b"") -> bytes:
    head = struct.pack("=BBH", family, 0, socket.htons(resource))
    return struct.pack("=IHHII", 16 + len(head) + len(body), kind, flags, 1, 0) + head + body


def _attribute(name: str) -> bytes:
    data = name.encode() + b"\0"
    return struct.pack("=HH", 4 + len(data), TABLE_NAME) + data + bytes(-len(data) % 4)


def _delete(name: str) -> bool:
    batch = (
        _message(BATCH_BEGIN, REQUEST, 0, NFTABLES)
        + _message(DELETE_TABLE, REQUEST | ACK, PROTO_INET, 0, _attribute(name))
        + _message(BATCH_END, REQUEST, 0, NFTABLES)
    )
    return _ask(batch, name)


def _ask(messages: bytes, name: str) -> bool:
    """What the kernel says to this of a table; False where there is none."""
    try:
        line = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return False  # a kernel without it
        raise
    with line:
        line.settimeout(PATIENCE)
        line.send(messages)
        answer = line.recv(65536)
    _, kind, _, _, _, code = struct.unpack_from("=IHHIIi", answer)
    if kind != NLMSG_ERROR or code == 0:
        return True
    if -code in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
        return False  # EINVAL: no nftables in this kernel
    raise OSError(-code, f"{os.strerror(-code)}: table inet {name}")


# ---- iptables ----


def has_chain() -> bool:
    """Whether there is a chain CRIU, in the namespace that we are in."""
    return any(":CRIU " in "\n".join(_saved(words)) for words in _families())


def delete_rules(connections: Collection[Ends]) -> int:
    """Take away CRIU's rules for these connections, and tell how many there were."""
    result = list(_rules(connections))
    for family, words in result:
        _run(family, "-w", "-D", *words)
    return len(result)


def count_rules(connections: Collection[Ends]) -> int:
    """How many rules of CRIU's there are for these connections."""
    return len(list(_rules(connections))) if connections else 0


def _rules(connections: Collection[Ends]) -> Iterator[tuple[str, list[str]]]:
    """Program and words of each rule of CRIU's for these connections."""
    both = {*connections, *(ends.turned() for ends in connections)}
    for family in _families():
        for line in _saved(family):
            words = shlex.split(line)
            if words[:1] == ["-A"] and _rule_for(words) in both:
                yield family, words[1:]


def delete_chain() -> None:
    """Take away the chain CRIU and the jumps to it."""
    for family in _families():
        if ":CRIU " not in "\n".join(_saved(family)):
            continue
        for place in ("INPUT", "OUTPUT"):
            while _run(family, "-w", "-D", place, "-j", "CRIU")[0] == 0:
                pass
        _run(family, "-w", "-F", "CRIU")
        _run(family, "-w", "-X", "CRIU")


def _rule_for(words: list[str]) -> Ends | None:
    """The connection that a rule of CRIU's is about; None for a rule that is not CRIU's."""
    given = dict(itertools.pairwise(words))
    is_criu = f"-m mark ! --mark {MARK}" in " ".join(words).lower() and given.get("-j") == "DROP"
    try:
        if not is_criu:
            return None
        hosts = [given[flag].partition("/")[0] for flag in ("-s", "-d")]
        return Ends(hosts[0], int(given["--sport"]), hosts[1], int(given["--dport"]))
    except (KeyError, ValueError):
        return None


def _families() -> Iterator[str]:
    for name in ("iptables", "ip6tables"):
        for directory in SEARCH_PATH.split(":"):
            path = os.path.join(directory, name)
            if os.access(path, os.X_OK):
                yield path
                break


def _saved(family: str) -> list[str]:
    """The rules of the filter table."""
    # No -t filter: the programs would then load the module that nobody has asked for.
    status, message = _run(family, "-w", "-S")
    if status:
        return []
    return [f":{line[3:]} " if line.startswith("-N ") else line for line in message.splitlines()]


def _run(program: str, *words: str) -> tuple[int | None, str]:
    """Exit status and output of a program, which inherits this thread's network namespace."""
    stderr_text = os.memfd_create("iptables", os.MFD_CLOEXEC)
    with open(os.dup(stderr_text), "rb") as output:
        try:
            pid, pidfd = spawn([program, *words], env={}, stdin=-1, output=stderr_text, keep=[])
        except ProgramError:
            os.close(stderr_text)
            return None, ""
        process = ChildProcess(pid, pidfd, stderr_text)
        process.wait(PATIENCE)
        output.seek(0)
        return process.status, output.read().decode(errors="replace")
