"""Huge pages: CRIU compares the device of a file with that of a mapping that it makes.

It makes one for each size of page (``criu/kerndat.c``: ``kerndat_get_hugetlb_dev``), which needs a
free page unless its cache of the kernel's features has the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..._failures.log_excerpt import known
from ..._system.huge_pages import can_map, size_of, sizes
from ..._transport.feature_cache import knows_huge_pages
from .context import Context, Findings, stops

FILES = ("/memfd:", "/anon_hugepage", "/SYSV")
"""Names of the kernel for memory that can consist of huge pages."""


def look(context: Context) -> Findings:
    """One finding for each size of huge pages that CRIU cannot recognize."""
    seen: set[int] = set()
    for pid, path, name in _files(context) if sizes() else ():
        size = 0
        with contextlib.suppress(OSError):
            size = size_of(path)
        if not size or size in seen:
            continue
        seen.add(size)
        if not can_map(size, size) and not knows_huge_pages(size):
            yield stops(
                "huge-pages",
                f"it uses huge pages of {size >> 10} KiB, of which CRIU needs a free one",
                failure="huge-pages",
                cure=known("huge-pages").cure.replace("SIZE", str(size >> 10)),
                pid=pid,
                path=name,
            )


def _files(context: Context) -> Iterator[tuple[int, str, str]]:
    """The process, the path in /proc and the kernel's name of each."""
    for process in context.tree.alive:
        for fd in process.descriptors:
            if fd.link.startswith(FILES):
                yield process.pid, fd.path, fd.link
        for mapping in process.mappings:
            if mapping.name.startswith(FILES):
                yield process.pid, mapping.link, mapping.name
