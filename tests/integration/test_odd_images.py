"""``check_images`` reads images with odd values, and raises no other error than ImagesError."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import Severity
from pycriu_native.images import check_images, decode, encode, inspect

from .support.sample_images import SampleImages

Entries = list[dict[str, Any]]


def _all(kind: str, **values: object) -> Callable[[Entries], None]:
    """Change fields of all files of a kind."""

    def change(entries: Entries) -> None:
        for entry in entries:
            if isinstance(entry.get(kind), dict):
                entry[kind].update(values)

    return change


def _nul(entries: Entries) -> None:
    """A path that C would read up to its NUL; not that of a terminal, which is not looked for."""
    for entry in entries:
        if entry["type"] == "REG" and not entry["reg"]["name"].startswith("/dev/"):
            entry["reg"]["name"] = "/a\0b"


def _huge(entries: Entries) -> None:
    """A mapping of more huge pages than a number of C can have."""
    mapping = entries[0]["vmas"][3]
    mapping.update(flags=0x40022 | 63 << 26, end=2**64 - 4096)


def _own_cgroups(entries: Entries) -> None:
    entries[0]["cgroup_ns_id"] = 99


CHANGES: Mapping[str, tuple[str, Callable[[Entries], None]]] = {
    "NUL in a path": ("files.img", _nul),
    "port above 65535": ("files.img", _all("isk", src_port=700000, dst_port=700000)),
    "no address": ("files.img", _all("isk", src_addr=[], dst_addr=[], dst_port=9)),
    "unknown family": ("files.img", _all("isk", family=99, proto=4000000, type=77)),
    "huge pages": ("mm-{pid}.img", _huge),
    "cgroups without an entry": ("ids-{pid}.img", _own_cgroups),
}


@pytest.fixture
def copy(sample: SampleImages, tmp_path: Path) -> Path:
    """A copy of the images without the record of their dump, which would show the change."""
    result = tmp_path / "copy"
    shutil.copytree(sample.images, result, symlinks=True)
    (result / "pycriu-native.images").unlink()
    return result


@pytest.mark.parametrize("name", CHANGES)
def test_odd_values(name: str, sample: SampleImages, copy: Path) -> None:
    """The check has a result."""
    image, change = CHANGES[name]
    path = copy / image.format(pid=sample.pid)
    content = decode(path)
    change(content["entries"])
    path.write_bytes(encode(content))
    if name == "cgroups without an entry":
        (copy / "cgroup.img").write_bytes(encode({"magic": "CGROUP", "entries": []}))
    findings = check_images(copy)
    if name == "NUL in a path":
        assert any("null byte" in each.message for each in findings)


@pytest.mark.parametrize("text", ["4", "4..2.", "4.", "9" * 5000])
def test_a_log_without_a_release(text: str, copy: Path) -> None:
    """Only the form of a release is read from ``dump.log``."""
    (copy / "dump.log").write_text(f"(00.000001) Version: {text} (gitid 0)\n")
    assert inspect(copy).criu is None
    assert not any(
        each.id == "release" and each.severity is Severity.WARNING for each in check_images(copy)
    )
