"""The result of ``inspect``: an image set as a value.

All values are frozen and have plain Python types; sizes are in bytes. ``to_dict()`` converts them
for JSON: a dict of the fields, in their order, and of the properties that ``computed`` lists;
tuples are lists, enums are their text, bytes are base64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .._support.frozen_dataclass import dataclass, field
from .._support.light_typing import Any
from ..enums import NetworkLock
from ..errors import ImagesError
from ..results import DumpStatistics, RestoreStatistics
from .memory import Memory
from .memory_mapping import MemoryMapping, Value

# --- Files --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class File(Value):
    """An open file, which several descriptors can share."""

    id: int
    type: str
    """CRIU's name: ``REG``, ``PIPE``, ``INETSK``."""
    flags: int = 0
    """Flags of open(2)."""

    @property
    def label(self) -> str:
        """The file in one line."""
        return f"{self.type.lower()}:[{self.id}]"


@dataclass(frozen=True, kw_only=True, slots=True)
class RegularFile(File):
    """A file, directory or device that has a path."""

    path: str
    position: int = 0
    mode: int | None = None
    """Type and permissions: ``st_mode`` of stat(2)."""
    size: int | None = None
    """Size at the dump. A restore fails if the size differs."""
    mount: int = -1
    """The id of its mount; -1 in the mount namespace of the host."""
    build_id: str | None = None
    """Build id of an ELF file, in hexadecimal."""
    external: bool = False
    """Whether the restore needs it in ``inherit_fds``."""
    deleted: str | None = None
    """For a file without a name at the dump: ``ghost`` (its contents are in the images),
    ``linked`` (CRIU created a link in the same directory) or ``procfs``."""
    ghost_size: int | None = None
    """Size of its contents in the images."""
    remap: int | None = None
    """The id of the ghost file, or of the link that CRIU created."""

    @property
    def label(self) -> str:
        more = f" ({self.deleted}, deleted)" if self.deleted else ""
        return self.path + more


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipe(File):
    """One end of a pipe, or of a named pipe."""

    pipe: int
    """The inode, which is the same for both ends."""
    queued: int = 0
    """Bytes in the pipe."""
    capacity: int | None = None
    """Capacity in bytes."""
    path: str | None = None
    """Path of a named pipe."""

    @property
    def label(self) -> str:
        more = f" {self.queued} bytes queued" if self.queued else ""
        return f"{self.path or f'pipe:[{self.pipe}]'}{more}"


@dataclass(frozen=True, kw_only=True, slots=True)
class InetSocket(File):
    """A socket of IPv4 or IPv6."""

    inode: int
    family: str
    kind: str
    """``STREAM``, ``DGRAM``, ``RAW``."""
    protocol: str
    """``TCP``, ``UDP``, or its number."""
    state: str
    local: str
    """``127.0.0.1:80``; an IPv6 address is in brackets."""
    remote: str | None
    backlog: int = 0
    received: int = 0
    """Bytes in the receive queue."""
    unacknowledged: int = 0
    """Bytes in the send queue."""
    device: str | None = None
    """The network device that it is bound to."""
    namespace: int | None = None
    shares_port: bool = False
    """Whether it has SO_REUSEADDR or SO_REUSEPORT."""
    only_ipv6: bool = False
    """Whether it has IPV6_V6ONLY: another socket can have the same port of IPv4."""

    @property
    def label(self) -> str:
        queues = f" in {self.received} out {self.unacknowledged}" if self.connected else ""
        to = f" -> {self.remote}" if self.remote else ""
        return f"{self.protocol.lower()} {self.local}{to} {self.state}{queues}"

    @property
    def connected(self) -> bool:
        """Whether it is a TCP connection, which needs ``tcp_established`` or ``tcp_close``.

        Also one that both ends have closed.
        """
        return self.protocol == "TCP" and self.remote is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class UnixSocket(File):
    """A Unix domain socket."""

    inode: int
    kind: str
    state: str
    name: str
    """The path, ``@name`` for an abstract one, empty without one."""
    peer: int = 0
    """The inode of the other end; 0 for none."""
    backlog: int = 0
    queued: int = 0
    """Bytes of messages in it."""
    external: bool = False
    """Whether it belongs to a process outside the tree to which the dumped ones are connected."""
    deleted: bool = False
    """Whether its name was removed: a restore creates it, with its directories, and removes it."""
    namespace: int | None = None

    @property
    def label(self) -> str:
        to = f" -> [{self.peer}]" if self.peer else ""
        more = f" {self.queued} bytes queued" if self.queued else ""
        outside = " external" if self.external else ""
        name = f" {self.name}" if self.name else ""
        return f"unix:[{self.inode}]{to}{name} {self.kind} {self.state}{more}{outside}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Terminal(File):
    """A terminal: one end of a pseudo terminal, or a console."""

    kind: str
    """``PTY``, ``CONSOLE``, ``VT``, ``CTTY``, ``EXT_TTY``, ``SERIAL``."""
    index: int | None = None
    """``/dev/pts/INDEX``."""
    session: int = 0
    group: int = 0
    """The foreground process group."""
    path: str | None = None
    inherited: bool = False
    """Whether the leader of its session is not dumped, such as a shell."""

    @property
    def label(self) -> str:
        return f"tty {self.path or self.index} (session {self.session})"


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherFile(File):
    """An open file of another type: an eventfd, a timerfd, an inotify instance, a memfd."""

    details: Mapping[str, Any]
    """Its message, as ``decode`` shows it."""

    @property
    def label(self) -> str:
        name = self.details.get("name")
        return f"{self.type.lower()}:[{self.id}]{f' {name}' if name else ''}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Descriptor(Value):
    """One file descriptor of a process."""

    fd: int
    file: int
    """The id in ``ImageSet.files``."""
    close_on_exec: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class FileLock(Value):
    """A lock that a process holds on a file."""

    pid: int
    fd: int
    kind: str
    """``posix``, ``flock``, ``ofd`` or ``lease``."""
    type: int
    """Type of the lock: see fcntl(2)."""
    start: int
    length: int
    """0: to the end of the file."""


