"""What an image set must hold, derived from what its images refer to.

``problems`` gives each gap. A restore refuses a set at the first; ``images.inspect`` lists all.
CRIU takes a missing image for an empty one (``criu/image.c``, ``do_open_image``, 4.2), so that
memory, files and queues come back empty without an error.

Not derivable from CRIU's images: queues of sockets (``sk-queues.img``) and of terminals, file
locks, System V queues and semaphores, and firewall rules, which CRIU writes only where there are
some and nothing refers to. A manifest covers these (``manifest.py``).
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator

from .._native.ffi import ffi, memory, native
from .._support.frozen_dataclass import dataclass
from .._support.light_typing import TYPE_CHECKING
from .._system.regular_file import open_regular
from .._wire.image_kinds import COMMON, FORMATS, INVENTORY, PATTERNS, SERVICE
from .statistics import message_fields

if TYPE_CHECKING:
    from .pagemap import Runs

SMALL, FEW = 2**16, 256
"""Bytes and number of the files of a set that are read in one go."""

WINDOW = 2**20
"""Bytes of a larger image that are read at once."""

RESTORABLE = (2, 3)
"""Versions of the format that CRIU 3.17 to 4.3 write; 3 is compressed."""

_LONGEST = 2**28
"""Bytes of one message; the largest real ones are a few MiB."""

Fields = dict[int, list[int | bytes]]

_COMMON, _SERVICE, _INVENTORY = (n.to_bytes(4, "little") for n in (COMMON, SERVICE, INVENTORY))
_MAGIC = {name: magic.to_bytes(4, "little") for name, magic, *_ in FORMATS}
_TRAILER = {name: rest[1] if len(rest) > 1 else "" for name, _, *rest in FORMATS}
_BY_MAGIC = {magic: name for name, magic in _MAGIC.items()}

# Numbers of fields and values of CRIU's messages (images/*.proto).
_PID, _THREADS = 1, 5
_IDS_FILES, _IDS_NET, _IDS_IPC, _IDS_UTS, _IDS_MNT, _IDS_USER, _IDS_TIME = 2, 6, 7, 8, 9, 10, 12
_REG, _PIPE, _FIFO, _INETSK, _TTY, _MEMFD = 1, 2, 3, 4, 11, 18
_MEMBER = {_REG: 3, _PIPE: 18, _FIFO: 17, _INETSK: 4, _TTY: 19, _MEMFD: 20}
"""Type of a file, and the field of ``file_entry`` that describes it."""
_TMPFS, _AUTOFS = 5, 18
_ANON_SHARED, _SYSVIPC = 1 << 8, 1 << 10
_TCP, _DEAD, _FILTER, _S_IFREG = 6, 2, 2, 0o100000

_COPY_AGAIN = "copy the images again from where they were made, or give another images_directory"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that a set lacks."""

    cause: str
    cure: str = "give the images_directory of a dump that was complete"
    options: tuple[str, ...] = ("images_directory",)
    served: bool = False
    """A page server can have what is missing, as that of a lazy dump does."""


