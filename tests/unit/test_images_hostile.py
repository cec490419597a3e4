"""Untrusted images: any bytes result in a clear error, with bounded memory."""

from __future__ import annotations

import json
import os
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycriu_native import ImagesError
from pycriu_native._wire.image_kinds import COMMON, HEADS
from pycriu_native.images import decode, encode, inspect
from pycriu_native.images.formats import FORMATS, Format
from pycriu_native.images.schema import Row, table

from .support.image_sets import PRESENT, image_set, page

QUIET = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# --- What decodes, encodes -----------------------------------------------------------

_INTEGERS = {
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "sint32": (-(2**31), 2**31 - 1),
    "sint64": (-(2**63), 2**63 - 1),
    "fixed64": (0, 2**64 - 1),
}


def _value(row: Row, depth: int) -> st.SearchStrategy[Any]:
    messages, enums = table()
    if row.type in messages:
        return _message(row.type, depth + 1)
    if row.type in enums:
        return st.sampled_from(sorted(enums[row.type]))
    if row.type == "bool":
        return st.booleans()
    if row.type == "string":
        return st.binary(max_size=12).map(os.fsdecode)
    if row.type == "bytes":
        import base64
        import quopri

        if row.quoted:
            return st.binary(max_size=12).map(lambda data: quopri.encodestring(data).decode())
        return st.binary(max_size=12).map(lambda data: base64.encodebytes(data).decode())
    return st.integers(*_INTEGERS[row.type])


