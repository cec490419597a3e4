"""The processes of an image set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from .._integrity.page_size import HOST_PAGE
from . import kernel_names as names
from .files import Files
from .image_directory import ImageDirectory
from .mappings import Mappings
from .memory_mapping import MemoryMapping, VmaKind
from .model import Credentials, Descriptor, OtherFile, Process, Thread, Timer
from .pages import Layers, joined
from .schema import enum_name

_NAMESPACE_IDS = tuple((kind, f"{kind}_ns_id") for kind in names.NAMESPACES)


class Processes:
    """Reads the processes of a directory; used once."""

    def __init__(
        self, images: ImageDirectory, files: Files, tree: list[Any], sets: dict[int, dict[str, str]]
    ) -> None:
        self.images = images
        self.files = files
        self.mappings = Mappings(images, files)
        self.sets = sets
        self.children: dict[int, list[int]] = {}
        for each in tree:
            self.children.setdefault(each.ppid, []).append(each.pid)
        self.limits: dict[bytes, dict[str, tuple[int, int]]] = {}
        self.credentials: dict[bytes, Credentials] = {}

    def process(self, entry: Any) -> Process:
        """The process of an entry of ``pstree.img``."""
        pid = entry.pid
        core = self.images.one(f"core-{pid}.img")
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
            # Without PAC, CRIU writes the message without any key (CRIU 4.2).
            pointer_authentication=core is not None and bool(core.ti_aarch64.pac_keys.ListFields()),
            credentials=self._credentials(thread),
            cgroups=self.sets.get(cgroup, {}) if cgroup is not None else {},
            limits=self._limits(task.rlimits) if task else {},
            pending_signals=len(task.signals_s.signals) if task else 0,
            oom_score_adj=task.oom_score_adj if task else 0,
            source=tuple(self.images.layers),
            **known,
        )

    def _living(self, pid: int, core: Any) -> dict[str, Any]:
        """Properties that a zombie lacks: memory, files, working directory, root."""
        known: dict[str, Any] = {}
        ids = self.images.one(f"ids-{pid}.img")
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
        fs = self.images.one(f"fs-{pid}.img")
        if fs is not None:
            known["cwd"] = self.files.path_of(fs.cwd_id)
            known["root"] = self.files.path_of(fs.root_id)
            known["umask"] = fs.umask if fs.HasField("umask") else None
        mm = self.images.one(f"mm-{pid}.img")
        if mm is not None:
            known |= self.mappings.of_process(pid, mm)
        return known

    def _threads(self, entry: Any, core: Any, task: Any) -> Iterator[Thread]:
        for tid in entry.threads:
            own = core if tid == entry.pid else self.images.one(f"core-{tid}.img")
            part = own.thread_core if own is not None and own.HasField("thread_core") else None
            at, stack = _registers(own)
            name = os.fsdecode(part.comm) if part is not None and part.comm else ""
            if not name and tid == entry.pid and task:
                name = os.fsdecode(task.comm)
            yield Thread(
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
        result = sorted(self.images.entries(f"fdinfo-{table_id}.img"), key=lambda each: each.fd)
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


def pre_dumped(images: ImageDirectory) -> Iterator[Process]:
    """The processes of a pre-dump, which has memory only: a mapping for each range."""
    pids = (name.removeprefix("pagemap-").removesuffix(".img") for name in images.names)
    for pid in sorted(int(each) for each in pids if each.isdecimal()):
        layers = Layers(images.layers, f"pagemap-{pid}.img", HOST_PAGE)
        top = layers.level(0)
        runs = top.runs.between(0, 2**64) if top is not None else ()
        ranges = joined((start, end) for _, (start, end, _, _) in runs)
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
            page_size=HOST_PAGE,
            source=tuple(images.layers),
        )


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