class DamagedError(Exception):
    """An image cannot be read to its end; the argument is a ``Problem``."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.cause)
        self.problem = problem


class ImageFiles:
    """The files of a directory, by name; small ones are read in one go."""

    def __init__(self, directory: int) -> None:
        self.directory = directory
        self._small = _small_files(directory)
        self.names = set(os.listdir(directory) if self._small is None else self._small)
        self._walked: dict[str, list[tuple[bytes, int]]] = {}

    def missing(self, name: str) -> Iterator[Problem]:
        """A problem, if there is no such file."""
        if name not in self.names:
            yield Problem(
                f"the images directory holds no images, or not all of them: there is no {name}"
            )

    def size(self, name: str) -> int:
        """Bytes of a regular file."""
        with self._opened(name) as fd:
            return os.fstat(fd).st_size

    def messages(self, name: str) -> list[tuple[bytes, int]]:
        """Each message of an image, and the bytes of data behind it; empty without the image.

        ``DamagedError`` for an image that is of another kind, or cut short.
        """
        if name not in self._walked:
            self._walked[name] = list(self._walk(name)) if name in self.names else []
        return self._walked[name]

    def entries(self, name: str) -> list[Fields]:
        """The fields of each message."""
        return [fields(message) for message, _ in self.messages(name)]

    def head(self, name: str) -> bytes:
        """The first bytes of a file."""
        data = self._small[name] if self._small is not None else None
        if data is not None:
            return data[:8]
        with self._opened(name) as fd:
            return os.pread(fd, 8, 0)

    def pieces(self, name: str) -> Iterator[bytes]:
        """A file from its beginning, in pieces."""
        data = self._small[name] if self._small is not None else None
        if data is not None:
            yield data
            return
        with self._opened(name) as fd:
            at = 0
            while piece := os.pread(fd, WINDOW, at):
                yield piece
                at += len(piece)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        try:
            fd = open_regular(name, dir_fd=self.directory)
        except OSError as error:
            raise DamagedError(
                Problem(f"{name} is damaged: it cannot be read as a file: {error.strerror}")
            ) from None
        try:
            yield fd
        finally:
            os.close(fd)

    def _walk(self, name: str) -> Iterator[tuple[bytes, int]]:
        kind = kind_of(name)
        assert kind is not None
        data = self._small[name] if self._small is not None else None
        if data is not None:
            yield from _walk(name, kind, len(data), lambda at, size: data[at : at + size])
            return
        with self._opened(name) as fd:
            window = _Window(fd)
            yield from _walk(name, kind, os.fstat(fd).st_size, window.take)


class _Window:
    """Reads a file in pieces of a window's size."""

    def __init__(self, fd: int) -> None:
        self._fd, self._at, self._data = fd, 0, b""

    def take(self, at: int, size: int) -> bytes:
        begin = at - self._at
        if begin < 0 or begin + size > len(self._data):
            self._data, self._at, begin = os.pread(self._fd, max(size, WINDOW), at), at, 0
        return self._data[begin : begin + size]


def _walk(
    name: str, kind: str, size: int, take: Callable[[int, int], bytes]
) -> Iterator[tuple[bytes, int]]:
    """The messages of an image, each with the size of what follows it."""
    start = 4 if kind == "INVENTORY" else 8
    _check_magic(name, kind, take(0, start))
    if size < start:
        raise short(name)
    at, first, chunks = start, True, False

    def message() -> bytes:
        nonlocal at
        length = int.from_bytes(take(at, 4), "little")
        if at + 4 + length > size or length > _LONGEST:
            raise short(name)
        data = take(at + 4, length)
        at += 4 + length
        return data

    trailer = _TRAILER[kind]
    while at < size:
        data = message()
        behind = 0
        if trailer == "ghost":
            entry = fields(data)
            if not first or number(entry, 9):
                behind = 0 if first else number(entry, 1)
                chunks = chunks or first
            else:
                behind = size - at
        elif trailer == "messages":
            for _ in range(number(fields(data), 3)):
                if at >= size:
                    raise short(name)
                queued = _rounded(number(fields(message()), 2), 8)
                at += queued
        elif trailer in _BEHIND:
            behind = _BEHIND[trailer](fields(data))
        at += behind
        if at > size:
            raise short(name)
        yield data, behind
        first = False


def _check_magic(name: str, kind: str, begin: bytes) -> None:
    """What a file begins with must be that of its kind, as far as the file reaches."""
    if kind == "INVENTORY":
        magic = _INVENTORY
    else:
        magic = (_SERVICE if kind in ("STATS", "IRMAP_CACHE") else _COMMON) + _MAGIC[kind]
    if begin != magic[: len(begin)]:
        other = _BY_MAGIC.get(begin[4:]) or ("INVENTORY" if begin[:4] == _INVENTORY else None)
        what = f"it is an image of {other}" if other else "it does not begin as an image of CRIU's"
        raise DamagedError(Problem(f"{name} is damaged: {what}, not of {kind}"))


