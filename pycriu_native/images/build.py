"""Read a directory into an :class:`ImageSet`."""

from __future__ import annotations

import errno
import functools
import os
import re
import stat
from collections.abc import Iterator
from typing import Any

from .._integrity import set_check
from .._integrity import statistics as statistics_module
from .._integrity.completeness import is_pre_dump
from .._integrity.image_files import ImageFiles, kind_of
from .._integrity.page_size import HOST_PAGE, page_size
from .._system.descriptors import opened_directory
from .._system.huge_pages import MAP_HUGETLB, size_in
from .._system.regular_file import open_regular
from ..enums import NetworkLock
from ..errors import ImagesError
from ..results import DumpStatistics, RestoreStatistics
from . import kernel_names as names
from .files import Files
from .formats import category
from .json_messages import to_dict
from .memory_mapping import MemoryMapping, VmaKind
from .model import (
    Cgroup,
    Credentials,
    Descriptor,
    FileLock,
    Image,
    ImageSet,
    Mount,
    Namespace,
    NetworkDevice,
    OtherFile,
    Parent,
    Process,
    RegularFile,
    Thread,
    Timer,
)
from .pages import Counts, Layers
from .reader import damaged, expect
from .schema import enum_name
from .trailers import entries

LONGEST_CHAIN = 10_000
"""Maximum number of parents of a set: it is exceeded only if links change meanwhile."""
LONGEST_COMMAND = 4 * 2**20
"""Maximum bytes of a command line or an environment: the default limit of the kernel."""

_INVENTORY_SINCE = (
    ("4.3", ("compress", "compress_block_size")),
    ("4.2", ("allow_uprobes",)),
    ("4.1", ("dump_criu_run_id", "plugins_entry")),
)
"""Fields of the inventory, by the release that added them."""
_VERSION = re.compile(r"\bVersion: ([0-9][0-9.]*)")
_KERNEL = re.compile(r"\bRunning on \S+ Linux (\S+)")

# Bits of the status of a mapping (CRIU's criu/include/image.h).
_STACK, _VSYSCALL, _VDSO, _HEAP, _FILE_PRIVATE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 6
_FILE_SHARED, _ANON_SHARED, _ANON_PRIVATE, _SYSVIPC = 1 << 7, 1 << 8, 1 << 9, 1 << 10
_VVAR, _MEMFD = 1 << 12, 1 << 14
_GROWS_DOWN = 0x100
_GUARD = 1 << 16
"""CRIU's flag of an entry for a range of guard pages inside a mapping."""
_NAMESPACE_IDS = tuple((kind, f"{kind}_ns_id") for kind in names.NAMESPACES)
_PROTECTION = ("---", "r--", "-w-", "rw-", "--x", "r-x", "-wx", "rwx")


def inspect(directory: str | os.PathLike[str]) -> ImageSet:
    """Read the images in a directory.

    Nothing is changed, and CRIU is not needed. Images of CRIU 3.17 to 4.3 are supported, of all
    architectures. Missing and truncated files are listed in ``ImageSet.problems``, so that an
    incomplete set can be inspected.

    Raises ``ImagesError``, naming file and offset, for a directory without an ``inventory.img``,
    for invalid images, for symbolic links instead of images, and for a cycle of parents.
    """
    return _Builder(os.path.abspath(os.fsdecode(directory))).build()


def parents_of(directory: str) -> tuple[list[Parent], list[str]]:
    """The chain of ``parent`` links, and the directories that contain memory."""
    chain: list[Parent] = []
    layers = [directory]
    seen = {_identity(directory)}
    here = directory
    while os.path.lexists(link := os.path.join(here, "parent")):
        target = os.path.realpath(link)
        exists = os.path.isdir(target)
        chain.append(Parent(directory=target, exists=exists))
        if not exists:
            break
        identity = _identity(target)
        if identity in seen:
            raise ImagesError(
                f"{link} leads to {target}, whose parent it is itself", errno=errno.ELOOP
            )
        if len(chain) > LONGEST_CHAIN:
            raise ImagesError(f"{directory} has more than {LONGEST_CHAIN} parents")
        seen.add(identity)
        layers.append(target)
        here = target
    return chain, layers


