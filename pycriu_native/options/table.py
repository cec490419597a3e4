"""The option table: one row for each option of CRIU's wire format.

The calls, the checks, the conversions, the documentation and the tests read these rows; a
new option is one row here and one documented field in ``fields.py``. The module does not need the
extension, so that tools can import it before a build.

``since`` is the first release of CRIU with the option; ``local`` and ``shared`` are the first
releases of libcriu with the setter for a handle (``criu_local_*``) and for the library-wide handle
(``criu_*``). Facts: libcriu's header and ``rpc.proto`` of 3.17.1 to 4.3, CRIU's
``criu/cr-service.c``; defects measured.
"""

from __future__ import annotations

import functools

from .._support.frozen_dataclass import dataclass
from ..enums import Verb
from . import values
from .value_types import (
    Command,
    Directory,
    FileDescriptor,
    FilePath,
    Flag,
    Item,
    Kind,
    ListOf,
    Mode,
    Namespaces,
    Number,
    Text,
)

COMPRESS_SETTERS = "each setter of compression also changes the other two fields"
INT32 = Number(-(2**31), 2**31 - 1)
UINT32 = Number(0, 2**32 - 1)


class On:
    """The verbs that an option applies to: bits of a mask.

    Not an ``enum.Flag``, whose creation takes as long as the rest of this module.
    """

    DUMP = 1
    PRE_DUMP = 2
    RESTORE = 4
    PAGE_SERVER = 8
    DAEMON = 16
    """A page server in the background."""
    CPUINFO = 32
    LAZY_PAGES = 64
    CHECK = 128
    DEDUP = 256

    SAVE = DUMP | PRE_DUMP
    BOTH = DUMP | RESTORE
    TREE = SAVE | RESTORE
    PAGES = SAVE | PAGE_SERVER | LAZY_PAGES
    ALL = TREE | PAGES | DAEMON | CPUINFO | CHECK | DEDUP


@dataclass(frozen=True, slots=True)
class Row:
    """One option."""

    field: str | None
    """Its name in ``CriuOpts``; None: the call sets it, not the user."""
    wire: str | None
    """Its name in ``rpc.proto``; None: it selects the verb, or ``in_config`` is set."""
    kind: Kind
    on: int
    """Bits of :class:`On`."""
    setter: str | None = None
    """The setter's name without ``criu_local_`` or ``criu_``; None: no release has a setter."""
    since: str = "1.7"
    local: str = "1.7"
    shared: str = "1.7"
    runc: str | None = None
    flag: str | None = None
    """The equivalent long option of the ``criu`` program."""
    short: str | None = None
    """The equivalent short option, if there is one."""
    negates: bool = False
    """The program also has ``--no-`` and the name, for False."""
    implies: str | None = None
    """A field that the long option sets to True as well."""
    in_config: bool = False
    """Requests have no field for it: the call writes it to a configuration file."""
    repair: bool = False
    """The setter does not set the presence flag: the field is set by its wire name as well."""
    ignore_status: bool = False
    """The setter reports failure on success: its return value is ignored."""
    avoid: str = ""
    """Why the setter is not used if libcriu has it: the field is set by its wire name."""
    added: str = ""
    """The value that a call adds, and when."""
    default: object = None
    """CRIU's value of an unset field, if it is a number or a word."""

    @property
    def name(self) -> str:
        """The name in messages."""
        return self.field or self.wire or ""


def _row(
    field: str | None,
    wire: str | None,
    kind: Kind,
    on: int,
    setter: str | None = None,
    since: str = "1.7",
    **more: object,
) -> Row:
    """A row whose setter came with the field, unless ``local`` or ``shared`` say otherwise."""
    more.setdefault("local", since)
    more.setdefault("shared", more["local"])
    return Row(field, wire, kind, on, setter, since, **more)  # type: ignore[arg-type]


def _usual(field: str, kind: Kind, on: int, since: str = "1.7", **more: object) -> Row:
    """The usual option: field, wire field, setter and command-line option share one name."""
    more = {"setter": "set_" + field, "flag": "--" + field.replace("_", "-"), **more}
    return _row(field, field, kind, on, since=since, **more)  # type: ignore[arg-type]


def _flag(field: str, on: int, since: str = "1.7", **more: object) -> Row:
    """The usual flag."""
    return _usual(field, Flag(), on, since, **{"negates": True, **more})