# --- Processes ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials(Value):
    """Credentials of a thread: user, groups, capabilities."""

    uid: int
    gid: int
    euid: int
    egid: int
    groups: tuple[int, ...]
    effective: tuple[str, ...]
    """Capabilities, by name."""
    permitted: tuple[str, ...]
    inheritable: tuple[str, ...]
    bounding: tuple[str, ...]
    ambient: tuple[str, ...]
    no_new_privileges: bool = False
    lsm_profile: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Thread(Value):
    """One thread."""

    tid: int
    name: str
    nice: int = 0
    policy: int = 0
    """Scheduling policy: see sched(7)."""
    credentials: Credentials | None = None
    """None if the images do not have them for each thread."""
    seccomp: str = "disabled"
    instruction: int | None = None
    """The instruction pointer, on x86-64 and AArch64."""
    stack: int | None = None
    """The stack pointer."""
    cpu_state: int = 0
    """Parts of the processor's extended state that it uses, as bits of XSTATE_BV (x86-64)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timer(Value):
    """A running timer of a process."""

    kind: str
    """``real``, ``virtual``, ``profiling`` (setitimer), ``posix`` or ``timerfd``."""
    clock: int | None
    """Clock id of clock_gettime(2)."""
    value: float
    """Seconds until it expires."""
    interval: float
    """Seconds between later expirations; 0 for none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Process(Value):
    """One process."""

    computed = ("memory_by_kind",)

    pid: int
    parent: int
    """0 for the root of the tree."""
    group: int
    session: int
    name: str
    state: str
    """``alive``, ``stopped`` or ``zombie``; a zombie has no memory and no files."""
    exit_code: int = 0
    children: tuple[int, ...] = ()
    command: tuple[str, ...] | None = None
    """The command line, from the memory of the process. None if it is not in the images."""
    environment: tuple[str, ...] | None = None
    """``NAME=value``, as given to execve(2). None if it is not in the images."""
    executable: str | None = None
    cwd: str | None = None
    root: str | None = None
    umask: int | None = None
    architecture: str = ""
    threads: tuple[Thread, ...] = ()
    credentials: Credentials | None = None
    mappings: tuple[MemoryMapping, ...] = ()
    guard_regions: tuple[tuple[int, int], ...] = ()
    """Start and end of each range of guard pages (madvise MADV_GUARD_INSTALL) in the mappings.

    CRIU saves them from 4.2 on; glibc has them in the stacks of threads from 2.42 on."""
    descriptors: tuple[Descriptor, ...] = ()
    timers: tuple[Timer, ...] = ()
    namespaces: Mapping[str, int] = field(default_factory=dict)
    """Kind and id, such as ``{"net": 9}``; equal ids are one namespace."""
    cgroups: Mapping[str, str] = field(default_factory=dict)
    """The path of the cgroup, by controllers."""
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Resource limits, soft and hard; 2**64 - 1 is no limit."""
    pending_signals: int = 0
    oom_score_adj: int = 0
    files_table: int | None = None
    """Processes with the same number share their descriptors (CLONE_FILES)."""
    pagemap: int | None = None
    pointer_authentication: bool = False
    """Whether its images have keys of an Arm processor's pointer authentication (PAC)."""
    page_size: int = 0
    """Bytes of a page on the host of the dump; 0 without memory."""
    source: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """The directories that its memory is read from: the images, then their parents."""

    @property
    def memory(self) -> Memory:
        """The memory, to read and to search."""
        if self.pagemap is None:
            raise ImagesError(f"process {self.pid} ({self.state}) has no memory in these images")
        return Memory(self.pid, self.mappings, self.source, self.pagemap, self.page_size)

    @property
    def memory_by_kind(self) -> dict[str, dict[str, int]]:
        """``{"heap": {"size": …, "stored": …, "in_parent": …, "lazy": …, "zero": …}}``."""
        result: dict[str, dict[str, int]] = {}
        names = ("size", "stored", "in_parent", "lazy", "zero")
        for mapping in self.mappings:
            row = result.setdefault(str(mapping.kind), dict.fromkeys(names, 0))
            for name in names:
                row[name] += getattr(mapping, name)
        return result


