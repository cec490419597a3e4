"""``docs/not_restored.md``: what a process has after a restore, property by property."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuOpts, dump, preflight, restore_child
from pycriu_native.diagnostics.preflight.attributes import ATTRIBUTES

from .support.processes import eventually
from .support.system_calls import NUMBERS

PROGRAM = Path(__file__).parents[0] / "programs" / "properties.py"

LOST = {
    "coredump_filter", "affinity", "io_priority", "keys", "landlock", "mce_kill", "mdwe",
    "mempolicy", "merge_memory", "personality", "sealed", "timer_slack",
}  # fmt: skip
KEPT = {
    "capabilities", "child_subreaper", "dumpable", "madvise", "mlock", "nice", "no_new_privs",
    "oom_score_adj", "pdeathsig", "scheduler", "securebits", "thp_disable", "umask",
}  # fmt: skip


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in which each property is set, as far as this kernel has it."""
    null = subprocess.DEVNULL
    (tmp_path / "out").touch()
    (tmp_path / "denied").touch()
    started = subprocess.Popen(
        [sys.executable, PROGRAM, tmp_path, json.dumps(NUMBERS)],
        stdin=null, stdout=null, stderr=null, start_new_session=True,
    )  # fmt: skip
    yield started
    started.kill()
    started.wait()


def _look(directory: Path, count: int) -> dict[str, Any]:
    (directory / f"ask{count}").touch()

    def answer() -> str | None:
        lines = (directory / "out").read_text().splitlines(keepends=True)
        return lines[count] if len(lines) > count and lines[count].endswith("\n") else None

    result: dict[str, Any] = json.loads(eventually(answer, "an answer"))
    return result


def test_the_list_is_true(process: subprocess.Popen[bytes], images: Path, tmp_path: Path) -> None:
    """What is lost is lost, what is kept is kept, and preflight names what it can see."""
    before = _look(tmp_path, 0)
    findings = {finding.id for finding in preflight(process.pid).findings}
    dump(process.pid, CriuOpts(images_directory=images))
    process.wait()
    pid = restore_child(CriuOpts(images_directory=images)).pid
    try:
        after = _look(tmp_path, 1)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    changed = {name for name in before if before[name] != after[name]}
    could_not = set(before["not_set"])  # this kernel or these rights do without
    assert changed - could_not == LOST - could_not
    assert set(before) - {"not_set"} == LOST | KEPT
    seen = {"affinity": "cpu-affinity", "io_priority": "io-priority", "timer_slack": "timer-slack"}
    named = {seen.get(name, name.replace("_", "-")) for name in LOST - could_not}
    assert findings >= named & set(ATTRIBUTES)