_BEHIND: dict[str, Callable[[Fields], int]] = {
    "bytes": lambda entry: number(entry, 2),
    "length": lambda entry: number(entry, 2),
    "queues": lambda entry: number(entry, 1) + number(entry, 3),
    "pairs": lambda entry: number(entry, 2) + number(entry, 3),
    "segment": lambda entry: 0 if number(entry, 3) else _rounded(number(entry, 2), 4),
    "semaphores": lambda entry: _rounded(2 * number(entry, 2), 8),
}
"""Bytes behind a message, by the trailer of its kind."""


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def short(name: str) -> DamagedError:
    """The error for a file that was cut off."""
    return DamagedError(Problem(f"{name} is shorter than it was made", _COPY_AGAIN))


@functools.lru_cache(512)
def kind_of(name: str) -> str | None:
    """The kind of image that a name stands for; None for files of another format."""
    stem, _, ending = name.partition(".")
    if ending != "img":
        return None
    if stem in PATTERNS:
        return PATTERNS[stem]
    kind, _, tail = stem.rpartition("-")
    base = 16 if kind in ("ghost-file", "tcp-stream") else 10
    with contextlib.suppress(ValueError):
        int(tail, base)
        return PATTERNS.get(kind + "-")
    return None


def fields(message: bytes) -> Fields:
    """The fields of a message, as far as it is one."""
    result: Fields = {}
    with contextlib.suppress(ValueError):
        for field, value in message_fields(message):
            result.setdefault(field, []).append(value)
    return result


def number(entry: Fields, field: int, default: int = 0) -> int:
    """A field that is a number; as in protobuf, the last one counts."""
    value = entry.get(field, (default,))[-1]
    return value if isinstance(value, int) else default


def inner(entry: Fields, field: int) -> Fields:
    """A field that is a message; without fields where it is unset."""
    value = entry.get(field, (b"",))[-1]
    return fields(value) if isinstance(value, bytes) else {}


def _small_files(directory: int) -> dict[str, bytes | None] | None:
    """The names in a directory, and what is in the small images; None: there are too many."""
    buffer, images = memory("char[]", SMALL), memory("struct pn_image[]", FEW)
    count = native.pn_read_images(directory, buffer, SMALL, images, FEW)
    if count < 0:
        return None
    end = images[count - 1].data + max(images[count - 1].length, 0) if count else 0
    data = ffi.unpack(buffer, end)
    return {
        os.fsdecode(data[image.name : image.data]): None
        if image.length < 0
        else data[image.data : image.data + image.length]
        for image in images[0:count]
    }


def is_pre_dump(files: ImageFiles) -> bool:
    """Whether a set has what a pre-dump has: memory, and nothing of the processes."""
    try:
        inventory = files.entries("inventory.img")
    except DamagedError:
        return False
    images = (name for name in files.names if name.endswith(".img"))
    return (
        bool(inventory)
        and number(inventory[0], 1) in RESTORABLE
        and "pstree.img" not in files.names
        and all(name.partition("-")[0] in _PRE_DUMP for name in images)
    )


_PRE_DUMP = ("inventory.img", "pagemap", "pages", "cpuinfo.img")


