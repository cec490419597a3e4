"""The progress bar on a terminal, and the lines elsewhere."""

from __future__ import annotations

import io
import re
import sys

import pytest

from pycriu_native._calls.progress_state import Progress
from pycriu_native.cli import progress
from pycriu_native.cli.output import Output

MIB = 2**20


def state(done: int, total: int | None = 100 * MIB, rate: float = 0.0) -> Progress:
    """A measurement during a dump."""
    remaining = None if total is None or not rate else (total - done) / rate
    return Progress(phase="dump", done=done, total=total, rate=rate, left=remaining)


class Stream(io.StringIO):
    """A standard error that is a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def output(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, **how: bool) -> Output:
    """The output of a command, on a terminal or into a pipe."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stderr", Stream(terminal))
    return Output("dump", **how)


def written() -> str:
    """The text that was written to standard error."""
    assert isinstance(sys.stderr, Stream)
    return sys.stderr.getvalue()


def test_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar has phase, bytes, rate and remaining time, and is removed at the end."""
    out = output(monkeypatch, terminal=True)
    with progress.shown(out) as message:
        assert message is not None
        message(state(0))
        message(state(25 * MIB, rate=25 * MIB))
        message(state(50 * MIB, rate=25 * MIB))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written())
    assert "dump" in text
    assert "50.0 MiB of 100.0 MiB" in text
    assert "25.0 MiB/s" in text
    assert "2 s left" in text
    assert written().endswith("\x1b[2K")  # the line is cleared


def test_a_short_call_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that ends before the second measurement shows nothing."""
    out = output(monkeypatch, terminal=True)
    with progress.shown(out) as message:
        assert message is not None
        message(state(0))
    assert written() == ""


@pytest.mark.parametrize("how", [{"quiet": True}, {"as_json": True}])
def test_no_bar_with_quiet_or_json(how: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """No bar with --quiet and --json; then the process is not measured."""
    with progress.shown(output(monkeypatch, terminal=True, **how)) as message:
        assert message is None


def test_no_bar_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal nothing is shown; with --verbose a line for each measurement."""
    with progress.shown(output(monkeypatch, terminal=False)) as message:
        assert message is None
    out = output(monkeypatch, terminal=False, verbose=True)
    with progress.shown(out) as message:
        assert message is not None
        message(state(25 * MIB, rate=25 * MIB))
        message(state(7 * MIB, total=None))
    assert written().splitlines() == [
        "dump: 25.0 MiB of 100.0 MiB, 25.0 MiB/s, 3 s left",
        "dump: 7.0 MiB",
    ]


def test_more_than_was_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is correct for a process whose memory grows."""
    assert progress.amount(state(120 * MIB)) == "120.0 MiB of 120.0 MiB"