def _identity(directory: str) -> tuple[int, int]:
    try:
        result = os.stat(directory)
    except OSError as error:
        raise ImagesError(
            f"{directory} cannot be opened: {error.strerror}", errno=error.errno
        ) from None
    return result.st_dev, result.st_ino


class _Builder:
    """Reads one directory; used once."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.parents, self.layers = parents_of(directory)
        self.images = self._list()
        self.sizes = {each.name: each.size for each in self.images}
        self.names = self.sizes.keys()
        self.problems = self._problems()
        self.shared: dict[int, Layers] = {}
        self.page = HOST_PAGE
        self.children: dict[int, list[int]] = {}
        self.files = Files(self.entries, self.ghost_size)
        self.sets: dict[int, dict[str, str]] = {}
        self.mappings: dict[tuple[int, int, int, int, int, int, int, Counts], MemoryMapping] = {}
        self.limits: dict[bytes, dict[str, tuple[int, int]]] = {}
        self.credentials: dict[bytes, Credentials] = {}
        self.texts: dict[bytes, tuple[str, ...]] = {}

    def _list(self) -> list[Image]:
        try:
            with os.scandir(self.directory) as result:
                listed = sorted(result, key=lambda entry: entry.name)
                return [
                    Image(
                        name=entry.name,
                        category=category(entry.name),
                        size=status.st_size,
                        allocated=status.st_blocks * 512,
                    )
                    for entry in listed
                    if stat.S_ISREG((status := entry.stat(follow_symlinks=False)).st_mode)
                ]
        except OSError as error:
            raise ImagesError(
                f"{self.directory} cannot be read: {error.strerror}", errno=error.errno
            ) from None

    def _problems(self) -> list[str]:
        """Why a restore would refuse the set. Lazy pages do not count as missing."""
        with opened_directory(self.directory) as fd:
            files = ImageFiles(fd)
            result = [
                each for each in set_check.problems(fd, files) if each.options != ("lazy_pages",)
            ]
            self.pre_dump = is_pre_dump(files)
        return list(dict.fromkeys(each.cause for each in result))

    # --- Single images --------------------------------------------------------------

    def path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def entries(self, name: str) -> list[Any]:
        """The entries of an image; none if the image does not exist."""
        kind = kind_of(name)
        assert kind is not None
        if not self._exists(name):
            return []
        with expect(self.path(name), kind) as file:
            return list(entries(file))

    def one(self, name: str, kind: str) -> Any:
        """The only entry of an image, or None if the image does not exist."""
        if not self._exists(name):
            return None
        with expect(self.path(name), kind) as file:
            return file.only()

    def _exists(self, name: str) -> bool:
        return name in self.names or os.path.lexists(self.path(name))

    def ghost_size(self, number: int) -> int | None:
        """Size of the contents of a ghost file in the images, in bytes."""
        name = f"ghost-file-{number:x}.img"
        if name not in self.names:
            return None
        with expect(self.path(name), "GHOST_FILE") as file:
            result, at = file.parse(file.start, "ghost_file_entry")
            if not result.chunks:
                return file.size - at
            size = 0
            while at < file.size:
                chunk, at = file.parse(at, "ghost_chunk_entry")
                if chunk.len > file.size - at:
                    raise damaged(file.path, at, f"a chunk of {chunk.len} bytes is truncated")
                size += chunk.len
                at += chunk.len
            return size

    # --- The set --------------------------------------------------------------------

    def build(self) -> ImageSet:
        inventory = self._inventory()
        tree = self.entries("pstree.img")
        for each in tree:
            self.children.setdefault(each.ppid, []).append(each.pid)
        files = self.files.load(frozenset(each.pid for each in tree if each.sid == each.pid))
        self._cgroup_sets()
        host = inventory.root_ids if inventory.HasField("root_ids") else None
        processes = tuple(self._process(each) for each in tree)
        if self.pre_dump:
            processes = tuple(self._pre_dumped())
        namespaces = self._namespaces(processes, host)
        criu, kernel = self._from_log()
        dump, restored = self._statistics()
        return ImageSet(
            directory=self.directory,
            kind="pre-dump" if self.pre_dump else "dump",
            version=inventory.img_version,
            criu=criu,
            criu_at_least=next(
                (
                    release
                    for release, fields in _INVENTORY_SINCE
                    if any(inventory.HasField(each) for each in fields)
                ),
                None,
            ),
            kernel=kernel,
            run_id=os.fsdecode(inventory.dump_criu_run_id) or None,
            architecture=next((each.architecture for each in processes), ""),
            lsm=enum_name("lsmtype", inventory.lsmtype),
            compressed=bool(inventory.compress),
            network_lock=_lock(inventory),
            tcp_close=inventory.tcp_close,
            allow_uprobes=inventory.allow_uprobes,
            plugins=tuple(map(os.fsdecode, inventory.plugins_entry.plugins)),
            processes=processes,
            files=files,
            mounts=tuple(self._mounts(namespaces)),
            namespaces=tuple(namespaces),
            devices=tuple(self._devices(namespaces)),
            cgroups=tuple(self._cgroups()),
            locks=tuple(self._locks()),
            statistics=dump,
            restored=restored,
            parents=tuple(self.parents),
            images=tuple(self.images),
            problems=tuple(self.problems),
        )

    def _inventory(self) -> Any:
        try:
            with expect(self.path("inventory.img"), "INVENTORY") as file:
                return file.only()
        except ImagesError as error:
            if error.errno != errno.ENOENT:
                raise
            why = "it has no images, or their dump failed"
            if os.path.exists(self.path("checkpoint/inventory.img")):
                why = "its directory checkpoint has one: this is the checkpoint of a container"
            raise ImagesError(
                f"{self.directory} has no inventory.img: {why}", errno=errno.ENOENT
            ) from None

    def _from_log(self) -> tuple[str | None, str | None]:
        """The releases of CRIU and the kernel, from the first lines of the dump's log."""
        for name in ("dump.log", "pre-dump.log"):
            try:
                fd = open_regular(self.path(name))
            except OSError:
                continue
            with open(fd, "rb") as file:
                head = file.read(8192).decode(errors="replace")
            version, kernel = _VERSION.search(head), _KERNEL.search(head)
            return version and version[1], kernel and kernel[1]
        return None, None

    def _statistics(self) -> tuple[DumpStatistics | None, RestoreStatistics | None]:
        with opened_directory(self.directory) as fd:
            return statistics_module.read_dump(fd), statistics_module.read_restore(fd)

    # --- Processes ------------------------------------------------------------------

    def _process(self, entry: Any) -> Process:
        pid = entry.pid
        core = self.one(f"core-{pid}.img", "CORE")
        task = core.tc if core is not None and core.HasField("tc") else None
        state = names.STATES.get(task.task_state, "unknown") if task else "unknown"
        known: dict[str, Any] = {}
        if state != "zombie" and core is not None:
            known = self._living(pid, core)
        thread = core.thread_core if core is not None and core.HasField("thread_core") else None
        cgroup = task.cg_set if task and task.HasField("cg_set") else None
        if cgroup is None and thread is not None and thread.HasField("cg_set"):
            cgroup = thread.cg_set
        return Process(
            pid=pid,
            parent=entry.ppid,
            group=entry.pgid,
            session=entry.sid,
            name=os.fsdecode(task.comm) if task else "",
            state=state,
            exit_code=task.exit_code if task else 0,
            children=tuple(self.children.get(pid, ())),
            architecture=enum_name("core_entry.march", core.mtype) if core is not None else "",
            # For a zombie, CRIU saves thread ids that it has not initialized.
            threads=tuple(self._threads(entry, core, task)) if known else (),
            pointer_authentication=core is not None and _has_keys(core.ti_aarch64.pac_keys),
            credentials=self._credentials(thread),
            cgroups=self.sets.get(cgroup, {}) if cgroup is not None else {},
            limits=self._limits(task.rlimits) if task else {},
            pending_signals=len(task.signals_s.signals) if task else 0,
            oom_score_adj=task.oom_score_adj if task else 0,
            source=tuple(self.layers),
            **known,
        )

    def _living(self, pid: int, core: Any) -> dict[str, Any]:
        """Properties that a zombie lacks: memory, files, working directory, root."""
        known: dict[str, Any] = {}
        ids = self.one(f"ids-{pid}.img", "IDS")
        if ids is None and core.HasField("ids"):
            ids = core.ids
        timers = list(_timers(core.tc.timers)) if core.HasField("tc") else []
        if ids is not None:
            known["namespaces"] = {
                kind: getattr(ids, name) for kind, name in _NAMESPACE_IDS if ids.HasField(name)
            }
            known["files_table"] = ids.files_id
            descriptors, more = self._descriptors(ids.files_id)
            known["descriptors"] = descriptors
            timers += more
        known["timers"] = tuple(timers)
        fs = self.one(f"fs-{pid}.img", "FS")
        if fs is not None:
            known["cwd"], known["root"] = self._path_of(fs.cwd_id), self._path_of(fs.root_id)
            known["umask"] = fs.umask if fs.HasField("umask") else None
        mm = self.one(f"mm-{pid}.img", "MM")
        if mm is not None:
            known |= self._memory(pid, mm)
        return known

    def _pre_dumped(self) -> Iterator[Process]:
        """The processes of a pre-dump, which has memory only: a mapping for each range."""
        pids = (name.removeprefix("pagemap-").removesuffix(".img") for name in self.names)
        for pid in sorted(int(each) for each in pids if each.isdecimal()):
            layers = Layers(self.layers, f"pagemap-{pid}.img", self.page)
            top = layers.level(0)
            ranges: list[list[int]] = []
            for _, (start, end, _, _) in top.runs.between(0, 2**64) if top is not None else ():
                if ranges and ranges[-1][1] == start:
                    ranges[-1][1] = end
                else:
                    ranges.append([start, end])
            counts = layers.counts([each[0] for each in ranges], [each[1] for each in ranges])
            yield Process(
                pid=pid,
                parent=0,
                group=0,
                session=0,
                name="",
                state="alive",
                mappings=tuple(
                    MemoryMapping(
                        start=start,
                        end=end,
                        kind=VmaKind.OTHER,
                        protection="",
                        stored=stored,
                        in_parent=in_parent,
                        lazy=lazy,
                    )
                    for (start, end), (stored, in_parent, lazy) in zip(ranges, counts, strict=True)
                ),
                pagemap=pid,
                page_size=self.page,
                source=tuple(self.layers),
            )

    def _memory(self, pid: int, mm: Any) -> dict[str, Any]:
        self.page = page_size(mm.mm_saved_auxv)
        layers = Layers(self.layers, f"pagemap-{pid}.img", self.page)
        vmas = [each for each in mm.vmas if not each.status & _GUARD]
        starts, ends = [each.start for each in vmas], [each.end for each in vmas]
        counts = layers.counts(starts, ends)
        command, environment = self._strings(layers, mm)
        return {
            "mappings": tuple(map(self._mapping, vmas, starts, ends, counts)),
            "guard_regions": tuple(
                (each.start, each.end) for each in mm.vmas if each.status & _GUARD
            ),
            "pagemap": pid,
            "page_size": self.page,
            "executable": self._path_of(mm.exe_file_id),
            "command": command,
            "environment": environment,
        }

    def _strings(self, layers: Layers, mm: Any) -> Iterator[tuple[str, ...] | None]:
        """The command line and the environment."""
        start, middle, end = mm.mm_arg_start, mm.mm_arg_end, mm.mm_env_end
        # One read is enough if they are adjacent; a process can move them (prctl(2)).
        if start < middle == mm.mm_env_start < end and (both := self._text(layers, start, end)):
            yield self._split(both[: middle - start])
            yield self._split(both[middle - start :])
        else:
            yield self._split(self._text(layers, start, middle))
            yield self._split(self._text(layers, mm.mm_env_start, end))

    def _text(self, layers: Layers, start: int, end: int) -> bytes | None:
        try:
            return _text(layers, start, end)
        except ImagesError:
            if not self.problems:
                raise
            return None  # already reported as missing

    def _split(self, text: bytes | None) -> tuple[str, ...] | None:
        """Strings that end with NUL, as execve(2) stores them; equal texts share one value."""
        if not text:
            return None if text is None else ()
        if text not in self.texts:
            parts = text.removesuffix(b"\0").split(b"\0")
            self.texts[text] = tuple(map(os.fsdecode, parts))
        return self.texts[text]

    def _mapping(self, vma: Any, start: int, end: int, counts: Counts) -> MemoryMapping:
        # Forked processes have most mappings in common.
        key = start, end, vma.pgoff, vma.shmid, vma.status, vma.flags, vma.prot, counts
        made = self.mappings.get(key)
        if made is None:
            made = self.mappings[key] = self._new_mapping(*key)
        return made

    def _new_mapping(
        self,
        start: int,
        end: int,
        offset: int,
        number: int,
        status: int,
        flags: int,
        prot: int,
        counts: Counts,
    ) -> MemoryMapping:
        kind, protection, has_file, in_memfd = _traits(status, flags, prot)
        shared = None
        if kind is VmaKind.SHARED:
            shared = self.files.shared_of(number) if in_memfd else number
            counts = (
                (0, 0, 0) if shared is None else self._shared_counts(shared, start, end, offset)
            )
        # A process can have tens of thousands, and omitted fields take no memory.
        more: dict[str, Any] = {}
        if has_file:
            more = {"path": self._path_of(number), "file": number}
        if shared is not None:
            more["shared"] = shared
        if has_file or shared is not None:
            more["offset"] = offset
        if flags & _GROWS_DOWN:
            more["grows_down"] = True
        if flags & MAP_HUGETLB and (size := size_in(flags)):
            more["huge_page"] = size
        for name, size in zip(("stored", "in_parent", "lazy"), counts, strict=True):
            if size:
                more[name] = size
        return MemoryMapping(start=start, end=end, kind=kind, protection=protection, **more)

    def _shared_counts(self, shared: int, start: int, end: int, offset: int) -> Counts:
        if shared not in self.shared:
            name = f"pagemap-shmem-{shared}.img"
            self.shared[shared] = Layers(self.layers, name, self.page)
        last = min(offset + max(end - start, 0), 2**64 - 1)
        return self.shared[shared].counts([offset], [last])[0]

    def _threads(self, entry: Any, core: Any, task: Any) -> list[Thread]:
        threads = []
        for tid in entry.threads:
            own = core if tid == entry.pid else self.one(f"core-{tid}.img", "CORE")
            part = own.thread_core if own is not None and own.HasField("thread_core") else None
            at, stack = _registers(own)
            name = os.fsdecode(part.comm) if part is not None and part.comm else ""
            if not name and tid == entry.pid and task:
                name = os.fsdecode(task.comm)
            threads.append(
                Thread(
                    tid=tid,
                    name=name,
                    nice=part.sched_nice if part else 0,
                    policy=part.sched_policy if part else 0,
                    credentials=self._credentials(part),
                    seccomp=enum_name("seccomp_mode", part.seccomp_mode) if part else "disabled",
                    instruction=at,
                    stack=stack,
                    cpu_state=own.thread_info.fpregs.xsave.xstate_bv if own is not None else 0,
                )
            )
        return threads

    def _limits(self, rlimits: Any) -> dict[str, tuple[int, int]]:
        """Resource limits of a process. Cached: most processes have the same."""
        key = rlimits.SerializeToString()
        if key not in self.limits:
            pairs = ((each.cur, each.max) for each in rlimits.rlimits)
            self.limits[key] = dict(zip(names.LIMITS, pairs, strict=False))
        return self.limits[key]

    def _credentials(self, thread: Any) -> Credentials | None:
        """Credentials of a thread. Cached: most threads have the same."""
        if thread is None or not thread.HasField("creds"):
            return None
        key = thread.creds.SerializeToString()
        if key not in self.credentials:
            self.credentials[key] = _credentials(thread.creds)
        return self.credentials[key]

    def _descriptors(self, table_id: int) -> tuple[tuple[Descriptor, ...], list[Timer]]:
        result = sorted(self.entries(f"fdinfo-{table_id}.img"), key=lambda each: each.fd)
        timers = []
        for each in result:
            file = self.files.by_id.get(each.id)
            if isinstance(file, OtherFile) and file.type == "TIMERFD":
                it = file.details
                value, interval = (it["vsec"], it["vnsec"]), (it["isec"], it["insec"])
                if any(value):
                    timers.append(_timer("timerfd", it["clockid"], value, interval, 1e9))
        return tuple(
            Descriptor(fd=each.fd, file=each.id, close_on_exec=bool(each.flags & 1))
            for each in result
        ), timers

    def _path_of(self, number: int) -> str | None:
        result = self.files.by_id.get(number)
        if isinstance(result, RegularFile):
            return result.path
        if isinstance(result, OtherFile):
            name: str | None = result.details.get("name")
            return name
        return None

    # --- Namespaces, mounts, devices, cgroups, locks ---------------------------------------

    def _namespaces(self, processes: tuple[Process, ...], host: Any) -> list[Namespace]:
        result: dict[tuple[str, int], Namespace] = {}
        for process in processes:
            for kind, number in process.namespaces.items():
                if (kind, number) not in result:
                    outside = host is not None and getattr(host, f"{kind}_ns_id", 0) == number
                    result[kind, number] = self._namespace(kind, number, outside)
        return list(result.values())

    def _namespace(self, kind: str, number: int, host: bool) -> Namespace:
        if host:
            return Namespace(kind=kind, id=number, host=True)
        image = {
            "uts": f"utsns-{number}.img",
            "pid": f"pidns-{number}.img",
            "net": f"netns-{number}.img",
            "user": f"userns-{number}.img",
            "time": "timens-0.img",
            "ipc": f"ipcns-var-{number}.img",
        }.get(kind, "")
        read = self.entries(image) if image else []
        details = to_dict(read[0]) if read else {}
        external = details.pop("ext_key", None)
        return Namespace(kind=kind, id=number, host=False, external=external, details=details)

    def _mounts(self, namespaces: list[Namespace]) -> list[Mount]:
        result = []
        for space in namespaces:
            if space.kind != "mnt" or space.host:
                continue
            for each in self.entries(f"mountpoints-{space.id}.img"):
                text = {
                    key: os.fsdecode(getattr(each, key)) for key in ("source", "root", "options")
                }
                outside = each.HasField("ext_key") or each.ext_mount
                type_ = enum_name("fstype", each.fstype).lower().replace("overlayfs", "overlay")
                result.append(
                    Mount(
                        id=each.mnt_id,
                        parent=each.parent_mnt_id,
                        namespace=space.id,
                        point="/" + os.fsdecode(each.mountpoint).removeprefix(".").lstrip("/"),
                        type=os.fsdecode(each.fsname) or type_,
                        external=os.fsdecode(each.ext_key) if outside else None,
                        **text,
                    )
                )
        return result

    def _devices(self, namespaces: list[Namespace]) -> list[NetworkDevice]:
        return [
            NetworkDevice(
                namespace=space.id,
                index=each.ifindex,
                name=os.fsdecode(each.name),
                type=enum_name("nd_type", each.type),
                mtu=each.mtu,
                address=each.address.hex(":"),
                peer=each.peer_ifindex if each.HasField("peer_ifindex") else None,
            )
            for space in namespaces
            if space.kind == "net" and not space.host
            for each in self.entries(f"netdev-{space.id}.img")
        ]

    def _cgroup_sets(self) -> None:
        for entry in self.entries("cgroup.img"):
            for each in entry.sets:
                self.sets[each.id] = {
                    os.fsdecode(member.name): os.fsdecode(member.path) for member in each.ctls
                }

    def _cgroups(self) -> list[Cgroup]:
        result: list[Cgroup] = []
        for entry in self.entries("cgroup.img"):
            for controller in entry.controllers:
                controllers = tuple(map(os.fsdecode, controller.cnames))
                waiting = [("", each) for each in reversed(controller.dirs)]
                while waiting:
                    above, each = waiting.pop()
                    path = f"{above}/{os.fsdecode(each.dir_name).strip('/')}".replace("//", "/")
                    result.append(
                        Cgroup(controllers=controllers, path=path, properties=len(each.properties))
                    )
                    waiting += [(path, child) for child in reversed(each.children)]
        return result

    def _locks(self) -> list[FileLock]:
        return [
            FileLock(
                pid=each.pid,
                fd=each.fd,
                kind=names.LOCKS.get(each.flag, str(each.flag)),
                type=each.type,
                start=each.start,
                length=each.len,
            )
            for each in self.entries("filelocks.img")
        ]


