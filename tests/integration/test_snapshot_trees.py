"""Snapshots of copies: a started copy calls guest.wait() again, and is saved again."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest

from pycriu_native import CriuError, CriuOpts, DeadlineError, OptionError, Worker, restore
from pycriu_native.archive.pack import pack, unpack
from pycriu_native.images import check_images
from pycriu_native.images.image_directory import parents_of
from pycriu_native.images.pages import Layers
from pycriu_native.snapshots import Snapshot, SnapshotProcess, list_snapshots, parent_pages, saving
from pycriu_native.snapshots.parent_pages import PARENT, share_with_parent

from .support.mounts import tmpfs
from .support.processes import PATIENCE, children
from .test_snapshots import ENVIRONMENT

PAGE = os.sysconf("SC_PAGESIZE")

PROGRAM = """
import json, os, random, sys
from pycriu_native import guest
history = []
blocks = [bytes([number % 256]) * 5000 for number in range(2000)]
while True:
    start = guest.wait()
    history.append((start.number, sys.argv[1:]))
    for line in iter(sys.stdin.readline, "park\\n"):
        if line.startswith("/"):
            os.chdir(line.strip())
        if not line:
            sys.exit(len(history))
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
        whole = blocks == [bytes([number % 256]) * 5000 for number in range(2000)]
        print(json.dumps([history, random.random(), pids, whole]), flush=True)
"""


@pytest.fixture
def snapshot(tmp_path: Path) -> Iterator[Snapshot]:
    """A snapshot of the program."""
    command = [sys.executable, "-c", PROGRAM]
    with Snapshot.take(command, tmp_path / "first", env=ENVIRONMENT) as result:
        yield result


def started(snapshot: Snapshot, *args: str, **options: Any) -> SnapshotProcess[str]:
    """A copy that can be saved."""
    streams = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, "text": True, "savable": True}
    return snapshot.start(args, **{**streams, **options})


def say(process: SnapshotProcess[str], line: str) -> None:
    """Write a line to a copy."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def state_of(process: SnapshotProcess[str]) -> list[Any]:
    """The history of a copy, a random number, its pids, and whether its memory is intact."""
    say(process, "state")
    assert process.stdout is not None
    result: list[Any] = json.loads(process.stdout.readline())
    return result


def taken(process: SnapshotProcess[str], directory: Path, **options: Any) -> Snapshot:
    """A snapshot of a copy that calls guest.wait()."""
    say(process, "park")
    return Snapshot.take(process, directory, deadline=PATIENCE, **options)


@pytest.mark.parametrize("share_memory", [False, True])
def test_generations(snapshot: Snapshot, tmp_path: Path, share_memory: bool) -> None:
    """Each generation continues where its parent was saved; the parents can still be started."""
    with started(snapshot, "a", share_memory=share_memory) as first:
        state_of(first)
        with taken(first, tmp_path / "second") as second:
            assert first.wait(PATIENCE) == -signal.SIGKILL
            assert second.record.forks
            with started(second, "b", share_memory=share_memory) as other:
                state_of(other)
                third = taken(other, tmp_path / "third")
            snapshot.remove()
            with third, started(third, "c") as one, started(third, "d") as two:
                seen = [state_of(each) for each in (one, two)]
                assert [each[0] for each in seen] == [
                    [[1, ["a"]], [1, ["b"]], [1, ["c"]]],
                    [[1, ["a"]], [1, ["b"]], [2, ["d"]]],
                ]
                assert seen[0][1] != seen[1][1]
                assert [each[2:] for each in seen] == [[[1, third.record.pid], True]] * 2
            assert one.returncode == 3
            with started(second, "e") as again:
                assert state_of(again)[0] == [[1, ["a"]], [2, ["e"]]]


def test_it_goes_on(snapshot: Snapshot, tmp_path: Path) -> None:
    """With leave_running the copy continues with its own /proc, and can be saved once more."""
    with started(snapshot, "a") as process:
        second = taken(process, tmp_path / "second", leave_running=True)
        assert state_of(process)[0] == [[1, ["a"]], [0, ["a"]]]
        assert state_of(process)[2] == [1, snapshot.record.pid]
        third = taken(process, tmp_path / "third", leave_running=True)
        with started(second) as one, started(third) as two:
            assert [len(state_of(each)[0]) for each in (one, two, process)] == [2, 3, 3]
    assert process.returncode == 3


