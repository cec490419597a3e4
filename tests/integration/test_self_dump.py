"""A process that checkpoints itself: the call returns in the original and in the restored copy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, OptionError, dump, restore

from .support.processes import children_of, eventually, is_alive, kill, reap_all

SNAPSHOT_AUTHOR = """
import json, os, sys, time
from pathlib import Path
from pycriu_native import CriuOpts, dump

here, leave_running, own_pid = Path(sys.argv[1]), sys.argv[2] == "1", sys.argv[3] == "1"
prepared = "".join(str(n) for n in range(1000))  # what takes long and is not done again
opts = CriuOpts(images_directory=here / "images", leave_running=leave_running or None)
result = dump(os.getpid(), opts, include_caller=True) if own_pid else dump(None, opts)
life = "copy" if result.restored else "original"
partial = here / (life + ".partial")
partial.write_text(json.dumps([os.getpid(), len(prepared), result.pid, result.pid_free]))
partial.rename(here / life)
while not result.restored or not (here / "end").exists():
    time.sleep(0.01)
"""


def test_a_hook_is_refused(images: Path) -> None:
    """The frozen caller cannot run a hook: it is refused, and nothing is touched."""
    with pytest.raises(OptionError, match="on_notify"):
        dump(None, CriuOpts(images_directory=images), on_notify=print)
    assert not images.exists()


@pytest.mark.parametrize("own_pid", [False, True], ids=["None", "os.getpid()"])
@pytest.mark.parametrize("leave_running", [False, True])
def test_self_dump(tmp_path: Path, leave_running: bool, own_pid: bool) -> None:
    """The result is different in the restored copy; the original continues only with
    leave_running.
    """
    with open(tmp_path / "stderr", "wb") as errors:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                SNAPSHOT_AUTHOR,
                str(tmp_path),
                *map(str, map(int, (leave_running, own_pid))),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    try:
        if leave_running:
            original = tmp_path / "original"
            eventually(
                lambda: original.exists() or process.poll() is not None, "the original's return"
            )
            assert original.exists(), (tmp_path / "stderr").read_text()
            assert json.loads(original.read_text()) == [process.pid, 2890, process.pid, False]
            process.kill()
        process.wait()
        assert (tmp_path / "images" / "inventory.img").exists(), (tmp_path / "stderr").read_text()
        assert (tmp_path / "original").exists() == leave_running
        assert not (tmp_path / "copy").exists()

        assert restore(CriuOpts(images_directory=tmp_path / "images")).pid == process.pid
        eventually((tmp_path / "copy").exists, "the copy's return")
        assert json.loads((tmp_path / "copy").read_text()) == [
            process.pid,
            2890,
            process.pid,
            False,
        ]
        (tmp_path / "end").touch()
        eventually(lambda: not is_alive(process.pid), "the copy's end")
    finally:
        kill(process.pid)


def test_a_tree_with_the_caller(orphans: None, tmp_path: Path) -> None:
    """With include_caller a process can dump its parent, and itself with it."""
    inner = (
        "import os, sys, time; from pathlib import Path; from pycriu_native import CriuOpts, dump\n"
        "here = Path(sys.argv[1])\n"
        "opts = CriuOpts(images_directory=here / 'images')\n"
        "dump(os.getppid(), opts, include_caller=True)\n"
        "(here / 'copy').touch()\n"
        "while True: time.sleep(0.01)\n"
    )
    outer = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]).wait()"
    with open(tmp_path / "stderr", "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", outer, inner, str(tmp_path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    children: list[int] = []
    try:
        process.wait()
        reap_all()  # the caller, and CRIU
        assert not (tmp_path / "copy").exists(), (tmp_path / "stderr").read_text()
        restore(CriuOpts(images_directory=tmp_path / "images"))
        eventually((tmp_path / "copy").exists, "the copy's return")
        children = children_of(process.pid)
        assert len(children) == 1
    finally:
        for pid in (*children, process.pid):
            if os.path.exists(f"/proc/{pid}"):
                kill(pid)
