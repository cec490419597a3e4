"""Reads the files of a container's checkpoint archive that are no images.

Podman, CRI-O and containerd put JSON files above the directory ``checkpoint``: ``config.dump``
(the container) and ``spec.dump`` (its OCI specification), and changes of its root file system:
``rootfs-diff.tar`` and ``deleted.files``. Facts: checkpointctl's ``lib/metadata.go``.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Mapping
from typing import Any, BinaryIO, cast

from .._support.frozen_dataclass import dataclass
from .._system.regular_file import open_regular
from ..errors import ImagesError
from .pack import Place, opened_archive
from .tar import Content, members

LARGEST = 16 * 2**20
"""Bytes of a JSON file that are read."""

MOST_CHANGES = 100_000
"""Changed files that are listed."""

_MANAGERS = {"libpod": "Podman", "cri-o": "CRI-O"}
"""Engines, by the annotation ``io.container.manager``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveContents:
    """The contents of an archive: its images, and properties of the container."""

    inside: str
    """The directory of the images in the archive, empty for its top."""
    size: int
    """Bytes of all files."""
    name: str | None = None
    """Name of the container. None in an archive that is not a container's, as all below."""
    id: str | None = None
    image: str | None = None
    runtime: str | None = None
    engine: str | None = None
    """``Podman``, ``CRI-O`` or ``containerd``."""
    created: str | None = None
    checkpointed: str | None = None
    changed: tuple[tuple[str, int], ...] = ()
    """Files that were added to the root file system or changed, with their sizes."""
    deleted: tuple[str, ...] = ()
    """Files of the image that were removed."""

    @property
    def is_container(self) -> bool:
        """Whether it is a container's checkpoint."""
        return self.engine is not None or self.name is not None


def archive_contents(source: Place) -> ArchiveContents:
    """Read an archive to its end, without unpacking it.

    Raises ``ImagesError`` for a damaged archive, and for one without images.
    """
    inside: str | None = None
    size = 0
    config: Mapping[str, Any] = {}
    spec: Mapping[str, Any] = {}
    changed: list[tuple[str, int]] = []
    deleted: list[str] = []
    with opened_archive(source) as stream:
        for info, content in members(stream):
            name = posixpath.normpath(info.name)
            if content is None:
                continue
            size += info.size
            if posixpath.basename(name) == "inventory.img":
                inside = posixpath.dirname(name) if inside is None else inside
            elif name == "config.dump":
                config = json_member(name, content)
            elif name == "spec.dump":
                spec = json_member(name, content)
            elif name == "deleted.files":
                deleted = [str(each) for each in json_member(name, content, list)]
            elif name == "rootfs-diff.tar":
                changed = _files(content)
    if inside is None:
        raise ImagesError("the archive holds no image set: it has no inventory.img")
    return ArchiveContents(
        inside=inside,
        size=size,
        changed=tuple(each for each in changed if each[0] not in deleted),
        deleted=tuple(deleted),
        **described(config, spec),
    )


def described(config: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, str | None]:
    """The fields of ``ArchiveContents`` from ``config.dump`` and ``spec.dump``."""
    manager = str(_part(spec, "annotations").get("io.container.manager", ""))
    engine = _MANAGERS.get(manager, manager or None)
    if engine is None and "io.kubernetes.cri.container-type" in _part(spec, "annotations"):
        engine = "containerd"
    return {
        "name": _text(config, "name"),
        "id": _text(config, "id"),
        "image": _text(config, "rootfsImageName", "rootfsImage", "rootfsImageRef"),
        "runtime": _text(config, "runtime"),
        "engine": engine,
        "created": _text(config, "createdTime"),
        "checkpointed": _text(config, "checkpointedTime"),
    }


def json_member(name: str, content: Content | BinaryIO, kind: type = dict) -> Any:
    """The content of a JSON file, of at most ``LARGEST`` bytes. Raises ``ImagesError``."""
    parts = []
    remaining = LARGEST
    while data := content.read(remaining):
        parts.append(data)
        remaining -= len(data)
    try:
        result = json.loads(b"".join(parts))
    except (ValueError, RecursionError) as error:
        raise ImagesError(f"{name} is not JSON: {error}") from None
    if not isinstance(result, kind):
        raise ImagesError(f"{name} is not a JSON {kind.__name__}")
    return result


def json_file(path: str | os.PathLike[str], kind: type = dict) -> Any:
    """A JSON file of an unpacked archive. Raises ``OSError``, and ``ImagesError`` for another."""
    with open(open_regular(path), "rb") as file:
        return json_member(os.fspath(path), file, kind)


def _files(content: Content) -> list[tuple[str, int]]:
    result: list[tuple[str, int]] = []
    for info, file in members(cast(BinaryIO, content)):
        if file is not None and len(result) < MOST_CHANGES:
            result.append((posixpath.normpath(f"/{info.name}"), info.size))
    return result


def _part(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    result = value.get(key)
    return result if isinstance(result, dict) else {}


def _text(value: Mapping[str, Any], *keys: str) -> str | None:
    """The first of these that exists and is text."""
    return next(
        (value[key] for key in keys if isinstance(value.get(key), str) and value[key]), None
    )
