"""``stream``: images are written to a stream instead of a disk (``archive.streaming``).

CRIU supports this by RPC since 4.3, so a process with that libcriu and that ``criu`` makes the
calls, independent of the CRIU of the other tests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.unit.support.libraries import ROOT, Library, found

from .conftest import Spawn
from .support.processes import PATIENCE, is_alive, kill, reap_all, tree

CALL = """
import os, sys, tempfile, threading
from pycriu_native import CriuOpts, Worker, WorkerDiedError
from pycriu_native.archive.streaming import dump_stream, restore_stream

class Breaks:
    def __init__(self, room):
        self.room = room
    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise ZeroDivisionError("no room")
    def flush(self):
        raise ZeroDivisionError("no room at the end")

verb, program, pid, room = sys.argv[1:5]
via = Worker(program=program)
before = sorted(os.listdir("/proc/self/fd"))
match verb:
    case "dump":
        with os.fdopen(os.dup(1), "wb") as out:
            result = dump_stream(int(pid), CriuOpts(), out, via=via)
        assert result.statistics.pages_written > 0
    case "breaks":
        try:
            dump_stream(int(pid), CriuOpts(), Breaks(int(room)), via=via)
        except ZeroDivisionError as error:
            print(error)
    case "restore":
        print(restore_stream(CriuOpts(), sys.stdin.buffer, via=via).pid)
    case "killed":
        def kill():
            while not os.path.exists(f"/proc/{pid}"):
                pass
            for name in os.listdir("/proc/self/task"):
                with open(f"/proc/self/task/{name}/children") as children:
                    for child in children.read().split():
                        os.kill(int(child), 9)
        threading.Thread(target=kill).start()
        try:
            restore_stream(CriuOpts(), sys.stdin.buffer, via=via)
        except WorkerDiedError:
            print("killed", end="")
assert os.listdir(tempfile.gettempdir()) == []
assert sorted(os.listdir("/proc/self/fd")) == before
"""


@pytest.fixture(scope="module")
def newest() -> Library:
    """A libcriu that supports it, with the ``criu`` of its release."""
    library = found().get("4.3")
    if library is None or not (library.path.parents[1] / "bin" / "criu").exists():
        pytest.skip("there is no CRIU 4.3 here")
    return library


def call(library: Library, verb: str, pid: int, data: bytes = b"", room: int = 0) -> bytes:
    """The output of the process that makes the call."""
    program = str(library.path.parents[1] / "bin" / "criu")
    with tempfile.TemporaryDirectory() as directory:
        run = subprocess.run(
            [sys.executable, "-c", CALL, verb, program, str(pid), str(room)],
            env={**library.environment, "TMPDIR": directory},
            cwd=ROOT,
            input=data,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout


SCENARIO = """
    import hashlib, os, threading
    memory = os.urandom(20 << 20)
    for _ in range(3):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    if os.fork() == 0:
        threading.Event().wait()
    serve(digest=lambda: hashlib.sha256(memory).hexdigest())
