"""Removes from a checkpoint the pending signals that were sent to the command to stop it.

Schedulers send the same signal to all processes of a job. If the command is frozen by then, the
signal is pending in its checkpoint, and each resumption would end with it again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct

from .._integrity.changed_image import Value, change_image, fields_of, replaced
from .._integrity.dump_record import write_record
from .._recovery.half_restored import pids_in
from .._support.held_signals import ALL
from .._system.descriptors import opened_directory
from .._wire.protobuf import message

_QUEUES = {3: 10, 5: 9}
"""``core.proto``: the fields of process and thread, and in each that of the pending signals."""
_INFO = struct.Struct("iiiii")
"""The beginning of ``siginfo_t`` in <asm-generic/siginfo.h>: number, error, code, padding and, with
one of the codes below, the sender's pid."""
_SENT = frozenset({0, 0x80, -1, -6})
"""SI_USER, SI_KERNEL (a terminal), SI_QUEUE and SI_TKILL: sent by a process or a terminal."""


def remove(images: os.PathLike[str]) -> None:
    """Remove the signals of ``ALL`` that no process of the command has sent.

    A sender outside of the pid namespace has the pid 0. An image of an unexpected form is not
    changed: the dump may have ended the command, so that its checkpoint is needed. ``OSError``.
    """
    senders = frozenset(pids_in(os.fspath(images)))
    with opened_directory(images) as at:
        changed = [_removed(at, f"core-{pid}.img", senders) for pid in senders]
        if any(changed):
            write_record(at)  # it has the sizes of the images


def _removed(directory: int, name: str, senders: frozenset[int]) -> bool:
    def kept(queue: Value) -> bytes:
        return message(*(each for each in fields_of(queue) if not _is_removed(each[1], senders)))

    def changed(core: bytes) -> bytes:
        for field, queue in _QUEUES.items():
            core = replaced(core, field, functools.partial(replaced, number=queue, change=kept))
        return core

    with contextlib.suppress(ValueError, struct.error):
        return change_image(directory, name, changed)
    return False


def _is_removed(signal: Value, senders: frozenset[int]) -> bool:
    ((_, info),) = fields_of(signal)
    if isinstance(info, int):
        raise ValueError("fields of other types")
    number, _, code, _, sender = _INFO.unpack_from(info)
    return number in ALL and code in _SENT and sender not in senders