def _in_config(
    field: str, kind: Kind, on: int, flag: str, since: str = "1.7", **more: object
) -> Row:
    """An option of CRIU's command line and configuration files that no request has."""
    return _row(field, None, kind, on, None, since, flag=flag, in_config=True, **more)


TABLE: tuple[Row, ...] = (
    # ---- runc's CriuOpts, in its order ----
    _row("images_directory", "images_dir_fd", Directory(), On.ALL, "set_images_dir_fd",
         runc="ImagesDirectory", flag="--images-dir", short="D"),
    _row("work_directory", "work_dir_fd", Directory(), On.ALL, "set_work_dir_fd",
         shared="1.2", runc="WorkDirectory", flag="--work-dir", short="W"),
    _row("parent_image", "parent_img", FilePath("a relative path"), On.SAVE | On.PAGE_SERVER,
         "set_parent_images", runc="ParentImage", flag="--prev-images-dir"),
    _flag("leave_running", On.DUMP, runc="LeaveRunning", short="R", negates=False),
    _flag("tcp_established", On.TREE, runc="TcpEstablished"),
    _row("external_unix_connections", "ext_unix_sk", Flag(), On.TREE, "set_ext_unix_sk",
         runc="ExternalUnixConnections", flag="--ext-unix-sk", short="x"),
    _flag("shell_job", On.TREE, runc="ShellJob", short="j"),
    _flag("file_locks", On.TREE, runc="FileLocks", short="l"),
    _row("pre_dump", None, Flag(), On.SAVE, runc="PreDump"),
    _row("page_server", "ps", Item(values.PageServer), On.PAGES,
         "set_page_server_address_port", local="3.12", runc="PageServer", flag="--page-server",
         ignore_status=True),
    _row("veth_pairs", "veths", ListOf(Item(values.VethPair)), On.RESTORE, "add_veth_pair",
         runc="VethPairs", flag="--veth-pair"),
    _usual("manage_cgroups_mode", Mode("CgroupMode"), On.TREE, flag="--manage-cgroups",
           runc="ManageCgroupsMode", default="soft"),
    _usual("empty_ns", Namespaces(), On.TREE, local="3.19", runc="EmptyNs"),
    _flag("auto_dedup", On.TREE | On.PAGE_SERVER, runc="AutoDedup"),
    _flag("lazy_pages", On.BOTH | On.PAGE_SERVER, "3.5", local="4.3", runc="LazyPages",
          negates=False),
    _usual("status_fd", FileDescriptor(), On.DUMP | On.PAGE_SERVER | On.LAZY_PAGES, "3.7",
           setter=None, runc="StatusFd"),

    # ---- what is saved, and how ----
    _flag("leave_stopped", On.BOTH, "3.19", local="4.3", short="s", negates=False),
    _flag("track_mem", On.SAVE),
    _usual("pre_dump_mode", Mode("PreDumpMode"), On.PRE_DUMP, "3.14", default="splice"),
    _usual("pidfd_store_sk", FileDescriptor(), On.SAVE, "3.16", flag=None),
    _usual("ghost_limit", UINT32, On.SAVE, default=2**20),
    _flag("link_remap", On.SAVE, runc="LinkRemap"),
    _flag("force_irmap", On.SAVE),
    _row("irmap_paths", "irmap_scan_paths", ListOf(FilePath()), On.SAVE, "add_irmap_path", "1.8",
         flag="--irmap-scan-path"),
    _flag("evasive_devices", On.SAVE),
    _usual("timeout", UINT32, On.SAVE, "2.4", repair=True, default=10),
    _usual("freeze_cgroup", FilePath(), On.SAVE, "2.4"),
    _usual("cpu_cap", UINT32, On.BOTH | On.CPUINFO),

    # ---- sockets and networks ----
    _flag("tcp_close", On.TREE, "3.12"),
    _flag("tcp_skip_in_flight", On.SAVE, "2.4", runc="TcpSkipInFlight",
          flag="--skip-in-flight"),
    _usual("network_lock", Mode("NetworkLock"), On.SAVE, "3.16"),
    _row("unix_sks", "unix_sk_ino", ListOf(UINT32, inner="inode"), On.SAVE, "add_unix_sk",
         flag="--ext-unix-sk", short="x", implies="external_unix_connections",
         avoid="sets ext_unix_sk too, and frees twice when that is False"),
    _flag("weak_sysctls", On.RESTORE, "2.9"),

    # ---- namespaces, mounts, external resources ----
    _usual("external", ListOf(Text("a key of an external resource")), On.TREE, "2.8",
           setter="add_external"),
    _row("inherit_fds", "inherit_fd", ListOf(Item(values.InheritFd)), On.RESTORE, "add_inherit_fd",
         "2.8", flag="--inherit-fd"),
    _usual("join_ns", ListOf(Item(values.JoinNamespace)), On.RESTORE, "3.16.1",
           setter="join_ns_add", short="J"),
    _usual("root", FilePath(), On.TREE, short="r"),
    _row("ext_mounts", "ext_mnt", ListOf(Item(values.ExtMount)), On.TREE, "add_ext_mount",
         flag="--ext-mount-map", short="M"),
    _flag("auto_ext_mnt", On.TREE, shared="1.6", flag="--ext-mount-map", short="M", negates=False),
    _flag("ext_sharing", On.SAVE, shared="1.6", flag="--enable-external-sharing", negates=False),
    _flag("ext_masters", On.SAVE, shared="1.6", flag="--enable-external-masters", negates=False),
    _row("skip_mnts", "skip_mnt", ListOf(FilePath()), On.SAVE, "add_skip_mnt", shared="1.6",
         flag="--skip-mnt"),
    _usual("enable_fs", ListOf(Text("a file system's name")), On.TREE, setter="add_enable_fs",
           shared="1.6"),
    _flag("mntns_compat_mode", On.RESTORE, "3.17"),
    _flag("orphan_pts_master", On.TREE, "3.15", flag=None, negates=False),
    _flag("skip_file_rwx_check", On.RESTORE, "3.18"),

    # ---- cgroups ----
    _flag("manage_cgroups", On.TREE, negates=False),
    _row("cg_roots", "cg_root", ListOf(Item(values.CgroupRoot)), On.TREE, "add_cg_root",
         flag="--cgroup-root"),
    _row("cg_props", "cgroup_props", Text("properties as YAML"), On.SAVE, "add_cg_props", "2.4",
         shared="4.3", flag="--cgroup-props"),
    _row("cg_props_file", "cgroup_props_file", FilePath(), On.SAVE, "add_cg_props_file", "2.4",
         shared="4.3", flag="--cgroup-props-file"),
    _row("cg_dump_controllers", "cgroup_dump_controller", ListOf(Text("a controller's name", empty=True)),
         On.SAVE, "add_cg_dump_controller", "2.4", shared="4.3", flag="--cgroup-dump-controller"),
    _row("cg_yard", "cgroup_yard", FilePath(), On.TREE, "add_cg_yard", "3.14", shared="4.3",
         flag="--cgroup-yard"),

    # ---- security ----
    _usual("lsm_profile", Text("'apparmor:NAME', 'selinux:LABEL' or 'none:'"), On.TREE, "3.12",
           runc="LsmProfile"),
    _usual("lsm_mount_context", Text("a mount context"), On.RESTORE, "3.17",
           runc="LsmMountContext"),
    _flag("unprivileged", On.ALL, "3.18"),

    # ---- the page server's connection ----
    _flag("tls", On.PAGES, "3.13", local="4.3"),
    _flag("tls_no_cn_verify", On.PAGES, "3.13", local="4.3", negates=False),
    _usual("tls_cacert", FilePath(), On.PAGES, "3.13", local="4.3"),
    _usual("tls_cacrl", FilePath(), On.PAGES, "3.13", local="4.3"),
    _usual("tls_cert", FilePath(), On.PAGES, "3.13", local="4.3"),
    _usual("tls_key", FilePath(), On.PAGES, "3.13", local="4.3"),

    # ---- image files ----
    _usual("images_dir", FilePath(), On.ALL, "3.19", setter=None),
    _usual("image_io_mode", Mode("ImageIOMode"), On.TREE | On.PAGE_SERVER, "4.3",
           default="writeback"),
    _usual("compress", Mode("CompressMode"), On.SAVE, "4.3", default="off", avoid=COMPRESS_SETTERS),
    _usual("compress_acceleration", Number(1, 65537), On.SAVE, "4.3", avoid=COMPRESS_SETTERS),
    _usual("compress_block_size", Number(4096, 4 * 2**20, step=4096), On.SAVE, "4.3",
           flag="--compress-block", avoid=COMPRESS_SETTERS),
    _usual("decompress_threads", Number(0, 1024), On.RESTORE, "4.3", default=1),
    _flag("stream", On.TREE, "4.3"),

    # ---- the run itself ----
    _usual("exec_cmd", Command(), On.RESTORE),
    _usual("log_level", Number(0, 4), On.ALL, flag="--verbosity", short="v", default=2),
    _usual("log_file", Text("a file's name or path"), On.ALL, added="named after the verb",
           short="o"),
    _usual("config_file", FilePath(), On.ALL, "3.12", flag="--config", local="4.2",
           added="a lazy dump's address, which CRIU up to 4.2 takes from there only"),
    _flag("log_to_stderr", On.ALL, "3.19", local="4.3", flag=None, negates=False),
    _flag("display_stats", On.TREE, "3.19", local="4.3"),
    _usual("plugin_options", ListOf(Text("PLUGIN.NAME or PLUGIN.NAME=VALUE")), On.TREE, "4.3",
           setter="add_plugin_option", flag="--plugin-option"),

    # ---- options without a field in requests ----
    _in_config("ghost_fiemap", Flag(), On.SAVE, "--ghost-fiemap", "3.18", negates=True),
    _in_config("allow_uprobes", Flag(), On.BOTH, "--allow-uprobes", "4.2", negates=True),
    _in_config("file_validation", Mode("FileValidation"), On.BOTH, "--file-validation", "3.15",
               default="buildid"),
    _in_config("action_scripts", ListOf(FilePath()), On.BOTH, "--action-script", "3.19"),
    _in_config("pidfile", FilePath(), On.RESTORE | On.DAEMON | On.LAZY_PAGES, "--pidfile"),
    _in_config("libdir", FilePath(), On.TREE, "--libdir", short="L"),
    _in_config("log_pid", Flag(), On.RESTORE, "--log-pid", negates=True),
    _in_config("deprecated", Flag(), On.BOTH, "--deprecated", negates=True),
    _in_config("check_extra", Flag(), On.CHECK, "--extra", negates=True),
    _in_config("check_experimental", Flag(), On.CHECK, "--experimental", negates=True),
    _in_config("check_feature", Text("a feature's name"), On.CHECK, "--feature"),

    # ---- fields that the call adds ----
    _row(None, "pid", INT32, On.SAVE, "set_pid", flag="--tree", short="t",
         added="the verb's argument"),
    _row(None, "notify_scripts", Flag(), On.ALL, since="1.7",
         added="on every dump, pre-dump and restore but one of a tree that the caller is in"),
    _row(None, "rst_sibling", Flag(), On.RESTORE, flag="--restore-sibling", added="by restore_child"),
)  # fmt: skip
"""Every option, in the order in which it is applied."""

