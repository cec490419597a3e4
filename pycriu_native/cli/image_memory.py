"""The memory in images: searched, printed, or written to a file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ImagesError
from .command import Call
from .exit_codes import Exit
from .text import columns, safe, size

if TYPE_CHECKING:
    from ..images import Process


def address_range(value: str) -> tuple[int, int]:
    """A range of addresses: ``START-END`` or ``START+SIZE``, in hexadecimal digits."""
    result = re.fullmatch(r"(?:0x)?([0-9a-f]{1,16})([-+])(?:0x)?([0-9a-f]{1,16})", value.lower())
    if result is None:
        rule = "START-END or START+SIZE in hexadecimal digits is accepted"
        raise click.BadParameter(f"{value!r}: {rule}")
    start, end = int(result[1], 16), int(result[3], 16)
    end = start + end if result[2] == "+" else end
    if end < start:
        raise click.BadParameter(f"{value!r} ends before it begins")
    return start, end


def read_memory(
    call: Call, processes: Sequence[Process], where: tuple[int, int] | None, output: str | None
) -> Exit:
    """Write memory (without ``where`` all of it) to a file, or print it as hex digits and text."""
    with_memory = [each for each in processes if each.pagemap is not None]
    if len(with_memory) != 1:
        raise click.UsageError("--read and --output need --pid: the images have several processes.")
    memory = with_memory[0].memory
    if where is not None:
        start, end = where
        data = memory.read(start, end - start)
        if output is None:
            body = {"address": start, "data": data}
            return call.out.answer(body, "\n".join(_hex_dump(start, data)))
        pieces = iter([data])
    else:
        pieces = (data for _, data, _, _ in memory.pieces() if data is not None)
    assert output is not None
    from ..archive.pack import written_beside

    with written_beside(Path(output)) as file:
        total = sum(map(file.write, pieces))
    written = {"file": output, "bytes": total}
    return call.out.result(written, safe(f"wrote {size(total)} to {output}"))


def _hex_dump(address: int, data: bytes) -> Iterator[str]:
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        text = "".join(chr(each) if 32 <= each < 127 else "." for each in row)
        yield f"{address + at:016x}  {row.hex(' '):<47}  {text}"


def search_memory(
    call: Call, processes: Sequence[Process], pattern: bytes | re.Pattern[bytes], context: int
) -> Exit:
    """Search the memory for a text. Returns ``Exit.NO`` if it is not found."""
    result: list[dict[str, Any]] = []
    for process in processes:
        if process.pagemap is None:
            continue
        memory = process.memory
        for each in memory.search(pattern):
            mapping = each.mapping
            row = {
                "pid": process.pid,
                "address": each.address,
                "kind": str(mapping.kind),
                "path": mapping.path,
            }
            if context or isinstance(pattern, re.Pattern):
                start = max(mapping.start, each.address - context)
                end = min(mapping.end, each.address + len(each.data) + context)
                try:
                    row["data"] = memory.read(start, end - start)
                except ImagesError:  # the images do not have all of this range
                    row["data"] = each.data
            result.append(row)
    rows = [
        (
            str(each["pid"]),
            f"{each['address']:#x}",
            each["kind"],
            safe(each["path"] or ""),
            *([safe(os.fsdecode(each["data"]))] if "data" in each else []),
        )
        for each in result
    ]
    heads = ("pid", "address", "kind", "file", "data")[: len(rows[0]) if rows else 0]
    text = "\n".join(columns([heads, *rows])) if rows else "not found"
    return call.out.answer(result, text, code=Exit.DONE if result else Exit.NO)


def pattern_of(text: str, regex: bool) -> bytes | re.Pattern[bytes]:
    """The bytes, or the regular expression, for which memory is searched."""
    if not regex:
        return os.fsencode(text)
    try:
        return re.compile(os.fsencode(text))
    except (re.error, OverflowError, RecursionError) as error:
        raise click.BadParameter(f"{text!r} is not a regular expression: {error}") from None
