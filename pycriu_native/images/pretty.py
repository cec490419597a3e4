"""Numbers as ``crit decode --pretty`` prints them, and back.

The marks are those of CRIU's definitions (``messages.txt``): ``hex``, also for all numbers inside
of a message, ``flags:MAP`` and ``dict:MAP`` for names, ``dev`` and ``odev`` for devices, ``ip`` for
addresses.
Facts: CRIU's ``lib/pycriu/images/pb2dict.py`` (3.17 to 4.3).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .kernel_names import SOCKET_KINDS, SOCKET_STATES

_MINOR_BITS = 20
"""Bits of a minor number, as the kernel encodes devices."""

_FLAGS: dict[str, dict[str, int]] = {
    "mmap.prot": {"PROT_READ": 0x1, "PROT_WRITE": 0x2, "PROT_EXEC": 0x4},
    "mmap.flags": {
        "MAP_SHARED": 0x1,
        "MAP_PRIVATE": 0x2,
        "MAP_DROPPABLE": 0x8,
        "MAP_ANON": 0x20,
        "MAP_GROWSDOWN": 0x100,
    },
    "mmap.status": {
        "VMA_AREA_REGULAR": 1 << 0,
        "VMA_AREA_STACK": 1 << 1,
        "VMA_AREA_VSYSCALL": 1 << 2,
        "VMA_AREA_VDSO": 1 << 3,
        "VMA_AREA_HEAP": 1 << 5,
        "VMA_FILE_PRIVATE": 1 << 6,
        "VMA_FILE_SHARED": 1 << 7,
        "VMA_ANON_SHARED": 1 << 8,
        "VMA_ANON_PRIVATE": 1 << 9,
        "VMA_AREA_SYSVIPC": 1 << 10,
        "VMA_AREA_SOCKET": 1 << 11,
        "VMA_AREA_VVAR": 1 << 12,
        "VMA_AREA_AIORING": 1 << 13,
        "VMA_AREA_MEMFD": 1 << 14,
        "VMA_AREA_SHSTK": 1 << 15,
        "VMA_AREA_UPROBES": 1 << 17,
        "VMA_AREA_NOT_ACCOUNTABLE": 1 << 18,
        "VMA_UNSUPP": 1 << 31,
    },
    "rfile.flags": {
        "O_WRONLY": 0o1,
        "O_RDWR": 0o2,
        "O_CREAT": 0o100,
        "O_EXCL": 0o200,
        "O_NOCTTY": 0o400,
        "O_TRUNC": 0o1000,
        "O_APPEND": 0o2000,
        "O_NONBLOCK": 0o4000,
        "O_DSYNC": 0o10000,
        "FASYNC": 0o20000,
        "O_DIRECT": 0o40000,
        "O_LARGEFILE": 0o100000,
        "O_DIRECTORY": 0o200000,
        "O_NOFOLLOW": 0o400000,
        "O_NOATIME": 0o1000000,
        "O_CLOEXEC": 0o2000000,
    },
    "pmap.flags": {
        "PE_PARENT": 1 << 0,
        "PE_LAZY": 1 << 1,
        "PE_PRESENT": 1 << 2,
        "PE_PAYLOAD_ALIGNED": 1 << 3,
    },
    "seals.flags": {
        "F_SEAL_SEAL": 0x1,
        "F_SEAL_SHRINK": 0x2,
        "F_SEAL_GROW": 0x4,
        "F_SEAL_WRITE": 0x8,
        "F_SEAL_FUTURE_WRITE": 0x10,
    },
}

_NAMES: dict[str, dict[str, int]] = {
    # crit up to 4.2 has the name Zombie for a stopped process. Zombies are saved as dead.
    "task_state": {"Alive": 1, "Dead": 2, "Zombie": 3, "Stopped": 3},
    "family": {"UNIX": 1, "INET": 2, "INET6": 10, "NETLINK": 16, "PACKET": 17},
    "type": {name: number for number, name in SOCKET_KINDS.items()},
    "state": {name: number for number, name in SOCKET_STATES.items() if name != "CLOSING"},
    "proto": {"IP": 0, "TCP": 6, "UDP": 17, "UDPLITE": 136},
}
"""The names of numbers, by field; the last one of a number is shown."""

_SHOWN = {
    field: {number: name for name, number in names.items()} for field, names in _NAMES.items()
}


def show(value: int, field: str, mark: str) -> str | int:
    """A number of a field with this mark as text; a number without a name is returned as it is."""
    kind, _, which = mark.partition(":")
    match kind:
        case "hex":
            return hex(value)
        case "dev":
            return f"{value >> _MINOR_BITS}:{value & (1 << _MINOR_BITS) - 1}"
        case "odev":
            return f"{os.major(value)}:{os.minor(value)}"
        case "flags":
            known = _FLAGS[which]
            names = [name for name, bit in known.items() if value & bit]
            rest = value & ~sum(known.values())
            return " | ".join([*names, *([hex(rest)] if rest else [])])
    return _SHOWN[field].get(value, value)


def read(text: str, field: str, mark: str | None) -> int:
    """The inverse of ``show``, and hexadecimal or decimal text of any field.

    Raises ``ValueError`` with the accepted form.
    """
    kind, _, which = (mark or "").partition(":")
    if kind in ("dev", "odev"):
        major, colon, minor = text.partition(":")
        if not colon:
            raise ValueError("a device as MAJOR:MINOR is accepted")
        if kind == "odev":
            return os.makedev(int(major), int(minor))
        return int(major) << _MINOR_BITS | int(minor)
    if kind == "flags":
        return sum(_flag(word.strip(), _FLAGS[which]) for word in text.split("|") if word.strip())
    known = _NAMES.get(field, {})
    if kind == "dict" and text in known:
        return known[text]
    names = f", or one of {', '.join(known)}," if kind == "dict" else ""
    return _number(text, f"a number{names} is accepted")


def _flag(word: str, known: dict[str, int]) -> int:
    if word == "VMA_AREA_NONE":
        return 0
    result = known.get(word)
    names = ", ".join(known)
    return _number(word, f"{names} or a number is accepted") if result is None else result


def _number(text: str, rule: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(rule) from None


def show_address(words: Sequence[int]) -> list[str] | list[int]:
    """An address, of one word or four in network byte order, as a list with its text."""
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    if len(words) not in (1, 4):
        return list(words)
    import ipaddress  # loaded when an address is read or shown

    address = ipaddress.IPv4Address(packed) if len(words) == 1 else ipaddress.IPv6Address(packed)
    return [address.compressed]


def read_address(text: str) -> list[int]:
    """The inverse."""
    import ipaddress  # loaded when an address is read or shown

    packed = ipaddress.ip_address(text).packed
    return [int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4)]
