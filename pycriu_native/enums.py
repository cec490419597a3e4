"""The enumerations of CRIU's interface.

Numbers are those of CRIU's wire format (``rpc.proto``); release numbers name the CRIU
that first understands a member.
"""

from __future__ import annotations

from enum import Enum, StrEnum

from ._support.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .modes import CgroupMode as CgroupMode
    from .modes import CompressMode as CompressMode
    from .modes import FileValidation as FileValidation
    from .modes import ImageIOMode as ImageIOMode
    from .modes import NetworkLock as NetworkLock
    from .modes import PreDumpMode as PreDumpMode

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
    """Restore: before any process is created."""
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
    """Dump: the processes are frozen and not inspected yet. The hook may return more names for
    ``external``, which CRIU adds. CRIU 3.19."""


if not TYPE_CHECKING:  # type checkers would accept any name

    def __getattr__(name: str) -> object:
        """The enumerations of options, which few calls use, are created on first use."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import modes

        return getattr(modes, name)