"""


def test_a_stream_is_written_and_restored(
    newest: Library, spawn: Spawn, orphans: None, tmp_path: Path
) -> None:
    """A tree with 20 MiB of memory is written to one pipe and restored from another, also after a
    restore whose CRIU was killed: its processes are ended.
    """
    target = spawn(SCENARIO)
    digest = target.ask("digest")
    stream = call(newest, "dump", target.pid)
    reap_all()
    assert len(stream) > 20 << 20
    assert not list(tmp_path.rglob("*.img"))
    assert call(newest, "killed", target.pid, stream) == b"killed"
    assert not is_alive(target.pid)
    reap_all()
    assert int(call(newest, "restore", 0, stream)) == target.pid
    try:
        assert target.ask("digest") == digest
        assert len(tree(target.pid)) == 2
    finally:
        for pid in reversed(tree(target.pid)):
            kill(pid)


@pytest.mark.parametrize("room", [0, 1000, 10 << 20, 1 << 30])
def test_a_stream_that_breaks(newest: Library, spawn: Spawn, room: int) -> None:
    """The exception of a stream, at any position, is raised, and the process continues."""
    target = spawn(SCENARIO)
    digest = target.ask("digest")
    assert b"no room" in call(newest, "breaks", target.pid, room=room)
    assert target.runs_on()
    assert target.ask("digest") == digest


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed")
def test_rules_of_nftables(newest: Library, spawn: Spawn, orphans: None) -> None:
    """A dump with rules of nftables is refused, since a restore from a stream would lose them."""
    target = spawn(prefix=["unshare", "--net"])
    enter = ["nsenter", f"--target={target.pid}", "--net"]
    rules = (
        "add table inet t; add chain inet t c { type filter hook input priority 0; policy drop; }"
    )
    subprocess.run([*enter, "nft", rules], check=True)
    with pytest.raises(AssertionError, match="has rules of nftables"):
        call(newest, "dump", target.pid)
    assert target.runs_on()
    subprocess.run([*enter, "nft", "flush", "ruleset"], check=True)
    stream = call(newest, "dump", target.pid)
    reap_all()
    assert int(call(newest, "restore", 0, stream)) == target.pid
    assert target.runs_on()


def command(library: Library, *words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """``pycriu-native`` with that libcriu and that ``criu``."""
    program = str(library.path.parents[1] / "bin" / "criu")
    return subprocess.run(
        [sys.executable, "-m", "pycriu_native", words[0], "--criu", program, *words[1:]],
        env=library.environment,
        cwd=ROOT,
        input=data,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("where", ["a file", "a pipe"])
def test_on_the_command_line(
    newest: Library, spawn: Spawn, orphans: None, tmp_path: Path, where: str
) -> None:
    """``dump --to`` and ``restore --from`` work with a file and with standard output and input."""
    target = spawn(SCENARIO)
    digest = target.ask("digest")
    stream = tmp_path / "job.stream"
    name = str(stream) if where == "a file" else "-"
    message = command(newest, "dump", str(target.pid), "--to", name)
    assert message.returncode == 0, message.stderr
    reap_all()
    if name == "-":
        back = command(newest, "restore", "--from", "-", data=message.stdout)
    else:
        assert message.stdout.decode().startswith(f"dumped pid {target.pid} (python")
        assert stream.stat().st_mode & 0o777 == 0o600
        again = command(newest, "dump", "1", "--to", name)
        assert again.returncode == 6
        assert b"File exists" in again.stderr
        back = command(newest, "restore", "--from", name, "--json")
        assert json.loads(back.stdout)["result"]["pid"] == target.pid
    assert back.returncode == 0, back.stderr
    try:
        assert target.ask("digest") == digest
    finally:
        for pid in reversed(tree(target.pid)):
            kill(pid)


def test_a_named_pipe_is_no_stream(newest: Library, tmp_path: Path) -> None:
    """The open would wait for its writer."""
    os.mkfifo(tmp_path / "pipe")
    message = command(newest, "restore", "--from", str(tmp_path / "pipe"))
    assert message.returncode == 6
    assert f"{tmp_path}/pipe: it is not a regular file" in message.stderr.decode()


def test_a_command_that_fails_leaves_no_stream(
    newest: Library, spawn: Spawn, tmp_path: Path
) -> None:
    """An incomplete stream is removed; with standard output ``--json`` is refused."""
    target = spawn("import os\nos.pidfd_open(1)\nheld = os.pidfd_open(os.getppid())\nserve()")
    stream = tmp_path / "job.stream"
    message = command(newest, "dump", str(target.pid), "--to", str(stream))
    assert message.returncode == 1, message
    assert not stream.exists()
    assert target.runs_on()
    assert command(newest, "dump", str(target.pid), "--to", "-", "--json").returncode == 2
    both = command(newest, "dump", str(target.pid), "--to", "-", "-D", str(tmp_path))
    assert both.returncode == 2
    assert b"--images-dir" in both.stderr
    assert command(newest, "restore", "--from", "-", data=b"no stream").returncode == 6
