"""Memory that the images do not have, and huge pages."""

from __future__ import annotations

import contextlib
import os
from collections import Counter

from ..._calls import requirements
from ..._system.huge_pages import MAP_NORESERVE, can_map, setting_of, size_in
from ..._transport.worker import Worker
from ...errors import CriuError
from ..codec import decode
from ..model import ImageSet
from .context import Context, Findings, stops


def huge_pages(context: Context) -> Findings:
    """Free huge pages, which the kernel reserves when CRIU maps the memory."""
    for size, total in sorted(_needed(context.images).items()):
        if not can_map(size, total):
            yield stops(
                "memory",
                f"it needs {total // size} free huge pages of {size >> 10} KiB, and there are "
                "fewer here",
                f"add {total // size} to the number in {setting_of(size)}",
            )


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


def _needed(images: ImageSet) -> Counter[int]:
    """The bytes that the kernel reserves, by the size of the pages in bytes.

    CRIU maps a memfd (it also makes one for a shared mapping without a file) and a System V segment
    as a whole, and a private mapping in each process.
    """
    result: Counter[int] = Counter()
    for name in os.listdir(images.directory):
        if name == "memfd.img" or name.startswith("ipcns-shm-"):
            for entry in decode(os.path.join(images.directory, name))["entries"]:
                if page := size_in(entry.get("hugetlb_flag", 0)):
                    result[page] += -(-entry["size"] // page) * page
    for process in images.processes:
        private = {
            each.start: each
            for each in process.mappings
            if each.huge_page and each.protection.endswith("p")
        }
        if private:
            path = os.path.join(images.directory, f"mm-{process.pid}.img")
            for vma in decode(path)["entries"][0]["vmas"]:
                if mapping := private.get(vma["start"]):
                    lazily = vma["flags"] & MAP_NORESERVE
                    result[mapping.huge_page] += mapping.stored if lazily else mapping.size
    return +result  # without sizes of which it needs nothing
