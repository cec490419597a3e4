"""The files that the tree writes, and how ``files="rollback"`` saves each of them."""

from __future__ import annotations

import os

from ..._rollback.saved_files import is_by_length
from ..._rollback.written_files import WrittenFile, written_files
from ..._support.kernel_text import escaped
from ...errors import OptionError
from .context import Context, Findings, note, stops
from .values import in_units

WITH_REFLINKS = frozenset(("btrfs", "xfs", "bcachefs", "ocfs2", "zfs", "nfs4", "cifs", "overlay"))
"""File systems of which some can share blocks between files (ioctl_ficlone(2))."""


def look(context: Context) -> Findings:
    """A note on each file that is saved, and what stops the dump."""
    try:
        files = saved(context)
    except OptionError as error:
        for problem in error.problems:
            message = f"a file cannot be saved: {problem.rule}"
            yield stops("file-not-saved", message, cure="close it before the dump")
        return
    device = _device_of_images(context)
    for file in files:
        on = f" on {file.kind}" if file.kind else ""
        message = f"{in_units(file.stat.st_size)}{on} are saved by {_how(context, file, device)}"
        yield note("saved-file", message, pid=file.pid or None, path=escaped(file.path))


def size(context: Context) -> int:
    """Bytes that are copied."""
    device = _device_of_images(context)
    try:
        return sum(
            file.stat.st_blocks * 512
            for file in saved(context)
            if not _by_length(context, file) and not _by_reflink(file, device)
        )
    except OptionError:
        return 0


def saved(context: Context) -> list[WrittenFile]:
    """The files; ``OptionError`` names those that cannot be saved."""
    if context.rollback is None:
        return []
    pids = [process.pid for process in context.tree.alive]
    return written_files(pids, context.rollback)[0]


def _how(context: Context, file: WrittenFile, device: int | None) -> str:
    if _by_reflink(file, device):
        return "a reflink, if this file system has them, else by a copy"
    if _by_length(context, file):
        return "their length: it is only appended to"
    return "a copy, while the processes are frozen"


def _by_length(context: Context, file: WrittenFile) -> bool:
    return is_by_length(file, context.rollback is not None and context.rollback.complete)


def _by_reflink(file: WrittenFile, device: int | None) -> bool:
    return file.kind in WITH_REFLINKS and file.stat.st_dev == device


def _device_of_images(context: Context) -> int | None:
    """The device of the images directory, or of the directory that it will be made in."""
    place = context.opts.images_directory
    if not isinstance(place, str):
        return None
    path = os.path.abspath(place)
    while path != "/" and not os.path.exists(path):
        path = os.path.dirname(path)
    return os.stat(path).st_dev
