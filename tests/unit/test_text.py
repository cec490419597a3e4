"""Text from the kernel: read without loss, printed with escapes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycriu_native import CriuError
from pycriu_native._support.kernel_text import encodable, escaped, read_lines, read_text
from pycriu_native._system.mountinfo import parse
from pycriu_native.findings import Finding, Severity

CUT = "расчётнагрузки".encode()[:15]
"""A name as the kernel cuts it, in the middle of a letter."""


def test_nothing_is_lost(tmp_path: Path) -> None:
    """The text encodes to the same bytes, with line ends of other systems too."""
    file = tmp_path / "file"
    file.write_bytes(CUT + b"\r\n\x85\x0b\n")
    assert os.fsencode(read_text(file)) == CUT + b"\r\n\x85\x0b\n"


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"a", ["a"]),
        (b"a\n\nb\n", ["a", "", "b"]),
        ("a\u0085\u2028b\x0bc\n".encode(), 1),
    ],
)
def test_lines_end_at_a_newline_only(tmp_path: Path, data: bytes, lines: object) -> None:
    """U+0085 and similar characters are part of a name."""
    file = tmp_path / "file"
    file.write_bytes(data)
    result = read_lines(file)
    assert result == lines or len(result) == lines


def test_a_byte_is_shown_in_hexadecimal() -> None:
    """A byte that is not UTF-8 is shown in hexadecimal; letters are unchanged."""
    text = os.fsdecode(CUT)
    assert escaped(text) == encodable(text) == "расчётн\\xd0"
    assert escaped("a\x1b[31m\n") == "a\\x1b[31m\\n"
    assert encodable("a\n") == "a\n"


@given(st.text(st.characters(min_codepoint=0, exclude_categories=())))
def test_everything_can_be_printed(text: str) -> None:
    """The escaped form of any text can be encoded."""
    encodable(text).encode()
    assert escaped(text).isprintable()


def test_messages_can_be_printed() -> None:
    """The message of an error or finding escapes such a name; its path attribute does not."""
    name = os.fsdecode(b"/tmp/\xff")
    assert str(CriuError(f"no {name}")) == "no /tmp/\\xff"
    finding = Finding(id="x", severity=Severity.NOTE, message="w", path=name)
    assert str(finding) == "/tmp/\\xff: w"
    assert finding.path == name


def test_a_mount_at_a_name_with_other_spaces() -> None:
    """The kernel escapes the space, the tabulator, the newline and the backslash only."""
    text = "21 20 0:19 / /a\u00a0\u2028\\040b rw - tmpfs none rw"
    assert parse(text).place == "/a\u00a0\u2028 b"
