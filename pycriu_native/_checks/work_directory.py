"""Paths of options that are relative to CRIU's work directory."""

from __future__ import annotations

import os

from ..options.criu_opts import CriuOpts, StrPath
from ..options.values import Descriptor, descriptor_number


def from_work_directory(opts: CriuOpts, path: StrPath) -> str:
    """The path, joined to the work directory if it is relative."""
    places = (opts.work_directory, opts.images_directory, opts.images_dir)
    work = next((path_of(each) for each in places if each is not None), "")
    return os.path.join(work, os.fsdecode(path))


def path_of(directory: StrPath | Descriptor) -> str:
    """The path of a directory that is given by path or descriptor."""
    if isinstance(directory, str | bytes | os.PathLike):
        return os.fsdecode(directory)
    return f"/proc/self/fd/{descriptor_number(directory)}"
