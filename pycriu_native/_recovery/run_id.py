"""The run id of a running CRIU, read from its memory.

CRIU creates a UUID when it starts (3.19 and later) and names its nftables table after it (4.1 and
later), but no notification has it. Its data segment contains the text twice: in CRIU and in its
library compel. The run id of the parent dump is there once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .._support.no_fork import no_fork
from .._support.unpatched import closing
from .._system.mappings import data_of

UUID_LENGTH = 36

_DASHES = (8, 13, 18, 23)
"""The positions of the dashes in a UUID."""

_offsets: dict[tuple[int, ...], tuple[int, ...]] = {}
"""The offsets of the run id in the data of each program, the same in all of its processes."""

_last_addresses: tuple[int, ...] = ()
"""The addresses of the last run id, which are those of the next one from the same fork server."""

_warned: set[str] = set()
"""The programs that a warning was logged for."""


def run_id(pid: int) -> str | None:
    """The run id of a running CRIU; None where it is not found.

    One warning is logged for each program whose table needs it (CRIU 4.1 and later).
    """
    global _last_addresses
    try:
        program = os.readlink(f"/proc/{pid}/exe")
        with closing(os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)) as memory:
            result = _text_at(memory, _last_addresses)
            if result is None:
                addresses = tuple(_addresses(pid, program, memory))
                result = _text_at(memory, addresses)
                _last_addresses = addresses  # in one step: other threads read it
            if result is None:
                with open(f"/proc/{pid}/exe", "rb") as file:
                    # A CRIU that names its table after the run id also puts it in its images.
                    if b"dump_criu_run_id" in file.read():
                        _warn(program, "its memory does not contain it twice")
    except OSError as error:
        _warn(f"CRIU with pid {pid}", str(error))
        return None
    return result


def _warn(program: str, cause: str) -> None:
    if program in _warned:
        return
    _warned.add(program)
    with no_fork:
        import logging  # slow to import

    logging.getLogger("pycriu_native").warning(
        "the run id of %s was not found (%s): if CRIU is killed during a dump, its nftables table "
        "CRIU-<run id> is not removed",
        program,
        cause,
    )


def _addresses(pid: int, program: str, memory: int) -> Iterator[int]:
    """The addresses of the run id in a CRIU."""
    file = os.stat(f"/proc/{pid}/exe")
    data = list(data_of(pid, program))
    key = (file.st_dev, file.st_ino, file.st_mtime_ns)
    if not _offsets.get(key):
        everything = b"".join(os.pread(memory, end - start, start) for start, end in data)
        _offsets[key] = tuple(_offsets_in(everything))
    for offset in _offsets[key]:
        for start, end in data:
            if offset < end - start:
                yield start + offset
                break
            offset -= end - start


def _text_at(memory: int, addresses: tuple[int, ...]) -> str | None:
    """The UUID at all of these addresses; None if they differ or have none."""
    result = set()
    with contextlib.suppress(OSError):  # an address is not mapped
        result = {os.pread(memory, UUID_LENGTH, address) for address in addresses}
    if len(result) != 1:
        return None
    text = result.pop()
    return text.decode() if _is_uuid(text) else None


def _is_uuid(text: bytes) -> bool:
    if len(text) != UUID_LENGTH or any(text[at] != ord("-") for at in _DASHES):
        return False
    return not text.replace(b"-", b"", 4).translate(None, b"0123456789abcdef")


def _offsets_in(data: bytes) -> list[int]:
    """The offsets of the only UUID that the data contains more than once."""
    result: dict[bytes, list[int]] = {}
    at = data.find(b"-", _DASHES[0])
    while at >= 0:
        start = at - _DASHES[0]
        end = start + UUID_LENGTH
        if data[end : end + 1] == b"\0" and _is_uuid(text := data[start:end]):
            result.setdefault(text, []).append(start)
        at = data.find(b"-", at + 1)
    repeated = [offsets for offsets in result.values() if len(offsets) > 1]
    return repeated[0] if len(repeated) == 1 else []