def problems(
    files: ImageFiles, parents: list[ImageFiles], *, broken: bool = False
) -> Iterator[Problem]:
    """What a set lacks, the worst first; nothing for a whole one.

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
    """The images of a set, followed from its inventory to what they refer to."""

    def __init__(self, files: ImageFiles, parents: list[ImageFiles], broken: bool) -> None:
        self.files = files
        self.broken = broken
        self.parents = parents
        self.inventory: Fields = {}
        self.host: Fields = {}
        self.by_id: dict[int, tuple[int, Fields]] = {}
        self.pagemaps: set[str] = set()

    def problems(self) -> Iterator[Problem]:
        entries = self.files.entries("inventory.img")
        if not entries:
            raise short("inventory.img")
        self.inventory = entries[0]
        if number(self.inventory, 1) not in RESTORABLE:
            return  # of a CRIU so old that its images have another form, or of one to come
        self.host = inner(self.inventory, 3)
        for name in sorted(self.files.names):
            yield from self._framing(name)
        if not is_pre_dump(self.files):
            yield from self._dump()
        for name in sorted(self.files.names):
            if name.startswith("pagemap-") and kind_of(name):
                yield from _pages(name, [self.files, *self.parents], self.broken)

    def _framing(self, name: str) -> Iterator[Problem]:
        """Every image must be of its kind and reach to its end."""
        kind = kind_of(name)
        try:
            if kind is not None and kind != "PAGEMAP":  # those are looked at with their pages
                if not self.files.messages(name) and kind in _NEVER_EMPTY:
                    raise short(name)
            elif name.endswith(".img") and kind is None and not name.startswith("pages-"):
                begin = self.files.head(name)
                if begin[:4] == _COMMON and begin[4:] in _BY_MAGIC:
                    yield Problem(f"{name} is damaged: it is an image of {_BY_MAGIC[begin[4:]]}")
                elif name.startswith(("ifaddr-", "route-", "route6-", "rule-")):
                    _check_netlink(name, b"".join(self.files.pieces(name)))
                elif name.endswith(".tar.gz.img"):
                    _check_gzip(name, self.files.pieces(name))
                elif end := _LAST_LINE.get(name.partition("-")[0]):
                    _check_rules(name, b"".join(self.files.pieces(name)), end)
        except DamagedError as damaged:
            self.files.names.discard(name)  # told once
            yield damaged.problem

    def _dump(self) -> Iterator[Problem]:
        yield from self.files.missing("pstree.img")
        yield from self.files.missing("files.img")
        for entry in self.files.entries("files.img"):
            kind = number(entry, 1)
            self.by_id[number(entry, 2)] = kind, inner(entry, _MEMBER.get(kind, 0))
        absent: list[str] = []
        used: set[int] = set()
        spaces: dict[tuple[int, int], None] = {}
        for process in self.files.entries("pstree.img"):
            yield from self._process(process, absent, used, spaces)
        for kind, space in spaces:
            yield from self._namespace(kind, space)
        if "files.img" in self.files.names:
            yield from self._files()
            for number_ in sorted(used - self.by_id.keys()):
                yield Problem(f"files.img has no file {number_:#x}, which other images refer to")
            yield from self._tables(absent, used)

    # ---- processes ----

    def _process(
        self,
        process: Fields,
        absent: list[str],
        used: set[int],
        spaces: dict[tuple[int, int], None],
    ) -> Iterator[Problem]:
        files, pid = self.files, number(process, _PID)
        yield from files.missing(f"core-{pid}.img")
        core = next(iter(files.entries(f"core-{pid}.img")), {})
        if not core or number(inner(core, 3), 1) == _DEAD:
            return  # there is no more of a zombie, and the numbers of its threads are none
        for name in (f"mm-{pid}.img", f"fs-{pid}.img"):
            yield from files.missing(name)
        for tid in (each for each in process.get(_THREADS, ()) if isinstance(each, int)):
            yield from files.missing(f"core-{tid}.img")
            yield from self._task(next(iter(files.entries(f"core-{tid}.img")), {}))
        ids = next(iter(files.entries(f"ids-{pid}.img")), None) or inner(core, 4)
        if not ids:
            yield from files.missing(f"ids-{pid}.img")
        for kind in (_IDS_NET, _IDS_IPC, _IDS_UTS, _IDS_MNT, _IDS_USER, _IDS_TIME):
            own = kind == _IDS_TIME  # the clocks of the host's are saved as well
            if kind in ids and (own or number(ids, kind) != number(self.host, kind)):
                spaces[kind, number(ids, kind)] = None
        table = f"fdinfo-{number(ids, _IDS_FILES)}.img"
        if ids and table not in files.names:
            absent.append(table)
        for entry in files.entries(table):
            used.add(number(entry, 1))
        for entry in files.entries(f"fs-{pid}.img"):
            used |= {number(entry, 1), number(entry, 2)}
        if f"pagemap-{pid}.img" not in files.names:
            yield Problem(
                "the images have no memory pages: they went to a page_server (there is no "
                f"pagemap-{pid}.img)",
                "put the images of both directories into one and give that as images_directory",
                ("page_server", "images_directory"),
                served=True,
            )
        yield from self._memory(pid, number(ids, _IDS_IPC))

    def _task(self, core: Fields) -> Iterator[Problem]:
        """What the core of one thread refers to."""
        thread = inner(core, 5)
        if number(thread, 11) == _FILTER:
            entries = self.files.entries("seccomp.img")
            if number(thread, 12) >= sum(len(entry.get(1, ())) for entry in entries):
                yield from self.files.missing("seccomp.img")
        own = number(self.inventory, 5)
        group = number(inner(core, 3), 9) or number(thread, 16)
        if own and group not in (0, own):
            yield from self.files.missing("cgroup.img")

    def _memory(self, pid: int, ipc: int) -> Iterator[Problem]:
        for mm in self.files.entries(f"mm-{pid}.img"):
            for vma in mm.get(14, ()):
                status, shared = _shared(vma) if isinstance(vma, bytes) else (0, 0)
                if status & _SYSVIPC:
                    yield from self.files.missing(f"ipcns-shm-{ipc}.img")
                elif status & _ANON_SHARED:
                    yield from self._shared_memory(shared)

    def _shared_memory(self, shared: int) -> Iterator[Problem]:
        name = f"pagemap-shmem-{shared}.img"
        if name not in self.files.names and name not in self.pagemaps:
            self.pagemaps.add(name)
            yield Problem(
                f"there is no {name}, which tells where shared memory is",
                "give an images_directory that is whole; pages that went to a page_server are in "
                "its directory",
                ("images_directory", "page_server"),
                served=True,
            )

    # ---- files ----

    def _tables(self, absent: list[str], used: set[int]) -> Iterator[Problem]:
        """A table without an image is empty, if no process has descriptors and no file is left."""
        if not absent:
            return
        if any(kind_of(name) == "FDINFO" for name in self.files.names):
            for name in sorted(set(absent)):
                yield from self.files.missing(name)
            return
        for entry in self.files.entries("remap-fpath.img"):
            used.add(number(entry, 2))
        for kind, entry in self.by_id.values():
            used |= {number(entry, 6 if kind == _TTY else 3)} if kind in (_TTY, _FIFO) else set()
        for message, _ in self.files.messages("sk-queues.img"):
            for scm in fields(message).get(4, ()):
                rights = fields(scm).get(2, ()) if isinstance(scm, bytes) else ()
                used |= {each for each in rights if isinstance(each, int)}
        for process in self.files.entries("pstree.img"):
            for mm in self.files.entries(f"mm-{number(process, _PID)}.img"):
                used.add(number(mm, 12))
                used |= {_shared(vma)[1] for vma in mm.get(14, ()) if isinstance(vma, bytes)}
        if self.by_id.keys() - used:
            for name in sorted(set(absent)):
                yield from self.files.missing(name)

    def _files(self) -> Iterator[Problem]:
        files = self.files
        with_data = {
            _PIPE: ("pipes-data.img", self._ids("pipes-data.img", 1)),
            _FIFO: ("fifo-data.img", self._ids("fifo-data.img", 1)),
            _TTY: ("tty-info.img", self._ids("tty-info.img", 1)),
            _MEMFD: ("memfd.img", self._ids("memfd.img", 7)),
        }
        expected = {_PIPE: 2, _FIFO: 2, _TTY: 2, _MEMFD: 5}
        for kind, entry in self.by_id.values():
            if kind in with_data and entry:
                name, ids = with_data[kind]
                flags = entry
                if kind == _FIFO:
                    flags = self.by_id.get(number(entry, 3), (0, {}))[1]
                writes = number(flags, 3 if kind == _PIPE else 2) & os.O_WRONLY
                if kind in (_PIPE, _FIFO) and writes:
                    continue  # CRIU writes the data with the end that reads
                if number(entry, expected[kind]) not in ids:
                    yield from files.missing(name)
                    if name in files.names:
                        yield Problem(f"{name} has no entry {number(entry, expected[kind]):#x}")
            elif kind == _INETSK and number(entry, 5) == _TCP and number(entry, 8):
                # CRIU 4.1 and later record whether connections were left out.
                left_out = 13 not in self.inventory or number(self.inventory, 10)
                if not left_out:
                    yield from files.missing(f"tcp-stream-{number(entry, 2):x}.img")
        for inode in files.entries("memfd.img"):
            if number(inode, 4):
                yield from self._shared_memory(number(inode, 5))
        yield from self._deleted()

    def _ids(self, name: str, field: int) -> set[int]:
        return {number(entry, field) for entry in self.files.entries(name)}

    def _deleted(self) -> Iterator[Problem]:
        files = self.files
        if "remap-fpath.img" not in files.names:
            if any(name.startswith("ghost-file-") for name in files.names):
                yield from files.missing("remap-fpath.img")
            return
        for remap in files.entries("remap-fpath.img"):
            if number(remap, 3, 1) != 1:
                continue
            name = f"ghost-file-{number(remap, 2):x}.img"
            yield from files.missing(name)
            kept = files.messages(name)
            size = self.by_id.get(number(remap, 1), (0, {}))[1].get(8)
            head = fields(kept[0][0]) if kept else {}
            plain = number(head, 3) & 0o170000 == _S_IFREG and not number(head, 9)
            if plain and size and kept[0][1] < int(size[-1]):
                yield short(name).problem

    # ---- namespaces ----

    def _namespace(self, kind: int, space: int) -> Iterator[Problem]:
        files = self.files
        needed = {
            _IDS_IPC: f"ipcns-var-{space}.img",
            _IDS_UTS: f"utsns-{space}.img",
            _IDS_MNT: f"mountpoints-{space}.img",
            _IDS_USER: f"userns-{space}.img",
        }
        if kind in needed:
            yield from files.missing(needed[kind])
        if kind == _IDS_NET:
            yield from self._network(space)
        elif kind == _IDS_TIME and not {"timens-0.img", f"timens-{space}.img"} & files.names:
            yield from files.missing("timens-0.img")
        elif kind == _IDS_IPC:
            for segment in files.entries(f"ipcns-shm-{space}.img"):
                if number(segment, 3):
                    yield from self._shared_memory(number(inner(segment, 1), 7))
        elif kind == _IDS_MNT:
            yield from self._mounts(files.entries(f"mountpoints-{space}.img"))

    def _network(self, space: int) -> Iterator[Problem]:
        conf = next(iter(self.files.entries(f"netns-{space}.img")), {})
        needed = {f"{stem}-{space}.img" for stem in ("netns", "netdev", "ifaddr", "route")}
        # One that is external has no more than its name, one that was left out has nothing.
        if 8 not in conf and needed & self.files.names:
            for name in sorted(needed):
                yield from self.files.missing(name)

    def _mounts(self, mounts: list[Fields]) -> Iterator[Problem]:
        outside = {number(each, 3) for each in mounts if {12, 13, 18} & {*_set(each)}}
        root = {number(each, 3) for each in mounts if each.get(7, [b""])[-1] in (b"/", b"./", b".")}
        for each in mounts:
            device = number(each, 3)
            if device in outside | root or number(each, 16):
                continue
            if number(each, 1) == _TMPFS:
                old = f"tmpfs-{number(each, 2)}.tar.gz.img"
                if old not in self.files.names:
                    yield from self.files.missing(f"tmpfs-dev-{device}.tar.gz.img")
            elif number(each, 1) == _AUTOFS:
                yield from self.files.missing(f"autofs-{device}.img")


def _check_netlink(name: str, data: bytes) -> None:
    """What ``ip save`` writes: a magic number, then netlink messages."""
    at = 4
    while at + 4 <= len(data):
        at += max(_rounded(int.from_bytes(data[at : at + 4], "little"), 4), 4)
    if at != len(data):
        raise short(name)


_LAST_LINE = {"nftables": b"}", "iptables": b"COMMIT", "ip6tables": b"COMMIT"}
"""What the texts of ``nft list ruleset`` and ``iptables-save`` end with, comments aside."""


def _check_rules(name: str, data: bytes, end: bytes) -> None:
    """Firewall rules reach to their last line; without rules there is no text."""
    lines = [line for line in data.splitlines() if line.strip() and not line.startswith(b"#")]
    if lines and lines[-1].rstrip() != end:
        raise short(name)


def _check_gzip(name: str, pieces: Iterator[bytes]) -> None:
    """An archive of a tmpfs must be whole: tar gives what there is of one that is cut."""
    import zlib

    inflate = zlib.decompressobj(31)
    try:
        for piece in pieces:
            while piece and not inflate.eof:
                inflate.decompress(piece, WINDOW)
                piece = inflate.unconsumed_tail
    except zlib.error as error:
        raise DamagedError(Problem(f"{name} is damaged: {error}")) from None
    if not inflate.eof:
        raise short(name)


_NEVER_EMPTY = frozenset(
    ["CORE", "MM", "FS", "IDS", "PSTREE", "UTSNS", "GHOST_FILE", "TCP_STREAM", "MNTS", "TIMENS"]
)
"""Kinds of image that have a message, if CRIU made them."""


def _set(entry: Fields) -> Iterator[int]:
    """The fields that are not false."""
    return (field for field, values in entry.items() if values[-1])


@functools.lru_cache(4096)
def _shared(vma: bytes) -> tuple[int, int]:
    """Status and ``shmid`` of a mapping; processes that were forked have most in common."""
    entry = fields(vma)
    return number(entry, 7), number(entry, 4)


# ---- pages ----


def _pages(name: str, layers: list[ImageFiles], broken: bool) -> Iterator[Problem]:
    """The pages that a page map names must be in its pages file, or in a parent."""
    from array import array

    from .pagemap import IN_PARENT

    files, *parents = layers
    try:
        runs, pages = _runs(files, name)
    except DamagedError as damaged:
        yield damaged.problem
        return
    _, in_parent, elsewhere = runs.total
    if elsewhere:
        # CRIU would wait for them for ever (seen with 4.2.1).
        yield Problem(
            f"the images lack memory, which the lazy dump that made them kept to serve ({name})",
            "set lazy_pages, with a LazyPages daemon that is connected to the dump while it "
            "serves; if that has ended, dump again",
            ("lazy_pages",),
            served=True,
        )
    if runs.size and pages not in files.names:
        yield Problem(
            f"there is no {pages}, which holds contents of memory",
            "give an images_directory that is whole; pages that went to a page_server are in "
            "its directory",
            ("images_directory", "page_server"),
            served=True,
        )
    elif pages in files.names:
        try:
            size = files.size(pages)
        except DamagedError as damaged:
            yield damaged.problem
            return
        if size and not len(runs):
            yield short(name).problem  # its entries are gone, and their pages are there
        elif size < runs.size:
            yield Problem(
                f"{pages} is {runs.size - size} bytes shorter than {name} says", _COPY_AGAIN
            )
    if not in_parent:
        return
    lack = f"{name} has pages in a parent, and "
    cure = "bring the images of the pre-dumps along, in the same places"
    if not parents:
        if not broken:
            yield Problem(lack + "there is no parent link", cure, ("parent_image",))
        return
    if name not in parents[0].names:
        yield Problem(f"{lack}the parent has no {name}", cure, ("parent_image",))
        return
    try:
        below, _ = _runs(parents[0], name)
    except DamagedError as damaged:
        yield Problem(f"in the parent, {damaged.problem.cause}", cure, ("parent_image",))
        return
    expected = [run for _, run in runs.between(0, 2**64) if run[2] & IN_PARENT]
    counts = below.count(
        array("Q", (run[0] for run in expected)), array("Q", (r[1] for r in expected))
    )
    missing = in_parent - sum(stored + deeper for stored, deeper, _ in counts)
    if missing > 0:
        yield Problem(f"{lack}the parent lacks {missing} bytes of them", cure, ("parent_image",))
    for problem in _pages(name, parents, broken):
        yield Problem(f"in the parent, {problem.cause}", problem.cure, problem.options)


def _runs(files: ImageFiles, name: str) -> tuple[Runs, str]:
    """The runs of a page map, and the name of the file with the pages."""
    from .pagemap import Runs  # restores alone need it

    runs, head, rest = Runs(), None, b""
    for piece in files.pieces(name):
        rest += piece
        if head is None:
            _check_magic(name, "PAGEMAP", rest[:8])
            end = 12 + int.from_bytes(rest[8:12], "little")
            if len(rest) < end:
                raise short(name)
            head, rest = fields(rest[12:end]), rest[end:]
        taken, why = runs.take(rest)
        if why is not None:
            raise DamagedError(Problem(f"{name} is damaged: {why or 'this is no page map'}"))
        rest = rest[taken:]
    if head is None or rest:
        raise short(name)
    return runs, f"pages-{number(head, 1)}.img"
