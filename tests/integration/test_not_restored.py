"""``docs/not_restored.md``: the state of a process after a restore, by property."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuOpts, dump, preflight, restore, restore_child
from pycriu_native.diagnostics.preflight.attributes import ATTRIBUTES

from .conftest import Spawn
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
    """A process in which each property is set, if this kernel supports it."""
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
    """Lost properties are lost, kept ones are kept, and preflight reports the ones that it can
    detect.
    """
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
    could_not = set(before["not_set"])  # not possible with this kernel or these rights
    assert changed - could_not == LOST - could_not
    assert set(before) - {"not_set"} == LOST | KEPT
    seen = {"affinity": "cpu-affinity", "io_priority": "io-priority", "timer_slack": "timer-slack"}
    named = {seen.get(name, name.replace("_", "-")) for name in LOST - could_not}
    assert findings >= named & set(ATTRIBUTES)


WATCHES = """
    import ctypes, fcntl, os, struct, termios
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result):
        assert result >= 0, os.strerror(ctypes.get_errno())
        return result

    (HERE / "watched").mkdir()
    watch = checked({start})
    checked({mark})
    (HERE / "watched" / "new").write_text("new")

    def queued():
        answer = fcntl.ioctl(watch, termios.FIONREAD, bytes(4))
        return struct.unpack("i", answer)[0]

    def marks():
        text = open(f"/proc/self/fdinfo/{{watch}}").read()
        return sum(line.startswith(("inotify ", "fanotify sdev", "fanotify ino"))
                   for line in text.splitlines())

    serve(queued=queued, marks=marks)
"""
NOTICES = {
    "inotify": (
        "libc.inotify_init1(0)",
        "libc.inotify_add_watch(watch, os.fsencode(HERE / 'watched'), 0x100)",
        {"events"},
        1,
    ),
    "fanotify of a file system": (
        "libc.fanotify_init(0x200, 0)",
        "libc.fanotify_mark(watch, 0x101, ctypes.c_uint64(0x100), -100, os.fsencode(HERE))",
        {"events", "watch-of-a-file-system"},
        0,
    ),
}


@pytest.mark.parametrize("kind", NOTICES)
def test_watches(kind: str, spawn: Spawn, images: Path) -> None:
    """Unread events are lost, and so are marks of whole file systems."""
    start, mark, ids, marks = NOTICES[kind]
    target = spawn(WATCHES.format(start=start, mark=mark))
    assert target.ask("queued") > 0
    assert target.ask("marks") == 1
    assert {finding.id for finding in preflight(target.pid).lost} == ids
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    restore(CriuOpts(images_directory=images))
    assert target.ask("queued") == 0
    assert target.ask("marks") == marks


def test_a_wait_without_a_timeout(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """poll(2) returns EINTR once after a restore, as after any stop of a process."""
    target = spawn("""
        import ctypes, threading
        libc = ctypes.CDLL(None, use_errno=True)
        results = []

        def wait():
            libc.poll(None, 0, -1)
            results.append(ctypes.get_errno())
            threading.Event().wait()

        threading.Thread(target=wait, daemon=True).start()
        serve(results=lambda: results)
    """)
    assert target.ask("results") == []
    dump(target.pid, CriuOpts(images_directory=images))
    target.reap()
    restore(CriuOpts(images_directory=images))
    eventually(lambda: target.ask("results") == [errno.EINTR], "the end of poll")
