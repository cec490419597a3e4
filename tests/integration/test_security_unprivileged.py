"""``unprivileged``: a user who is not root saves and restores a process with one capability.

The capability is CAP_CHECKPOINT_RESTORE: no root, no CAP_SYS_ADMIN, no CAP_SYS_PTRACE. It is tested
for a process of that user without separate namespaces and sockets. Requirements: a ``criu`` that
the user can read and run, images that belong to the user, and either the full bounding set or
``no_new_privs`` on the process. CRIU reduces the bounding set on restore to that of the process,
which without CAP_SETPCAP is possible only for a process with ``no_new_privs``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .support import releases

USER = 12345
CAP_CHECKPOINT_RESTORE = 40
ROOT = Path(__file__).parents[2]

SCRIPT = """
import ctypes, os, subprocess, time
from pycriu_native import CriuOpts, CriuError, check, dump, restore

libc = ctypes.CDLL(None)
COUNTS = 'exec 3<>pipe; n=0; while read line <&3; do n=$((n+1)); echo $n > count; done'

def count(pipe):
    \"\"\"Have the process count one more; what its memory makes of that.\"\"\"
    before = os.stat("count").st_mtime_ns if os.path.exists("count") else 0
    os.write(pipe, b"once more\\n")
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if os.path.exists("count") and os.stat("count").st_mtime_ns > before:
            with open("count") as file:
                text = file.read().strip()
            if text:
                return int(text)
        time.sleep(0.01)
    raise TimeoutError

def main(place, *words):
    os.chdir(place)
    os.mkfifo("pipe")
    pipe = os.open("pipe", os.O_RDWR)
    nothing = subprocess.DEVNULL
    job = subprocess.Popen(
        ["/bin/sh", "-c", COUNTS],
        stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True,
        preexec_fn=lambda: "may gain" in words or libc.prctl(38, 1, 0, 0, 0),  # PR_SET_NO_NEW_PRIVS
    )
    try:
        assert (count(pipe), count(pipe)) == (1, 2)
        capabilities = [line for line in open("/proc/self/status") if line.startswith("CapEff")]
        print("user", os.getresuid(), capabilities[0].split()[1])
        try:
            if "asked" in words:
                check(CriuOpts(unprivileged=True))
            opts = CriuOpts(images_directory="images", unprivileged="asked" in words or None)
            dump(job.pid, opts)
        except CriuError as error:
            print(type(error).__name__, error)
            assert count(pipe) == 3
            return
        job.wait()
        try:
            pid = restore(opts).pid
        except CriuError as error:
            print(type(error).__name__, error)
            return
        try:
            print("restored", pid == job.pid, count(pipe), os.stat(f"/proc/{pid}").st_uid)
            print("owner", {os.stat(f"images/{name}").st_uid for name in os.listdir("images")})
        finally:
            os.kill(pid, 9)
    finally:
        if job.poll() is None:
            job.kill()
            job.wait()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of that user, since those of pytest are not accessible."""
    releases.required("3.18", "unprivileged")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        home = Path(directory, "home")
        home.mkdir(0o700)
        os.chown(home, USER, USER)
        yield home


def _as_user(place: Path, capability: int, *words: str) -> str:
    script = place.parent / "script.py"
    script.write_text(SCRIPT)
    program = Path(__file__).parents[0] / "programs" / "user.py"
    done = subprocess.run(
        [sys.executable, program, str(USER), str(capability), script, place, *words],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_with_the_one_capability(place: Path) -> None:
    """The user dumps and restores the process: it has its memory and its user."""
    message = _as_user(place, CAP_CHECKPOINT_RESTORE, "asked").splitlines()
    assert message[0] == f"user {(USER, USER, USER)} {1 << CAP_CHECKPOINT_RESTORE:016x}"
    assert message[1] == f"restored True 3 {USER}"
    assert message[2] == f"owner {{{USER}}}"


@pytest.mark.cures("nonroot-needs-unprivileged")
@pytest.mark.parametrize(
    ("capability", "words"),
    [(-1, ("asked",)), (CAP_CHECKPOINT_RESTORE, ())],
    ids=["without the capability", "without the option"],
)
def test_what_it_takes(place: Path, capability: int, words: tuple[str, ...]) -> None:
    """Without the capability or the option, the dump is refused, and the process continues."""
    message = _as_user(place, capability, *words)
    assert "PermissionDeniedError" in message
    assert "unprivileged" in message


def test_a_bounding_set_that_is_not_full(place: Path) -> None:
    """With a reduced bounding set, as in most containers, the error has a cure."""
    message = _as_user(place, CAP_CHECKPOINT_RESTORE, "asked", "may gain").splitlines()[1]
    limit = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    status = Path("/proc/self/status").read_text()
    bounding = int(status.partition("CapBnd:\t")[2].split()[0], 16)
    if bounding == 2 ** (limit + 1) - 1:
        assert message == f"restored True 3 {USER}"  # the set is empty already
    else:
        assert message.startswith("PermissionDeniedError restore")
        assert "no_new_privs" in message
