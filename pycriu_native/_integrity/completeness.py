"""Checks that an image set has all images to which its images refer.

``problems`` yields each missing image. A restore refuses a set at the first; ``images.inspect``
lists all. CRIU treats a missing image as an empty one (``criu/image.c``, ``do_open_image``, 4.2),
so that memory, files and queues would be restored empty, without an error.

Not derivable from CRIU's images: queues of sockets (``sk-queues.img``) and of terminals, file
locks, System V queues and semaphores, and firewall rules, which CRIU writes only if there are some
and to which no image refers. The record of a dump covers these (``dump_record.py``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from .._support.no_fork import no_fork
from .image_files import (
    WINDOW,
    DamagedError,
    ImageFiles,
    Problem,
    Row,
    kind_at,
    kind_of,
    replaced,
    short,
)
from .stored_pages import missing, stored_pages

RESTORABLE = (2, 3)
"""Versions of the format that CRIU 3.17 to 4.3 write; 3 is compressed."""

# Values in CRIU's messages (images/*.proto).
_PIPE, _FIFO, _INETSK, _TTY, _MEMFD = 2, 3, 4, 11, 18
_TMPFS, _AUTOFS = 5, 18
_ANON_SHARED, _SYSVIPC = 1 << 8, 1 << 10
_TCP, _DEAD, _FILTER, _S_IFREG = 6, 2, 2, 0o100000
_ROOTS = tuple(int.from_bytes(path, "little") for path in (b"/", b"./", b"."))
_GHOST = 1
_NET, _IPC, _UTS, _MNT, _USER, _TIME = range(6)
"""Places of the namespaces in the columns of a process's ids."""
_KIND, _ID, _FLAGS, _SIZE, _INODE, _PROTOCOL, _STATE = range(1, 8)
_FIFO_PIPE, _FIFO_FILE, _PIPE_ID, _PIPE_FLAGS, _TTY_INFO, _TTY_FILE, _MEMFD_INODE = range(8, 15)
"""Columns of a file."""

_WITH_DATA = (
    (_PIPE, "pipes-data.img", _PIPE_ID),
    (_FIFO, "fifo-data.img", _FIFO_PIPE),
    (_TTY, "tty-info.img", _TTY_INFO),
    (_MEMFD, "memfd.img", _MEMFD_INODE),
)
"""Kinds of file with an entry in another image: the image, and the column that has its number."""

_OF_NAMESPACE = {_IPC: "ipcns-var", _UTS: "utsns", _MNT: "mountpoints", _USER: "userns"}
"""The image of each namespace, by kind."""

_NEVER_EMPTY = frozenset(
    [
        *("CORE", "MM", "FS", "IDS", "PSTREE", "UTSNS", "GHOST_FILE", "TCP_STREAM", "MNTS"),
        *("TIMENS", "FDINFO", "REMAP_FPATH", "TTY_DATA", "SK_QUEUES", "FILE_LOCKS", "SECCOMP"),
        *("CGROUP", "NETNS", "NETDEV", "IPC_VAR", "IPCNS_SHM", "IPCNS_MSG", "IPCNS_SEM"),
    ]
)
"""Kinds of image that CRIU creates with their first message."""


def is_pre_dump(files: ImageFiles) -> bool:
    """Whether a set is that of a pre-dump: memory, and no other state of the processes."""
    if "pstree.img" in files.names:
        return False
    try:
        inventory = files.first("inventory.img")
    except DamagedError:
        return False
    images = (name for name in files.names if name.endswith(".img"))
    return (
        inventory is not None
        and inventory[1] in (*RESTORABLE, _UNSET)  # CRIU sets no version for a pre-dump
        and all(name.partition("-")[0] in _PRE_DUMP for name in images)
    )


_UNSET = 0
"""The value of a field that is not set."""
_PRE_DUMP = ("inventory.img", "pagemap", "pages", "cpuinfo.img")


def problems(files: ImageFiles, parents: list[ImageFiles], *, broken: bool) -> Iterator[Problem]:
    """The problems of a set, the worst first; none for a complete one.

    ``broken``: not all parents could be opened, which the caller has reported.
    """
    if "inventory.img" not in files.names:
        yield from files.missing("inventory.img")
        return
    try:
        yield from _Set(files, parents, broken).problems()
    except DamagedError as damaged:
        yield damaged.problem


