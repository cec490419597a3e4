"""The pretty form of images: its text is read back, and other text is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycriu_native.errors import ImagesError
from pycriu_native.images import encode
from pycriu_native.images.json_messages import Style, from_dict, to_dict
from pycriu_native.images.pretty import read, read_address, show, show_address
from pycriu_native.images.schema import Row, table

MARKED = [(name, row) for name, rows in table()[0].items() for row in rows if row.pretty]
NUMBERS = [row for _, row in MARKED if row.type in ("uint32", "uint64") and row.pretty != "ip"]


def test_every_mark_is_known() -> None:
    """The table has the marks of CRIU's definitions: 104 in 4.3."""
    assert len(MARKED) >= 104
    kinds = {row.pretty.partition(":")[0] for _, row in MARKED if row.pretty}
    assert kinds == {"hex", "ip", "dev", "odev", "flags", "dict"}


@pytest.mark.parametrize("row", NUMBERS, ids=[row.name for row in NUMBERS])
def test_what_is_shown_is_read_back(row: Row) -> None:
    """Numbers of each field with a mark."""
    bits = 64 if row.type == "uint64" else 32
    mark = row.pretty
    assert mark is not None
    for value in (0, 3, 6, 10, 0x10FFFF, 2**bits - 1, *(1 << bit for bit in range(bits))):
        shown = show(value, row.name, mark)
        assert (read(shown, row.name, mark) if isinstance(shown, str) else shown) == value


@given(st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4))
def test_addresses(words: list[int]) -> None:
    """One word or four are an address; two are not, and stay numbers."""
    for address in (words, words[:1]):
        (text,) = show_address(address)
        assert read_address(str(text)) == address
    assert show_address(words[:2]) == words[:2]


def test_numbers_inside_of_a_message_are_hexadecimal() -> None:
    """Registers, where the message has the mark and its fields have none."""
    registers = {row.name: 16 for row in table()[0]["user_riscv64_regs_entry"]}
    info: dict[str, Any] = {"clear_tid_addr": 7, "tls": 7}
    floats = table()[0]["user_riscv64_d_ext_entry"]
    info |= {"gpregs": registers}
    info |= {"fpsimd": {row.name: [7] if row.label == "*" else 7 for row in floats}}
    found = from_dict("thread_info_riscv64", info, "x")
    shown = to_dict(found, style=Style.PRETTY)
    assert shown["clear_tid_addr"] == "0x7"
    assert shown["tls"] == 7
    assert set(shown["gpregs"].values()) == {"0x10"}
    assert from_dict("thread_info_riscv64", shown, "x") == found


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"flags": "PE_LASY"}, "PE_PARENT, PE_LAZY, PE_PRESENT, PE_PAYLOAD_ALIGNED or a number"),
        ({"vaddr": "here"}, "a number is accepted"),
        ({"flags": ["x"]}, "uint32 is needed"),
    ],
)
def test_text_that_is_no_number(fields: dict[str, Any], rule: str) -> None:
    """The error names the field, the text and what is accepted."""
    entry = {"vaddr": "0x1000", "nr_pages": 1, "compat_nr_pages": 1, **fields}
    with pytest.raises(ImagesError, match=next(iter(fields))) as caught:
        encode({"magic": "PAGEMAP", "entries": [{"pages_id": 1}, entry]})
    assert rule in str(caught.value)


def test_a_stopped_process_by_each_release_of_crit() -> None:
    """Crit up to 4.2 prints it as a zombie; no image has the state of a zombie."""
    for text in ("Stopped", "Zombie"):
        assert read(text, "task_state", "dict:gen") == 3
    assert show(6, "task_state", "dict:gen") == 6
