"""Small file systems that a test can make read-only or fill."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


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
        subprocess.run(["umount", where], check=True)


def make_read_only(where: Path) -> None:
    """Make a mounted file system read-only."""
    subprocess.run(["mount", "-o", "remount,ro", where], check=True)


def make_writable(where: Path) -> None:
    """Make it writable again."""
    subprocess.run(["mount", "-o", "remount,rw", where], check=True)
