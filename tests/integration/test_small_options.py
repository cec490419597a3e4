"""Options with a short description.

* ``ghost_limit``: the images contain deleted files that are still open; up to 1 MiB, unless a
  larger limit is set.
* ``link_remap``: for an open file whose name was deleted but that has another name, the dump
  creates a link in the same directory, ``link_remap.N``. A dump that ends the process leaves the
  link, and the restore removes it.
* ``log_file``, ``log_level``: the name of the log in the work directory, and its verbosity.
* ``timeout``: seconds until all processes must be frozen; CRIU's default is 10.
* ``config_file``: a configuration file of CRIU, whose options replace the fields.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, DumpResult, OptionError, dump, restore

from .conftest import Spawn
from .support import releases
from .support.processes import Target, eventually, state

MIB = 2**20

# ---- ghost_limit ----

GHOST = f"""
    import hashlib, os

    file = open(HERE / "ghost", "w+b", buffering=0)
    file.write(os.urandom({2 * MIB}))
    file.seek(12345)
    os.unlink(HERE / "ghost")

    def checksum():
        return hashlib.sha256(os.pread(file.fileno(), {3 * MIB}, 0)).hexdigest()

    serve(checksum=checksum, position=file.tell, links=lambda: os.fstat(file.fileno()).st_nlink)
"""


@pytest.mark.parametrize("limit", [None, 0, 2 * MIB - 1])
def test_a_deleted_file_above_the_limit(spawn: Spawn, images: Path, limit: int | None) -> None:
    """The dump is refused and names the field; the process continues."""
    target = spawn(GHOST)
    with pytest.raises(CriuError, match="give a ghost_limit") as caught:
        dump(target.pid, CriuOpts(images_directory=images, ghost_limit=limit))
    assert caught.value.options[0] == "ghost_limit"
    assert target.runs_on()


def test_a_deleted_file_within_the_limit(spawn: Spawn, images: Path) -> None:
    """A small deleted file is saved, and restored as a deleted file with the same position."""
    target = spawn(GHOST)
    checksum = target.ask("checksum")
    opts = CriuOpts(images_directory=images, ghost_limit=2 * MIB)
    target.dump(opts)
    assert sum(path.stat().st_size for path in images.glob("ghost-file-*.img")) > 2 * MIB
    restore(opts.only_for("restore"))
    assert target.ask("checksum") == checksum
    assert target.ask("position") == 12345
    assert target.ask("links") == 0
    assert not (target.directory / "ghost").exists()


def test_holes_do_not_count(spawn: Spawn, images: Path) -> None:
    """The limit applies to the allocated blocks of a file, not to its length."""
    releases.required("3.18", "a ghost_limit that does not count holes")
    target = spawn(f"""
        import os
        file = open(HERE / "ghost", "w+b")
        file.truncate({64 * MIB})
        os.unlink(HERE / "ghost")
        serve(size=lambda: os.fstat(file.fileno()).st_size)
    """)
    target.dump(CriuOpts(images_directory=images))
    restore(CriuOpts(images_directory=images))
    assert target.ask("size") == 64 * MIB


# ---- link_remap ----

REMAPPED = """
    import os
    (HERE / "first").write_text("content")
    os.link(HERE / "first", HERE / "second")
    file = open(HERE / "first", "r+")
    os.unlink(HERE / "first")
    serve(
        read=lambda: (file.seek(0), file.read())[1],
        write=lambda text: (file.write(text), file.flush())[0],
    )
