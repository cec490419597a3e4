"""The kinds of image files, and the category of each file of a set."""

from __future__ import annotations

import re

from .._support.frozen_dataclass import dataclass
from .._wire import image_kinds


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of image."""

    name: str
    """Its name in ``crit``."""
    magic: int
    message: str
    """Message of each entry; of the first entry only in a pagemap and a ghost file."""
    trailer: str = ""
    """Data after each message: a name of ``trailers.py``, or empty."""

    @property
    def head(self) -> bytes:
        """The first bytes of such an image."""
        return image_kinds.HEADS[self.name]


FORMATS = tuple(Format(*row) for row in image_kinds.FORMATS)
BY_MAGIC = {each.magic: each for each in FORMATS}
BY_NAME = {each.name: each for each in FORMATS}

CATEGORIES = (
    ("memory", r"pages-.*\.img"),
    ("deleted files", r"ghost-file-.*\.img"),
    ("file systems", r"tmpfs-.*\.img"),
    ("queues", r"(?:pipes-data|fifo-data|sk-queues|tcp-stream-.*|tty-data)\.img"),
    ("shared memory", r"ipcns-.*\.img"),
    ("page maps", r"pagemap-.*\.img"),
    ("logs", r".*\.log"),
    ("statistics", r"stats-(?:dump|restore)"),
    ("descriptions", r".*\.img"),
    ("other", r".*"),
)
"""Category of a file by pattern; the first match counts."""

_CATEGORY = re.compile("|".join(f"({names})" for _, names in CATEGORIES), re.S)


def category(name: str) -> str:
    """The category of a file of an image set."""
    result = _CATEGORY.fullmatch(name)
    return CATEGORIES[result.lastindex - 1 if result and result.lastindex else -1][0]
