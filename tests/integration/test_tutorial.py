"""``docs/tutorial.md``: every example runs unchanged, and prints the output that the page shows.

An example is a program whose first line has its file name. Examples without output are modules of
the others.
"""

from __future__ import annotations

import doctest
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .support.features import needs_soft_dirty
from .support.migrations import far_pid
from .support.processes import eventually, kill

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
EXAMPLES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", TUTORIAL.read_text(), flags=re.S))
PRINTS = dict(
    re.findall(
        r"```python\n# (\w+\.py)\n[^`]*?```\n\n```text\n(.*?)```", TUTORIAL.read_text(), flags=re.S
    )
)
HOSTS = ["there.py", "here.py"]
MODULES = ["counter.py", "locker.py"]
PORT = "127.0.0.1:7000"


@pytest.fixture
def examples(tmp_path: Path) -> Iterator[Path]:
    """A directory with all examples; remaining processes are ended."""
    for name, code in EXAMPLES.items():
        (tmp_path / name).write_text(code)
    yield tmp_path
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            inside = os.readlink(entry / "cwd") == str(tmp_path)
        except OSError:
            continue
        if inside:
            kill(int(entry.name))


def run(examples: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Run an example as a reader does."""
    return subprocess.run(
        [sys.executable, name],
        cwd=examples,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def as_told(want: str, got: str) -> bool:
    """Whether the output is that of the tutorial; three dots stand for any text."""
    return doctest.OutputChecker().check_output(want, got, doctest.ELLIPSIS)


def test_no_example_is_left_out() -> None:
    """Each Python block has a name and an output, unless another test covers it."""
    assert len(EXAMPLES) == TUTORIAL.read_text().count("```python")
    assert sorted(EXAMPLES) == sorted([*PRINTS, *HOSTS, *MODULES])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=needs_soft_dirty if name == "rounds.py" else ()) for name in PRINTS],
)
def test_an_example(examples: Path, name: str) -> None:
    """An example succeeds, prints the text below it, and leaves no process."""
    message = run(examples, name)
    assert message.returncode == 0, message.stderr
    assert as_told(PRINTS[name], message.stdout), f"{message.stdout}\nis not\n{PRINTS[name]}"


def listens(pid: int, port: int) -> bool:
    """Whether a process listens on a port, in the network namespace of a process."""
    rows = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return any(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows)


def test_to_another_host(examples: Path) -> None:
    """The two programs move the counter from one pid namespace to another."""
    if listens(os.getpid(), 7000):
        pytest.skip("port 7000, which the tutorial takes, is in use on this machine")
    assert all(PORT in EXAMPLES[name] for name in HOSTS)
    unshare = re.search(r"^# (unshare .*) \S+python there.py$", TUTORIAL.read_text(), flags=re.M)
    assert unshare is not None
    with subprocess.Popen(
        [*unshare[1].split(), sys.executable, "there.py"],
        cwd=examples,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as there:
        try:
            eventually(
                lambda: there.poll() is not None or listens(os.getpid(), 7000), "a listening port"
            )
            far_pid()
            here = run(examples, "here.py")
            assert here.returncode == 0, here.stderr
            out, err = there.communicate(timeout=60)
        finally:
            if there.poll() is None:
                there.send_signal(signal.SIGKILL)
    assert there.returncode == 0, err
    assert here.stdout == "gone from here: True\nit runs there as the same pid\n"
    assert re.fullmatch(r"it counts on here, as pid \d+\n", out), out
