"""The mounts in CRIU's images (``mountpoints-*.img``, CRIU's ``images/mnt.proto``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .._system.regular_file import read_regular
from .._wire.fields import message_fields, messages_of
from .._wire.image_kinds import HEADS
from ..errors import ImagesError

LARGEST = 2**30
"""Bytes of an image that are read."""
CGROUP_V1 = 12
"""The number of the file system ``cgroup`` in the images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedMount:
    """A mount in CRIU's images (``mnt.proto``)."""

    kind: int
    """The type of the file system, by CRIU's number."""
    number: int
    parent: int
    """The mount on which it is mounted."""
    root: str
    place: str
    options: str
    key: str
    """The key of an external mount; empty for others."""


def saved_mounts(images: str) -> list[SavedMount]:
    """The mounts in the images, inner ones first. Raises ``ImagesError``."""
    result: list[SavedMount] = []
    names = sorted(Path(images).glob("mountpoints-*.img"))
    if not names:
        raise ImagesError(f"{images} has no mounts: it holds no images of a container")
    for name in names:
        try:
            result += _read(read_regular(name, LARGEST))
        except (OSError, ValueError, KeyError) as error:
            raise ImagesError(f"{name} cannot be read: {error!r}") from None
    return result


def _read(data: bytes) -> Iterator[SavedMount]:
    if not data.startswith(HEADS["MNTS"]):
        raise ValueError("other magic numbers")
    for entry in messages_of(data):
        fields = dict(message_fields(entry))
        text = {n: os.fsdecode(v) for n, v in fields.items() if isinstance(v, bytes)}
        number = {n: v for n, v in fields.items() if isinstance(v, int)}
        yield SavedMount(
            kind=number[1],
            number=number[2],
            parent=number[4],
            root=text[6],
            place=text[7],
            options=text[9],
            key=text.get(18, ""),
        )