@functools.lru_cache(4096)
def _traits(status: int, flags: int, prot: int) -> tuple[VmaKind, str, bool, bool]:
    """Kind, protection, whether the mapping has a file, and whether that is a memfd."""
    return (
        _kind(status, flags),
        _PROTECTION[prot & 7] + ("s" if flags & 1 else "p"),
        bool(status & (_FILE_PRIVATE | _FILE_SHARED | _MEMFD)),
        bool(status & _MEMFD),
    )


def _kind(status: int, flags: int) -> VmaKind:
    if status & (_VDSO | _VSYSCALL | _VVAR):
        return VmaKind.VDSO
    if status & (_ANON_SHARED | _SYSVIPC) or (status & _MEMFD and status & _FILE_SHARED):
        return VmaKind.SHARED
    if status & _FILE_SHARED:
        return VmaKind.SHARED_FILE
    if status & _FILE_PRIVATE:
        return VmaKind.FILE
    if status & _HEAP:
        return VmaKind.HEAP
    if status & _STACK or flags & _GROWS_DOWN:
        return VmaKind.STACK
    return VmaKind.ANONYMOUS if status & _ANON_PRIVATE else VmaKind.OTHER


def _text(layers: Layers, start: int, end: int) -> bytes | None:
    """The bytes of a range; None if they are not all in the images."""
    if not 0 < end - start <= LONGEST_COMMAND:
        return b"" if start == end else None
    data, at = b"", start
    for begin, piece, _ in layers.pieces(start, end):
        if begin != at or piece is None:
            return None
        data += piece
        at += len(piece)
    return data if at == end else None


