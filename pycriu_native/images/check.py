"""Whether this host can restore an image set, checked before anything is touched.

Each check is a method that yields findings. They compare what CRIU compares on a restore, as far
as that is known without a restore: its ``files-reg.c``, ``image.c``,
``pstree.c``, ``sk-inet.c``, ``sk-unix.c``, ``tty.c``, ``cgroup.c`` and ``mount.c``.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import platform
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .._checks import service_fds
from .._failures.log_excerpt import known
from .._integrity.page_size import HOST_PAGE
from .._system.capabilities import (
    CAP_SETPCAP,
    CAPABILITIES,
    has_capability,
    lacking_for_restore,
    permitted,
)
from .._system.elf import build_id
from .._system.host import lines, number, type_of
from .._system.inet_sockets import ANY, abstract_names, is_ours, listening
from .._system.process import name_of, stat_of
from .._system.process_tree import holders
from .._system.processor import authenticates_pointers, cpu_flags
from ..errors import CriuError
from ..findings import Finding, Severity, ordered
from .build import inspect
from .model import (
    ImageSet,
    InetSocket,
    Mount,
    OtherFile,
    RegularFile,
    Terminal,
    UnixSocket,
)

if TYPE_CHECKING:
    from .._transport.base import Via
    from ..options.criu_opts import CriuOpts
    from ..results import Version

__all__ = ["check_images"]

_MACHINES = {
    "X86_64": ("x86_64", "amd64"),
    "AARCH64": ("aarch64", "arm64"),
    "ARM": ("armv7l", "armv6l", "armv8l"),
    "PPC64": ("ppc64le", "ppc64"),
    "S390": ("s390x",),
    "MIPS": ("mips64", "mips"),
    "LOONGARCH64": ("loongarch64",),
    "RISCV64": ("riscv64",),
}
_CPU_STATES = (
    (1 << 2, "avx", "AVX"),
    (0b111 << 5, "avx512f", "AVX-512"),
    (1 << 9, "pku", "protection keys"),
    (0b11 << 17, "amx_tile", "AMX"),
)
"""Bits of the extended state, the flag of ``/proc/cpuinfo`` that they need, and their name."""
_HOST_DEVICES = ("VETH", "MACVLAN", "EXTLINK")
_COMPRESSED_VERSION = 3


def check_images(
    images: ImageSet | str | os.PathLike[str],
    opts: CriuOpts | None = None,
    *,
    via: Via | None = None,
) -> tuple[Finding, ...]:
    """Find what would stop a restore of these images on this host, the worst first.

    ``opts`` are the options of the restore: what they solve is not reported. ``via`` is the
    ``criu`` of the restore; requests get its release and, if the images need it, features of the
    kernel and the comparison of the processors. Nothing is restored, created or changed.

    Checked: the images themselves and their parents; the release of CRIU; architecture and
    processor (``cpuinfo.img``, if a ``cpuinfo_dump`` wrote it); pids; files (existence, type
    and permissions, size, build id); sockets, terminals, mounts, network devices, cgroups,
    namespaces; and options that the images need. Files in a mount namespace of the processes' own
    are searched below ``root``, if it is set.

    The host can change before the restore. Raises ``ImagesError`` as
    ``inspect`` does. Tested with CRIU 4.1 to 4.3.
    """
    from ..options.criu_opts import CriuOpts

    result = images if isinstance(images, ImageSet) else inspect(images)
    check = _Check(result, opts or CriuOpts(), via)
    return ordered(check.all())


class _Check:
    """The checks of one image set: the images, the options and facts of the host."""

    def __init__(self, images: ImageSet, opts: CriuOpts, via: Via | None) -> None:
        self.images = images
        self.opts = opts
        self.via = via
        self.host = {each.kind for each in images.namespaces if each.host}
        """Kinds of namespace that the restored processes share with this host."""

    def all(self) -> Iterator[Finding]:
        checks: tuple[Callable[[], Iterator[Finding]], ...] = (
            self.complete,
            self.release,
            self.processor,
            self.pids,
            self.rights,
            self.descriptors,
            self.sessions,
            self.regular_files,
            self.made_names,
            self.external_files,
            self.inet_sockets,
            self.unix_sockets,
            self.terminals,
            self.locks,
            self.lazy,
            self.mounts,
            self.network,
            self.namespaces,
            self.cgroups,
        )
        for check in checks:
            for finding in check():
                yield replace(finding, id=check.__name__)

    # --- The images, the program, the machine --------------------------------------------

    def complete(self) -> Iterator[Finding]:
        for problem in self.images.problems:
            yield _error(self.images.directory, problem, "dump again, or copy all of it here")
        if self.images.kind == "pre-dump":
            yield _error(
                self.images.directory,
                "a pre-dump has memory only",
                "restore the dump that builds on it",
            )

    def release(self) -> Iterator[Finding]:
        from .._calls import requirements
        from .._transport.worker import Worker

        try:
            here = requirements.program_version(self.via or Worker())
        except CriuError as error:
            yield _error("criu", str(error), "install CRIU, or name it with via=Worker(program)")
            return
        if self.images.version not in (1, 2, _COMPRESSED_VERSION):
            yield _error(
                "criu",
                f"no release supports images of version {self.images.version}",
                "a newer CRIU",
            )
        elif self.images.version == _COMPRESSED_VERSION and here < _version("4.3"):
            yield _error(
                "criu", f"the images are compressed, and this is CRIU {here}", "CRIU 4.3 or later"
            )
        if message := requirements.pointer_authentication(here):
            yield _error("criu", message, "CRIU 4.2 or later")
        made = self.images.criu or self.images.criu_at_least
        if made and _version(made).number > here.number:
            yield _warning(
                "criu",
                f"the images were made by CRIU {made}, and this is {here}",
                f"CRIU {made} or later: an older one ignores fields that it does not have",
            )
        if self.images.allow_uprobes and not self.opts.config_file:
            yield _error(
                "uprobes",
                "the dump was made with --allow-uprobes, which the restore needs as well",
                "a config_file with the line allow-uprobes",
                "config_file",
            )

    def processor(self) -> Iterator[Finding]:
        machine = platform.machine()
        expected = self.images.architecture
        if expected and machine not in _MACHINES.get(expected, (machine,)):
            yield _error(
                "processor",
                f"the images are for {expected}, this host is {machine}",
                f"a host with {expected} processors",
            )
            return
        for page in sorted({each.page_size for each in self.images.processes} - {0, HOST_PAGE}):
            yield _error(
                "processor",
                f"the images have pages of {page} bytes, this host has pages of {HOST_PAGE}",
                f"a host whose kernel has pages of {page} bytes (getconf PAGESIZE)",
            )
        if os.path.exists(os.path.join(self.images.directory, "cpuinfo.img")):
            yield from self._cpuinfo()
        used = 0
        for process in self.images.processes:
            for thread in process.threads:
                used |= thread.cpu_state
        flags = cpu_flags()
        for bits, flag, name in _CPU_STATES:
            if used & bits and flags and flag not in flags:
                yield _error(
                    "processor",
                    f"it lacks {name}, which the processes use",
                    "another host",
                )
        if (
            flags
            and any(each.pointer_authentication for each in self.images.processes)
            and not (authenticates_pointers())
        ):
            yield _error(
                "processor",
                "it lacks pointer authentication (PAC), whose keys the images have",
                "another host",
            )

    def _cpuinfo(self) -> Iterator[Finding]:
        from .._calls.verbs import cpuinfo_check
        from ..options.criu_opts import CriuOpts

        # The log must not go into the images, and nothing but the log is written.
        with tempfile.TemporaryDirectory(prefix="pycriu-native-") as work:
            opts = CriuOpts(
                images_directory=self.images.directory,
                work_directory=work,
                cpu_cap=self.opts.cpu_cap,
            )
            try:
                cpuinfo_check(opts, via=self.via)
            except CriuError as error:
                yield _error(
                    "processor",
                    f"it does not fit cpuinfo.img: {error.cause or error}",
                    "another host, or a cpu_cap that compares less",
                    "cpu_cap",
                )

    # --- Pids and sessions ----------------------------------------------------------------

    def pids(self) -> Iterator[Finding]:
        if "pid" not in self.host or _joins(self.opts, "pid"):
            return
        highest = number("/proc/sys/kernel/pid_max")
        held = holders()
        for process in self.images.processes:
            for tid in dict.fromkeys((process.pid, *(each.tid for each in process.threads))):
                stat = stat_of(tid)
                now = "" if stat is None else stat.state
                if highest and tid >= highest:
                    yield _error(
                        tid,
                        f"kernel.pid_max is {highest} here",
                        f"sysctl kernel.pid_max={tid + 1}",
                    )
                elif now == "Z":
                    yield _error(
                        tid,
                        f"taken by {name_of(tid)}, a zombie that its parent did not wait for",
                        "let its parent wait for it",
                    )
                elif now:
                    yield _error(
                        tid,
                        f"taken by {name_of(tid)}",
                        "end that process, or restore in a pid namespace of its own",
                    )
                elif tid in held:
                    holder, kind = held[tid]
                    yield _error(
                        tid,
                        f"the {kind} of pid {holder} ({name_of(holder)}), so no process can get it",
                        f"end pid {holder} and others of that {kind}, or restore in a pid "
                        "namespace of its own",
                    )

    def rights(self) -> Iterator[Finding]:
        """Capabilities of the caller, which a worker inherits."""
        if "user" not in self.host or not (self.via is None or self.via.ours):
            return
        for _, failure in () if self.opts.unprivileged else lacking_for_restore():
            yield _error("criu", known(failure).cause, known(failure).cure, "unprivileged")
        held = {name.lower() for name in permitted()}
        for process in self.images.processes:
            had = process.credentials.permitted if process.credentials else ()
            lacking = [name.upper() for name in had if name not in held]
            if lacking:
                yield _error(
                    process.pid,
                    f"had capabilities that the caller lacks: {', '.join(lacking)}",
                    known("capabilities").cure,
                )
            bounding = process.credentials.bounding if process.credentials else CAPABILITIES
            if (
                len(bounding) < len(CAPABILITIES)
                and not (process.credentials and process.credentials.no_new_privileges)
                and not has_capability(CAP_SETPCAP)
            ):
                entry = known("bounding-set")
                yield _error(process.pid, entry.cause, entry.cure)

    def descriptors(self) -> Iterator[Finding]:
        """Space for CRIU's own descriptors above those of a process."""
        if not (self.via is None or self.via.ours):
            return  # another process has limits of its own
        limit = service_fds.limit_here()
        sharing = collections.Counter(each.files_table for each in self.images.processes)
        for process in self.images.processes:
            highest = max((each.fd for each in process.descriptors), default=-1)
            together = sharing[process.files_table] if process.files_table is not None else 1
            if not service_fds.fits(highest, limit, together):
                yield _error(
                    process.pid,
                    f"descriptor {highest} and CRIU's own need a limit of "
                    f"{service_fds.needed(highest, together)} descriptors, and it is {limit} here",
                    known("service-fds").cure,
                )

    def sessions(self) -> Iterator[Finding]:
        root = self.images.root
        if root is None or "pid" not in self.host:
            return
        known = {each.pid for each in self.images.processes}
        if root.session not in known and not self.opts.shell_job:
            yield _error(
                root.pid,
                f"its session was led by {root.session}, which is not in the images",
                "shell_job=True, with the terminal as the worker's standard input",
                "shell_job",
            )

    # --- Files ----------------------------------------------------------------------------

    def regular_files(self) -> Iterator[Finding]:
        seen: set[str] = set()
        hidden = 0
        regular = [file for file in self.images.files if isinstance(file, RegularFile)]
        links = {file.remap for file in regular if file.deleted == "linked"}
        for file in regular:
            if file.external or file.id in links or self._inherited(file.path):
                continue
            path = self._here(file)
            if path is None:
                hidden += 1
            elif path not in seen and not path.startswith(("/proc/", "/sys/")):
                seen.add(path)
                yield from self._file(file, path)
        if hidden:
            yield _note(
                "files",
                f"{hidden} files are in a mount namespace that does not exist yet: not looked at",
                "root=PATH of its file system shows those on it" if not self.opts.root else "",
                *(() if self.opts.root else ("root",)),
            )

    def made_names(self) -> Iterator[Finding]:
        """Names that CRIU makes for deleted files, and links that its dump has made."""
        if self.images.mounts and not self.opts.root:
            return  # below a root that is not known
        from .._recovery.created_names import made_names, taken_names
        from .._recovery.link_remaps import has_link

        directory = os.open(self.images.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            names = made_names(directory, self.opts)
            for path in taken_names(names):
                yield _error(
                    path,
                    "remains of an interrupted restore, and CRIU cannot create it again",
                    "remove it, unless a restore of these images is running",
                )
            for link in names.links:
                if not has_link(directory, link):
                    yield _error(
                        link.path,
                        f"has no name any more, and {link.link}, which the dump linked to it, does "
                        "not exist (a restore removes it)",
                        f"give another name of the same file to ln: ln OTHER-NAME {link.link}; on "
                        "another host copy it there",
                        "link_remap",
                    )
        finally:
            os.close(directory)

    def _here(self, file: RegularFile) -> str | None:
        """Where a file is on this host; None where that cannot be known."""
        path = "/" + file.path.lstrip("/")
        mount = next((each for each in self.images.mounts if each.id == file.mount), None)
        if mount is None:
            return path if "mnt" in self.host else None
        if mount.point == "/" and self.opts.root:
            return os.fsdecode(self.opts.root).rstrip("/") + path
        return None

    def _file(self, file: RegularFile, path: str) -> Iterator[Finding]:
        if file.deleted is not None:
            return  # CRIU makes it again, with the directories above it: see made_names
        try:
            status = os.stat(path)
        except OSError as error:
            missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
            what = "does not exist" if missing else f"cannot be read: {error.strerror}"
            yield _error(path, what, "copy it here, or give another in inherit_fds", "inherit_fds")
            return
        yield from self._same(file, path, status)

    def _same(self, file: RegularFile, path: str, status: os.stat_result) -> Iterator[Finding]:
        if file.mode is not None and file.mode != status.st_mode:
            if stat.S_IFMT(file.mode) != stat.S_IFMT(status.st_mode):
                what = f"is {type_of(status.st_mode)}, and was {type_of(file.mode)}"
                yield _error(path, what, "put back what it was")
            elif not self.opts.skip_file_rwx_check:
                yield _error(
                    path,
                    f"has the mode {status.st_mode & 0o7777:o}, and had {file.mode & 0o7777:o}",
                    f"chmod {file.mode & 0o7777:o}, or skip_file_rwx_check=True",
                    "skip_file_rwx_check",
                )
        if file.size is not None and stat.S_ISREG(status.st_mode) and file.size != status.st_size:
            yield _error(
                path,
                f"has {status.st_size} bytes, and had {file.size} at the dump",
                "put back the file as it was",
            )
        elif file.build_id and (result := build_id(path)) and not file.build_id.startswith(result):
            yield _error(
                path,
                f"has the build id {result}, and had {file.build_id}: another build of it",
                "install the same build",
            )

    def external_files(self) -> Iterator[Finding]:
        for file in self.images.files:
            if isinstance(file, RegularFile) and file.external and not self._inherited(file.path):
                yield _error(
                    file.path,
                    "this external file must be given",
                    f"inherit_fds=[(fd, {file.path!r})]",
                    "inherit_fds",
                )
            elif isinstance(file, OtherFile) and file.type == "EXT":
                yield _warning(f"file {file.id}", "is of a plugin, which the restore needs", "")

    def _inherited(self, key: str) -> bool:
        keys = {str(getattr(each, "key", "")) for each in self.opts.inherit_fds or ()}
        return key in keys or key.lstrip("/") in keys

    # --- Sockets --------------------------------------------------------------------------

    def inet_sockets(self) -> Iterator[Finding]:
        connected = [
            each
            for each in self.images.files
            if isinstance(each, InetSocket)
            and each.connected
            and not self._inherited(f"socket:[{each.inode}]")
        ]
        if self.images.tcp_close and not self.opts.tcp_close:
            yield _error("TCP", "the dump was made with tcp_close", "tcp_close=True", "tcp_close")
        elif connected and not (self.opts.tcp_established or self.opts.tcp_close):
            yield _error(
                connected[0].label,
                "a connection is in the images"
                + (f", and {len(connected) - 1} more" if len(connected) > 1 else ""),
                "tcp_established=True, or tcp_close=True to drop it",
                "tcp_established",
                "tcp_close",
            )
        if "net" not in self.host or _joins(self.opts, "net"):
            return
        ports = listening()
        for each in self.images.files:
            if not isinstance(each, InetSocket):
                continue
            address, _, port = each.local.rpartition(":")
            address = address.strip("[]")
            dropped = each.connected and bool(self.opts.tcp_close)
            if port != "0" and not dropped and not is_ours(each.family, address):
                yield _error(
                    each.label,
                    f"no network device here has the address {address}",
                    f"ip address add {address} dev DEVICE",
                )
            elif each.state == "LISTEN" and (each.family, int(port)) in ports:
                others = ports[each.family, int(port)]
                if address in others or address in ANY or others & set(ANY):
                    yield _error(each.label, "another process listens there", "end that process")

    def unix_sockets(self) -> Iterator[Finding]:
        outside = [
            each for each in self.images.files if isinstance(each, UnixSocket) and each.external
        ]
        if outside and not self.opts.external_unix_connections:
            yield _error(
                outside[0].label,
                "a socket of another process is connected to",
                "external_unix_connections=True",
                "external_unix_connections",
            )
        if "mnt" not in self.host:
            return
        taken = abstract_names() if "net" in self.host else frozenset()
        for each in self.images.files:
            if not isinstance(each, UnixSocket) or not each.name:
                continue
            if each.external and each.name.startswith("/") and not os.path.exists(each.name):
                yield _error(
                    each.label, f"{each.name} does not exist", "start the process that has it"
                )
            elif not each.external and each.name in taken:
                yield _error(each.label, "another process has this name", "end that process")
            elif each.name.startswith("/") and not os.path.isdir(os.path.dirname(each.name)):
                yield _error(
                    each.label,
                    f"{os.path.dirname(each.name)} does not exist",
                    "make that directory",
                )

    def terminals(self) -> Iterator[Finding]:
        inherited = [
            each for each in self.images.files if isinstance(each, Terminal) and each.inherited
        ]
        if inherited and not (self.opts.shell_job or self.opts.orphan_pts_master):
            yield _error(
                inherited[0].label,
                "belongs to a session that is not in the images",
                "shell_job=True on a terminal, or orphan_pts_master=True with a hook that takes it",
                "shell_job",
                "orphan_pts_master",
            )

    # --- What options are needed for ----------------------------------------------------------

    def locks(self) -> Iterator[Finding]:
        if self.images.locks and not self.opts.file_locks:
            yield _warning(
                f"{len(self.images.locks)} file locks",
                "they are in the images, and a restore takes them only with file_locks",
                "file_locks=True",
                "file_locks",
            )

    def lazy(self) -> Iterator[Finding]:
        lazy = sum(one.lazy for each in self.images.processes for one in each.mappings)
        if not lazy:
            return
        if not self.opts.lazy_pages:
            yield _error(
                "memory",
                f"{lazy} bytes are lazy: in no image, but with the dump that serves them",
                "lazy_pages=True, and LazyPages connected to that dump",
                "lazy_pages",
            )
        from .._calls import requirements
        from .._transport.worker import Worker

        with contextlib.suppress(CriuError):
            if not requirements.program_features(self.via or Worker()).lazy_pages:
                yield _error("kernel", "it lacks userfaultfd, which lazy pages need", "")

    # --- Mounts, namespaces, cgroups ----------------------------------------------------------

    def mounts(self) -> Iterator[Finding]:
        own = [each for each in self.images.mounts if each.point == "/"]
        if own and not self.opts.root:
            yield _warning(
                "/",
                "the processes have a mount namespace of their own, and no root is given",
                "root=PATH of a mounted file system with their files",
                "root",
            )
        for mount in self.images.mounts:
            if mount.external is not None and not self._given(mount):
                yield _error(
                    mount.point,
                    f"this mount is external, under the name {mount.external!r}",
                    f"external=['mnt[{mount.external}]:PATH']",
                    "external",
                    "auto_ext_mnt",
                )
        known = {line.split()[-1] for line in lines("/proc/filesystems")}
        for type_ in sorted({each.type for each in self.images.mounts}):
            if known and type_ not in known and type_ not in ("unsupported", "auto"):
                yield _warning(
                    type_, "this kernel has no such file system loaded", f"modprobe {type_}"
                )

    def _given(self, mount: Mount) -> bool:
        if self.opts.auto_ext_mnt or self._ext_mount(mount.external or ""):
            return True
        expected = f"mnt[{mount.external}]"
        return any(each == expected or each.startswith(f"{expected}:") for each in self._external())

    def _ext_mount(self, key: str) -> bool:
        return any(getattr(each, "key", None) == key for each in self.opts.ext_mounts or ())

    def _external(self) -> tuple[str, ...]:
        return tuple(self.opts.external or ())

    def network(self) -> Iterator[Finding]:
        pairs = {str(getattr(each, "inside", "")) for each in self.opts.veth_pairs or ()}
        for device in self.images.devices:
            if device.type not in _HOST_DEVICES or device.name in pairs:
                continue
            if not any(f"[{device.name}]" in each for each in self._external()):
                yield _warning(
                    f"device {device.name}",
                    f"a {device.type.lower()} device, whose other end was outside",
                    f"veth_pairs=[({device.name!r}, NAME)]"
                    if device.type == "VETH"
                    else f"external=['{device.type.lower()}[{device.name}]:NAME']",
                    "veth_pairs",
                    "external",
                )

    def namespaces(self) -> Iterator[Finding]:
        for each in self.images.namespaces:
            if each.host:
                continue
            if not os.path.exists(f"/proc/self/ns/{each.kind}"):
                yield _error(f"{each.kind} namespace", "this kernel has none", "another kernel")
            elif (
                each.external
                and not self._inherited(each.external)
                and not _joins(self.opts, each.kind)
            ):
                yield _error(
                    f"{each.kind} namespace {each.external}",
                    "it is external and must be given",
                    f"inherit_fds=[(fd, {each.external!r})]",
                    "inherit_fds",
                    "join_ns",
                )

    def cgroups(self) -> Iterator[Finding]:
        mode = str(getattr(self.opts.manage_cgroups_mode, "name", "") or "").upper()
        if mode == "IGNORE" or not self.images.cgroups:
            return
        here = {
            name for line in lines("/proc/self/cgroup") for name in line.split(":", 2)[1].split(",")
        }
        for each in self.images.cgroups:
            for name in each.controllers:
                if name not in here:
                    yield _error(
                        f"cgroup {name}:{each.path}",
                        "no hierarchy here has this controller",
                        "mount it, or manage_cgroups_mode='ignore'",
                        "manage_cgroups_mode",
                    )


# --- Findings -----------------------------------------------------------------------


def _error(subject: str | int, message: str, cure: str, *options: str) -> Finding:
    return _finding(Severity.STOPS, subject, message, cure, options)


def _warning(subject: str, message: str, cure: str, *options: str) -> Finding:
    return _finding(Severity.WARNING, subject, message, cure, options)


def _note(subject: str, message: str, cure: str, *options: str) -> Finding:
    return _finding(Severity.NOTE, subject, message, cure, options)


def _finding(
    severity: Severity, subject: str | int, message: str, cure: str, options: tuple[str, ...]
) -> Finding:
    """A finding on a pid, a path or another subject; ``_Check.all`` sets the id."""
    about: dict[str, Any] = {"subject": subject}
    if isinstance(subject, int):
        about = {"pid": subject}
    elif subject.startswith("/"):
        about = {"path": subject}
    return Finding(id="", severity=severity, message=message, cure=cure, options=options, **about)


def _joins(opts: CriuOpts, kind: str) -> bool:
    return any(str(getattr(each, "kind", "")) == kind for each in opts.join_ns or ())


def _version(text: str) -> Version:
    from ..results import Version

    return Version.parse(text)
