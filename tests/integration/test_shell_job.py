"""shell_job: the job of a shell is saved on one terminal and continues on another one.

A job shares the session and the terminal of its shell, which are not part of the dumped tree, so
CRIU refuses it. With ``shell_job=True`` in dump and restore, the tree is saved without them and
gets those of the restoring side: the session, and as terminal the standard input of CRIU's worker.
That is the caller's standard input, or ``Worker(stdin=...)``; it must be open for reading and
writing, and be the controlling terminal of the caller's session. With ``restore_child`` the job is
a child of the caller, which can wait for it like a shell.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, Severity, dump
from pycriu_native.images import check_images

from .support.processes import PATIENCE, eventually, is_alive, reap_all
from .support.terminals import Session, session
from .test_cli import PROGRAM

BASH = ("run", "bash", "--norc", "--noprofile", "-i")
PROMPT = r"^ready> $"


def _command(on: Session, line: str, answer: str = "") -> str:
    """Type a command; returns the first group of its output."""
    on.terminal.type(line + "\n")
    result = on.terminal.expect(answer).group(1) if answer else ""
    on.terminal.expect(PROMPT)
    return result


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Session]:
    """An interactive bash as a job of another shell, with a variable and a job."""
    with session(*BASH) as result:
        assert result.next_report()["pid"]
        result.terminal.expect(r"# $")
        _command(result, "PS1='ready> '")
        _command(result, "secret=cherry")
        loop = f"while :; do echo tick >> {tmp_path}/ticks; sleep 0.02; done &"
        _command(result, loop, r"^\[1\] (\d+)$")
        yield result


def _restoring(images: Path, stdin: str = "/proc/self/fd/0", **options: object) -> tuple[str, ...]:
    """A function for the leader of a session that restores."""
    options = {"images_directory": str(images), "shell_job": True, **options}
    return ("restore", json.dumps(options), stdin)


def test_a_shell_continues_at_another_terminal(
    shell: Session, images: Path, tmp_path: Path
) -> None:
    """The shell responds on the new terminal, with its variable, its job and job control."""
    ticks = tmp_path / "ticks"
    assert dump(
        shell.job, CriuOpts(images_directory=images, shell_job=True), reap_timeout=PATIENCE
    ).pid_free
    assert shell.next_report() == {"status": -9}
    before = ticks.read_text()
    findings = check_images(images, CriuOpts(shell_job=True))  # the old terminal is not needed
    assert [each for each in findings if each.severity is Severity.STOPS] == []

    with session(*_restoring(images)) as new:
        assert new.next_report() == {"pid": shell.job}
        assert shell.tty != new.tty
        assert _command(new, "echo $secret $((6 * 7))", r"^(cherry .*)") == "cherry 42"
        assert _command(new, "tty", "^(/dev/.*)") == new.tty
        eventually(lambda: len(ticks.read_text()) > len(before), "progress of the background job")
        assert _command(new, "jobs", r"^\[1\]\+  (Running) ")

        # Ctrl-Z and Ctrl-C: the terminal sends signals to the foreground, the shell keeps order.
        new.terminal.type("echo began; cat\n")
        new.terminal.expect("^began$")
        new.terminal.type("words\n")
        new.terminal.expect("^words\n(.*\n)?words$")
        new.terminal.type("\x1a")
        new.terminal.expect(r"^\[2\]\+  Stopped")
        new.terminal.expect(PROMPT)
        new.terminal.type("fg\n")
        foreground = new.terminal.foreground
        eventually(lambda: foreground() != shell.job, "the terminal's passing to the command")
        new.terminal.type("\x03")
        new.terminal.expect(PROMPT)

        _command(new, "kill %1; wait")
        new.terminal.type("exit 7\n")
        assert new.next_report() == {"status": 7}


def test_a_dump_without_it_is_refused(shell: Session, images: Path, tmp_path: Path) -> None:
    """The message names shell_job, and the shell and its job continue."""
    with pytest.raises(CriuError, match="shell_job=True") as caught:
        dump(shell.job, CriuOpts(images_directory=images))
    assert "shell_job" in caught.value.options
    assert _command(shell, "echo $secret", "^(cherry)$")
    before = (tmp_path / "ticks").read_text()
    eventually(lambda: (tmp_path / "ticks").read_text() > before, "progress of the background job")


@pytest.mark.cures("tty-inherit")
@pytest.mark.parametrize(
    ("changed", "message"),
    [({"shell_job": None}, "shell_job=True"), ({"stdin": "/dev/null"}, "Worker(stdin=terminal)")],
    ids=["without it", "no terminal"],
)
def test_a_restore_needs_it_and_a_terminal(
    orphans: None, shell: Session, images: Path, changed: dict[str, str], message: str
) -> None:
    """A restore without the option, or without a terminal, is refused and leaves the images."""
    opts = CriuOpts(images_directory=images, shell_job=True)
    dump(shell.job, opts, reap_timeout=PATIENCE)
    reap_all()
    with session(*_restoring(images, **changed)) as new:
        reported = new.next_report()
        assert reported.get("error") == "CriuError"
        assert message in reported["message"]
    reap_all()
    assert not is_alive(shell.job)
    with session(*_restoring(images)) as new:
        assert new.next_report() == {"pid": shell.job}
        assert _command(new, "echo $secret", "^(cherry)$")


DRAWS = """
import os, signal, sys
signal.signal(signal.SIGWINCH, lambda *_: os.write(1, b"drawn again\\n"))
os.write(1, b"drawn\\n")
sys.stdin.readline()
sys.exit(7)
"""


def test_the_command_prints_nothing_for_a_shell_job(images: Path) -> None:
    """``restore --shell-job --wait`` prints no summary, and the job redraws its screen."""
    with session("run", sys.executable, "-c", DRAWS) as old:
        old.next_report()
        old.terminal.expect("^drawn$")
        opts = CriuOpts(images_directory=images, shell_job=True)
        assert dump(old.job, opts, reap_timeout=PATIENCE).pid_free
    words = ["restore", "-D", str(images), "--shell-job", "--wait", "--restore-detached"]
    with session("run", *PROGRAM, *words) as new:
        new.next_report()
        new.terminal.expect("^drawn again$")
        assert "restored" not in new.terminal.shown
        new.terminal.type("end\n")
        assert new.next_report() == {"status": 7}
        assert "restored" not in new.terminal.shown
