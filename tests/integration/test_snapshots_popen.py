"""The same use of a program started by subprocess.Popen, of a copy, and of a zygote's copy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE, TimeoutExpired
from typing import Any

import pytest

from pycriu_native import OptionError
from pycriu_native.snapshots import Snapshot, Zygote

REPO = Path(__file__).parents[2]
PROGRAM = "import sys; from pycriu_native import guest; guest.wait(); exec(sys.argv[1])"
COMMAND = [sys.executable, "-c", PROGRAM]
ECHO = "sys.stdout.write(sys.stdin.read())"
LINES = r"sys.stdout.buffer.write('ä\r\nö\r'.encode() + b'\n' * 9 + b'end\r')"

Start = Callable[..., Any]
Use = Callable[[Start], object]


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A snapshot of the program."""
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    return Snapshot.take(COMMAND, tmp_path_factory.mktemp("popen") / "program", env=environment)


@pytest.fixture
def snapshot(taken: Snapshot) -> Iterator[Snapshot]:
    """The snapshot."""
    with taken:
        yield taken


@pytest.fixture
def zygote(snapshot: Snapshot) -> Iterator[Zygote]:
    """A zygote of the snapshot."""
    with snapshot.zygote() as zygote:
        yield zygote


def popen(args: list[str], **options: Any) -> subprocess.Popen[Any]:
    """Start the program without a snapshot."""
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.Popen([*COMMAND, *args], env=environment, **options)


def _communicated(code: str, data: Any = None, **options: Any) -> Use:
    def use(start: Start) -> object:
        with start([code], **options) as process:
            return process.communicate(data), process.returncode, process.encoding, process.errors

    return use


def _after_a_line(**options: Any) -> Use:
    def use(start: Start) -> object:
        with start([LINES], stdout=PIPE, **options) as process:
            return process.stdout.readline(), process.communicate()

    return use


def _after_the_end(data: Any, **options: Any) -> Use:
    def use(start: Start) -> None:
        with start([""], stdin=PIPE, **options) as process:
            process.wait()
            process.stdin.write(data)

    return use


def _written_in_parts(start: Start) -> object:
    with start([ECHO], stdin=PIPE, stdout=PIPE, text=True) as process:
        process.stdin.write("a")
        return process.communicate("b")


def _too_late(start: Start) -> object:
    with start(["import time; time.sleep(9)"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        with pytest.raises(TimeoutExpired) as late:
            process.communicate(b"x" * 300_000, timeout=0.1)
        with pytest.raises(ValueError, match="Cannot send input after starting communication"):
            process.communicate(b"more")
        process.kill()
        shown = late.value
        return (
            (shown.timeout, shown.stdout, shown.stderr),
            process.communicate(),
            process.returncode,
        )


def _closed_before(start: Start) -> object:
    with start(["sys.stdin.read()"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        process.stdout.close()
        return process.communicate(), process.communicate()


USES: dict[str, Use] = {
    "bytes": _communicated(ECHO, b"a\r\n\xff", stdin=PIPE, stdout=PIPE, stderr=PIPE),
    "a part of a larger object": _communicated(
        ECHO, memoryview(b"abc")[1:], stdin=PIPE, stdout=PIPE
    ),
    "text": _communicated(ECHO, "a\r\nä\r", stdin=PIPE, stdout=PIPE, text=True),
    "errors": _communicated(LINES, stdout=PIPE, encoding="ascii", errors="replace"),
    "only errors": _communicated(LINES, stdout=PIPE, errors="surrogateescape"),
    "text that cannot be decoded": _communicated(LINES, stdout=PIPE, stderr=PIPE, encoding="ascii"),
    "text that cannot be encoded": _communicated(
        ECHO, "ä", stdin=PIPE, stdout=PIPE, encoding="ascii"
    ),
    "bytes in text mode": _communicated(ECHO, b"a", stdin=PIPE, stdout=PIPE, text=True),
    "input without a pipe": _communicated("print(1)", "a", stdin=DEVNULL, stdout=PIPE, stderr=PIPE),
    "input of a program that does not read": _communicated(
        "", b"x" * 300_000, stdin=PIPE, stdout=PIPE
    ),
    "a line before": _after_a_line(),
    "a line before, as text": _after_a_line(text=True),
    "a line before, without buffers": _after_a_line(bufsize=0),
    "a line before, as text without buffers": _after_a_line(text=True, bufsize=0),
    "a line before, decoded in parts": _after_a_line(encoding="utf-8", bufsize=2),
    "input in parts": _written_in_parts,
    "a timeout": _too_late,
    "a stream that is closed": _closed_before,
    "bytes that nobody reads": _after_the_end(b"x"),
    "text that nobody reads": _after_the_end("x", text=True, bufsize=1),
}


def _result(use: Use, start: Start) -> object:
    try:
        return use(start)
    except (AttributeError, OSError, TypeError, ValueError) as error:
        return type(error), str(error)


@pytest.mark.parametrize("use", USES.values(), ids=list(USES))
def test_as_popen(snapshot: Snapshot, zygote: Zygote, use: Use) -> None:
    """Results and exceptions are those of ``subprocess.Popen``."""
    expected = _result(use, popen)
    assert _result(use, snapshot.start) == expected
    assert _result(use, zygote.start) == expected


def test_a_line_before_communicate(snapshot: Snapshot) -> None:
    """What was read ahead is in the result, also with several pipes (``Popen`` would lose it)."""
    with snapshot.start([LINES], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ä\n"
        assert process.communicate("") == ("ö\n" + "\n" * 8 + "end\n", "")


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_stream_that_is_a_bool(snapshot: Snapshot, name: str) -> None:
    """It is refused by its name, although Python takes True for the descriptor 1."""
    start: Start = snapshot.start
    with pytest.raises(OptionError, match=f"start: {name}=True: PIPE, DEVNULL, a descriptor"):
        start([""], **{name: True})
