"""Snapshots, without CRIU: records, checks of the machine, arguments."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuOpts,
    ImagesError,
    NoSuchProcessError,
    OptionError,
    Verb,
    Version,
    Worker,
)
from pycriu_native._calls.request import Request
from pycriu_native._system import memory_room
from pycriu_native._system.process_snapshot import Tree
from pycriu_native._transport.lifetime_sockets import LifetimeSockets
from pycriu_native._transport.spawn import spawn
from pycriu_native.snapshots import (
    Host,
    MappedFile,
    Record,
    SharedTemplate,
    Snapshot,
    host_check,
    sharing,
)
from pycriu_native.snapshots.copy_request import CopyRequest
from pycriu_native.snapshots.record import publish
from pycriu_native.snapshots.streams import TextMode, check

CRIU = Version.parse("4.2.1")


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """A record that fits this machine, of a program that has mapped one file."""
    file = tmp_path / "library.so"
    file.write_text("library")
    return Record(
        created="2026-01-01T00:00:00+00:00",
        command=("program", "a"),
        pid=7,
        processes=1,
        guest_key="socket:[1]",
        guest_fd=3,
        stream_keys=("socket:[2]", None, "pipe:[4]"),
        criu=str(CRIU),
        host=host_check.this_host(),
        files=(MappedFile(path=str(file), size=7, mtime_ns=file.stat().st_mtime_ns),),
    )


def test_records(record: Record, tmp_path: Path) -> None:
    """Records are read back unchanged, and only their owner can read them."""
    record.write(tmp_path)
    publish(tmp_path)
    assert Record.read(tmp_path) == record
    assert (tmp_path / "snapshot.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("criu", "weird"),
        ("criu", 4),
        ("pid", "7"),
        ("pid", 0),
        ("pid", 2**70),
        ("pid", True),
        ("guest_key", []),
        ("command", [1]),
        ("stream_keys", [None, 1, None]),
        ("forks", "yes"),
        ("descriptors", ["1"]),
        ("files", [{"path": "/x", "size": "1", "mtime_ns": 0}]),
        ("files", [{"path": "/x"}]),
        ("host", {"machine_id": "", "architecture": "", "kernel": 5, "cpu_flags": []}),
        ("host", None),
    ],
)
def test_records_with_other_values(record: Record, tmp_path: Path, name: str, value: Any) -> None:
    """A member of another type, or with an impossible value, is an ``ImagesError``."""
    record.write(tmp_path)
    publish(tmp_path)
    path = tmp_path / "snapshot.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ImagesError, match="is not a record of a snapshot"):
        Record.read(tmp_path)


def test_a_record_that_is_no_file(tmp_path: Path) -> None:
    """A FIFO or a link is refused, without waiting for data."""
    path = tmp_path / "snapshot.json"
    os.mkfifo(path)
    with pytest.raises(ImagesError, match="not a regular file"):
        Record.read(tmp_path)
    path.unlink()
    path.symlink_to("/dev/null")
    with pytest.raises(ImagesError, match="symbolic links"):
        Record.read(tmp_path)


def fields(record: Record, criu: Version = CRIU) -> list[str]:
    """The subjects of the problems of a record on this machine."""
    return [problem.field for problem in host_check.problems(record, criu)]


def on(record: Record, **values: Any) -> Record:
    """The record of a snapshot of another machine."""
    return dataclasses.replace(record, host=dataclasses.replace(record.host, **values))


def test_this_machine(record: Record) -> None:
    """A snapshot fits the machine on which it was taken."""
    assert fields(record) == []


def test_another_processor(record: Record) -> None:
    """Another architecture, or a processor with fewer features, is refused; more are not."""
    assert fields(on(record, architecture="vax")) == ["host"]
    flags = record.host.cpu_flags
    assert fields(on(record, cpu_flags=(*flags, "future"))) == ["processor"]
    assert fields(on(record, cpu_flags=flags[1:])) == []


def test_another_kernel_and_criu(record: Record) -> None:
    """Older releases are refused, newer ones are not."""
    assert fields(on(record, kernel="99.1.2-later")) == ["kernel"]
    assert fields(on(record, kernel="3.10.0")) == []
    assert fields(record, Version.parse("4.2")) == ["criu"]
    assert fields(record, Version.parse("4.3")) == []


def test_mapped_files(record: Record) -> None:
    """A file that is missing, has another size, or was changed; times count on the same machine
    only.
    """
    file = Path(record.files[0].path)
    os.utime(file, ns=(0, 0))
    if record.host.machine_id:
        assert fields(record) == ["files"]
    assert fields(on(record, machine_id="another")) == []
    file.write_text("another library")
    assert fields(on(record, machine_id="another")) == ["files"]
    file.unlink()
    assert fields(on(record, machine_id="another")) == ["files"]


def test_the_mapped_files_of_a_process() -> None:
    """The interpreter and its libraries fit."""
    files = {each.path: each for each in host_check.mapped_files(Tree(os.getpid()))}
    program = os.path.realpath(sys.executable)
    assert files[program].size == os.stat(program).st_size
    assert len(files) > 3


@pytest.mark.parametrize(
    ("stdout", "key", "accepted"),
    [
        (-1, None, False),
        (None, None, True),
        (-1, "pipe:[1]", True),
        (-3, "pipe:[1]", True),
        ("file", "pipe:[1]", False),
        ("file", "socket:[1]", True),
        (-2, "socket:[1]", False),
        (10**6, "socket:[1]", False),
    ],
)
def test_streams(tmp_path: Path, stdout: object, key: str | None, accepted: bool) -> None:
    """A stream needs a key; a file that CRIU opens again is refused."""
    with open(tmp_path / "file", "w") as file:
        value = file if stdout == "file" else stdout
        problems = check((None, value, None), ("socket:[0]", key, "socket:[2]"))  # type: ignore[arg-type]
    assert [problem.field for problem in problems] == ([] if accepted else ["stdout"])


def test_descriptors(record: Record) -> None:
    """Numbers of open descriptors, and descriptors for programs without a helper, are refused."""

    def rules(record: Record, *fds: Any) -> list[str]:
        mode = TextMode(text=False)
        given = CopyRequest(
            args=None, streams=(None, None, None), mode=mode, env=None, extra_env=None, cwd=None,
            pass_fds=fds,
        )  # fmt: skip
        return [each.rule for each in given.problems(record) if each.field == "pass_fds"]

    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        python = dataclasses.replace(record, forks=True, descriptors=(0, 1, 2, fd + 1))
        assert rules(python, fd, fd, 0, 1, 2) == []
        used = dataclasses.replace(python, descriptors=(0, 1, 2, fd, fd + 3))
        assert f"numbers from {fd + 4} on are free" in rules(used, fd)[0]
        assert "other programs read only a line" in rules(record, fd)[0]
        for wrong in (-1, "1", True, 2**40, fd + 0.0):
            assert rules(python, wrong) == ["numbers of open descriptors are accepted"]
    finally:
        os.close(fd)
    assert rules(python, fd) == ["numbers of open descriptors are accepted"]


def test_threads_and_pids_without_a_process(tmp_path: Path) -> None:
    """They are refused by their kind, and the directory is not created."""
    code = "import sys, threading; threading.Thread(target=sys.stdin.read).start(); print()"
    with subprocess.Popen(
        [sys.executable, "-uc", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (thread,) = set(os.listdir(f"/proc/{process.pid}/task")) - {str(process.pid)}
        with pytest.raises(NoSuchProcessError, match=f"a thread of process {process.pid}"):
            Snapshot.take(int(thread), tmp_path / "new", without_guest=True)
        process.communicate()
    with pytest.raises(NoSuchProcessError, match="there is no process"):
        Snapshot.take(2**22, tmp_path / "new", without_guest=True)
    assert not any(tmp_path.iterdir())


def test_pids_of_another_namespace() -> None:
    """The pids in the images are not those of this namespace if a restore joins another one."""
    fd = os.open("/proc/self/ns/pid", os.O_RDONLY)
    try:
        given = Request(
            verb=Verb.RESTORE, opts=CriuOpts(inherit_fds=[(fd, "key"), (0, "x")]), via=Worker()
        )
        assert given.with_pids_here("images") == ""
    finally:
        os.close(fd)
    plain = Request(verb=Verb.RESTORE, opts=CriuOpts(inherit_fds=[(0, "x")]), via=Worker())
    assert plain.with_pids_here("images") == "images"


def test_nothing_is_offered_twice() -> None:
    """An option that ``take`` sets itself is refused by name."""
    from pycriu_native.snapshots import Snapshot

    with pytest.raises(OptionError, match="take sets this option itself"):
        Snapshot.take(["true"], "/tmp/none", opts=CriuOpts(images_directory="elsewhere"))


def test_the_host_is_known() -> None:
    """Each field has a value, except for the machine's id, which containers lack."""
    host = host_check.this_host()
    assert isinstance(host, Host)
    assert host.architecture
    assert host.kernel


