"""Saved images, served to a restore on another host: ``page_server_child(lazy_pages=True)``.

The other host is a network namespace. Its copy of the images has zeros in place of the lazy pages,
so a checksum of the memory shows that they were transferred over the network.
"""

from __future__ import annotations

import contextlib
import mmap
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycriu_native import (
    CriuOpts,
    LazyPages,
    OptionError,
    PageServer,
    PageServerResult,
    page_server,
    page_server_child,
    restore,
)
from pycriu_native.images import decode

from .conftest import Spawn
from .support.features import needs_lazy_pages
from .support.hosts import OURS, Host, cable, host, run
from .support.processes import Target, eventually, is_alive, kill

PAGE = mmap.PAGESIZE
LAZY = 2
"""Flag of a page that a restore does not need at first (CRIU's ``include/pagemap.h``)."""

LARGE = """
    import hashlib, os
    memory = bytearray(os.urandom(1 << 20) * 16)
    serve(checksum=lambda: hashlib.sha256(memory).hexdigest())
"""


@pytest.fixture
def far() -> Iterator[tuple[Host, str]]:
    """Another host, and the address of this host from there."""
    with host() as other, cable(OURS, other) as (here, _):
        yield other, here


def without_lazy_pages(images: Path, copy: Path) -> int:
    """Copy images with zeros in place of the lazy pages; returns the number of these pages."""
    shutil.copytree(images, copy)
    zeroed = 0
    for pagemap in copy.glob("pagemap-[0-9]*.img"):
        head, *entries = decode(pagemap)["entries"]
        with open(copy / f"pages-{head['pages_id']}.img", "r+b") as pages:
            for entry in entries:
                size = (entry.get("nr_pages") or entry["compat_nr_pages"]) * PAGE
                if int(entry["flags"]) & LAZY:
                    pages.write(bytes(size))
                    zeroed += size // PAGE
                else:
                    pages.seek(size, 1)
    return zeroed


def dumped(spawn: Spawn, images: Path) -> tuple[Target, str]:
    """A dumped process, and the checksum of its memory."""
    target = spawn(LARGE)
    checksum = target.ask("checksum")
    target.dump(CriuOpts(images_directory=images))
    return target, checksum


@contextlib.contextmanager
def served(opts: CriuOpts, way: str) -> Iterator[PageServerResult]:
    """A page server of either kind, which has ended after the context."""
    if way == "child":
        with page_server_child(opts) as server:
            yield server.result
            assert server.wait(timeout=60) == 0
    else:
        result = page_server(opts)
        try:
            yield result
        finally:
            kill(result.pid)


@needs_lazy_pages
@pytest.mark.parametrize("way", ["child", "daemon"])
def test_another_host_fetches_the_pages(
    orphans: None, far: tuple[Host, str], spawn: Spawn, images: Path, tmp_path: Path, way: str
) -> None:
    """A process runs there at once; all of its memory comes from the images on this host, which are
    unchanged.
    """
    other, address = far
    target, checksum = dumped(spawn, images)
    there = tmp_path / "there"
    assert without_lazy_pages(images, there) > 1000
    before = {path.name: path.read_bytes() for path in images.glob("*.img")}

    where = PageServer(address, 0, clear_text=True)
    serving = CriuOpts(
        images_directory=images, work_directory=tmp_path, page_server=where, lazy_pages=True
    )
    with pytest.raises(OptionError, match="clear text"):
        page_server_child(
            CriuOpts(images_directory=images, page_server=f"{address}:0", lazy_pages=True)
        )
    with served(serving, way) as result:
        listening = run("ss", "-ltnH", f"sport = :{result.port}").split()
        assert listening[3] == f"{address}:{result.port}"  # not on all addresses

        source = PageServer(address, result.port, clear_text=True)
        with (
            other.entered(),
            LazyPages(CriuOpts(images_directory=there, page_server=source)) as daemon,
        ):
            restore(CriuOpts(images_directory=there, lazy_pages=True))
            assert target.ask("checksum") == checksum
            assert daemon.wait(timeout=60) == 0
        eventually(lambda: not is_alive(result.pid), "the server's end")
    assert target.runs_on()
    assert {path.name: path.read_bytes() for path in images.glob("*.img")} == before


@needs_lazy_pages
def test_what_cannot_be_served(tmp_path: Path) -> None:
    """A directory that is missing, or has no images, is refused and not created."""
    missing = tmp_path / "missing"
    opts = CriuOpts(images_directory=missing, page_server="127.0.0.1:0", lazy_pages=True)
    with pytest.raises(OptionError, match="does not exist"):
        page_server_child(opts)
    assert not missing.exists()
    missing.mkdir()
    with pytest.raises(OptionError, match="has no images"):
        page_server_child(opts)
