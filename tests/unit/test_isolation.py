"""The tests run in separate namespaces, from the same initial state."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import isolation

ROOT = Path(__file__).parents[2]

LOOK = """
import json, os, signal, socket, subprocess, sys, time
from tests import isolation

isolation.enter()
isolation.reset()
status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
# A process that loses its parent goes to process 1, which must not keep it as a zombie.
shell = ["sh", "-c", "sleep 0.01 >&2 & echo $!"]
orphan = int(subprocess.run(shell, capture_output=True, check=True).stdout)
until = time.monotonic() + 60
while os.path.exists(f"/proc/{orphan}") and time.monotonic() < until:
    time.sleep(0.01)
print(json.dumps({
    "pid": os.getpid(),
    "links": [name for _, name in socket.if_nameindex()],
    # libc keeps signals 32 and 33 for itself: no program can change what it has inherited of them.
    "ignored": [
        int(line.split()[1], 16) & ~(0b11 << 31)
        for line in status.splitlines()
        if line.startswith("SigIgn")
    ],
    "blocked": [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")],
    "umask": [line.split()[1] for line in status.splitlines() if line.startswith("Umask")],
    "orphan": os.path.exists(f"/proc/{orphan}"),
}), flush=True)
os.kill(os.getpid(), signal.SIGHUP)
sys.exit(int(sys.argv[1]))
"""


def _hostile() -> None:
    """In the caller: ignore and block signals."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2])


def _look(*arguments: str, prefix: tuple[str, ...] = ()) -> dict[str, object]:
    ran = subprocess.run(
        [*prefix, sys.executable, "-c", LOOK, "7", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        check=False,
        preexec_fn=_hostile,
        umask=0o077,
    )
    assert ran.returncode == 7, ran.stderr.decode()
    result: dict[str, object] = json.loads(ran.stdout)
    return result


CLEAN = {"blocked": ["0" * 16], "umask": ["0022"], "orphan": False}


@pytest.mark.skipif(not isolation.possible(), reason="no namespaces can be made here")
def test_separate_namespaces() -> None:
    """Own pids and links, no ignored or blocked signal; the exit status is passed on."""
    result = _look()
    assert result == {"pid": 2, "links": ["lo"], "ignored": [0]} | CLEAN


@pytest.mark.skipif(not isolation.possible(), reason="no namespaces can be made here")
def test_as_process_1() -> None:
    """Orphans are reaped, also if only a pid namespace could be created."""
    result = _look(isolation.IN_PLACE, prefix=("unshare", "--pid", "--fork", "--mount-proc"))
    assert result["pid"] == 2
    assert result.items() >= CLEAN.items()
