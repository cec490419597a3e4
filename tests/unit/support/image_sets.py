"""Small image sets, written without CRIU, with only the content that a test needs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pycriu_native.images import encode

PAGE = 4096
MARCH = {"aarch64": "AARCH64"}.get(os.uname().machine, "X86_64")
"""This host's architecture, as CRIU names it."""
START, SIZE = 0x10000, 16
"""Address of the mapping, and its size in pages."""
ANONYMOUS = 1 | 1 << 9
"""VMA_AREA_REGULAR and VMA_ANON_PRIVATE."""
PARENT, LAZY, PRESENT = 1, 2, 4


def write(directory: Path, name: str, magic: str, *entries: Mapping[str, Any]) -> None:
    """Write one image file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(encode({"magic": magic, "entries": [*map(dict, entries)]}))


def image_set(
    directory: Path,
    runs: Sequence[tuple[int, int, int]] = (),
    pages: bytes = b"",
    *,
    pid: int = 10,
    old: bool = False,
    page_size: int = PAGE,
) -> Path:
    """Write the images of a process with one anonymous mapping.

    ``runs`` are page number, count and flags; ``old`` writes them as CRIU before 4.2 did.
    ``page_size`` is that of the host of the dump.
    """
    write(directory, "inventory.img", "INVENTORY", {"img_version": 2})
    write(
        directory,
        "pstree.img",
        "PSTREE",
        {"pid": pid, "ppid": 0, "pgid": pid, "sid": pid, "threads": [pid]},
    )
    owner = {"uid": 0, "euid": 0, "signum": 0, "pid_type": 0, "pid": 0}
    root = {"id": 1, "flags": 0, "pos": 0, "fown": owner, "name": "/"}
    write(directory, "files.img", "FILES", {"type": "REG", "id": 1, "reg": root})
    write(directory, f"fs-{pid}.img", "FS", {"cwd_id": 1, "root_id": 1})
    ids = {"vm_id": 1, "files_id": 1, "fs_id": 1, "sighand_id": 1}
    write(directory, f"ids-{pid}.img", "IDS", ids)
    task = {
        "task_state": 1,
        "exit_code": 0,
        "personality": 0,
        "flags": 0,
        "blk_sigset": 0,
        "comm": "hand-made",
    }
    write(directory, f"core-{pid}.img", "CORE", {"mtype": MARCH, "tc": task})
    names = (
        "start_code end_code start_data end_data start_stack start_brk brk arg_start arg_end "
        "env_start env_end"
    )
    memory: dict[str, Any] = {f"mm_{name}": 0 for name in names.split()}
    memory |= {"exe_file_id": 1, "mm_saved_auxv": [33, 0x7FFF0000, 6, page_size, 0, 0]}
    vma = {
        "start": START,
        "end": START + SIZE * page_size,
        "pgoff": 0,
        "shmid": 0,
        "prot": 3,
        "flags": 0x22,
        "status": ANONYMOUS,
        "fd": -1,
    }
    write(directory, f"mm-{pid}.img", "MM", {**memory, "vmas": [vma]})
    entries = []
    for page, count, flags in runs:
        entry: dict[str, Any] = {"vaddr": START + page * page_size}
        if old:
            entry["compat_nr_pages"] = count
            if flags == PARENT:
                entry["in_parent"] = True
        else:
            entry |= {"compat_nr_pages": 0, "nr_pages": count, "flags": flags}
        entries.append(entry)
    write(directory, f"pagemap-{pid}.img", "PAGEMAP", {"pages_id": 1}, *entries)
    (directory / "pages-1.img").write_bytes(pages)
    return directory


def page(letter: str) -> bytes:
    """A page filled with one character."""
    return letter.encode() * PAGE
