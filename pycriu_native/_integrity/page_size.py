"""The page size of an image set, which can be of another host."""

from __future__ import annotations

import os
from collections.abc import Sequence

HOST_PAGE = os.sysconf("SC_PAGE_SIZE")
"""Bytes of a page here."""

_AT_PAGESZ = 6  # elf.h


def page_size(auxv: Sequence[int]) -> int:
    """The page size of a dumped process, from its auxiliary vector; without one, of this host."""
    return dict(zip(auxv[::2], auxv[1::2], strict=False)).get(_AT_PAGESZ) or HOST_PAGE
