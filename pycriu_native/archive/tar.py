"""The members of an untrusted tar archive, in bounded memory, up to the block that ends it.

``tarfile`` allocates any size that a header has, and treats a damaged, truncated or missing header
as the end of the archive. Here the headers of a member have a limit, and only a block of zeros ends
an archive. ``TarInfo.frombuf`` decodes a header block; extended headers (pax, GNU long names) are
read here.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

CHUNK = 1 << 20

LARGEST_HEADER = 1 << 20
"""Bytes of all headers of one member."""

MOST_MEMBERS = 1_000_000

ENCODING, ERRORS = "utf-8", "surrogateescape"

BLOCK = 512

XATTR = "SCHILY.xattr."
"""Fields of this prefix in pax headers are extended attributes of the file."""

_NUMBERS = {"size": int, "uid": int, "gid": int, "mtime": float}
"""Fields of pax headers that replace a number of ``TarInfo``."""

_ATTRIBUTES = {"path": "name", "linkpath": "linkname"}
"""Fields of extended headers that replace a text of ``TarInfo``."""

_USED = tuple(key.encode() for key in (*_ATTRIBUTES, *_NUMBERS))
"""Fields of pax headers."""

_GNU_FIELDS = {b"L": "path", b"K": "linkpath"}
"""Fields whose value is the content of a GNU header of this type."""

_PAX, _PAX_OF_ALL = (b"x", b"X"), b"g"
"""Types of pax headers: of the next member, and of all that follow."""

_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Types of members without content: links, devices, directories, FIFOs."""


class Content:
    """The content of a member, to be read in order."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; none at the end. Raises ``ReadError`` if the archive ends."""
        data = self._stream.read(min(size, self._left))
        if not data and size and self._left:
            raise tarfile.ReadError("unexpected end of data")
        self._left -= len(data)
        return data

    def copy_to(self, file: BinaryIO) -> None:
        """Write the rest of it to a file."""
        while data := self.read(CHUNK):
            file.write(data)


def members(stream: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, Content | None]]:
    """Each member with its content, if it is a file; to be read before the next one is fetched.

    Raises ``TarError`` for a damaged archive, and for some invalid headers ``ValueError``.
    """
    of_all: dict[str, bytes] = {}
    count = 0
    while (info := _header(stream, of_all)) is not None:
        count += 1
        if count > MOST_MEMBERS:
            raise tarfile.ReadError(f"more than {MOST_MEMBERS} members")
        size = 0 if info.type in _WITHOUT_CONTENT else info.size
        content = Content(stream, size)
        yield info, content if info.isreg() else None
        while content.read(CHUNK):
            pass
        _exactly(stream, -size % BLOCK)


def begins(block: bytes) -> bool:
    """Whether a tar archive can begin with this block."""
    if len(block) == BLOCK and not any(block):
        return True  # it has no member
    try:
        tarfile.TarInfo.frombuf(block, ENCODING, ERRORS)
    except tarfile.HeaderError:
        return False
    return True


def _header(stream: BinaryIO, of_all: dict[str, bytes]) -> tarfile.TarInfo | None:
    """The header of the next member; None at the block of zeros that ends the archive.

    ``of_all`` collects what pax headers state for all members that follow.
    """
    fields: dict[str, bytes] = {}
    remaining = LARGEST_HEADER
    while any(block := _exactly(stream, BLOCK)):
        try:
            info = tarfile.TarInfo.frombuf(block, ENCODING, ERRORS)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(
                f"it is no tar archive, or has an invalid header: {error}"
            ) from None
        if info.type not in (*_GNU_FIELDS, *_PAX, _PAX_OF_ALL):
            return _completed(info, {**of_all, **fields})
        remaining -= BLOCK + max(info.size, 0)
        if remaining < 0:
            raise tarfile.ReadError(f"a header of more than {LARGEST_HEADER} bytes")
        data = _exactly(stream, info.size)
        _exactly(stream, -info.size % BLOCK)
        if info.type in _GNU_FIELDS:
            fields[_GNU_FIELDS[info.type]] = data.partition(b"\0")[0]
        elif info.type in _PAX:
            fields.update(_records(data))
        else:
            of_all.update(_records(data))
    if fields:
        raise tarfile.ReadError("it breaks off: an extended header without a member")
    return None


def _completed(info: tarfile.TarInfo, fields: dict[str, bytes]) -> tarfile.TarInfo:
    """A header with the fields of its extended headers."""
    for field, attribute in _ATTRIBUTES.items():
        if field in fields:
            setattr(info, attribute, fields[field].decode(ENCODING, ERRORS))
    for field, number in _NUMBERS.items():
        if field in fields:
            setattr(info, field, number(fields[field]))
    info.pax_headers = {
        field: value.decode(ENCODING, ERRORS)
        for field, value in fields.items()
        if field.startswith(XATTR)
    }
    # ``info.issparse()`` is true only for headers that ``tarfile`` has read itself.
    if info.size < 0 or info.type == tarfile.GNUTYPE_SPARSE or "sparse" in fields:
        raise tarfile.ReadError(
            f"the size of {info.name!r} is not that of its content, as in a sparse file, which is "
            "not supported (tar makes none without --sparse)"
        )
    return info


def _records(data: bytes) -> dict[str, bytes]:
    """The fields of a pax header that are used: ``LENGTH KEY=VALUE`` and a newline for each.

    ``sparse`` stands for all fields of GNU's sparse files. POSIX, "pax Extended Header".
    """
    result: dict[str, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        digits, space, _ = data[at : at + 20].partition(b" ")
        end = at + int(digits) if digits.isdigit() else 0
        key, equals, value = data[at + len(digits) + 1 : end].partition(b"=")
        if not space or not equals or end > len(data) or value[-1:] != b"\n":
            raise tarfile.ReadError("it has an invalid pax header")
        if key in _USED or key.startswith(XATTR.encode()):
            result[key.decode(ENCODING, ERRORS)] = value[:-1]
        elif key.startswith(b"GNU.sparse."):
            result["sparse"] = b""
        at = end
    return result


def _exactly(stream: BinaryIO, size: int) -> bytes:
    """So many bytes (none for a size below zero), however the stream divides them."""
    parts = []
    while size > 0:
        data = stream.read(size)
        if not data:
            raise tarfile.ReadError("unexpected end of data")
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
