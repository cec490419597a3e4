"""The standard streams of copies: shared files, closed descriptors of the caller."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, run
from typing import Any

import pytest

from pycriu_native import OptionError
from pycriu_native.snapshots import Snapshot

from .support.processes import PATIENCE

REPO = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPO)}

PARROT = """
import sys
from pycriu_native import guest
guest.wait()
if sys.argv[1:] == ["again"]:
    guest.wait()
print("errors", file=sys.stderr, flush=True)
print(sys.stdin.read(), end="", flush=True)
"""


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A snapshot of a program that writes its input to its output, and a line to its errors."""
    directory = tmp_path_factory.mktemp("snapshots") / "parrot"
    return Snapshot.take([sys.executable, "-c", PARROT], directory, env=ENVIRONMENT)


@pytest.fixture
def parrot(taken: Snapshot) -> Iterator[Snapshot]:
    """The snapshot, which tests only start."""
    with taken:
        yield taken


def saved_copy(parrot: Snapshot, directory: Path, *streams: Any) -> Snapshot:
    """A snapshot of a copy that has these streams."""
    stdin, stdout, stderr = streams
    copy = parrot.start(["again"], stdin=stdin, stdout=stdout, stderr=stderr, savable=True)
    with copy:
        return Snapshot.take(copy, directory)


NULLS = (DEVNULL, DEVNULL, DEVNULL)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((DEVNULL, PIPE, DEVNULL), (PIPE, PIPE, PIPE), (b"text", b"errors\n")),
        (NULLS, (PIPE, PIPE, PIPE), (b"text", b"errors\n")),
        (NULLS, (PIPE, PIPE, STDOUT), (b"errors\ntext", None)),
        (NULLS, (DEVNULL, PIPE, DEVNULL), (b"", None)),
        ((PIPE, DEVNULL, DEVNULL), (PIPE, DEVNULL, PIPE), (None, b"errors\n")),
        ((PIPE, PIPE, STDOUT), (PIPE, PIPE, STDOUT), (b"errors\ntext", None)),
        ((DEVNULL, DEVNULL, STDOUT), (PIPE, PIPE, STDOUT), (b"errors\ntext", None)),
        (NULLS, NULLS, (None, None)),
    ],
)
def test_a_saved_copy_with_equal_streams(
    parrot: Snapshot, tmp_path: Path, before: Any, after: Any, expected: Any
) -> None:
    """Streams of a saved copy that had one file open are replaced one by one."""
    with saved_copy(parrot, tmp_path / "snapshot", *before) as snapshot:
        stdin, stdout, stderr = after
        with snapshot.start(stdin=stdin, stdout=stdout, stderr=stderr) as process:
            data = b"text" if stdin == PIPE else None
            try:
                assert process.communicate(data, timeout=PATIENCE) == expected
            finally:
                process.kill()
        assert process.returncode == 0


def test_streams_that_are_one(parrot: Snapshot, tmp_path: Path) -> None:
    """Streams with one open file are replaced together, or refused."""
    path = tmp_path / "outputs"
    with (
        saved_copy(parrot, path, DEVNULL, DEVNULL, STDOUT) as snapshot,
        pytest.raises(OptionError, match=r"stderr=-1: .* were one stream"),
    ):
        snapshot.start(stdin=PIPE, stdout=PIPE, stderr=PIPE)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        path = tmp_path / "socket"
        with saved_copy(parrot, path, theirs, theirs, DEVNULL) as snapshot:
            for name, streams in (("stdout", (PIPE, PIPE)), ("stdout", (None, None))):
                stdin, stdout = streams
                with pytest.raises(OptionError, match=f"{name}=.* were one stream"):
                    snapshot.start(stdin=stdin, stdout=stdout, stderr=DEVNULL)
            with snapshot.start(stdin=theirs, stdout=theirs, stderr=DEVNULL) as process:
                ours.sendall(b"text")
                ours.shutdown(socket.SHUT_WR)
                process.wait(PATIENCE)
                assert ours.recv(100) == b"text"


LINKS = """
import json, os, sys
from pycriu_native import guest
guest.wait()
links = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
with open(sys.argv[1] + ".partial", "w") as file:
    json.dump(links, file)
os.rename(sys.argv[1] + ".partial", sys.argv[1])
"""

CLOSING = """
import json, os, sys
from subprocess import PIPE, DEVNULL
from pycriu_native.snapshots import Snapshot
directory, result, *closed = sys.argv[1:]
own = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
for number in map(int, closed):
    os.close(number)
seen = []
def wait_for(process):
    process.wait()
    with open(result + ".copy") as file:
        seen.append(json.load(file))
    os.unlink(result + ".copy")
with Snapshot(directory) as snapshot:
    for share in (False, None, None):
        wait_for(snapshot.start([result + ".copy"], share_memory=share))
    with snapshot.zygote() as zygote:
        wait_for(zygote.start([result + ".copy"]))
    process = snapshot.start([result + ".copy"], stdin=PIPE, stdout=PIPE)
    ours = (process.stdin, process.stdout)
    pipes = [os.readlink(f"/proc/self/fd/{each.fileno()}") for each in ours]
    wait_for(process)
with Snapshot.take([sys.executable, "-c", sys.stdin_program], directory + ".again") as snapshot:
    wait_for(snapshot.start([result + ".copy"]))
with open(result, "w") as file:
    json.dump([own, seen, pipes], file)
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_a_caller_with_closed_streams(tmp_path: Path, closed: tuple[int, ...]) -> None:
    """A copy gets /dev/null in place of a standard descriptor that the caller has closed, and no
    file of the library.
    """
    program = CLOSING.replace("sys.stdin_program", repr(LINKS))
    directory = tmp_path / "snapshot"
    Snapshot.take([sys.executable, "-c", LINKS], directory, env=ENVIRONMENT).close()
    result = tmp_path / "result"
    command = [sys.executable, "-c", program, str(directory), str(result), *map(str, closed)]
    reader, writer = os.pipe()
    try:
        with open(tmp_path / "errors", "wb") as errors:
            streams: dict[str, Any] = {"stdin": reader, "stdout": writer, "stderr": errors}
            run(command, env=ENVIRONMENT, timeout=PATIENCE, **streams)
    finally:
        os.close(reader)
        os.close(writer)
    assert result.exists(), (tmp_path / "errors").read_text()
    own, seen, pipes = json.loads(result.read_text())
    expected = [os.devnull if number in closed else own[number] for number in range(3)]
    *without, with_pipes, again = seen
    assert without == [expected] * 4
    assert again == expected
    assert with_pipes == [*pipes, expected[2]]
