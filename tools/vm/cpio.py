"""Archives as the kernel unpacks them at its start: cpio, "newc" (initramfs buffer format)."""

from __future__ import annotations

import itertools
import stat


class Archive:
    """An archive that is being written; everything in it is root's."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._numbers = itertools.count(1)

    def directory(self, name: str) -> None:
        """An empty directory."""
        self._add(name, stat.S_IFDIR | 0o755)

    def device(self, name: str, major: int, minor: int) -> None:
        """A character device."""
        self._add(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """A file."""
        self._add(name, stat.S_IFREG | mode, data)

    def whole(self) -> bytes:
        """The whole archive."""
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