def test_a_worker_that_is_bound() -> None:
    """The worker and its children are killed when the other ends are closed."""
    for _ in range(50):  # the second process is forked meanwhile
        reader, writer = os.pipe()
        sockets = LifetimeSockets()
        pid, pidfd = spawn(
            ["/bin/sh", "-c", "sleep 1000 & echo; sleep 1000"],
            env={},
            stdin=-1,
            output=writer,
            keep=sockets.ends,
        )
        os.close(writer)
        try:
            assert os.read(reader, 1) == b"\n"
            sockets.bind(pid)
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
            sockets.close()
            assert os.waitpid(pid, 0) == (pid, signal.SIGKILL)
            assert os.read(reader, 1) == b""  # no process holds the other end
        finally:
            os.close(reader)
            os.close(pidfd)


# ---- memory that can be taken ----


@pytest.mark.parametrize("kind", ["cgroup2", "cgroup"])
def test_memory_room(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The minimum of the machine and each cgroup of the path; page cache counts as free."""
    controller = "" if kind == "cgroup2" else "memory"
    limit, usage, cache = next(names for each, _, *names in memory_room.FORMS if each == kind)
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.setattr(
        memory_room, "hierarchy", lambda given, _: str(tmp_path) if given == kind else None
    )
    monkeypatch.setattr(memory_room, "cgroups_of", lambda _: {controller: "/outer/inner"})
    whole = memory_room.memory_room()
    assert whole > 2**20
    for directory, most in ((inner, "max"), (inner.parent, str(2**20))):
        (directory / limit).write_text(most + "\n")
        (directory / usage).write_text(f"{2**19}\n")
        (directory / "memory.stat").write_text(f"anon 1\n{cache} 4096\n")
    assert memory_room.memory_room() == 2**19 + 4096
    (inner.parent / usage).write_text(f"{2**21}\n")
    assert memory_room.memory_room() == 0


@pytest.mark.parametrize("patience", ["x", float("nan"), float("inf"), -1, 0, True])
def test_a_patience_that_is_refused(tmp_path: Path, patience: Any) -> None:
    """No fork server is started, which nothing would end."""
    with pytest.raises(OptionError, match=r"patience=.* above 0"):
        SharedTemplate(tmp_path, patience=patience)
    with pytest.raises(OptionError, match="worker=5"):
        SharedTemplate(tmp_path, worker=5)  # type: ignore[arg-type]


def test_a_snapshot_that_is_closed_during_a_start() -> None:
    """A start that finds its snapshot closed starts no fork server, since nothing would end it."""
    forking = sharing._Forking(Worker())
    forking.close()
    with pytest.raises(sharing.UnavailableError, match="was closed"):
        forking.use(required=False, until=None)
    assert forking._forked is None