"""


def remaps(target: Target) -> list[str]:
    """CRIU's links in the target's directory."""
    return [name for name in os.listdir(target.directory) if name.startswith("link_remap")]


@pytest.mark.parametrize("given", [None, False])
def test_a_file_under_another_name_only(spawn: Spawn, images: Path, given: bool | None) -> None:
    """Without link_remap the dump is refused and names it; the process continues."""
    target = spawn(REMAPPED)
    with pytest.raises(CriuError, match="link_remap=True") as caught:
        dump(target.pid, CriuOpts(images_directory=images, link_remap=given))
    assert caught.value.options == ("link_remap",)
    assert remaps(target) == []
    assert target.ask("read") == "content"


def test_a_file_by_a_link_of_criu(spawn: Spawn, images: Path) -> None:
    """The restored process has the same file open, not a copy, and the link is removed."""
    target = spawn(REMAPPED)
    second = target.directory / "second"
    opts = CriuOpts(images_directory=images, link_remap=True)
    target.dump(opts)
    (link,) = remaps(target)
    assert (target.directory / link).samefile(second)
    restore(opts.only_for("restore"))
    assert remaps(target) == []
    assert target.ask("read") == "content"
    target.ask("write", ", and more")
    assert second.read_text() == "content, and more"


def test_the_link_is_removed_where_the_process_runs_on(spawn: Spawn, images: Path) -> None:
    """A dump that leaves the process running leaves no link."""
    target = spawn(REMAPPED)
    dump(target.pid, CriuOpts(images_directory=images, link_remap=True, leave_running=True))
    assert remaps(target) == []
    assert target.ask("read") == "content"


# ---- log_file, log_level ----


def test_log_file(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """The log has the given name, in the work directory, instead of dump.log and restore.log."""
    target = spawn()
    (tmp_path / "work").mkdir()
    opts = CriuOpts(images_directory=images, work_directory=tmp_path / "work", log_level=4)
    for given, name in ((None, "dump.log"), ("my log", "my log")):
        result = dump(target.pid, replace(opts, log_file=given, leave_running=True))
        assert result.log == str(tmp_path / "work" / name)
        assert "Dumping finished successfully" in Path(result.log).read_text()
    assert set(os.listdir(tmp_path / "work")) == {"dump.log", "my log", "stats-dump"}


def test_errors_are_read_from_the_log_with_that_name(spawn: Spawn, images: Path) -> None:
    """An error has its cause with any name of the log."""
    target = spawn(GHOST)
    with pytest.raises(CriuError, match="give a ghost_limit") as caught:
        dump(target.pid, CriuOpts(images_directory=images, log_file="my log"))
    assert caught.value.log == str(images / "my log")
    assert "Can't dump ghost file" in caught.value.lines[0]


@pytest.mark.parametrize("name", ["sub/log", "", "..", "-", "x" * 256])
def test_what_is_no_name_of_a_log(spawn: Spawn, images: Path, name: str) -> None:
    """A path, and a name that cannot be a file, are refused by name before anything is touched."""
    target = spawn()
    with pytest.raises(OptionError, match="log_file="):
        dump(target.pid, CriuOpts(images_directory=images, log_file=name))
    assert not images.exists()
    assert target.runs_on()


def test_log_level(spawn: Spawn, images: Path) -> None:
    """Each level logs more than the one below it: nothing, errors, ..., debugging."""
    target = spawn()
    sizes = []
    for level in (1, 3, 4):
        opts = CriuOpts(images_directory=images, log_level=level, leave_running=True)
        log = dump(target.pid, opts).log
        assert log is not None
        text = Path(log).read_text()
        sizes.append(len(text))
        assert ("Dumping task" in text) == (level >= 3)
    assert sizes[0] * 10 < sizes[1] < sizes[2]


def test_a_failure_at_level_0(spawn: Spawn, images: Path) -> None:
    """Without lines in the log the cause is unknown."""
    target = spawn(GHOST)
    with pytest.raises(CriuError, match="CRIU reports no cause") as caught:
        dump(target.pid, CriuOpts(images_directory=images, log_level=0))
    assert caught.value.lines == ()
    assert target.runs_on()


# ---- timeout ----

STUCK = """
    import os, time

    os.mkfifo(HERE / "gate")
    child = os.fork()
    if child == 0:
        # The grandchild opens a pipe that nobody writes to, and the child sleeps until it has
        # become another program. Nothing interrupts that sleep.
        read = [(os.POSIX_SPAWN_OPEN, 0, str(HERE / "gate"), os.O_RDONLY, 0)]
        os.posix_spawn("/bin/true", ["true"], {}, file_actions=read)
        while True:
            time.sleep(0.01)
    serve(child=lambda: child)
"""


@pytest.fixture
def stuck(spawn: Spawn) -> Iterator[Target]:
    """A process with a child that cannot be stopped."""
    target = spawn(STUCK)
    child = target.ask("child")
    eventually(lambda: state(child) == "D", "a sleep that cannot be interrupted")
    yield target
    if state(child) == "D":
        let_go(target)


def let_go(target: Target) -> None:
    """Open the FIFO that the child waits for."""
    os.close(os.open(target.directory / "gate", os.O_WRONLY))


def test_a_process_that_cannot_be_frozen(stuck: Target, images: Path) -> None:
    """The dump fails after this number of seconds, not after CRIU's ten, and the
    process continues.
    """
    started = time.monotonic()
    with pytest.raises(CriuError, match="give a larger timeout") as caught:
        dump(stuck.pid, CriuOpts(images_directory=images, timeout=1))
    assert time.monotonic() - started < 9
    assert caught.value.options[0] == "timeout"
    assert stuck.runs_on()


def test_a_longer_timeout_waits(stuck: Target, images: Path) -> None:
    """The dump is done when all processes are frozen."""
    results: list[DumpResult] = []
    opts = CriuOpts(images_directory=images, timeout=60)
    dumping = threading.Thread(target=lambda: results.append(dump(stuck.pid, opts)))
    status = Path(f"/proc/{stuck.ask('child')}/status")
    dumping.start()
    try:
        eventually(lambda: "TracerPid:\t0" not in status.read_text(), "the dump's start")
        assert not results
    finally:
        let_go(stuck)
        dumping.join()
    stuck.reap()
    restore(CriuOpts(images_directory=images))
    assert stuck.runs_on()


# ---- config_file ----


def test_a_setting_in_the_file_wins(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """The ghost-limit of the file is used, not that of the field; without the file the field is
    used.
    """
    target = spawn(GHOST)
    checksum = target.ask("checksum")
    (tmp_path / "criu.conf").write_text("# large files\nghost-limit 4M\n")
    opts = CriuOpts(images_directory=images, ghost_limit=MIB)
    with pytest.raises(CriuError, match="give a ghost_limit"):
        dump(target.pid, opts)
    target.dump(replace(opts, config_file=tmp_path / "criu.conf"))
    restore(CriuOpts(images_directory=images))
    assert target.ask("checksum") == checksum


def test_a_file_that_is_wrong(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """A missing file, which CRIU would ignore, and one with an unknown option are errors."""
    target = spawn()
    opts = CriuOpts(images_directory=images, config_file=tmp_path / "criu.conf")
    with pytest.raises(OptionError, match=r"config_file=.*an existing file"):
        dump(target.pid, opts)
    (tmp_path / "criu.conf").write_text("no-such-option\n")
    with pytest.raises(CriuError, match="no-such-option") as caught:
        dump(target.pid, opts)
    assert caught.value.options == ("config_file",)
    assert target.runs_on()