# --- The set ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Mount(Value):
    """One mount of a mount namespace."""

    id: int
    parent: int
    namespace: int
    point: str
    type: str
    source: str
    root: str
    options: str
    external: str | None = None
    """Key that the restore needs in ``external``; empty for a mount that ``auto_ext_mnt``
    detects."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkDevice(Value):
    """One device of a network namespace."""

    namespace: int
    index: int
    name: str
    type: str
    """``LOOPBACK``, ``VETH``, ``BRIDGE``, …"""
    mtu: int
    address: str = ""
    """The hardware address."""
    peer: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Namespace(Value):
    """A namespace of the processes."""

    kind: str
    """``pid``, ``net``, ``mnt``, ``ipc``, ``uts``, ``user``, ``cgroup``, ``time``."""
    id: int
    host: bool
    """Whether CRIU ran in it: it is not saved, and a restore uses the namespace in which CRIU
    runs then."""
    external: str | None = None
    """Key that the restore needs in ``inherit_fds``."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Host name, uid maps, clock offsets, …"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cgroup(Value):
    """A directory of a cgroup hierarchy. A restore creates it if it manages cgroups."""

    controllers: tuple[str, ...]
    path: str
    properties: int
    """Number of its saved properties."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parent(Value):
    """A parent of the image set."""

    directory: str
    """Target of the ``parent`` link."""
    exists: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Image(Value):
    """One file of the set."""

    name: str
    category: str
    """``memory``, ``descriptions``, ``queues``, ``deleted files``, ``logs``, …"""
    size: int
    allocated: int
    """Bytes allocated on the disk, fewer than the size after a deduplication."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSet(Value):
    """A directory of images, read by ``inspect``."""

    computed = ("complete", "size", "size_by_category")

    directory: str
    kind: str
    """``dump``; or ``pre-dump``, which has memory only and cannot be restored."""
    version: int
    """Version of the format: 3 with compression (CRIU 4.3), else 2."""
    criu: str | None
    """The release that made it, from ``dump.log`` in the directory; None without that file. The
    images do not contain it."""
    criu_at_least: str | None
    """The earliest release from 4.1 to 4.3 that writes the fields of its inventory; None: older
    ones do, too."""
    kernel: str | None
    """Release of the kernel, from ``dump.log``."""
    run_id: str | None
    """CRIU's run id of the dump, from CRIU 4.1 on."""
    architecture: str
    lsm: str
    """Security module: ``NO_LSM``, ``SELINUX``, ``APPARMOR``."""
    compressed: bool
    network_lock: NetworkLock | None
    """How the dump locked the network. None: by iptables (before CRIU 3.16), or unknown."""
    tcp_close: bool
    allow_uprobes: bool
    plugins: tuple[str, ...]
    processes: tuple[Process, ...]
    """In the order of the images: parents before their children."""
    files: tuple[File, ...]
    mounts: tuple[Mount, ...]
    namespaces: tuple[Namespace, ...]
    devices: tuple[NetworkDevice, ...]
    cgroups: tuple[Cgroup, ...]
    locks: tuple[FileLock, ...]
    statistics: DumpStatistics | None
    restored: RestoreStatistics | None
    """Statistics of the last restore, if it wrote them to this directory."""
    parents: tuple[Parent, ...]
    """The chain of parents, the nearest first."""
    images: tuple[Image, ...]
    problems: tuple[str, ...]
    """Missing and truncated images, because of which a restore would fail."""

    @property
    def complete(self) -> bool:
        """Whether the set has all images that a restore needs."""
        return not self.problems

    @property
    def size(self) -> int:
        """Bytes of all files of the set, without its parents."""
        return sum(each.size for each in self.images)

    @property
    def size_by_category(self) -> dict[str, int]:
        """Bytes by category."""
        result: dict[str, int] = {}
        for each in self.images:
            result[each.category] = result.get(each.category, 0) + each.size
        return result

    @property
    def root(self) -> Process | None:
        """The root of the process tree; None for a pre-dump."""
        return self.processes[0] if self.processes else None

    def process(self, pid: int) -> Process:
        """One process. Raises ``ImagesError`` for an unknown pid."""
        for each in self.processes:
            if each.pid == pid:
                return each
        known = ", ".join(str(each.pid) for each in self.processes[:10])
        raise ImagesError(f"pid={pid}: not in {self.directory}, which has {known or 'no process'}")

    def file(self, number: int) -> File | None:
        """The open file with this id."""
        return next((each for each in self.files if each.id == number), None)

    def tree(self) -> Iterator[tuple[int, Process]]:
        """Depth and process, depth first, children in the order of the images."""
        by_pid = {each.pid: each for each in self.processes}
        seen: set[int] = set()
        roots = [each for each in self.processes if each.parent not in by_pid]
        waiting = [(0, each) for each in reversed(roots)]
        while waiting:
            depth, process = waiting.pop()
            if process.pid not in seen:
                seen.add(process.pid)
                yield depth, process
                waiting += [(depth + 1, by_pid[child]) for child in reversed(process.children)]
