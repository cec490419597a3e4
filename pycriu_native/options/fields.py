"""The fields of ``CriuOpts``: values, checked, without the other forms that they convert to.

The sixteen fields of runc's struct come first, in its order and under its names; the rest
is everything else in libcriu and CRIU's wire format. Each field is one row of
``table.py``, which holds setter, wire field, release and command-line flag; the facts in
the docstrings are from CRIU's man page and ``criu/cr-service.c`` unless stated otherwise.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping

from .. import enums
from .._support.frozen_dataclass import dataclass, replace
from .._support.light_typing import Any, Self
from ..errors import OptionError, Problem
from .table import BY_FIELD, TABLE, VERB_MASK, Row
from .values import (
    CgroupRoot,
    Descriptor,
    ExtMount,
    InheritFd,
    JoinNamespace,
    PageServer,
    VethPair,
)

StrPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_PLACES = {field: place for place, field in enumerate(BY_FIELD)}
"""The position of a field in the table."""


class Remembered:
    """Results of a call with these options that save the next call two thirds of its checks.

    They depend on the options alone, and are no part of the value: copies begin without them.
    """

    __slots__ = ("packed", "sound_for")

    def __init__(self) -> None:
        self.sound_for: set[enums.Verb] = set()
        """The verbs whose rules the options have passed, without the rules that read files."""
        self.packed: bytes | None = None
        """The options in libcriu's encoding, without the fields that each call adds."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Fields:
    """The fields of :class:`~pycriu_native.CriuOpts`, which adds the other forms.

    Only ``CriuOpts`` is instantiated.
    """

    # ---- runc's CriuOpts ----

    images_directory: StrPath | Descriptor | None = None
    """Where the images are: a path or an open directory. A dump creates a missing one, with mode
    0700; a restore does not. Required, unless ``images_dir`` is given."""
    work_directory: StrPath | Descriptor | None = None
    """Where log, statistics and pid files go: a path or an open directory. Default: the images
    directory."""
    parent_image: StrPath | None = None
    """The images that these continue, as a path relative to the images directory. A dump needs
    ``track_mem`` with it; without, CRIU saves all memory again without a warning (runc sets it)."""
    leave_running: bool | None = None
    """Let the process run on after the dump. CRIU's default is to end it."""
    tcp_established: bool | None = None
    """Save established TCP connections; the restore needs it too, and the same addresses."""
    external_unix_connections: bool | None = None
    """Allow datagram sockets connected to a named socket outside the tree. On restore: connect the
    other unix sockets that were saved by ``external`` to their old names."""
    shell_job: bool | None = None
    """Allow a process whose session and terminal belong to an outside shell. On restore too,
    where the worker's standard input must be the new terminal (``Worker(stdin=...)``), open for
    reading and writing: it becomes the job's own."""
    file_locks: bool | None = None
    """Save flock and POSIX locks, and take them again on restore (set it there too)."""
    pre_dump: bool | None = None
    """``dump`` does a pre-dump instead: memory only, and the process runs on. Never sent."""
    page_server: PageServer | str | tuple[str, int] | None = None
    """Where memory pages go instead of the images directory: ``"10.0.0.2:27"``, a tuple or a
    ``PageServer``. With ``lazy_pages``: where this side serves pages."""
    veth_pairs: Iterable[VethPair | tuple[str, str] | str] | None = None
    """Veth pairs of the container and the names of their outer ends. CRIU prefers the same as
    ``external=["veth[inside]:outside"]``."""
    manage_cgroups_mode: enums.CgroupMode | str | int | None = None
    """How cgroups are restored; see :class:`CgroupMode`. CRIU's default is SOFT."""
    empty_ns: int | str | None = None
    """Namespaces that are saved without contents and restored empty, to be filled by a
    ``setup-namespaces`` hook. CRIU accepts ``CLONE_NEWNET`` (0x40000000, or ``"net"``) only."""
    auto_dedup: bool | None = None
    """Punch the pages that these images replace out of the parents' files, as they are written;
    on restore, punch out what has been read."""
    lazy_pages: bool | None = None
    """Dump: leave memory in the process and serve it to a restore elsewhere. Restore: run at
    once and fetch memory from the ``criu lazy-pages`` daemon of the same work directory.
    Page server: serve the pages of a complete image set to such a daemon. Dump and restore need
    userfaultfd. CRIU 3.5."""
    status_fd: Descriptor | None = None
    """Gets one zero byte when a page server, lazy dump or ``LazyPages`` can be connected to; must
    be writable.
    CRIU calls it obsolete since 3.15 and sends the ``status-ready`` notification too."""

    # ---- what is saved, and how ----

    leave_stopped: bool | None = None
    """Leave the process stopped after the dump or the restore. CRIU 3.19."""
    track_mem: bool | None = None
    """Have the kernel track changes of memory from this dump on, for a next one to build on, and
    leave out what has not changed since ``parent_image``. A pre-dump does so in any case. Needs
    soft-dirty tracking."""
    pre_dump_mode: enums.PreDumpMode | str | int | None = None
    """How a pre-dump takes the memory. CRIU's default is SPLICE. CRIU 3.14."""
    pidfd_store_sk: Descriptor | None = None
    """A unix datagram socket connected to itself, in which CRIU keeps pidfds between dumps of
    one process, to detect reused pids. CRIU 3.16, kernel 5.6."""
    ghost_limit: int | None = None
    """Largest deleted but open file that is kept in the images, in bytes; below 4 GiB. CRIU's
    default is 1 MiB."""
    link_remap: bool | None = None
    """Allow an open file whose name was removed but which has other links: a link is made for
    it."""
    force_irmap: bool | None = None
    """Look for the paths of files under inotify or fanotify by walking directories."""
    irmap_paths: Iterable[StrPath] | None = None
    """More directories to walk for ``force_irmap``. CRIU 1.8."""
    evasive_devices: bool | None = None
    """Take any path to a device when its own is not accessible."""
    timeout: int | None = None
    """Seconds that freezing may take; CRIU's default is 10. A deadline for the whole call is an
    argument of the verb. libcriu's setter never sends it (up to 4.3); here it is sent. CRIU 2.4."""
    freeze_cgroup: StrPath | None = None
    """A freezer cgroup to freeze the tree with, instead of stopping each thread; required for a
    process that is frozen already. CRIU 2.4."""
    cpu_cap: int | None = None
    """Mask of what to check of the CPU: 1 fpu, 2 all features, 4 instructions, 8 image
    (an unsigned 32-bit number). CRIU's default is everything that the architecture needs."""

    # ---- sockets and networks ----

    tcp_close: bool | None = None
    """Drop established TCP connections: they are restored closed. On restore too. CRIU 3.12."""
    tcp_skip_in_flight: bool | None = None
    """Leave out connections that are still being opened. CRIU 2.4."""
    network_lock: enums.NetworkLock | str | int | None = None
    """How packets are blocked while connections are saved. CRIU 3.16; SKIP is 3.19. The rules of
    IPTABLES remain if the images are restored with ``tcp_close`` (seen with 4.2.1)."""
    unix_sks: Iterable[int] | None = None
    """Inodes of outside unix sockets; needs ``external_unix_connections``. CRIU prefers
    ``external=["unix[inode]"]``."""
    weak_sysctls: bool | None = None
    """Go on when a sysctl of the images does not exist here. CRIU 2.9."""

    # ---- namespaces, mounts, external resources ----

    external: Iterable[str] | None = None
    """Resources that are not saved but given from outside: ``"mnt[/data]:data"``,
    ``"dev[8/1]:disk"``, ``"unix[inode]"``, ``"tty[rdev:dev]"``, ``"file[mnt_id:inode]"``,
    ``"net[inode]:key"``, ``"pid[inode]:key"``, ``"veth[eth0]:veth0@br0"``, ``"macvlan[eth0]:up"``.
    CRIU 2.8."""
    inherit_fds: Iterable[InheritFd | tuple[Descriptor, str] | str] | None = None
    """Descriptors of the caller that replace those of the images, each with the key of the resource
    that it replaces. Only with a worker of this library. CRIU 2.8."""
    join_ns: Iterable[JoinNamespace | tuple[str, str] | tuple[str, str, str] | str] | None = None
    """Existing namespaces to restore into: ``("net", "/run/netns/blue")``. CRIU 3.16.1."""
    root: StrPath | None = None
    """The root of the mount namespace on restore: a mount point."""
    ext_mounts: Iterable[ExtMount | tuple[str, str] | str] | None = None
    """Mounts from outside, as pairs. CRIU prefers ``external=["mnt[key]:value"]``."""
    auto_ext_mnt: bool | None = None
    """Find mounts from outside by yourself; CRIU's ``--external mnt[]``."""
    ext_sharing: bool | None = None
    """Allow such mounts to be shared with mounts outside of the tree."""
    ext_masters: bool | None = None
    """Allow such mounts to be slaves of mounts outside of the tree."""
    skip_mnts: Iterable[StrPath] | None = None
    """Mount points to leave out."""
    enable_fs: Iterable[str] | None = None
    """File systems to save although CRIU does not support them: names, or ``"all"``."""
    mntns_compat_mode: bool | None = None
    """Restore mounts as CRIU before 3.17 did. CRIU 3.17."""
    orphan_pts_master: bool | None = None
    """Restore a pty slave whose master is outside of the tree with a new master, which the
    ``orphan-pts-master`` notification passes: a restore needs ``on_notify``. CRIU 3.15."""
    skip_file_rwx_check: bool | None = None
    """Do not compare the permissions of files with those of the dump. CRIU 3.18."""

    # ---- cgroups ----

    manage_cgroups: bool | None = None
    """The old form of ``manage_cgroups_mode``: True is SOFT, False is IGNORE."""
    cg_roots: Iterable[CgroupRoot | tuple[str] | tuple[str, str] | str] | None = None
    """Where restored cgroups go: a path, for one controller or all."""
    cg_props: str | None = None
    """Which cgroup properties to save, as YAML. CRIU 2.4."""
    cg_props_file: StrPath | None = None
    """The same, from a file. CRIU 2.4."""
    cg_dump_controllers: Iterable[str] | None = None
    """Save these controllers only. CRIU 2.4."""
    cg_yard: StrPath | None = None
    """A directory in which cgroups are mounted already. CRIU 3.14."""

    # ---- security ----

    lsm_profile: str | None = None
    """The security profile to restore with: ``"apparmor:NAME"``, ``"selinux:LABEL"``. CRIU 3.12."""
    lsm_mount_context: str | None = None
    """The SELinux context of restored mounts. CRIU 3.17."""
    unprivileged: bool | None = None
    """Accept to run with CAP_CHECKPOINT_RESTORE only. CRIU 3.18, kernel 5.9."""

    # ---- the page server's connection ----

    tls: bool | None = None
    """Encrypt the connection to the page server. CRIU 3.13."""
    tls_no_cn_verify: bool | None = None
    """Do not compare the server's name with its certificate. CRIU 3.13."""
    tls_cacert: StrPath | None = None
    """File of the trusted certificates. CRIU 3.13."""
    tls_cacrl: StrPath | None = None
    """File of revoked certificates. CRIU 3.13."""
    tls_cert: StrPath | None = None
    """File of our certificate. CRIU 3.13."""
    tls_key: StrPath | None = None
    """File of our private key. CRIU 3.13."""

    # ---- image files ----

    images_dir: StrPath | None = None
    """The images directory by a path that CRIU itself opens, in its own mount namespace: for a
    ``criu service`` in another mount namespace. Instead of ``images_directory``; a worker needs
    ``allow_untrusted``, since nothing checks the directory before. CRIU 3.19."""
    image_io_mode: enums.ImageIOMode | str | int | None = None
    """Through the page cache, which is the default, or past it. CRIU 4.3."""
    compress: enums.CompressMode | str | int | None = None
    """Compress memory pages; the default is OFF. CRIU 4.3."""
    compress_acceleration: int | None = None
    """LZ4's acceleration, 1 to 65537: faster and larger. CRIU 4.3."""
    compress_block_size: int | None = None
    """Bytes compressed at once, at most 4 MiB. CRIU 4.3."""
    decompress_threads: int | None = None
    """Threads that decompress: 0 automatic, 1 only CRIU's main thread (the default), at most 1024.
    CRIU 4.3."""
    stream: bool | None = None
    """Images go through ``criu-image-streamer``. CRIU 4.3."""

    # ---- the run itself ----

    exec_cmd: Iterable[str | os.PathLike[str]] | None = None
    """A program and arguments that CRIU becomes after the restore, as parent of the restored."""
    log_level: int | None = None
    """0 messages only, 1 errors, 2 warnings (CRIU's default), 3 information, 4 debugging."""
    log_file: str | None = None
    """The log's name in the work directory, or its path. A relative path begins at the work
    directory. Default: ``dump.log``, ``pre-dump.log`` or ``restore.log``."""
    config_file: StrPath | None = None
    """A CRIU configuration file for this call; its options override the other fields.
    CRIU 3.12."""
    log_to_stderr: bool | None = None
    """Log to CRIU's standard error, which errors are read from, if no ``log_file`` is named.
    CRIU 3.19."""
    display_stats: bool | None = None
    """Print statistics to CRIU's standard output as well: the logger ``pycriu_native.criu`` gets
    them. CRIU 3.19."""
    plugin_options: Iterable[str] | None = None
    """Options of plugins: ``"PLUGIN.NAME"`` or ``"PLUGIN.NAME=VALUE"``. CRIU 4.3."""

    # ---- what no request has: it goes into a configuration file that the call adds ----

    ghost_fiemap: bool | None = None
    """Find the data of deleted files by fiemap instead of by ``SEEK_DATA``. CRIU 3.18."""
    allow_uprobes: bool | None = None
    """Save and restore a process that has the mapping of uprobes. CRIU 4.2."""
    file_validation: enums.FileValidation | str | int | None = None
    """How a restore compares mapped files with those of the dump; the default is BUILDID. A dump
    saves the build IDs. CRIU 3.15."""
    action_scripts: Iterable[StrPath] | None = None
    """Programs that CRIU runs at each notification, after ``on_notify``, the last one first, with
    CRTOOLS_SCRIPT_ACTION, CRTOOLS_IMAGE_DIR and CRTOOLS_INIT_PID in the environment. A relative
    path begins at the work directory. A program that fails makes the call fail. CRIU 3.19."""
    pidfile: StrPath | None = None
    """A file that is made, with the pid of the restored root process, of the page server or of the
    lazy-pages daemon. It must not exist. A relative path begins at the work directory."""
    libdir: StrPath | None = None
    """The directory of CRIU's plugins. A relative path begins at the work directory."""
    log_pid: bool | None = None
    """Each restored process logs to a file of its own: the log's name with the pid appended."""
    deprecated: bool | None = None
    """Accept images and features that CRIU has deprecated."""
    check_extra: bool | None = None
    """``check`` looks at what only some processes need as well."""
    check_experimental: bool | None = None
    """``check`` looks at experimental features as well."""
    check_feature: str | None = None
    """``check`` looks at this feature only, by the names of ``criu check --feature list``."""

    def __post_init__(self) -> None:
        fields = vars(self)
        problems = {}
        for field, value in list(fields.items()):
            if value is None:
                del fields[field]  # an unset field is unset, even if it was given as None
                continue
            try:
                fields[field] = BY_FIELD[field].kind.parse(value)
            except ValueError as problem:
                problems[field] = Problem(field, value, str(problem))
        if problems:
            raise OptionError([problems[field] for field in BY_FIELD if field in problems])

    def __repr__(self) -> str:
        shown = ", ".join(f"{row.field}={value!r}" for row, value in self.items())
        return f"{type(self).__name__}({shown})"

    def items(self) -> Iterator[tuple[Row, Any]]:
        """The fields that are set, as table row and value, in the table's order."""
        return iter(self._items)

    @functools.cached_property
    def _items(self) -> tuple[tuple[Row, Any], ...]:
        fields = vars(self)
        result = sorted([field for field in fields if field in _PLACES], key=_PLACES.__getitem__)
        return tuple([(BY_FIELD[field], fields[field]) for field in result])

    @functools.cached_property
    def _remembered(self) -> Remembered:
        return Remembered()

    def only_for(self, verb: enums.Verb | str) -> Self:
        """These options without those that mean nothing to ``verb``.

        A verb refuses options that CRIU would ignore there; this is for one set of options that
        serves dump and restore alike.
        """
        mask = VERB_MASK[enums.Verb(verb)]
        foreign = {row.name: None for row, _ in self.items() if not row.on & mask}
        return replace(self, **foreign) if foreign else self

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, in plain values: strings, numbers, booleans, lists, mappings.

        Lossless: ``CriuOpts.from_dict(opts.to_dict()) == opts``, except that a file object becomes
        its descriptor's number. The result can be stored as JSON or TOML.
        """
        return {row.name: row.kind.plain(value) for row, value in self.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Options from a mapping of field names; ``OptionError`` names what is unknown."""
        unknown = [
            Problem(name, value, "is no option")
            for name, value in values.items()
            if name not in BY_FIELD
        ]
        if unknown:
            raise OptionError(unknown)
        return cls(**values)


@functools.cache
def _foreign(verb: enums.Verb) -> frozenset[str]:
    """The options that mean nothing to a verb."""
    mask = VERB_MASK[verb]
    return frozenset(row.name for row in TABLE if not row.on & mask)


def foreign_options(opts: Fields, verb: enums.Verb) -> Iterator[Problem]:
    """One problem for each option that is set and has no meaning for ``verb``."""
    foreign = _foreign(verb)
    for row, value in opts.items():
        if row.field in foreign:
            known = [str(v) for v, m in VERB_MASK.items() if row.on & m]
            where = " and ".join(known) or "other requests"
            yield Problem(
                row.name,
                value,
                f"belongs to {where}; {verb} would ignore it "
                f"(opts.only_for({str(verb)!r}) drops it)",
            )