class _Set:
    """The images of a set, checked by the references from its inventory on."""

    def __init__(self, files: ImageFiles, parents: list[ImageFiles], broken: bool) -> None:
        self.files = files
        self.broken = broken
        self.parents = parents
        self.host: tuple[int, ...] = ()
        """Numbers of the namespaces that CRIU was in."""
        self.root: Sequence[int] = ()
        """Those of the namespaces of the root process."""
        self.cgroup = 0
        """Number of the set of control groups that CRIU was in."""
        self.connections = False
        """Whether the connections of TCP sockets were dumped."""
        self.by_id: dict[int, Row] = {}
        """Columns of each file."""
        self.pagemaps: set[str] = set()
        self.owners: dict[int, int] = {}
        """The process of each memory: CRIU saves no two processes that share one."""
        self.absent: set[str] = set()
        """Tables of descriptors without an image."""
        self.used: set[int] = set()
        """Files that other images refer to."""
        self.spaces: dict[tuple[int, int], None] = {}
        """The saved namespaces, by kind and number, in order."""

    def problems(self) -> Iterator[Problem]:
        inventory = self.files.first("inventory.img")
        if inventory is None:
            raise short("inventory.img")
        _, version, *host, self.cgroup, tcp_close, run_id, _ = inventory
        if version not in RESTORABLE and not is_pre_dump(self.files):
            return  # the format of an older CRIU, or of a later one
        self.host = tuple(host)
        # CRIU 4.1 and later record whether connections were left out.
        self.connections = run_id != 0 and not tcp_close
        for name in sorted(self.files.names):
            yield from self._framing(name)
        if not is_pre_dump(self.files):
            yield from self._dump()
        owners: dict[str, str] = {}
        for name in sorted(self.files.names):
            if name.startswith("pagemap-") and kind_of(name):
                layers = [self.files, *self.parents]
                yield from stored_pages(name, layers, self.broken, owners)

    def _framing(self, name: str) -> Iterator[Problem]:
        """Every image must be of its kind and reach to its end."""
        kind = kind_of(name)
        try:
            if kind is not None:
                # Page maps are read with their pages.
                if kind != "PAGEMAP" and not self.files.rows(name) and kind in _NEVER_EMPTY:
                    raise short(name)
            elif name.endswith(".img") and not name.startswith("pages-"):
                self._raw(name)
        except DamagedError as damaged:
            self.files.names.discard(name)  # reported once
            yield damaged.problem

    def _raw(self, name: str) -> None:
        """An image that another program made has no messages."""
        pieces = self.files.pieces(name)
        first = next(pieces, b"")
        if kind := kind_at(first):
            raise DamagedError(Problem(f"{name} is damaged: it is an image of {kind}"))
        stem = name.partition("-")[0]
        if name.endswith(".tar.gz.img"):
            _check_gzip(name, chain((first,), pieces))
        elif (size := self.files.size(name)) > _LARGEST_RAW:
            raise DamagedError(replaced(name, f"{size} bytes are too many"))
        elif magic := _SAVED_BY_IP.get(stem):
            _check_netlink(name, magic, first + b"".join(pieces))
        elif end := _LAST_LINE.get(stem):
            _check_rules(name, first + b"".join(pieces), end)

    def _dump(self) -> Iterator[Problem]:
        yield from self.files.missing("pstree.img")
        yield from self.files.missing("files.img")
        self.by_id = {row[_ID]: row for row in self.files.rows("files.img")}
        processes: dict[int, list[int]] = {}
        for _, pid, tid in self.files.rows("pstree.img"):
            processes.setdefault(pid, []).append(tid)
        for pid, threads in processes.items():
            yield from self._process(pid, threads)
        for kind, space in self.spaces:
            if kind == _MNT and self.root and self.root[_MNT] == self.host[_MNT]:
                continue  # CRIU saves no mounts if the root of the tree has those of the host
            yield from self._namespace(kind, space)
        if "files.img" in self.files.names:
            yield from self._files()
            for number in sorted(self.used - self.by_id.keys()):
                yield Problem(f"files.img has no file {number:#x}, which other images refer to")
            if self.absent and self._unused(processes):
                for table in sorted(self.absent):
                    yield from self.files.missing(table)

    # ---- processes ----

    def _process(self, pid: int, threads: list[int]) -> Iterator[Problem]:
        files = self.files
        yield from files.missing(f"core-{pid}.img")
        core = files.first(f"core-{pid}.img")
        if core is None:
            return
        if core[1] == _DEAD:
            # A zombie has no other image, and its thread ids are not initialized.
            if f"mm-{pid}.img" in files.names:
                yield replaced(f"core-{pid}.img", f"it is that of a zombie (mm-{pid}.img is there)")
            return
        if core[1] == _UNSET:
            yield replaced(f"core-{pid}.img", "it is that of a thread, not of a process")
        for name in (f"mm-{pid}.img", f"fs-{pid}.img"):
            yield from files.missing(name)
        for tid in filter(None, threads):
            yield from self._thread(pid, tid)
        yield from self._resources(pid, core)

    def _resources(self, pid: int, core: Row) -> Iterator[Problem]:
        """The descriptors, namespaces, directories and memory of a process."""
        files = self.files
        table, *namespaces, memory = (files.first(f"ids-{pid}.img") or core[5:])[1:]
        if not table:
            yield from files.missing(f"ids-{pid}.img")
            if f"ids-{pid}.img" in files.names:
                yield Problem(f"ids-{pid}.img has no number of a table of descriptors")
        elif f"fdinfo-{table}.img" not in files.names:
            self.absent.add(f"fdinfo-{table}.img")
        if memory and (owner := self.owners.setdefault(memory, pid)) != pid:
            yield replaced(f"ids-{pid}.img", f"it is that of process {owner}")
        self.root = self.root or namespaces
        for kind, space in enumerate(namespaces):
            clocks = kind == _TIME  # those of the host are saved as well
            if space and (clocks or space != self.host[kind]):
                self.spaces[kind, space] = None
        self.used.update(file for _, file in files.rows(f"fdinfo-{table}.img"))
        for _, working_directory, root in files.rows(f"fs-{pid}.img"):
            self.used |= {working_directory, root}
        yield from self._memory(pid, namespaces)

    def _memory(self, pid: int, namespaces: Sequence[int]) -> Iterator[Problem]:
        if f"pagemap-{pid}.img" not in self.files.names:
            yield Problem(
                "the images have no memory pages: they were sent to a page_server (there is no "
                f"pagemap-{pid}.img)",
                "put the images of both directories into one, and use that as images_directory",
                ("page_server", "images_directory"),
            )
        rows = self.files.rows(f"mm-{pid}.img")
        if rows and (program := self.by_id.get(rows[0][1])) and program[_KIND] == _MEMFD:
            cause = f"the program of process {pid} is a memfd, which CRIU cannot restore"
            yield Problem(cause, "start the program from a file, and dump that process")
        for _, _, status, shared in rows:
            if status & _SYSVIPC:
                yield from self.files.missing(f"ipcns-shm-{namespaces[_IPC]}.img")
            elif status & _ANON_SHARED:
                yield from self._shared_memory(shared)

    def _thread(self, pid: int, tid: int) -> Iterator[Problem]:
        """The core of a thread, and what it refers to."""
        name = f"core-{tid}.img"
        yield from self.files.missing(name)
        core = self.files.first(name)
        if core is None:
            return
        if core[1] != _UNSET and tid != pid:
            yield replaced(name, "it is that of a process, not of a thread")
        _, _, group, mode, last_filter, own_group, *_ = core
        if mode == _FILTER:
            filters = self.files.rows("seccomp.img")
            if last_filter >= sum(1 for _, start in filters if start):
                yield from self.files.missing("seccomp.img")
        if self.cgroup and (group or own_group) not in (0, self.cgroup):
            yield from self.files.missing("cgroup.img")

    def _shared_memory(self, shared: int) -> Iterator[Problem]:
        name = f"pagemap-shmem-{shared}.img"
        if name not in self.files.names and name not in self.pagemaps:
            self.pagemaps.add(name)
            yield missing(name, "the page map of shared memory")

    # ---- files ----

    def _unused(self, processes: Iterable[int]) -> bool:
        """Whether there is a file that no image refers to.

        CRIU writes no image of a table without descriptors: an absent table is missing only if its
        files exist.
        """
        used = self.used
        used.update(row[2] for row in self.files.rows("remap-fpath.img"))
        used.update(right for _, right in self.files.rows("sk-queues.img"))
        for row in self.by_id.values():
            used.update(row[column] for column in (_FIFO_FILE, _TTY_FILE))
        for pid in processes:
            for _, executable, _, mapped in self.files.rows(f"mm-{pid}.img"):
                used |= {executable, mapped}
        return not self.by_id.keys() <= used

    def _files(self) -> Iterator[Problem]:
        files = self.files
        data = {
            kind: (name, column, {row[1] for row in files.rows(name)})
            for kind, name, column in _WITH_DATA
        }
        for row in self.by_id.values():
            kind = row[_KIND]
            if kind in data:
                flags = row[_PIPE_FLAGS]
                if kind == _FIFO and row[_FIFO_FILE] in self.by_id:
                    flags = self.by_id[row[_FIFO_FILE]][_FLAGS]
                if flags & os.O_WRONLY:
                    continue  # CRIU writes the data with the end that reads
                name, column, ids = data[kind]
                if row[column] not in ids:
                    yield from files.missing(name)
                    if name in files.names:
                        yield Problem(f"{name} has no entry {row[column]:#x}")
            elif kind == _INETSK and row[_PROTOCOL] == _TCP and row[_STATE] and self.connections:
                yield from files.missing(f"tcp-stream-{row[_INODE]:x}.img")
        for _, _, size, shared in files.rows("memfd.img"):
            if size:
                yield from self._shared_memory(shared)
        yield from self._deleted()

    def _deleted(self) -> Iterator[Problem]:
        files = self.files
        if "remap-fpath.img" not in files.names:
            if any(name.startswith("ghost-file-") for name in files.names):
                yield from files.missing("remap-fpath.img")
            return
        for _, file, number, kind in files.rows("remap-fpath.img"):
            if kind != _GHOST:
                continue
            name = f"ghost-file-{number:x}.img"
            yield from files.missing(name)
            ghost = files.first(name)
            if ghost is None or file not in self.by_id:
                continue
            contents, mode, chunks = ghost
            plain = mode & 0o170000 == _S_IFREG and not chunks
            size = self.by_id[file][_SIZE]
            if plain and contents < size:
                yield short(name).problem
            elif plain and size and contents > size:
                yield replaced(name, f"it has {contents} bytes of a file of {size}")

    # ---- namespaces ----

    def _namespace(self, kind: int, space: int) -> Iterator[Problem]:
        files = self.files
        if kind in _OF_NAMESPACE:
            yield from files.missing(f"{_OF_NAMESPACE[kind]}-{space}.img")
        if kind == _NET:
            yield from self._network(space)
        elif kind == _TIME and not {"timens-0.img", f"timens-{space}.img"} & files.names:
            # That of the host has the number 0.
            yield from files.missing(f"timens-{0 if space == self.host[kind] else space}.img")
        elif kind == _IPC:
            for _, in_pagemaps, shared in files.rows(f"ipcns-shm-{space}.img"):
                if in_pagemaps:
                    yield from self._shared_memory(shared)
        elif kind == _MNT:
            yield from self._mounts(files.rows(f"mountpoints-{space}.img"))

    def _network(self, space: int) -> Iterator[Problem]:
        conf = self.files.first(f"netns-{space}.img")
        needed = {f"{stem}-{space}.img" for stem in ("netns", "netdev", "ifaddr", "route")}
        # An external one has its name only, one that was not saved has no contents.
        if not (conf and conf[1]) and needed & self.files.names:
            for name in sorted(needed):
                yield from self.files.missing(name)

    def _mounts(self, mounts: list[Row]) -> Iterator[Problem]:
        # CRIU saves a file system by a mount of its root, unless that is external. A nested mount
        # namespace has external mounts of the outer one without their key.
        every = (self.files.rows(name) for name in self.files.names if kind_of(name) == "MNTS")
        outside = {
            device
            for rows in every
            for _, _, _, device, root, path, *external, _ in rows
            if path in _ROOTS or (root in _ROOTS and any(external))
        }
        for _, kind, number, device, root, *_, deleted in mounts:
            if device in outside or deleted or root not in _ROOTS:
                continue
            if kind == _TMPFS:
                old = f"tmpfs-{number}.tar.gz.img"
                if old not in self.files.names:
                    yield from self.files.missing(f"tmpfs-dev-{device}.tar.gz.img")
            elif kind == _AUTOFS:
                yield from self.files.missing(f"autofs-{device}.img")


