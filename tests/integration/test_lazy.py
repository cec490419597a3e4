"""The lazy-pages daemon: a process runs before its memory has arrived.

Here the memory comes from the images on this host; between hosts it comes from a lazy dump.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, LazyPages, OptionError, dump, restore

from .conftest import Spawn
from .support.features import needs_lazy_pages
from .support.processes import eventually, is_alive

LARGE = """
    import hashlib, os
    memory = bytearray(os.urandom(1 << 20) * 16)
    serve(checksum=lambda: hashlib.sha256(memory).hexdigest())
"""


@needs_lazy_pages
def test_memory_comes_after_the_process(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """All memory arrives, and the daemon ends."""
    target = spawn(LARGE)
    checksum = target.ask("checksum")
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    work = tmp_path / "work"
    work.mkdir()
    opts = CriuOpts(images_directory=images, work_directory=work)
    with LazyPages(opts) as daemon:
        assert is_alive(daemon.pid)
        with pytest.raises(TimeoutError):
            daemon.wait(timeout=0.01)
        lazily = CriuOpts(images_directory=images, work_directory=work, lazy_pages=True)
        restore(lazily)
        assert target.ask("checksum") == checksum
        assert daemon.wait(timeout=60) == 0
        assert daemon.wait() == 0
    assert target.runs_on()
    assert (work / "lazy-pages.log").exists()


@needs_lazy_pages
def test_without_the_daemon(spawn: Spawn, images: Path) -> None:
    """A lazy restore without a daemon fails, names it, and leaves the images unchanged."""
    target = spawn(LARGE)
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    with pytest.raises(CriuError, match="lazy") as caught:
        restore(CriuOpts(images_directory=images, lazy_pages=True))
    assert "lazy_pages" in caught.value.options
    eventually(lambda: not Path(f"/proc/{target.pid}").exists(), "the failed restore's end")
    restore(CriuOpts(images_directory=images))
    assert target.runs_on()


@needs_lazy_pages
def test_closing_ends_it(images: Path, spawn: Spawn) -> None:
    """``close`` ends a daemon without a client."""
    target = spawn()
    dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    daemon = LazyPages(CriuOpts(images_directory=images))
    daemon.close()
    daemon.close()
    assert not is_alive(daemon.pid)


@needs_lazy_pages
def test_it_reports_that_it_is_ready(images: Path, spawn: Spawn) -> None:
    """The daemon writes a zero byte, and its pid to a file, like ``criu lazy-pages --daemon``."""
    target = spawn()
    dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    ready, message = os.pipe()
    line = f"criu lazy-pages -D {images} --daemon --pidfile pid --status-fd {message}"
    _, _, opts = CriuOpts.from_argv(line.split())
    with open(ready, "rb", buffering=0) as file:
        try:
            with LazyPages(opts) as daemon:
                assert file.read(1) == b"\0"
                assert (images / "pid").read_text() == str(daemon.pid)
            with pytest.raises(OptionError, match="pidfile"):
                LazyPages(opts)
        finally:
            os.close(message)
    _, _, without = CriuOpts.from_argv([*line.replace("--daemon ", "").split()])
    assert without == CriuOpts(images_directory=images, status_fd=message)


@needs_lazy_pages
def test_a_daemon_that_cannot_start(tmp_path: Path) -> None:
    """The missing part is reported: options first, then images."""
    with pytest.raises(OptionError, match="shell_job"):
        LazyPages(CriuOpts(images_directory=tmp_path, shell_job=True))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CriuError, match="ended before it listened"):
        LazyPages(CriuOpts(images_directory=tmp_path / "empty"))
