"""The fields of ``CriuOpts``, and the check of their values.

Sixteen fields of runc's struct come first, in its order; its later ones, and the other options of
libcriu and of CRIU's wire format, follow. Each field has one row in ``table.py``, with
its setter, wire field, release and command-line flag. The facts in the docstrings are from CRIU's
man page and ``criu/cr-service.c`` unless stated otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from .. import enums
from .._support.cached_property import cached_property
from .._support.frozen_dataclass import dataclass, replace
from .._support.light_typing import Any, Self
from ..errors import OptionError, Problem
from .table import BY_FIELD, VERB_MASK, Row
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
    """Cached results of a call, which save the next call with these options most of its checks.

    They depend on the options only and are not part of the value: copies start without them.
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
    """The images directory: a path or an open directory. A dump creates it with mode 0700 if it
    does not exist; a restore does not. Required unless ``images_dir`` is given."""
    work_directory: StrPath | Descriptor | None = None
    """The directory of log, statistics and pid files: a path or an open directory. Default: the
    images directory."""
    parent_image: StrPath | None = None
    """The earlier images that a dump builds on, as a path relative to the images directory: those
    of the last pre-dump, or dump with ``track_mem``, of this library, which are accepted once.
    Another such dump in between, by any program, is not detected: memory that was changed before it
    would be missing. A dump needs ``track_mem`` as well; otherwise CRIU saves all memory again,
    without a warning. Not with ``images_dir``, nor in a dump of the caller's own tree."""
    leave_running: bool | None = None
    """Leave the process running after the dump; with ``files="rollback"`` a restore returns the
    files that it writes to from then on. CRIU's default is to kill it."""
    tcp_established: bool | None = None
    """Save established TCP connections. The restore needs it too, and the same addresses."""
    external_unix_connections: bool | None = None
    """Allow datagram sockets that are connected to a named socket outside the tree. On restore:
    connect the other unix sockets that were saved with ``external`` to the sockets of their old
    names."""
    shell_job: bool | None = None
    """Allow a process whose session and terminal belong to a shell outside the tree. On restore
    too, where the worker's standard input must be the new terminal (``Worker(stdin=...)``), open
    for reading and writing: it becomes the terminal of the restored session."""
    file_locks: bool | None = None
    """Save flock and POSIX locks. On restore: acquire them again."""
    pre_dump: bool | None = None
    """``dump`` makes a pre-dump: it saves memory only, and the process continues. Not sent."""
    page_server: PageServer | str | tuple[str, int] | None = None
    """The page server that stores the memory pages instead of the images directory:
    ``"10.0.0.2:27"``, a tuple or a ``PageServer``. With ``lazy_pages``: the address at which this
    dump serves pages."""
    veth_pairs: Iterable[VethPair | tuple[str, str] | str] | None = None
    """Veth pairs: the device in the container and the name of its peer on the host. CRIU
    recommends the equivalent ``external=["veth[inside]:outside"]``."""
    manage_cgroups_mode: enums.CgroupMode | str | int | None = None
    """How cgroups are restored; see :class:`CgroupMode`. CRIU's default is SOFT."""
    empty_ns: int | str | None = None
    """Namespaces whose contents are not saved, and that are restored empty; a
    ``setup-namespaces`` hook can configure them. CRIU accepts ``CLONE_NEWNET`` (0x40000000, or
    ``"net"``) only."""
    auto_dedup: bool | None = None
    """Punch holes for pages in the images of the parents when a dump writes newer versions of
    them; on restore, for pages that have been read."""
    lazy_pages: bool | None = None
    """Dump: leave memory in the process and serve it to a restore elsewhere. Restore: resume the
    process at once, and fetch its memory on access from the ``criu lazy-pages`` daemon of the same
    work directory. Page server: serve the pages of a complete image set to such a daemon. Dump
    and restore need userfaultfd. CRIU 3.5."""
    status_fd: Descriptor | None = None
    """A writable descriptor: CRIU writes one zero byte to it when a page server, lazy dump or
    ``LazyPages`` accepts connections. Obsolete since CRIU 3.15, which also sends the
    ``status-ready`` notification."""

    # ---- what is saved, and how ----

    leave_stopped: bool | None = None
    """Leave the process stopped after the dump or the restore. CRIU 3.19."""
    track_mem: bool | None = None
    """Track changes of memory in the kernel from this dump on, for a later incremental dump, and
    save only the memory that has changed since ``parent_image``. A pre-dump always does so. Needs
    soft-dirty tracking."""
    pre_dump_mode: enums.PreDumpMode | str | int | None = None
    """How a pre-dump reads the memory. CRIU's default is SPLICE. CRIU 3.14."""
    pidfd_store_sk: Descriptor | None = None
    """A unix datagram socket connected to itself, in which CRIU stores pidfds between dumps of
    one process, to detect reused pids. CRIU 3.16, kernel 5.6."""
    ghost_limit: int | None = None
    """Maximum size of a deleted but open file that is stored in the images, in bytes; below 4 GiB.
    CRIU's default is 1 MiB."""
    link_remap: bool | None = None
    """Allow an open file whose name was removed but which has other links: CRIU creates a
    temporary link to it."""
    force_irmap: bool | None = None
    """Search directories for the paths of files under inotify or fanotify."""
    irmap_paths: Iterable[StrPath] | None = None
    """Additional directories that ``force_irmap`` searches. CRIU 1.8."""
    evasive_devices: bool | None = None
    """Use any path to a device if its own path is not accessible."""
    timeout: int | None = None
    """Time limit for freezing the tree, in seconds; the default is 10, or a shorter ``deadline``
    (each verb has this argument, for the whole call). libcriu's setter does not send it up to 4.3;
    this library does. CRIU 2.4."""
    freeze_cgroup: StrPath | None = None
    """A freezer cgroup with which the tree is frozen, instead of each thread being stopped;
    required for a process that is frozen already. CRIU 2.4."""
    cpu_cap: int | None = None
    """Mask of the CPU checks: 1 fpu, 2 all features, 4 instructions, 8 image (an unsigned 32-bit
    number). CRIU's default is all that the architecture needs."""

    # ---- sockets and networks ----

    tcp_close: bool | None = None
    """Drop established TCP connections: they are restored closed. On restore too. CRIU 3.12."""
    tcp_skip_in_flight: bool | None = None
    """Do not save connections whose handshake is not complete. CRIU 2.4."""
    network_lock: enums.NetworkLock | str | int | None = None
    """How packets are blocked while connections are saved. CRIU 3.16; SKIP is 3.19. The rules of
    IPTABLES remain if the images are restored with ``tcp_close`` (seen with 4.2.1)."""
    unix_sks: Iterable[int] | None = None
    """Inodes of unix sockets outside the tree; needs ``external_unix_connections``. CRIU
    recommends ``external=["unix[inode]"]``."""
    weak_sysctls: bool | None = None
    """Continue if a sysctl of the images does not exist on this host. CRIU 2.9."""

    # ---- namespaces, mounts, external resources ----

    external: Iterable[str] | None = None
    """External resources, which are not saved and are provided at the restore:
    ``"mnt[/data]:data"``, ``"dev[8/1]:disk"``, ``"unix[inode]"``, ``"tty[rdev:dev]"``,
    ``"file[mnt_id:inode]"``, ``"net[inode]:key"``, ``"pid[inode]:key"``,
    ``"veth[eth0]:veth0@br0"``, ``"macvlan[eth0]:up"``. CRIU 2.8."""
    inherit_fds: Iterable[InheritFd | tuple[Descriptor, str] | str] | None = None
    """Descriptors of the caller that replace those of the images, each with the key of the resource
    that it replaces. Only with a worker of this library. CRIU 2.8."""
    join_ns: Iterable[JoinNamespace | tuple[str, str] | tuple[str, str, str] | str] | None = None
    """Existing namespaces to restore into: ``("net", "/run/netns/blue")``. CRIU 3.16.1."""
    root: StrPath | None = None
    """The root of the mount namespace on restore: a mount point."""
    ext_mounts: Iterable[ExtMount | tuple[str, str] | str] | None = None
    """External mounts, as pairs. CRIU recommends ``external=["mnt[key]:value"]``."""
    auto_ext_mnt: bool | None = None
    """Detect external mounts; CRIU's ``--external mnt[]``."""
    ext_sharing: bool | None = None
    """Allow external mounts that are shared with mounts outside of the tree."""
    ext_masters: bool | None = None
    """Allow external mounts that are slaves of mounts outside of the tree."""
    skip_mnts: Iterable[StrPath] | None = None
    """Mount points that are not saved."""
    enable_fs: Iterable[str] | None = None
    """File systems that are saved although CRIU does not support them: names, or
    ``"all"``."""
    mntns_compat_mode: bool | None = None
    """Restore mounts as CRIU before 3.17 did. CRIU 3.17."""
    orphan_pts_master: bool | None = None
    """Restore a pty slave whose master is outside of the tree with a new master, which the
    ``orphan-pts-master`` notification passes to ``on_notify``: a restore needs one. CRIU 3.15."""
    skip_file_rwx_check: bool | None = None
    """Do not compare the permissions of files with those of the dump. CRIU 3.18."""

    # ---- cgroups ----

    manage_cgroups: bool | None = None
    """The old form of ``manage_cgroups_mode``: True is SOFT, False is IGNORE."""
    cg_roots: Iterable[CgroupRoot | tuple[str] | tuple[str, str] | str] | None = None
    """The parent of the restored cgroups: a path, for one controller or all."""
    cg_props: str | None = None
    """The cgroup properties that are saved, as YAML. CRIU 2.4."""
    cg_props_file: StrPath | None = None
    """The same, from a file. CRIU 2.4."""
    cg_dump_controllers: Iterable[str] | None = None
    """Save these controllers only. CRIU 2.4."""
    cg_yard: StrPath | None = None
    """A directory in which cgroups are mounted already; a relative path starts at
    ``work_directory``, else at ``images_directory``. CRIU 3.14."""

    # ---- security ----

    lsm_profile: str | None = None
    """The security profile to restore with: ``"apparmor:NAME"``, ``"selinux:LABEL"``. CRIU 3.12."""
    lsm_mount_context: str | None = None
    """The SELinux context of restored mounts. CRIU 3.17."""
    unprivileged: bool | None = None
    """Allow CRIU to run with CAP_CHECKPOINT_RESTORE only. CRIU 3.18, kernel 5.9."""

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
    """File of this side's certificate. CRIU 3.13."""
    tls_key: StrPath | None = None
    """File of this side's private key. CRIU 3.13."""

    # ---- image files ----

    images_dir: StrPath | None = None
    """The images directory as a path that CRIU itself opens, in its own mount namespace: for a
    ``criu service`` in another mount namespace. Instead of ``images_directory``. A worker needs
    ``allow_untrusted``, since the directory is not checked before. CRIU 3.19."""
    image_io_mode: enums.ImageIOMode | str | int | None = None
    """Whether images are read and written through the page cache, which is the default, or
    directly. CRIU 4.3."""
    compress: enums.CompressMode | str | int | None = None
    """Compress memory pages; the default is OFF. CRIU 4.3."""
    compress_acceleration: int | None = None
    """LZ4's acceleration, 1 to 65537: a higher one is faster and compresses less. CRIU 4.3."""
    compress_block_size: int | None = None
    """Bytes that are compressed at once, at most 4 MiB. CRIU 4.3."""
    decompress_threads: int | None = None
    """Threads that decompress: 0 automatic, 1 only CRIU's main thread (the default), at most 1024.
    CRIU 4.3."""
    stream: bool | None = None
    """Read and write the images through ``criu-image-streamer``. CRIU 4.3."""

    # ---- the run itself ----

    exec_cmd: Iterable[str | os.PathLike[str]] | None = None
    """A program and its arguments, which CRIU executes in its own process after the restore: it is
    then the parent of the restored process."""
    log_level: int | None = None
    """0 messages only, 1 errors, 2 warnings (CRIU's default), 3 information, 4 debugging."""
    log_file: str | None = None
    """The path of the log, relative to the work directory. Default: ``dump.log``,
    ``pre-dump.log`` or ``restore.log``."""
    config_file: StrPath | None = None
    """A CRIU configuration file for this call; its options override the other fields.
    CRIU 3.12."""
    log_to_stderr: bool | None = None
    """Log to CRIU's standard error if ``log_file`` is not set; errors are then read from there.
    CRIU 3.19."""
    display_stats: bool | None = None
    """Print statistics to CRIU's standard output as well, which is logged by
    ``pycriu_native.criu``. CRIU 3.19."""
    plugin_options: Iterable[str] | None = None
    """Options of plugins: ``"PLUGIN.NAME"`` or ``"PLUGIN.NAME=VALUE"``. CRIU 4.3."""

    # ---- options without a field in requests: the call writes them to a configuration file ----

    ghost_fiemap: bool | None = None
    """Find the data of deleted files by fiemap instead of by ``SEEK_DATA``. CRIU 3.18."""
    allow_uprobes: bool | None = None
    """Save and restore processes with the mapping of uprobes. CRIU 4.2."""
    file_validation: enums.FileValidation | str | int | None = None
    """How a restore compares mapped files with those of the dump; the default is BUILDID. A dump
    saves the build IDs. CRIU 3.15."""
    action_scripts: Iterable[StrPath] | None = None
    """Programs that CRIU runs at each notification, after ``on_notify``, the last one first, with
    CRTOOLS_SCRIPT_ACTION, CRTOOLS_IMAGE_DIR and CRTOOLS_INIT_PID in the environment. The paths are
    relative to the work directory. The call fails if a program fails. CRIU 3.19."""
    pidfile: StrPath | None = None
    """A file that CRIU creates with the pid of the restored root process, of the page server or of
    the lazy-pages daemon. It must not exist. The path is relative to the work directory."""
    libdir: StrPath | None = None
    """The directory of CRIU's plugins. The path is relative to the work directory."""
    log_pid: bool | None = None
    """Log each restored process to a separate file: the log's name with the pid appended."""
    deprecated: bool | None = None
    """Accept images and features that CRIU has deprecated."""
    check_extra: bool | None = None
    """``check`` also checks features that only some processes need."""
    check_experimental: bool | None = None
    """``check`` also checks experimental features."""
    check_feature: str | None = None
    """``check`` checks this feature only, by the names of ``criu check --feature list``."""

    def __post_init__(self) -> None:
        fields = vars(self)
        problems = {}
        for field, value in list(fields.items()):
            if value is None:
                del fields[field]  # a field with None is unset
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

    @cached_property
    def _items(self) -> tuple[tuple[Row, Any], ...]:
        fields = vars(self)
        result = sorted([field for field in fields if field in _PLACES], key=_PLACES.__getitem__)
        return tuple([(BY_FIELD[field], fields[field]) for field in result])

    @cached_property
    def _remembered(self) -> Remembered:
        return Remembered()

    def only_for(self, verb: enums.Verb | str) -> Self:
        """These options without those that have no meaning for ``verb``.

        A verb refuses options that CRIU would ignore. With this method one set of options can be
        used for dump and restore.
        """
        mask = VERB_MASK[verb_of(verb)]
        foreign = {row.name: None for row, _ in self.items() if not row.on & mask}
        return replace(self, **foreign) if foreign else self

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, as plain values: strings, numbers, booleans, lists, mappings.

        Lossless: ``CriuOpts.from_dict(opts.to_dict()) == opts``, except that a file object becomes
        its descriptor's number. The result can be stored as JSON or TOML.
        """
        return {row.name: row.kind.plain(value) for row, value in self.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Options from a mapping of field names. ``OptionError`` names unknown ones."""
        if not isinstance(values, Mapping):
            raise OptionError([Problem("values", values, "a mapping of option names is accepted")])
        unknown = [
            Problem(name, value, "is no option")
            for name, value in values.items()
            if name not in BY_FIELD
        ]
        if unknown:
            raise OptionError(unknown)
        return cls(**values)


def verb_of(verb: enums.Verb | str) -> enums.Verb:
    """A verb by its name; ``OptionError`` for one without options."""
    result = {str(each): each for each in VERB_MASK}.get(str(verb))
    if result is None:
        rule = f"one of {', '.join(map(str, VERB_MASK))} is accepted"
        raise OptionError([Problem("verb", verb, rule)])
    return result


def foreign_options(opts: Fields, verb: enums.Verb) -> Iterator[Problem]:
    """One problem for each option that is set and has no meaning for ``verb``."""
    mask = VERB_MASK[verb]
    for row, value in opts.items():
        if not row.on & mask:
            known = [str(v) for v, m in VERB_MASK.items() if row.on & m]
            where = " and ".join(known) or "other requests"
            rule = (
                f"belongs to {where}; {verb} would ignore it "
                f"(opts.only_for({str(verb)!r}) drops it)"
            )
            yield Problem(row.name, value, rule)