def test_streams(snapshot: Snapshot, tmp_path: Path) -> None:
    """Files and sockets of a copy are replaced in copies of it; it can be a zygote."""
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        open(tmp_path / "errors", "w") as errors,
        snapshot.start(stdin=theirs, stdout=DEVNULL, stderr=errors, savable=True) as process,
    ):
        theirs.close()
        ours.sendall(b"park\n")
        second = Snapshot.take(process, tmp_path / "second", deadline=PATIENCE)
    with second, started(second, "x", stderr=DEVNULL) as other:
        assert state_of(other)[0] == [[1, []], [1, ["x"]]]
        assert other.communicate(timeout=PATIENCE) == ("", None)
    with (
        open(tmp_path / "more", "w") as more,
        pytest.raises(OptionError, match="no file or socket"),
    ):
        second.start(stderr=more)
    with (
        second.zygote() as zygote,
        zygote.start(["y"], stdin=PIPE, stdout=PIPE, text=True) as forked,
    ):
        assert state_of(forked)[0][-1][1] == ["y"]


def test_copies_that_cannot_be_saved(snapshot: Snapshot, tmp_path: Path) -> None:
    """Copies that cannot be saved continue with their own /proc; nothing remains."""
    target = tmp_path / "second"
    with started(snapshot, savable=False) as process:
        with pytest.raises(OptionError, match="started with savable=True"):
            Snapshot.take(process, target)
        state_of(process)
    with started(snapshot, hostname="other") as process:
        with pytest.raises(OptionError, match="a separate host name or network"):
            Snapshot.take(process, target)
        state_of(process)
    with started(snapshot) as process:
        with pytest.raises(OptionError, match="in its next call"):
            Snapshot.take(process, target, without_guest=True)
        with pytest.raises(OptionError, match="accepted with a command only"):
            Snapshot.take(process, target, env={})
        with pytest.raises(DeadlineError, match="has not called"):
            Snapshot.take(process, target, deadline=0.1)
        state_of(process)
    with started(snapshot) as process:
        assert process.stdin is not None
        process.stdin.close()
        with pytest.raises(CriuError, match="the copy ended"):
            Snapshot.take(process, target, deadline=PATIENCE)
    with started(snapshot) as process:
        process.kill()
        assert select.select([process.pidfd], [], [], PATIENCE)[0]
        with pytest.raises(OptionError, match="it has ended"):
            Snapshot.take(process, target)
    assert not target.exists()


@pytest.mark.cures("parasite-directory")
def test_a_working_directory_that_is_not_writable(snapshot: Snapshot, tmp_path: Path) -> None:
    """The error names it; the copy continues, and is saved in another directory."""
    with started(snapshot, cwd="/sys") as process:
        with pytest.raises(CriuError, match="the process may not write there"):
            taken(process, tmp_path / "second")
        assert process.guest is not None
        process.guest.resume()
        say(process, str(tmp_path))
        second = taken(process, tmp_path / "second")
    with started(second) as other:
        assert state_of(other)[3]


def test_several_at_once(snapshot: Snapshot, tmp_path: Path) -> None:
    """Copies with the same working directory are saved by several threads."""
    with contextlib.ExitStack() as copies, ThreadPoolExecutor() as threads:
        processes = [copies.enter_context(started(snapshot, cwd=tmp_path)) for _ in range(4)]
        saved = [
            threads.submit(taken, process, tmp_path / str(number))
            for number, process in enumerate(processes)
        ]
        for each in saved:
            with started(each.result()) as other:
                assert state_of(other)[3]


