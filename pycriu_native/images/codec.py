"""Convert one image to a dict and back, as ``crit decode`` and ``crit encode`` do."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Any

from ..errors import ImagesError
from ..options.value_types import path_argument
from .formats import BY_NAME, Format
from .json_messages import Style, from_dict, from_text, to_dict
from .reader import ImageFile
from .trailers import load, load_ghost, store

_LATER = {"pagemap": "pagemap_entry", "ghost": "ghost_chunk_entry"}
"""The message of entries after the first one, by trailer, where it is another one."""


def decode(
    file: str | os.PathLike[str], *, payload: bool = True, pretty: bool = False
) -> dict[str, Any]:
    """Convert an image file to ``{"magic": "CORE", "entries": [{...}, ...]}``.

    The names are those of CRIU's messages. Enums are names, text is a string (bytes that are not
    UTF-8 are surrogates, as in Python's file names), other bytes are base64. The data after an
    entry, such as the contents of a pipe, is its ``"extra"``; with ``payload=False`` it is replaced
    by its size, as by ``crit --nopl``. With ``pretty``, addresses, flags, devices and states are
    text, as by ``crit --pretty``. Fields that are unknown to this release of the package are kept
    under ``"_unknown"``, in base64.

    Raises ``ImagesError`` naming the file and the offset for a file that is not an image, is
    truncated or damaged, and for a payload of more than 1 GiB. ``pages-*.img`` contain memory, not
    messages: use ``inspect``.
    """
    with ImageFile(os.path.abspath(path_argument("file", file))) as image:
        style = Style.PRETTY if pretty else Style.PLAIN
        return {"magic": image.format.name, "entries": _entries(image, payload, style)}


def _entries(file: ImageFile, payload: bool, style: Style) -> list[dict[str, Any]]:
    kind = file.format
    if kind.trailer == "ghost":
        return load_ghost(file, payload, style)
    if not kind.trailer or kind.trailer == "pagemap":
        name, others = kind.message, _LATER.get(kind.trailer, kind.message)
        entries = []
        for begin, data in file.frames(file.start):
            entries.append(to_dict(file.read(begin, data, name), name, style))
            name = others
        return entries
    entries, at = [], file.start
    while at < file.size:
        result, at = file.parse(at, kind.message)
        entry = to_dict(result, kind.message, style)
        entry["extra"], at = load(file, result, at, payload)
        entries.append(entry)
    return entries


def encode(image: Mapping[str, Any]) -> bytes:
    """Convert a result of ``decode``, pretty or not, to the bytes of an image file.

    Raises ``ImagesError`` naming the entry and the field that cannot be converted.
    """
    if not isinstance(image, Mapping):
        raise ImagesError(f"image={image!r:.60}: a result of decode is needed")
    name = image.get("magic")
    kind = BY_NAME.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ImagesError(f"magic={name!r}: no kind of image; one of {', '.join(BY_NAME)}")
    entries = image.get("entries")
    if not isinstance(entries, list):
        raise ImagesError(f"entries={entries!r:.60}: a list of dicts is needed")
    parts = [kind.head]
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise ImagesError(f"entries[{number}]={entry!r:.60}: a dict is needed")
        parts += _encoded(kind, number, dict(entry))
    return b"".join(parts)


def _encoded(kind: Format, number: int, entry: dict[str, Any]) -> list[bytes]:
    where = f"{kind.name} entries[{number}]"
    name = _LATER.get(kind.trailer, kind.message) if number else kind.message
    has_extra = "extra" in entry
    extra = entry.pop("extra", None)
    try:
        result = from_dict(name, entry, where)
    except RecursionError:
        raise ImagesError(f"{where}: it is nested too deeply") from None
    data = result.SerializeToString()
    if number and not data:
        raise ImagesError(f"{where}: only the first entry of an image can be empty")
    parts = [struct.pack("<I", len(data)), data]
    if kind.trailer == "ghost":
        if has_extra:
            parts.append(from_text(extra, where))
    elif kind.trailer and kind.trailer != "pagemap":
        parts.append(store(kind, result, extra, where))
    elif has_extra:
        raise ImagesError(f"{where}: extra: nothing follows the entries of this kind")
    return parts
