"""Processes in which a tracing tool has set a uprobe.

The probe is one of perf_event_open(2), in a mapping of machine code that the process calls.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, Severity, Verdict, dump, preflight, restore
from pycriu_native.images import check_images

from .conftest import Spawn
from .support import releases

PMU = Path("/sys/bus/event_source/devices/uprobe/type")
PERF_EVENT_OPEN, PERF_ATTR_SIZE, PERF_FLAG_FD_CLOEXEC = 298, 128, 8
CODE = b"\x83\xc0\x01\xc3"
"""``add $1, %eax; ret``: an instruction that the kernel executes in a mapping of its own."""
CALLS = f"""
    import ctypes, mmap
    with open(HERE / "code", "wb") as file:
        file.write({CODE!r}.ljust(mmap.PAGESIZE, b"\\0"))
    with open(HERE / "code", "rb") as file:
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        executable = mmap.PROT_READ | mmap.PROT_EXEC
        code = libc.mmap(None, mmap.PAGESIZE, executable, mmap.MAP_PRIVATE, file.fileno(), 0)
    add = ctypes.CFUNCTYPE(ctypes.c_int)(code)
    serve(add=lambda: add() and 1)
"""

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the program is for x86_64"),
    pytest.mark.skipif(not PMU.exists(), reason="this kernel has no uprobes"),
]


@contextmanager
def probe(file: Path) -> Iterator[None]:
    """A uprobe at the beginning of a file, in all processes that map it."""
    path = ctypes.create_string_buffer(os.fsencode(file))
    attributes = bytearray(PERF_ATTR_SIZE)
    struct.pack_into("=IIQ", attributes, 0, int(PMU.read_text()), PERF_ATTR_SIZE, 0)
    struct.pack_into("=Q", attributes, 56, ctypes.addressof(path))
    libc = ctypes.CDLL(None, use_errno=True)
    raw = (ctypes.c_char * PERF_ATTR_SIZE).from_buffer(attributes)
    fd = libc.syscall(PERF_EVENT_OPEN, raw, -1, 0, -1, PERF_FLAG_FD_CLOEXEC)
    if fd < 0:
        pytest.skip(f"a uprobe cannot be set: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.close(fd)


@pytest.mark.cures("uprobes")
@pytest.mark.cures("uprobes-on-restore")
@pytest.mark.usefixtures("orphans")
def test_a_process_that_was_traced(spawn: Spawn, images: Path) -> None:
    """The mapping of the probe remains when the tool ends; with the cure the process continues."""
    releases.required("4.2", "--allow-uprobes")
    target = spawn(CALLS)
    with probe(target.directory / "code"):
        assert target.ask("add")
    assert "[uprobes]" in Path(f"/proc/{target.pid}/maps").read_text()
    opts = CriuOpts(images_directory=images)
    with pytest.raises(CriuError, match="set a uprobe") as caught:
        dump(target.pid, opts)
    assert caught.value.options == ("allow_uprobes",)
    assert target.runs_on()

    result = preflight(target.pid, opts)
    assert result.verdict is Verdict.NEEDS_OPTIONS
    assert result.changes() == {"allow_uprobes": True}
    target.dump(result.opts)

    (found,) = [each for each in check_images(images) if each.severity is Severity.STOPS]
    assert found.options == ("allow_uprobes",)
    with pytest.raises(CriuError, match="made with allow_uprobes") as caught:
        restore(opts)
    assert caught.value.options == found.options
    assert not check_images(images, result.restore_opts)
    restore(result.restore_opts)
    assert target.ask("add")