def _message(name: str, depth: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    """Messages of the table, with any of their optional fields."""
    needed: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for row in table()[0][name]:
        if depth > 2 and row.type in table()[0] and row.label:
            continue
        value = _value(row, depth)
        if row.label == "*":
            optional[row.name] = st.lists(value, min_size=1, max_size=2)
        else:
            (optional if row.label else needed)[row.name] = value
    return st.fixed_dictionaries(needed, optional=optional)


PLAIN = [each for each in FORMATS if not each.trailer]


@pytest.mark.parametrize("kind", PLAIN, ids=lambda each: each.name)
@settings(deadline=None, max_examples=5, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_encoded_decodes_to_itself(
    kind: Format, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every message of the table, through bytes and JSON and back."""
    entries = data.draw(st.lists(_message(kind.message), max_size=2))
    entries[1:] = filter(None, entries[1:])  # an empty one is as zeros in place of an entry
    image = {"magic": kind.name, "entries": json.loads(json.dumps(entries))}
    path = tmp_path_factory.mktemp("image") / "image.img"
    path.write_bytes(encode(image))
    assert decode(path) == image
    assert encode(decode(path)) == path.read_bytes()


def test_fields_to_come_are_kept(tmp_path: Path) -> None:
    """Unknown fields are preserved, of every wire type, nested ones too."""
    known = b"\x08\x02"  # img_version: 2
    added = b"\xa0\x1f\x07" + b"\xaa\x1f\x03abc" + b"\xb1\x1f" + b"8" * 8 + b"\xbd\x1f" + b"4444"
    nested = b"\x1a\x0c\x08\x01\x10\x01\x18\x01\x20\x01\xf8\x1f\x09\x00"[:-1]
    nested = bytes([0x1A, len(nested) - 2]) + nested[2:]
    payload = known + nested + added
    path = tmp_path / "inventory.img"
    path.write_bytes(HEADS["INVENTORY"] + struct.pack("<I", len(payload)) + payload)
    result = decode(path)
    assert "_unknown" in result["entries"][0]
    assert "_unknown" in result["entries"][0]["root_ids"]
    assert encode(result) == path.read_bytes()


# --- What does not decode ------------------------------------------------------------


@QUIET
@given(data=st.binary(max_size=300), kind=st.sampled_from(FORMATS))
def test_any_bytes_decode_or_are_refused(tmp_path: Path, data: bytes, kind: Format) -> None:
    """Invalid bytes are refused, also behind valid magic numbers; the error names the file."""
    path = tmp_path / "some.img"
    for head in (b"", kind.head):
        path.write_bytes(head + data)
        response = ""
        try:
            decode(path)
        except ImagesError as error:
            response = str(error)
        assert not response or response.startswith(f"{path}, offset ")


@QUIET
@given(data=st.data())
def test_a_set_with_damage_anywhere(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Flipped, removed or inserted bytes in any image: a value or an ImagesError."""
    directory = tmp_path_factory.mktemp("damaged")
    image_set(directory, [(0, 2, PRESENT)], page("a") + page("b"))
    name = data.draw(st.sampled_from(sorted(os.listdir(directory))))
    path = directory / name
    content = path.read_bytes()
    at = data.draw(st.integers(0, max(min(len(content), 400) - 1, 0)))
    how = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    more = data.draw(st.binary(min_size=1, max_size=8))
    if how == "flip":
        content = content[:at] + more + content[at + len(more) :]
    else:
        content = content[:at] + (more + content[at:] if how == "insert" else b"")
    path.write_bytes(content)
    try:
        result = inspect(directory)
    except ImagesError:
        return
    json.dumps(result.to_dict())
    for process in result.processes:
        try:
            list(process.memory.find(b"ab"))
        except ImagesError:
            continue


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "offset 0: the magic number has 4 bytes, but the file 0 more"),
        (b"\x01\x02", "the magic number"),
        (struct.pack("<II", COMMON, 1), "offset 4: 0x1 is the magic number of no image"),
        (HEADS["PSTREE"] + b"\x08\x00", "offset 8: the length of an entry"),
        (
            HEADS["PSTREE"] + struct.pack("<I", 100) + b"x",
            "offset 12: the pstree_entry has 100 bytes, but the file 1 more",
        ),
        (
            HEADS["PSTREE"] + b"\xff\xff\xff\xff",
            "offset 8: an entry of 4294967295 bytes is too long",
        ),
        (HEADS["PSTREE"] + struct.pack("<I", 2) + b"\x08\x01", "lacks"),
        (HEADS["PSTREE"] + struct.pack("<I", 2) + b"\x0a\xff", "this is no pstree_entry"),
    ],
)
def test_errors_name_file_and_offset(tmp_path: Path, content: bytes, says: str) -> None:
    """The error of an invalid image names the file, the offset and the reason."""
    path = tmp_path / "pstree.img"
    path.write_bytes(content)
    with pytest.raises(ImagesError) as caught:
        decode(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_links_pipes_and_directories_are_refused(tmp_path: Path) -> None:
    """An image set cannot make the reader open another file, or block."""
    directory = image_set(tmp_path / "set")
    for make, why in (
        (lambda path: path.symlink_to("/etc/passwd"), "a symbolic link"),
        (os.mkfifo, "is no regular file"),
        (Path.mkdir, "is no regular file"),
    ):
        path = directory / "cgroup.img"
        make(path)
        with pytest.raises(ImagesError, match=why):
            inspect(directory)
        path.rmdir() if path.is_dir() else path.unlink()


def test_what_is_no_image_set(tmp_path: Path) -> None:
    """A missing directory, an empty one, a file are refused."""
    with pytest.raises(ImagesError, match="cannot be opened: No such file"):
        inspect(tmp_path / "nowhere")
    with pytest.raises(ImagesError, match=r"has no inventory\.img: it has no images"):
        inspect(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "inventory.img").touch()
    with pytest.raises(ImagesError, match="its directory checkpoint has one"):
        inspect(tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ImagesError, match="Not a directory"):
        inspect(file)


def test_hexadecimal_numbers() -> None:
    """Flags are printed as by ``crit decode --pretty``."""
    entry = {"id": 1, "flags": 0x8002, "pos": 0, "fown": {}, "name": "/x"}
    entry["fown"] = {"uid": 0, "euid": 0, "signum": 0, "pid_type": 0, "pid": 0}
    pretty = {**entry, "id": "0x1", "flags": "0x8002"}
    images = [{"magic": "REG_FILES", "entries": [each]} for each in (entry, pretty)]
    assert encode(images[0]) == encode(images[1])


def test_a_sparse_file_of_a_terabyte(tmp_path: Path) -> None:
    """A sparse terabyte is neither read nor allocated."""
    path = tmp_path / "ghost-file-1.img"
    ghost = encode({"magic": "GHOST_FILE", "entries": [{"uid": 0, "gid": 0, "mode": 0o100644}]})
    path.write_bytes(ghost)
    os.truncate(path, 2**40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImagesError, match="too much to decode"):
        decode(path)
    assert decode(path, payload=False)["entries"] == [{"uid": 0, "gid": 0, "mode": 0o100644}]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 * 1024


@pytest.mark.parametrize("name", ["SECCOMP", "FDINFO"])
@pytest.mark.parametrize("size", [4, 2**40], ids=["tail", "hole"])
def test_zeros_behind_the_entries(tmp_path: Path, name: str, size: int) -> None:
    """They are no entries: a hole of a terabyte is not read to its end."""
    entries = {
        "SECCOMP": {"seccomp_filters": []},
        "FDINFO": {"id": 1, "flags": 0, "type": "REG", "fd": 3},
    }
    path = tmp_path / "x.img"
    path.write_bytes(encode({"magic": name, "entries": [entries[name]]}))
    begin = path.stat().st_size
    os.truncate(path, begin + size)
    for payload in (True, False):
        with pytest.raises(ImagesError, match=rf"x\.img, offset {begin}: zeros in place of a"):
            decode(path, payload=payload)


def _nested(depth: int) -> dict[str, Any]:
    """Cgroups in one another."""
    inner: dict[str, Any] = {"dir_name": "a"}
    for _ in range(depth):
        inner = {"dir_name": "a", "children": [inner]}
    return {"magic": "CGROUP", "entries": [{"controllers": [{"cnames": ["b"], "dirs": [inner]}]}]}


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ({"magic": "X", "entries": []}, "magic='X'"),
        (_nested(2000), r"CGROUP entries\[0\]: it is nested too deeply"),
        ({"magic": "PSTREE", "entries": 1}, "entries=1: a list"),
        (
            {"magic": "PSTREE", "entries": [{"pod": 1}]},
            r"PSTREE entries\[0\].pod: pstree_entry has",
        ),
        ({"magic": "PSTREE", "entries": [{"pid": "x"}]}, r"entries\[0\].pid='x': uint32 is needed"),
        ({"magic": "PSTREE", "entries": [{"pid": "x"}]}, "a number is accepted"),
        ({"magic": "PSTREE", "entries": [{"pid": -1}]}, r"entries\[0\].pid=-1"),
        ({"magic": "PSTREE", "entries": [{"pid": 1}]}, "pstree_entry lacks"),
        (
            {"magic": "PIPES_DATA", "entries": [{"pipe_id": 1, "bytes": 3, "extra": "YQ=="}]},
            "needs 3",
        ),
        ({"magic": "INVENTORY", "entries": [{"img_version": 1, "lsmtype": "X"}]}, "lsmtype='X'"),
        ({"magic": "CPUINFO", "entries": [{}, {}]}, r"CPUINFO entries\[1\]: only the first entry"),
    ],
)
def test_what_cannot_be_encoded(image: dict[str, Any], says: str) -> None:
    """The error names the entry and the field."""
    with pytest.raises(ImagesError, match=says):
        encode(image)
