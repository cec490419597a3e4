"""A directory of images: its files, its parents, and the entries of an image."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from .._integrity import set_check
from .._integrity.completeness import is_pre_dump
from .._integrity.image_files import ImageFiles, kind_of
from .._system.descriptors import opened_directory
from ..errors import ImagesError, images_error
from .formats import category
from .model import Image, Parent
from .reader import ImageFile, expect
from .trailers import entries, ghost_chunks


class ImageDirectory:
    """The images of one directory, by name."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.parents, self.layers = parents_of(directory)
        self.listed = self._list()
        self.names = {each.name for each in self.listed}
        self.problems = self._problems()

    def _list(self) -> list[Image]:
        try:
            with os.scandir(self.directory) as result:
                listed = sorted(result, key=lambda entry: entry.name)
                return [
                    Image(
                        name=entry.name,
                        category=category(entry.name),
                        size=status.st_size,
                        allocated=status.st_blocks * 512,
                    )
                    for entry in listed
                    if stat.S_ISREG((status := entry.stat(follow_symlinks=False)).st_mode)
                ]
        except OSError as error:
            raise images_error(f"{self.directory} cannot be read", error) from None

    def _problems(self) -> list[str]:
        """Why a restore would refuse the set. Lazy pages do not count as missing."""
        with opened_directory(self.directory) as fd:
            files = ImageFiles(fd)
            found = set_check.problems(files)
            result = [each.cause for each in found if each.options != ("lazy_pages",)]
            self.pre_dump = is_pre_dump(files)
        return list(dict.fromkeys(result))

    def path(self, name: str) -> str:
        """The path of a file in it."""
        return f"{self.directory}/{name}"

    def entries(self, name: str) -> list[Any]:
        """The entries of an image; none if the image does not exist."""
        return self._read(name, lambda file: list(entries(file))) or []

    def one(self, name: str) -> Any:
        """The only entry of an image, or None if the image does not exist."""
        return self._read(name, ImageFile.only)

    def _read(self, name: str, read: Callable[[ImageFile], Any]) -> Any:
        kind = kind_of(name)
        assert kind is not None
        if name not in self.names and not os.path.lexists(self.path(name)):
            return None
        with expect(self.path(name), kind) as file:
            return read(file)

    def ghost_size(self, number: int) -> int | None:
        """Size of the contents of a ghost file in the images, in bytes."""
        size: int | None = self._read(f"ghost-file-{number:x}.img", _ghost_size)
        return size


def _ghost_size(file: ImageFile) -> int:
    result, at = file.parse(file.start, "ghost_file_entry")
    if not result.chunks:
        return file.size - at
    return sum(int(chunk.len) for chunk, _ in ghost_chunks(file, at))


def parents_of(directory: str) -> tuple[list[Parent], list[str]]:
    """The chain of ``parent`` links, and the directories that contain memory."""
    chain: list[Parent] = []
    layers = [directory]
    seen = {_identity(directory)}
    here = directory
    while os.path.lexists(link := os.path.join(here, "parent")):
        target = os.path.realpath(link)
        exists = os.path.isdir(target)
        chain.append(Parent(directory=target, exists=exists))
        if not exists:
            break
        identity = _identity(target)
        if identity in seen:
            raise ImagesError(
                f"{link} leads to {target}, whose parent it is itself", errno=errno.ELOOP
            )
        seen.add(identity)
        layers.append(target)
        here = target
    return chain, layers


def _identity(directory: str) -> tuple[int, int]:
    try:
        result = os.stat(directory)
    except OSError as error:
        raise images_error(f"{directory} cannot be opened", error) from None
    return result.st_dev, result.st_ino
