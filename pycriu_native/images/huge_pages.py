"""The huge pages that a restore of an image set needs."""

from __future__ import annotations

import os
from collections import Counter

from .._system.huge_pages import MAP_NORESERVE, size_in
from .codec import decode
from .model import ImageSet


def needed(images: ImageSet) -> Counter[int]:
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
