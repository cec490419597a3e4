"""Text of the kernel's, which is bytes: read without loss, printed with escapes.

Names of processes, files and cgroups can hold any byte, and the kernel cuts the name of a process
after 15 bytes, in the middle of a letter too. Imports nothing of this package.
"""

from __future__ import annotations

import os

_FIRST_BYTE, _LAST_BYTE = 0xDC80, 0xDCFF
"""What ``surrogateescape`` makes of bytes that are not UTF-8."""


def read_text(path: str | os.PathLike[str]) -> str:
    """A file of the kernel's; bytes that are not UTF-8 are as ``os.fsdecode`` has them.

    Raises ``OSError``.
    """
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return file.read()


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of such a file, without their ends; raises ``OSError``.

    ``str.splitlines`` would end a line within a name too, at U+0085 and others.
    """
    lines = read_text(path).split("\n")
    return lines if lines[-1] else lines[:-1]


def encodable(text: str) -> str:
    r"""The text with escapes, such as ``\xd1``, for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(_escape(each) if "\ud800" <= each <= "\udfff" else each for each in text)
    return text


def escaped(text: str) -> str:
    """The text in one line, with escapes for all that is not printable.

    A terminal acts on some of it, and the names are those of foreign processes.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def _escape(each: str) -> str:
    if _FIRST_BYTE <= ord(each) <= _LAST_BYTE:
        return f"\\x{ord(each) - 0xDC00:02x}"
    return each.encode("unicode_escape").decode()
