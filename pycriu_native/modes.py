"""The enumerations of options; public in ``enums.py``.

Numbers are those of CRIU's wire format (``rpc.proto``); release numbers name the CRIU
that first understands a member.
"""

from __future__ import annotations

from enum import IntEnum


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
