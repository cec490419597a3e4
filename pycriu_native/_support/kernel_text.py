"""Reads text from the kernel without loss, and escapes it for output.

Names of processes, files and cgroups can contain any byte. The kernel cuts the name of a process
after 15 bytes, which can be inside a character. This module imports nothing of this package.
"""

from __future__ import annotations

import os

_FIRST_BYTE, _LAST_BYTE = 0xDC80, 0xDCFF
"""Range of the characters that ``surrogateescape`` returns for bytes that are not UTF-8."""


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file; bytes that are not UTF-8 as from ``os.fsdecode``. ``OSError``."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return file.read()


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a file, without their newlines; raises ``OSError``.

    ``str.splitlines`` also ends lines at U+0085 and others, which can be part of a name.
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
    """The text in one line, with escapes for all characters that are not printable.

    The text can contain control sequences of a terminal, since other users choose the names.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def _escape(each: str) -> str:
    if _FIRST_BYTE <= ord(each) <= _LAST_BYTE:
        return f"\\x{ord(each) - 0xDC00:02x}"
    return each.encode("unicode_escape").decode()
