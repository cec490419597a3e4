"""The standard streams of copies: shared files, closed descriptors of the caller."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
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