def _credentials(creds: Any) -> Credentials:
    return Credentials(
        uid=creds.uid,
        gid=creds.gid,
        euid=creds.euid,
        egid=creds.egid,
        groups=tuple(creds.groups),
        effective=names.capabilities(tuple(creds.cap_eff)),
        permitted=names.capabilities(tuple(creds.cap_prm)),
        inheritable=names.capabilities(tuple(creds.cap_inh)),
        bounding=names.capabilities(tuple(creds.cap_bnd)),
        ambient=names.capabilities(tuple(creds.cap_amb)),
        no_new_privileges=bool(creds.no_new_privs),
        lsm_profile=os.fsdecode(creds.lsm_profile) or None,
    )


def _registers(core: Any) -> tuple[int | None, int | None]:
    """Instruction and stack pointer."""
    if core is None:
        return None, None
    if core.HasField("thread_info"):
        return core.thread_info.gpregs.ip, core.thread_info.gpregs.sp
    if core.HasField("ti_aarch64"):
        return core.ti_aarch64.gpregs.pc, core.ti_aarch64.gpregs.sp
    return None, None


def _timers(timers: Any) -> list[Timer]:
    by_kind = {"real": timers.real, "virtual": timers.virt, "profiling": timers.prof}
    return [
        _timer(kind, None, (each.vsec, each.vusec), (each.isec, each.iusec), 1e6)
        for kind, each in by_kind.items()
        if each.vsec or each.vusec
    ] + [
        _timer("posix", each.clock_id, (each.vsec, each.vnsec), (each.isec, each.insec), 1e9)
        for each in timers.posix
    ]


def _timer(
    kind: str, clock: int | None, value: tuple[int, int], interval: tuple[int, int], unit: float
) -> Timer:
    """A timer, with each time in seconds and parts of a second, ``unit`` of which are one."""
    seconds, of_interval = (whole + part / unit for whole, part in (value, interval))
    return Timer(kind=kind, clock=clock, value=seconds, interval=of_interval)


def _has_keys(keys: Any) -> bool:
    """Whether CRIU saved keys: without PAC it writes the message without any (CRIU 4.2)."""
    return bool(keys.HasField("pac_address_keys") or keys.HasField("pac_generic_keys"))


def _lock(inventory: Any) -> NetworkLock | None:
    """The lock of the network: CRIU writes the numbers of its own enumeration, from 0."""
    number = inventory.network_lock_method + 1
    known = inventory.HasField("network_lock_method") and number in list(NetworkLock)
    return NetworkLock(number) if known else None