def test_a_dump_that_fails(snapshot: Snapshot, tmp_path: Path) -> None:
    """After a failed dump the copy stays in guest.wait(), and can be saved later."""
    with started(snapshot) as process:
        say(process, "park")
        (tmp_path / "file").touch()
        before = children()
        with pytest.raises(CriuError):
            Snapshot.take(process, tmp_path / "file" / "below", deadline=PATIENCE)
        assert children() <= before
        second = Snapshot.take(process, tmp_path / "second", leave_running=True, deadline=PATIENCE)
        assert state_of(process)[2] == [1, snapshot.record.pid]
    with started(second) as other:
        assert state_of(other)[3]


def test_an_error_in_the_block(snapshot: Snapshot, tmp_path: Path) -> None:
    """The copy does not wait endlessly to be saved: guest.wait() ends it."""
    (tmp_path / "file").touch()
    with pytest.raises(CriuError), started(snapshot) as process:
        taken(process, tmp_path / "file" / "below")
    assert process.returncode in (1, 120)  # 120: Python could not flush to the closed pipe


# ---- what generations store ----


def memory_in(directory: Path) -> dict[str, list[tuple[int, bytes | None]]]:
    """The pages of each process in an image set and its parents."""
    result = {}
    for path in sorted(directory.glob("pagemap-[0-9]*.img")):
        layers = Layers(parents_of(str(directory))[1], path.name, PAGE)
        result[path.name] = [
            (start + at, None if data is None else data[at : at + PAGE])
            for start, data, size in layers.pieces(0, 2**64)
            for at in range(0, size, PAGE)
        ]
    return result


