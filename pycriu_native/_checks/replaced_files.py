"""Refuses a restore that would open a FIFO or a device in the place of a file.

CRIU opens each path before it compares the type of the file with the images
(``criu/files-reg.c``, ``open_path``). An open(2) of a FIFO waits for another process, and one of a
device can wait too (a terminal without a carrier) or have an effect (a watchdog).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator

from .._integrity.unchanged import SetState, Unchanged
from .._recovery.created_names import LINKED, NO_MOUNT, Places
from .._recovery.file_entries import FileEntries, number_in
from .._system.descriptors import where
from .._system.host import type_of
from ..enums import Verb
from ..errors import CriuError
from ..options.criu_opts import CriuOpts

_ID, _FLAGS, _NAME, _MOUNT, _EXTERNAL, _MODE = 1, 2, 6, 7, 9, 10
"""Fields of ``regfile.proto``."""

OpenedFile = tuple[str, int]
"""The path of a file that a restore opens, and its mode at the dump."""

_opened = Unchanged[tuple[OpenedFile, ...]]()


def check(state: SetState, entries: FileEntries, opts: CriuOpts) -> None:
    """Raise ``CriuError`` if one of the files is a FIFO or a device now, and was something else."""
    if any(str(getattr(each, "kind", "")) == "mnt" for each in opts.join_ns or ()):
        return
    given = frozenset(str(getattr(each, "key", "")).lstrip("/") for each in opts.inherit_fds or ())
    key = (str(opts.root), str(opts.external), given)
    opened = _opened.result(state, key, lambda: tuple(opened_files(entries, opts, given)))
    for path, mode in opened:
        try:
            now = os.stat(path).st_mode
        except (OSError, ValueError):
            continue  # CRIU reports that it does not exist
        acts = stat.S_ISFIFO(now) or stat.S_ISCHR(now) or stat.S_ISBLK(now)
        if acts and stat.S_IFMT(now) != stat.S_IFMT(mode):
            cause = f"{path} is {type_of(now)}, and was {type_of(mode)} at the dump"
            cure = "put back what it was"
            message = f"restore from {where(state.directory)} failed: {cause}; {cure}"
            raise CriuError(message, verb=str(Verb.RESTORE), cause=cause, cure=cure)


def opened_files(
    entries: FileEntries, opts: CriuOpts, given: Collection[str]
) -> Iterator[OpenedFile]:
    """The files that a restore opens by their names. ``given``: the names of the others."""
    deleted = {number_in(each, 1) for each in entries.remaps}
    deleted |= {number_in(each, 2) for each in entries.remaps if number_in(each, 3) == LINKED}
    places = Places(entries.images, opts)
    for file in entries.regular.values():
        mode = number_in(file, _MODE)
        name = file.get(_NAME, b"")
        if (
            not mode
            or number_in(file, _EXTERNAL)
            or number_in(file, _FLAGS) & os.O_PATH
            or number_in(file, _ID) in deleted
            or (isinstance(name, bytes) and os.fsdecode(name).lstrip("/") in given)
        ):
            continue
        path = places.of_file(file, number_in(file, _MOUNT, NO_MOUNT))
        if path is not None:
            yield path, mode
