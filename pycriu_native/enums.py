"""The values of CRIU's interface that come from a fixed set.

Numbers are those of CRIU's wire format (``rpc.proto``); release numbers name the CRIU
that first understands a member.
"""

from __future__ import annotations

from enum import Enum, IntEnum, StrEnum

__all__ = [
    "CgroupMode",
    "CompressMode",
    "FileValidation",
    "ImageIOMode",
    "NetworkLock",
    "Notify",
    "PreDumpMode",
    "Verb",
]


class CgroupMode(IntEnum):
    """How cgroups and their properties are restored (``manage_cgroups_mode``; CRIU 1.7)."""

    IGNORE = 0
    """Do not change cgroups: restored tasks remain in the cgroup that CRIU runs in."""
    NONE = 1
    """Expect the cgroups to exist; restore no property."""
    PROPS = 2
    """Expect the cgroups to exist; restore their properties."""
    SOFT = 3
    """Create what is missing, and restore properties only of what was created."""
    FULL = 4
    """Create what is missing, and restore the properties of all."""
    STRICT = 5
    """Create all of them; fail if one exists already."""
    DEFAULT = 6
    """CRIU's own choice, which is SOFT."""


class NetworkLock(IntEnum):
    """How packets are blocked while connections are saved (``network_lock``; CRIU 3.16)."""

    IPTABLES = 1
    """Rules of ``iptables-restore``; CRIU's default where it was not built otherwise."""
    NFTABLES = 2
    """A table of nftables, through libnftables."""
    SKIP = 3
    """No lock at all: safe only where nothing can reach the process. CRIU 3.19."""


class PreDumpMode(IntEnum):
    """How a pre-dump takes memory out of the process (``pre_dump_mode``; CRIU 3.14)."""

    SPLICE = 1
    """A parasite in the process splices pages into pipes; the default."""
    READ = 2
    """CRIU reads the pages from outside, after the process runs again: shorter freeze."""


class FileValidation(IntEnum):
    """How a restore compares mapped executable files (``file_validation``; CRIU 3.15)."""

    FILESIZE = 0
    """By their size."""
    BUILDID = 1
    """By the build ID of their ELF notes, and by size where there is none; the default."""


class ImageIOMode(IntEnum):
    """How image files are written and read (``image_io_mode``; CRIU 4.3)."""

    WRITEBACK = 0
    """Through the page cache; the default."""
    DIRECT = 1
    """Past the page cache (``O_DIRECT``)."""


class CompressMode(IntEnum):
    """Whether memory pages are compressed in the images (``compress``; CRIU 4.3)."""

    OFF = 0
    """Pages as they are; the default."""
    BLOCK = 1
    """Blocks of LZ4; needs a CRIU that was built with it."""


class Verb(Enum):
    """CRIU's requests; the values are used in messages and log names."""

    DUMP = "dump"
    PRE_DUMP = "pre-dump"
    RESTORE = "restore"
    RESTORE_CHILD = "restore-child"
    CHECK = "check"
    VERSION = "version"
    FEATURE_CHECK = "feature-check"
    PAGE_SERVER = "page-server"
    PAGE_SERVER_CHILD = "page-server-child"
    LAZY_PAGES = "lazy-pages"
    DEDUP = "dedup"
    CPUINFO_DUMP = "cpuinfo-dump"
    CPUINFO_CHECK = "cpuinfo-check"

    def __str__(self) -> str:
        return self.value


class Notify(StrEnum):
    """The notifications that CRIU sends while it works, by CRIU's own names.

    A name that is not here (of a newer CRIU) is passed to the hook as a ``str``; members
    compare equal to their strings, so ``notification.action == "post-dump"`` always works.
    Seen in CRIU's ``criu/action-scripts.c`` (3.17 to 4.2).
    """

    PRE_STREAM = "pre-stream"
    """Restore from an image stream: the streamer may be started."""
    PRE_DUMP = "pre-dump"
    """Dump: before the process is frozen. (The verb ``pre_dump`` sends no notifications.)"""
    POST_DUMP = "post-dump"
    """Dump: all images are written, the process is still frozen. Refusing undoes the dump."""
    PRE_RESTORE = "pre-restore"
    """Restore: before any process is made."""
    POST_RESTORE = "post-restore"
    """Restore: the processes exist and have their resources, and do not run yet. Carries a pid."""
    NETWORK_LOCK = "network-lock"
    """Dump: the process is frozen, its network is about to be locked."""
    NETWORK_UNLOCK = "network-unlock"
    """The network is unlocked: after a restore, or after a dump that failed or left it running."""
    SETUP_NAMESPACES = "setup-namespaces"
    """Restore: the root task's namespaces exist and are empty. Carries a pid."""
    POST_SETUP_NAMESPACES = "post-setup-namespaces"
    """Restore: the namespaces have been filled from the images."""
    PRE_RESUME = "pre-resume"
    """Restore: everything is in place; the processes are about to run."""
    POST_RESUME = "post-resume"
    """Restore: the processes run."""
    ORPHAN_PTS_MASTER = "orphan-pts-master"
    """Restore: carries the master of a restored pty slave (``orphan_pts_master``)."""
    STATUS_READY = "status-ready"
    """The page server or the lazy dump can be connected to. CRIU 3.15."""
    QUERY_EXT_FILES = "query-ext-files"
    """Dump: the processes are frozen and not inspected yet. CRIU requests the names of external
    resources: the hook may return more names for ``external``, which CRIU adds.
    CRIU 3.19."""