def test_a_generation_stores_what_differs(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generation and its parents have the pages of a full dump; copies have that memory."""
    full = tmp_path / "full"

    def both(directory: Path, parent: Path, until: float | None) -> None:
        shutil.copytree(directory, full / directory.name)
        share_with_parent(directory, parent, until)

    monkeypatch.setattr(saving, "share_with_parent", both)
    whole = snapshot.size()
    current = snapshot
    for name in ("second", "third"):
        with started(current, name) as process:
            state_of(process)
            current = taken(process, tmp_path / name)
        assert current.size(parents=False) < whole / 4
        assert memory_in(current.directory) == memory_in(full / name)
        assert check_images(current.directory) == check_images(full / name)
    assert len(parents_of(str(current.directory))[1]) == 3
    assert whole < current.size() < whole * 1.5
    assert current.removable_size() == current.size(parents=False)
    for share_memory in (False, True):
        with current, started(current, "x", share_memory=share_memory) as process:
            assert (process.unshared_reason is None) is share_memory
            history, _, _, blocks_are_whole = state_of(process)
            assert [args for _, args in history] == [["second"], ["third"], ["x"]]
            assert blocks_are_whole
    assert current.size() < whole * 3  # the prepared images also have links to the pages


def test_a_snapshot_that_is_not_finished(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no snapshot while CRIU saves the copy, and while its pages are shared."""
    found: list[list[str]] = []

    def names() -> list[str]:
        return [each.directory.name for each in list_snapshots(tmp_path)]

    def listing(function: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            found.append(names())
            return result

        return replaced

    for name in ("dump", "share_with_parent"):
        monkeypatch.setattr(saving, name, listing(getattr(saving, name)))
    with started(snapshot, "a") as process:
        taken(process, tmp_path / "second")
    assert found == [["first"], ["first"]]
    assert names() == ["first", "second"]


def test_a_generation_by_itself(snapshot: Snapshot, tmp_path: Path) -> None:
    """A snapshot of a copy can be packed, moved, and started without its parents."""
    with started(snapshot, "a") as process:
        second = taken(process, tmp_path / "second")
    with started(second, "b") as process:
        third = taken(process, tmp_path / "third")
    whole = snapshot.size()
    snapshot.remove()
    second.remove()
    assert third.removable_size() == third.size() > whole
    with third, started(third, share_memory=True) as process:
        state_of(process)
    pack(third.directory, tmp_path / "third.tar")
    third.remove()
    unpack(tmp_path / "third.tar", tmp_path / "elsewhere")
    for share_memory in (False, True):
        with (
            Snapshot(tmp_path / "elsewhere") as moved,
            started(moved, "c", share_memory=share_memory) as process,
        ):
            history, _, _, blocks_are_whole = state_of(process)
            assert [args for _, args in history] == [["a"], ["b"], ["c"]]
            assert blocks_are_whole


OBSTACLES = ("removed", "damaged", "another file system", "the deadline", "not incremental")


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_parent_that_is_not_used(
    snapshot: Snapshot,
    tmp_path: Path,
    obstacle: str,
    other_file_system: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The snapshot stores all of its memory, and starts."""
    whole = snapshot.size(parents=False)
    target = tmp_path / "second"
    options: dict[str, Any] = {}
    with started(snapshot, "a") as process:
        state_of(process)
        if obstacle == "removed":
            snapshot.remove()
        elif obstacle == "damaged":
            for path in snapshot.directory.glob("pages-*.img"):
                os.truncate(path, path.stat().st_size - PAGE)
        elif obstacle == "another file system":
            target = other_file_system / "second"
        elif obstacle == "not incremental":
            options["incremental"] = False
        else:

            def late(directory: Path, parent: Path, until: float | None) -> None:
                assert until is not None
                share_with_parent(directory, parent, until - PATIENCE)

            monkeypatch.setattr(saving, "share_with_parent", late)
        second = taken(process, target, **options)
    assert not (target / PARENT).exists()
    assert not list(target.glob("*.partial"))
    assert second.size() > whole * 0.9
    with second, started(second, "b") as process:
        assert state_of(process)[3]


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system than temporary files."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        assert os.stat(name).st_dev != tmp_path.stat().st_dev
        yield Path(name)


@pytest.mark.parametrize("source", ["field", "config_file", "CRIU_CONFIG_FILE"])
def test_auto_dedup_of_linked_pages(snapshot: Snapshot, tmp_path: Path, source: str) -> None:
    """A restore that would free the pages of another generation is refused, whoever sets that."""
    with started(snapshot, "a") as process:
        second = taken(process, tmp_path / "second")
    file = tmp_path / "criu.conf"
    file.write_text("# pages\nauto-dedup\n")
    opts, via = CriuOpts(images_directory=second.directory), Worker()
    if source == "field":
        opts = replace(opts, auto_dedup=True)
    elif source == "config_file":
        opts = replace(opts, config_file=file)
    else:
        via = Worker(env={source: str(file)})
    with pytest.raises(OptionError, match="a hard link") as caught:
        restore(opts, via=via)
    field = "config_file" if source == "config_file" else "auto_dedup"
    assert [problem.field for problem in caught.value.problems] == [field]
    if source == "CRIU_CONFIG_FILE":  # a start overrides it
        before = allocated(second.directory)
        with started(second, "b", via=via, share_memory=False) as process:
            assert state_of(process)[3]
        assert allocated(second.directory) == before


def allocated(directory: Path) -> int:
    """Bytes that the pages in a directory and those below take on the disk."""
    return sum(path.stat().st_blocks for path in directory.rglob("pages-*.img")) * 512


def test_generations_end(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a number of generations one stores all of its memory, since CRIU opens the files of
    each.
    """
    monkeypatch.setattr(parent_pages, "MOST_PARENTS", 1)
    with started(snapshot, "a") as process:
        second = taken(process, tmp_path / "second")
    with started(second, "b") as process:
        third = taken(process, tmp_path / "third")
    assert (second.directory / PARENT).is_dir()
    assert not (third.directory / PARENT).exists()
    with started(third, "c") as process:
        assert state_of(process)[3]


def test_a_directory_that_the_copy_does_not_see(snapshot: Snapshot, tmp_path: Path) -> None:
    """A file system that was mounted after the start of the copy, which has its own mounts."""
    process = started(snapshot)
    with tmpfs(tmp_path / "mounted", "64m") as place:
        say(process, "park")
        with Snapshot.take(process, place / "second") as second:
            process.communicate(timeout=PATIENCE)
            with started(second) as copy:
                assert len(state_of(copy)[0]) == 2
                copy.kill()
    assert not any((tmp_path / "mounted").iterdir())
