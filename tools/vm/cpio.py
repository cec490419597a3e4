"""Archives for an initramfs, in the cpio format "newc" (initramfs buffer format)."""

from __future__ import annotations

import itertools
import stat


class Archive:
    """An archive that is being written; root owns all files in it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._numbers = itertools.count(1)

    def directory(self, name: str) -> None:
        """Add an empty directory."""
        self._add(name, stat.S_IFDIR | 0o755)

    def device(self, name: str, major: int, minor: int) -> None:
        """Add a character device."""
        self._add(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._add(name, stat.S_IFREG | mode, data)

    def content(self) -> bytes:
        """Return the bytes of the archive."""
        end = Archive()
        end._add("TRAILER!!!", 0)
        return b"".join((*self._parts, *end._parts))

    def _add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        path = name.encode() + b"\0"
        inode, links = next(self._numbers), 1
        fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts += [_padded(header + path), _padded(data)]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
