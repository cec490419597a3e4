"""Removes from a checkpoint the pending signals that were sent to the command to stop it.

Schedulers send the same signal to all processes of a job. If the command is frozen by then, the
signal is pending in its checkpoint, and each resumption would end with it again.
"""

from __future__ import annotations

import os
import struct

from .._integrity.changed_image import Fields, fields_of, replace_image
from .._integrity.dump_record import write_record
from .._recovery.half_restored import pids_in
from .._support.held_signals import ALL
from .._system.descriptors import opened_directory
from .._wire.fields import messages_of
from .._wire.protobuf import message

_QUEUES = {3: 10, 5: 9}
"""``core.proto``: the field of the entry of a process and of a thread, and in it that of the
pending signals."""
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
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
        data = file.read()
    try:
        (core,) = messages_of(data)
        new = message(
            *(
                (field, _without(value, _QUEUES[field], senders) if field in _QUEUES else value)
                for field, value in fields_of(core)
            )
        )
    except (ValueError, struct.error):
        return False
    if new == core:
        return False
    replace_image(directory, name, data[:8], [new])
    return True


def _without(entry: int | bytes, queue: int, senders: frozenset[int]) -> bytes:
    """The entry of a process or a thread without the signals that are removed."""
    return message(
        *(
            (field, message(*_kept(value, senders)) if field == queue else value)
            for field, value in _nested(entry)
        )
    )


def _kept(queue: int | bytes, senders: frozenset[int]) -> Fields:
    result: Fields = []
    for field, signal in _nested(queue):
        ((_, info),) = _nested(signal)
        if isinstance(info, int):
            raise ValueError("fields of other types")
        number, _, code, _, sender = _INFO.unpack_from(info)
        if number not in ALL or code not in _SENT or sender in senders:
            result.append((field, signal))
    return result


def _nested(value: int | bytes) -> Fields:
    if isinstance(value, int):
        raise ValueError("fields of other types")
    return fields_of(value)
