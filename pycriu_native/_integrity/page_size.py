"""The page size of an image set, which another host can have made."""

from __future__ import annotations

import os
from collections.abc import Sequence

HOST_PAGE = os.sysconf("SC_PAGE_SIZE")
"""Bytes of a page here."""

_AT_PAGESZ = 6  # elf.h


def page_size(auxv: Sequence[int]) -> int:
    """Bytes of a page where a process was dumped, by its auxiliary vector; without one, here."""
    return dict(zip(auxv[::2], auxv[1::2], strict=False)).get(_AT_PAGESZ) or HOST_PAGE
