"""Data after the messages of some images: queued data, deleted files, segments, semaphores.

``formats.py`` names the kind of trailer of each image. This module computes its length and
converts it to and from the dicts of ``decode``. The forms are those of ``crit``, except that
``crit`` reads the bytes after a segment whose pages are in a pagemap as its data.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import ImagesError
from .formats import Format
from .json_messages import Style, from_dict, from_text, to_dict, to_text
from .reader import ImageFile, damaged

LARGEST_PAYLOAD = 2**30
"""Largest payload in a dict, in bytes."""


def rounded(size: int, unit: int) -> int:
    """The next multiple."""
    return -(-size // unit) * unit


_LENGTHS: dict[str, Callable[[Any], tuple[int, int]]] = {
    "bytes": lambda entry: (entry.bytes, entry.bytes),
    "length": lambda entry: (entry.length, entry.length),
    "queues": lambda entry: (entry.inq_len + entry.outq_len,) * 2,
    "pairs": lambda entry: (entry.keys_bytes + entry.values_bytes,) * 2,
    "segment": lambda entry: (0, 0) if entry.in_pagemaps else (entry.size, rounded(entry.size, 4)),
    "semaphores": lambda entry: (2 * entry.nsems, rounded(2 * entry.nsems, 8)),
}
"""Used and stored sizes of trailers with one part."""


def skip(file: ImageFile, entry: Any, at: int) -> int:
    """Offset of the next entry, to skip a trailer."""
    name = file.format.trailer
    if not name or name == "pagemap":
        return at
    if name == "ghost":
        return file.size
    if name == "messages":
        return max((end for _, end in _queue(file, entry, at)), default=at)
    at += _LENGTHS[name](entry)[1]
    if at > file.size:
        raise damaged(file.path, file.size, f"{at - file.size} bytes are missing at the end")
    return at


def entries(file: ImageFile) -> Iterator[Any]:
    """The messages of an image without its trailers; of a ghost file only the first."""
    if not file.format.trailer:
        for begin, data in file.frames(file.start):
            yield file.read(begin, data, file.format.message)
        return
    at = file.start
    while at < file.size:
        result, at = file.parse(at, file.format.message)
        yield result
        at = skip(file, result, at)


def payload(file: ImageFile, at: int, size: int, what: str) -> bytes:
    """Read a payload. Raises ``ImagesError`` if it is truncated or too large for a dict."""
    if size > LARGEST_PAYLOAD and at + size <= file.size:
        raise damaged(file.path, at, f"{what} of {size} bytes is too much to decode; leave it out")
    return file.take(at, size, what)


def load(file: ImageFile, entry: Any, at: int, with_payload: bool) -> tuple[Any, int]:
    """A trailer as a dict, or only its size, and the offset of its end."""
    name = file.format.trailer
    if name == "messages":
        return _load_messages(file, entry, at, with_payload)
    size, stored = _LENGTHS[name](entry)
    end = skip(file, entry, at)
    if not with_payload:
        return f"... <{human(size)}>", end
    data = payload(file, at, stored, "what follows an entry")[:size]
    if name == "queues":
        return {"inq": to_text(data[: entry.inq_len]), "outq": to_text(data[entry.inq_len :])}, end
    if name == "semaphores":
        return list(struct.unpack(f"<{entry.nsems}H", data)), end
    return to_text(data), end


def store(kind: Format, entry: Any, extra: Any, what: str) -> bytes:
    """Convert a result of ``load`` to the bytes of a trailer."""
    name = kind.trailer
    if name == "messages":
        return b"".join(_store_messages(extra, what))
    size, stored = _LENGTHS[name](entry)
    try:
        if name == "queues":
            data = from_text(extra["inq"], what) + from_text(extra["outq"], what)
        elif name == "semaphores":
            data = struct.pack(f"<{len(extra)}H", *extra)
        else:
            data = from_text("" if extra is None else extra, what)
    except (KeyError, TypeError, struct.error) as error:
        raise ImagesError(
            f"{what}: extra={extra!r:.60} is not the data of this entry: {error}"
        ) from None
    if len(data) != size:
        raise ImagesError(f"{what}: extra has {len(data)} bytes, and the entry needs {size}")
    return data.ljust(stored, b"\0")


def _queue(file: ImageFile, entry: Any, at: int) -> Iterator[tuple[tuple[Any, int], int]]:
    """The messages of a System V queue: message, offset of its data, offset of its end."""
    for _ in range(entry.qnum):
        if at == file.size:
            raise damaged(file.path, at, f"the queue should have {entry.qnum} messages")
        result, begin = file.parse(at, "ipc_msg")
        at = begin + rounded(result.msize, 8)
        if at > file.size:
            raise damaged(file.path, begin, f"a message of {result.msize} bytes is truncated")
        yield (result, begin), at


def _load_messages(file: ImageFile, entry: Any, at: int, with_payload: bool) -> tuple[Any, int]:
    listed: list[Any] = []
    size = 0
    for (result, begin), end in _queue(file, entry, at):
        at = end
        size += result.ByteSize() + result.msize
        if with_payload:
            listed += [to_dict(result), to_text(payload(file, begin, result.msize, "a message"))]
    return (listed, at) if with_payload else (f"... <{human(size)}>", at)


def _store_messages(extra: Any, what: str) -> Iterator[bytes]:
    if not isinstance(extra, list) or len(extra) % 2:
        raise ImagesError(f"{what}: extra must list each message and its data")
    for described, text in zip(extra[::2], extra[1::2], strict=True):
        result = from_dict("ipc_msg", described, what)
        data = result.SerializeToString()
        yield struct.pack("<I", len(data)) + data
        yield from_text(text, what)[: result.msize].ljust(rounded(result.msize, 8), b"\0")


def load_ghost(file: ImageFile, with_payload: bool, style: Style) -> list[dict[str, Any]]:
    """A deleted file: its attributes, then its bytes, whole or in chunks."""
    result, at = file.parse(file.start, "ghost_file_entry")
    entries = [to_dict(result, style=style)]
    if not result.chunks and with_payload:
        entries[0]["extra"] = to_text(payload(file, at, file.size - at, "a deleted file"))
    for chunk, begin in ghost_chunks(file, at) if result.chunks else ():
        entries.append(to_dict(chunk, style=style))
        if with_payload:
            entries[-1]["extra"] = to_text(payload(file, begin, chunk.len, "a chunk"))
    return entries


def ghost_chunks(file: ImageFile, at: int) -> Iterator[tuple[Any, int]]:
    """The chunks of a deleted file from an offset on, each with the offset of its bytes."""
    while at < file.size:
        chunk, at = file.parse(at, "ghost_chunk_entry")
        yield chunk, at
        if chunk.len > file.size - at:
            raise damaged(file.path, at, f"a chunk of {chunk.len} bytes is truncated")
        at += chunk.len


def human(size: float) -> str:
    """A size, in the form of ``crit`` for excluded data."""
    for unit in ("", "K", "M", "G", "T", "P", "E"):
        if size < 1024:
            return f"{size:.0f}{unit}B" if size == int(size) else f"{size:.1f}{unit}B"
        size /= 1024
    return f"{size:.1f}ZB"
