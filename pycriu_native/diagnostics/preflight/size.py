"""Expected size of the images.

CRIU writes the anonymous memory of each process, and each shared memory without a file once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ..._system.mappings import Mapping, details_of, kib, memory_of
from ..._system.process_snapshot import Process
from . import files, sockets, written
from .context import Context
from .values import ImageSize

FIXED = 20_000
"""Bytes of the images of any dump, including the log."""
EACH_PROCESS, EACH_THREAD, EACH_DESCRIPTOR, EACH_MAPPING = 4000, 1500, 60, 60


def expected(context: Context) -> ImageSize:
    shared: dict[tuple[int, int], int] = {}
    memory = rest = 0
    for process in context.tree.alive:
        memory += _private(process)
        shared |= _shared(process)
        rest += (
            EACH_PROCESS
            + EACH_THREAD * len(process.threads)
            + EACH_DESCRIPTOR * len(process.descriptors)
            + EACH_MAPPING * len(process.mappings)
        )
    return ImageSize(
        memory=0 if context.opts.page_server is not None or context.opts.lazy_pages else memory,
        shared_memory=sum(shared.values()),
        deleted_files=files.ghosts(context),
        queues=files.queued(context) + sockets.queued(context),
        file_systems=_file_systems(context),
        written_files=written.size(context),
        rest=rest + FIXED,
    )


def largest_image(context: Context) -> int:
    """The expected size of the largest image: the pages of one process."""
    if context.opts.page_server is not None or context.opts.lazy_pages:
        return 0
    return max(map(_private, context.tree.alive), default=0)


def _private(process: Process) -> int:
    memory = _memory(process)
    return (
        memory.get("Anonymous", 0)
        + memory.get("Swap", 0)
        + sum(size for mapping, size in _huge(process) if not mapping.shared)
    )


def _memory(process: Process) -> dict[str, int]:
    with contextlib.suppress(OSError):
        return memory_of(process.pid)
    return {}


def _huge(process: Process) -> Iterator[tuple[Mapping, int]]:
    """Mappings of huge pages, and their bytes: ``Anonymous`` is without them."""
    kinds = ("Shared_Hugetlb", "Private_Hugetlb")
    memory = _memory(process)
    if not any(memory.get(kind) for kind in kinds):
        return  # smaps takes long to read
    by_range = {mapping.range: mapping for mapping in process.mappings}
    with contextlib.suppress(OSError):
        for range, field, value in details_of(process.pid):
            if field in kinds and range in by_range and (size := kib(value)):
                yield by_range[range], size


def _shared(process: Process) -> dict[tuple[int, int], int]:
    """Bytes of each piece of shared memory without a file."""
    result = {}
    for mapping in process.mappings:
        if mapping.shared and mapping.name.startswith(("/dev/zero", "/memfd:", "/SYSV")):
            with contextlib.suppress(OSError):
                seen = os.stat(mapping.link)
                result[seen.st_dev, seen.st_ino] = seen.st_blocks * 512
    for mapping, size in _huge(process):
        if mapping.shared:
            with contextlib.suppress(OSError):
                result[os.stat(mapping.link).st_dev, mapping.inode] = size
    for fd in process.descriptors:
        if files.is_memory(fd):
            result[fd.stat.st_dev, fd.stat.st_ino] = fd.stat.st_blocks * 512
    return result


def _file_systems(context: Context) -> int:
    """Bytes in tmpfs mounts of the tree's own mount namespaces."""
    ours = context.tree.ours.namespaces["mnt"]
    seen: dict[str, int] = {}
    for mount in context.mounts.all:
        if mount.namespace == ours or mount.kind != "tmpfs" or context.external(mount.key):
            continue
        with contextlib.suppress(OSError):
            result = os.statvfs(context.mounts.base(mount) + mount.place)
            seen[mount.device] = (result.f_blocks - result.f_bfree) * result.f_frsize
    return sum(seen.values())
