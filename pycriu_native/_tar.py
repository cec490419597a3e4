"""The members of a tar archive that can be anybody's: in bounded memory, and to the very end.

``tarfile`` takes what a header asks for: some hundred kilobytes, decompressed, could take all
memory, as the attributes of one file. It also takes a header that is damaged, cut off or missing
for the end of the archive, and says nothing. Here headers have a limit, and an archive ends with
the block of zeros that ends it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, Any, BinaryIO, Self, cast

CHUNK = 1 << 20

LARGEST_HEADER = 1 << 20
"""Bytes of all that comes before the content of one member."""

MOST_MEMBERS = 1_000_000


class _Rationed:
    """A stream that is read up to a point, which moves on from member to member."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._at = 0
        self._until = 0
        self.grant(0)

    def grant(self, end: int) -> None:
        """A member ends there; what comes next may be so much, and the buffer is read ahead."""
        self._until = end + LARGEST_HEADER + CHUNK

    def read(self, size: int) -> bytes:
        """As any stream's."""
        data = self._stream.read(size)
        self._at += len(data)
        if self._at > self._until:
            raise tarfile.ReadError(f"a header of more than {LARGEST_HEADER} bytes")
        return data


def members(stream: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Each with its content, if it is a file; to be read before the next one is asked for.

    Raises what ``tarfile`` raises: ``TarError``, and for the oddest headers ``ValueError`` and
    ``RecursionError``.
    """
    last = b""

    class Header(tarfile.TarInfo):
        """Which block was taken for a header last."""

        @classmethod
        def frombuf(cls, buf: Any, encoding: str, errors: str) -> Self:
            nonlocal last
            last = bytes(buf)
            return super().frombuf(buf, encoding, errors)

    rationed = _Rationed(stream)
    tar: Any  # whose list of members has no declared type
    with tarfile.open(
        fileobj=cast(IO[bytes], rationed), mode="r|", bufsize=CHUNK, tarinfo=Header
    ) as tar:
        count = 0
        while (info := tar.next()) is not None:
            tar.members.clear()  # else all of them are kept,
            tar.pax_headers = {}  # and what is said for all that follow
            count += 1
            if count > MOST_MEMBERS:
                raise tarfile.ReadError(f"more than {MOST_MEMBERS} members")
            if info.size < 0 or info.issparse():
                raise tarfile.ReadError(f"the size of {info.name!r} is not that of its content")
            has_content = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
            rationed.grant(info.offset_data + (info.size if has_content else 0))
            yield info, tar.extractfile(info) if info.isreg() else None
    if len(last) < tarfile.BLOCKSIZE or any(last):
        raise tarfile.ReadError("it breaks off, or has a header that is none")
