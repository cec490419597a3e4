"""Processes with names that are not UTF-8, which result when the kernel truncates a name to 15
bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, PidInUseError, dump, preflight, restore
from pycriu_native.images import check_images

from .conftest import Spawn
from .support.failing_calls import CONNECTED

NAMED = """
    import ctypes
    ctypes.CDLL(None).prctl(15, "расчётнагрузки".encode()[:15], 0, 0, 0)
"""
NARROW = (
    {"PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONIOENCODING": "latin-1:strict"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ":strict"},
)


def test_every_verb(spawn: Spawn, images: Path) -> None:
    """Preflight, dump, the check of images, and the error of a restore with a pid in use."""
    target = spawn(NAMED + "    serve()\n")
    assert not preflight(target.pid).findings
    opts = preflight(target.pid, CriuOpts(images_directory=images, leave_running=True)).require()
    dump(target.pid, opts)
    assert any("расчётн\\xd0" in finding.message for finding in check_images(images))
    with pytest.raises(PidInUseError):
        restore(CriuOpts(images_directory=images))


def test_the_cause_of_a_failed_dump(spawn: Spawn, images: Path) -> None:
    """The cause is that of CRIU's log, not an error of decoding the name."""
    target = spawn(NAMED + CONNECTED)
    with pytest.raises(CriuError) as caught:
        dump(target.pid, CriuOpts(images_directory=images))
    assert caught.value.cause == "a TCP connection is open"
    assert target.runs_on()


@pytest.mark.parametrize("encoding", NARROW, ids=["ascii", "latin-1", "c-locale"])
def test_the_command_line(encoding: dict[str, str], spawn: Spawn, tmp_path: Path) -> None:
    """A name that the output's encoding lacks is escaped; the exit code is that of the result."""
    target = spawn(NAMED + "    serve()\n")
    directory = tmp_path / "образы"
    dump_it = ("dump", target.pid, "-D", directory, "--leave-running")
    for words, code, shown in (
        (("preflight", target.pid), 0, b"can be dumped"),
        (dump_it, 0, b"\\xd0"),
        (("check-images", directory), 11, b"\\xd0"),
        (("inspect", directory), 0, b"complete"),
        (("restore", "-D", directory), 5, b""),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "pycriu_native", *map(str, words)],
            env=os.environ | encoding,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert shown in done.stdout