_SAVED_BY_IP = {"ifaddr": 0x47361222, "route": 0x45311224, "route6": 0x45311224, "rule": 0x71706986}
"""The magic numbers of ``ip save``, by image."""
_NLMSG_HDRLEN = 16
_LARGEST_RAW = 2**28
"""Bytes of the largest image of another program that is read: millions of routes or rules."""


def _check_netlink(name: str, magic: int, data: bytes) -> None:
    """The output of ``ip save``: a magic number, then netlink messages."""
    if len(data) >= 4 and int.from_bytes(data[:4], "little") != magic:
        raise DamagedError(replaced(name, "it is no output of ip"))
    at = 4
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        if length < _NLMSG_HDRLEN:
            raise short(name)
        at += -(-length // 4) * 4
    if at != len(data):
        raise short(name)


_LAST_LINE = {"nftables": b"}", "iptables": b"COMMIT", "ip6tables": b"COMMIT"}
"""The ends of the texts of ``nft list ruleset`` and ``iptables-save``, without comments."""


def _check_rules(name: str, data: bytes, end: bytes) -> None:
    """Firewall rules reach to their last line; without rules there is no text."""
    lines = [line for line in data.splitlines() if line.strip() and not line.startswith(b"#")]
    if lines and lines[-1].rstrip() != end:
        raise short(name)


def _check_gzip(name: str, pieces: Iterator[bytes]) -> None:
    """An archive of a tmpfs must be complete: tar would unpack a truncated one in part."""
    with no_fork:
        import zlib  # few sets have one

    inflate = zlib.decompressobj(31)
    try:
        for piece in pieces:
            while piece and not inflate.eof:
                inflate.decompress(piece, WINDOW)
                piece = inflate.unconsumed_tail
            if inflate.eof:
                break  # tar reads no further
    except zlib.error as error:
        raise DamagedError(Problem(f"{name} is damaged: {error}")) from None
    if not inflate.eof:
        raise short(name)
