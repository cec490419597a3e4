"""Image sets of commands: directories, and archives of containers that contain one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import ImagesError
from .extras import extras
from .text import columns, safe, size

if TYPE_CHECKING:
    from ..archive.container_checkpoint import ArchiveContents


def images_package() -> ModuleType:
    """The package ``images``, or an error that names its extra."""
    with extras():
        from .. import images
    return images


@contextmanager
def set_in(place: str, *, whole: bool = False) -> Iterator[tuple[str, ArchiveContents | None, str]]:
    """The directory of an image set, and if ``place`` is an archive, its description.

    An archive is extracted to a temporary directory, the last value; with ``whole`` all of a
    container's archive, else only its images.
    """
    if not os.path.isfile(place):
        yield place, None, place
        return
    from ..archive.container_checkpoint import archive_contents  # few sets are archives
    from ..archive.pack import unpack

    with tempfile.TemporaryDirectory(prefix="pycriu-native-") as scratch:
        archive = archive_contents(place)
        top = f"{scratch}/set"
        with named_as(f"{place}: ", f"{top}/"):
            if whole and archive.is_container:
                unpack(place, top)
                yield os.path.join(top, archive.inside), archive, top
            else:
                unpack(place, top, inside=archive.inside)
                yield top, archive, top


@contextmanager
def named_as(name: str, copy: str) -> Iterator[None]:
    """Replace the path of a temporary copy by ``name`` in the messages of ``ImagesError``."""
    try:
        yield
    except ImagesError as error:
        for attribute in ("message", "cause", "cure"):
            text = getattr(error, attribute)
            if text is not None:
                setattr(error, attribute, text.replace(copy, name))
        raise


def archive_text(archive: ArchiveContents, *, changes: bool = True) -> str:
    """The description of a container's archive, with the changes of its root file system."""
    rows = [
        ("container", archive.name),
        ("id", archive.id),
        ("image", archive.image),
        ("runtime", archive.runtime),
        ("engine", archive.engine),
        ("created", archive.created),
        ("checkpointed", archive.checkpointed),
        ("archive", f"{size(archive.size)}, images in {archive.inside or 'its top'}"),
    ]
    if archive.is_container and changes:
        total = size(sum(each for _, each in archive.changed))
        count = f"{len(archive.changed)} files, {total}; {len(archive.deleted)} deleted"
        rows.append(("changes of its files", count))
    lines = columns((name, safe(value)) for name, value in rows if value)
    if not changes:
        return "\n".join(lines)
    lines += [f"  changed {safe(name)} ({size(bytes_)})" for name, bytes_ in archive.changed]
    lines += [f"  deleted {safe(name)}" for name in archive.deleted]
    return "\n".join(lines)
