"""Processes without a vDSO whose data of the vDSO ([vvar]) is still mapped, as under valgrind.

CRIU saves them, and refuses to restore them: "Can't find vDSO area in image" (``vdso_proxify`` of
``criu/pie/parasite-vdso.c``, 4.2). The data is not used without the vDSO, so this module removes it
from ``mm-PID.img`` while the dumped processes are frozen.
"""

from __future__ import annotations

from .._wire.protobuf import message
from .changed_image import Value, change_image, fields_of
from .image_files import DamagedError, ImageFiles, kind_of

_VMA, _STATUS = 14, 7
"""``mm.proto`` and ``vma.proto``: the field of a mapping, and in it that of its bits."""
_VDSO, _VVAR = 1 << 3, 1 << 12
"""Bits of a mapping (``criu/include/image.h``)."""
_COLUMN = 2
"""The column with the bits in a row of ``mm-PID.img``."""


def leave_out_lone_vvar(files: ImageFiles) -> None:
    """Remove [vvar] of processes without a vDSO. An image of an unexpected form is not changed."""
    for name in sorted(files.names):
        try:
            bits = 0
            for row in files.rows(name) if kind_of(name) == "MM" else ():
                bits |= row[_COLUMN]
            if bits & _VVAR and not bits & _VDSO:
                change_image(files.directory, name, _without_vvar)
        except (DamagedError, ValueError):
            continue  # the check of the images reports it


def _without_vvar(memory: bytes) -> bytes:
    return message(*(field for field in fields_of(memory) if not _is_vvar(*field)))


def _is_vvar(number: int, value: Value) -> bool:
    return number == _VMA and bool(int(dict(fields_of(value)).get(_STATUS, 0)) & _VVAR)