BY_FIELD: dict[str, Row] = {row.field: row for row in TABLE if row.field}
BY_WIRE: dict[str, Row] = {row.wire: row for row in TABLE if row.wire}

VERB_MASK: dict[Verb, int] = {
    Verb.DUMP: On.DUMP,
    Verb.PRE_DUMP: On.PRE_DUMP,
    Verb.RESTORE: On.RESTORE,
    Verb.RESTORE_CHILD: On.RESTORE,
    Verb.PAGE_SERVER: On.PAGE_SERVER | On.DAEMON,
    Verb.PAGE_SERVER_CHILD: On.PAGE_SERVER,
    Verb.LAZY_PAGES: On.LAZY_PAGES,
    Verb.CHECK: On.CHECK,
    Verb.DEDUP: On.DEDUP,
    Verb.CPUINFO_DUMP: On.CPUINFO,
    Verb.CPUINFO_CHECK: On.CPUINFO,
}
"""The bits of each verb that takes options."""


MEMBER_SINCE: dict[tuple[str, int], str] = {("network_lock", 3): "3.19"}
"""Values (SKIP) that are younger than their option, by the option's name and the value."""

OLDEST = "3.17"
"""The oldest supported release: its features need no check."""


@functools.cache
def release(text: str) -> tuple[int, ...]:
    """A release as numbers that compare: ``"3.16.1"`` is ``(3, 16, 1)``."""
    return tuple(int(part) for part in text.split("."))
