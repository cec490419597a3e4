"""Paths of options that are relative to CRIU's work directory."""

from __future__ import annotations

import os

from ..options.criu_opts import CriuOpts, StrPath
from ..options.values import descriptor_number


def from_work_directory(opts: CriuOpts, path: StrPath) -> str:
    """The path, joined to the work directory if it is relative."""
    work = opts.images_directory if opts.work_directory is None else opts.work_directory
    if work is None:
        return os.fsdecode(path)
    where = work if isinstance(work, str) else f"/proc/self/fd/{descriptor_number(work)}"
    return os.path.join(where, os.fsdecode(path))
