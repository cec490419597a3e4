"""Memory that the images do not have, and huge pages."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..._calls import requirements
from ..._system.huge_pages import MAP_NORESERVE, can_map, setting_of, size_in
from ..._transport.worker import Worker
from ...errors import CriuError
from ..model import OtherFile, Process
from .context import Context, Findings, predicted, stops


def huge_pages(context: Context) -> Findings:
    """Free huge pages, which the kernel reserves when CRIU maps the memory."""
    for size, total in sorted(_needed(context).items()):
        if not can_map(size, total):
            yield stops(
                "memory",
                f"it needs {total // size} free huge pages of {size >> 10} KiB, and there are "
                "fewer here",
                f"add {total // size} to the number in {setting_of(size)}",
            )


def sealed(context: Context) -> Findings:
    """Shared mappings that keep a memfd from its seal against writing (``criu/memfd.c``)."""
    files = {
        each.id
        for each in context.files(OtherFile)
        if each.type == "MEMFD" and each.details.get("seals", 0) & fcntl.F_SEAL_WRITE
    }
    for process in context.images.processes:
        mapped = {each.start for each in process.mappings if each.file in files}
        for vma in _vmas(context, process) if mapped else ():
            is_writable = vma.get("fdflags", 0) & os.O_ACCMODE == os.O_RDWR
            if vma["start"] in mapped and vma["flags"] & mmap.MAP_SHARED and is_writable:
                yield predicted(process.pid, "memfd-sealed")
                break


def _vmas(context: Context, process: Process) -> Iterator[dict[str, Any]]:
    """The mappings of a process as CRIU stores them."""
    for memory in context.entries(f"mm-{process.pid}.img"):
        yield from memory["vmas"]


def lazy(context: Context) -> Findings:
    lazy = sum(one.lazy for each in context.images.processes for one in each.mappings)
    if not lazy:
        return
    if not context.opts.lazy_pages:
        yield stops(
            "memory",
            f"{lazy} bytes are lazy: not in the images, since the dump serves them",
            "lazy_pages=True, and LazyPages connected to that dump",
            "lazy_pages",
        )
    with contextlib.suppress(CriuError):
        if not requirements.program_features(context.via or Worker()).lazy_pages:
            yield stops("kernel", "it lacks userfaultfd, which lazy pages need", "")


def _needed(context: Context) -> Counter[int]:
    """The bytes that the kernel reserves, by the size of the pages in bytes.

    CRIU maps a memfd (it also makes one for a shared mapping without a file) and a System V segment
    as a whole, and a private mapping in each process.
    """
    result: Counter[int] = Counter()
    for name in os.listdir(context.images.directory):
        if name == "memfd.img" or name.startswith("ipcns-shm-"):
            for entry in context.entries(name):
                if page := size_in(entry.get("hugetlb_flag", 0)):
                    result[page] += -(-entry["size"] // page) * page
    for process in context.images.processes:
        private = {
            each.start: each
            for each in process.mappings
            if each.huge_page and each.protection.endswith("p")
        }
        for vma in _vmas(context, process) if private else ():
            if mapping := private.get(vma["start"]):
                lazily = vma["flags"] & MAP_NORESERVE
                result[mapping.huge_page] += mapping.stored if lazily else mapping.size
    return +result  # without sizes of which it needs nothing
