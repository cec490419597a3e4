"""Small file systems that a test can make read-only or fill, and loop devices."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from .processes import eventually

WITHOUT_SHARED_TMPFS = (
    *("unshare", "--mount", "sh", "-c"),
    'umount --recursive --lazy /dev/shm; umount --recursive --lazy /run; exec "$@"',
    "sh",
)
"""Starts a program in its own mount namespace, without the tmpfs mounts that others write to:
a dump saves their content, and fails if it changes meanwhile."""


@contextlib.contextmanager
def tmpfs(where: Path, size: str = "16m") -> Iterator[Path]:
    """A tmpfs, mounted while the context lasts."""
    where.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", where], check=True
    )
    try:
        yield where
    finally:
        # The kernel may still be freeing the mount namespace of a process that has ended.
        eventually(lambda: unmounted(where), "the end of all users of the tmpfs")


def unmounted(where: Path) -> bool:
    """Unmount a file system, unless that is done already; False while it is in use."""
    done = subprocess.run(["umount", where], capture_output=True, check=False)
    return done.returncode == 0 or not where.is_mount()


def loop_device(image: Path, owned: ExitStack) -> str:
    """A loop device of an image, which ``owned`` detaches."""
    words = ["losetup", "--find", "--show", str(image)]
    device = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    owned.callback(subprocess.run, ["losetup", "--detach", device], check=True)
    return device


def why_no_loop_device(program: str) -> str:
    """Why no loop device with a file system of this ``mkfs`` program can be made; else empty."""
    if shutil.which(program) is None:
        return f"needs {program}"
    free = subprocess.run(["losetup", "--find"], capture_output=True, text=True)
    return "" if free.returncode == 0 else f"needs a loop device: {free.stderr.strip()}"


def make_read_only(where: Path) -> None:
    """Make a mounted file system read-only."""
    subprocess.run(["mount", "-o", "remount,ro", where], check=True)


def make_writable(where: Path) -> None:
    """Make it writable again."""
    subprocess.run(["mount", "-o", "remount,rw", where], check=True)
