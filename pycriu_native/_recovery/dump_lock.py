"""The network lock of a dump, which stays until a restore of its images."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from .._system.tcp_connections import Ends
from .._wire.fields import message_fields
from . import network_lock
from .created_names import run_of_dump
from .file_entries import fields_of, messages, number_in


def lock_of_dump(images: int) -> Iterator[str]:
    """A message about the dump's network lock, if it exists: the next restore needs it."""
    until = "which the dump made and a restore that succeeds removes"
    with contextlib.suppress(OSError):
        run = run_of_dump(images)
        if run is not None:
            for name in (f"CRIU-{run}", f"CRIU-{run}"[: network_lock.LONGEST_TABLE]):
                if network_lock.has_table(name.removeprefix("CRIU-")):
                    yield f"the table inet {name} of nftables, {until}"
                    return
        ends = inet_connections(images)
        if count := network_lock.count_rules(ends):
            yield f"{count} rules of iptables for {', '.join(sorted(map(str, ends)))}, {until}"


def inet_connections(images: int) -> set[Ends]:
    """The TCP connections in the images."""
    result = set()
    for entry in map(fields_of, messages(images, "files.img")):
        inet = entry.get(4)
        if isinstance(inet, bytes) and (ends := _ends(inet)) is not None:
            result.add(ends)
    return result


def _ends(entry: bytes) -> Ends | None:
    fields = fields_of(entry)
    if number_in(fields, 5) != socket.IPPROTO_TCP or not number_in(fields, 8):
        return None
    words: dict[int, list[int]] = {11: [], 12: []}
    for field, value in message_fields(entry):
        if field in words:
            # Not packed: libprotobuf-c writes each value apart unless the schema has packed=true.
            words[field] += [value] if isinstance(value, int) else []
    hosts = [_address(number_in(fields, 3), words[field]) for field in (11, 12)]
    if None in hosts:
        return None
    return Ends(str(hosts[0]), number_in(fields, 7), str(hosts[1]), number_in(fields, 8))


def _address(family: int, words: list[int]) -> str | None:
    data = b"".join(word.to_bytes(4, "little") for word in words)
    length = {socket.AF_INET: 4, socket.AF_INET6: 16}.get(socket.AddressFamily(family), 0)
    if not length or len(data) < length:
        return None
    return socket.inet_ntop(family, data[:length])
