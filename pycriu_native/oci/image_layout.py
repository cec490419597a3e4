"""An image set as an OCI image, in a directory layout that container tools can push to a registry.

One layer contains the image set, as with ``podman container checkpoint --create-image``. ``skopeo
copy oci:DIR docker://…`` and ``crane push`` copy such a layout to a registry
(https://github.com/opencontainers/image-spec, ``image-layout.md``, version 1.0.0).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

from .._system.file_lock import locked_directory
from .._system.regular_file import open_regular
from .._system.writing import writing
from ..archive.codecs import Compression, bad_argument, compressed
from ..archive.container_checkpoint import json_member
from ..archive.hashing import Hashing
from ..archive.pack import pack, unpack, written_beside
from ..errors import ImagesError

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_NAME = "org.opencontainers.image.ref.name"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def pack_image(
    directory: str | os.PathLike[str],
    layout: str | os.PathLike[str],
    *,
    name: str = "latest",
    inside: str = "",
    more: Mapping[str, str | os.PathLike[str]] | None = None,
    annotations: Mapping[str, str] | None = None,
    compress: Compression = "gzip",
) -> str:
    """Write the image set in ``directory`` as an OCI image; returns its manifest's digest.

    Args:
        layout: the directory of the layout, created if it does not exist. An image with the same
            name is replaced; other images remain.
        name: the image's name in the layout.
        inside, more, compress: as for :func:`~pycriu_native.archive.pack`.
        annotations: of the manifest, such as Podman's ``io.podman.annotations.checkpoint.name``.

    Raises:
        OptionError, ImagesError: as ``pack`` does.
    """
    blobs = Path(layout) / "blobs" / "sha256"
    with writing(layout):
        for each in (Path(layout), blobs.parent, blobs):
            each.mkdir(0o700, parents=True, exist_ok=True)
        fd, made = tempfile.mkstemp(prefix=".layer-", dir=blobs)
        partial = Path(made)
        try:
            with open(fd, "wb") as file:
                outer = Hashing(file)
                with compressed(cast(BinaryIO, outer), compress) as stream:
                    inner = Hashing(stream)
                    pack(
                        directory, cast(BinaryIO, inner), inside=inside, more=more, compress="none"
                    )
            partial.replace(blobs / outer.sha256())
        finally:
            partial.unlink(missing_ok=True)
    layer = {
        "mediaType": _LAYER + ("" if compress == "none" else f"+{compress}"),
        "digest": f"sha256:{outer.sha256()}",
        "size": outer.size,
    }
    machine = platform.machine()
    config = _put(
        blobs,
        _CONFIG,
        {
            "architecture": _ARCHITECTURES.get(machine, machine),
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{inner.sha256()}"]},
        },
    )
    manifest = _put(
        blobs,
        _MANIFEST,
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": config,
            "layers": [layer],
            "annotations": dict(annotations or {}),
        },
    )
    _write(Path(layout) / "oci-layout", {"imageLayoutVersion": "1.0.0"})
    index = Path(layout) / "index.json"
    entry = {**manifest, "annotations": {_NAME: name}}
    with locked_directory(layout):
        others = [one for one in _images(index) if _annotations(one).get(_NAME) != name]
        _write(index, {"schemaVersion": 2, "manifests": [*others, entry]})
    return str(manifest["digest"])


def unpack_image(
    layout: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    name: str = "latest",
    inside: str = "",
    limit: int | None = None,
) -> dict[str, str]:
    """Extract an image set from a layout into ``directory``; returns the image's annotations.

    Every digest is checked before anything is written.

    Args:
        name: the image's name in the layout; ignored if the layout has only one image.
        inside, limit: as for :func:`~pycriu_native.archive.unpack`.

    Raises:
        OptionError, ImagesError: as ``unpack`` does; ``ImagesError`` also for a wrong digest.
    """
    manifest = _manifest(Path(layout), name)
    layers = _dicts(manifest.get("layers"))
    if len(layers) != 1:
        raise ImagesError(f"{layout}: the image has {len(layers)} layers; a checkpoint has one")
    with _blob(Path(layout), layers[0]) as file:
        unpack(file, directory, inside=inside, limit=limit)
    return _annotations(manifest)


def layers_of(layout: str | os.PathLike[str]) -> Iterator[AbstractContextManager[BufferedReader]]:
    """The layers of the image ``latest``, or of the only image, lowest first: context managers of
    (compressed) tar archives.

    Raises ``OptionError`` if there is no such image, and ``ImagesError`` for a damaged layout.
    """
    for layer in _dicts(_manifest(Path(layout), "latest").get("layers")):
        yield _blob(Path(layout), layer)


def _manifest(layout: Path, name: str) -> dict[str, Any]:
    """The manifest of the image with this name, or of the only image."""
    images = _images(layout / "index.json")
    result = [one for one in images if _annotations(one).get(_NAME) == name]
    if not result and len(images) == 1:
        result = images
    if not result:
        names = sorted(str(_annotations(one).get(_NAME)) for one in images)
        raise bad_argument("name", name, f"an image of the layout is accepted: {names}")
    with _blob(layout, result[0]) as file:
        return cast(dict[str, Any], json_member(file.name, file))


def _put(blobs: Path, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(content, sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    with written_beside(blobs / digest) as file:
        file.write(data)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


def _write(path: Path, content: dict[str, Any]) -> None:
    with written_beside(path) as file:
        file.write(json.dumps(content).encode())


def _annotations(image: dict[str, Any]) -> dict[str, Any]:
    result = image.get("annotations")
    return result if isinstance(result, dict) else {}


def _images(index: Path) -> list[dict[str, Any]]:
    try:
        with _opened(index) as file:
            return _dicts(json_member(file.name, file).get("manifests"))
    except FileNotFoundError:
        return []


def _opened(path: Path) -> BufferedReader:
    """Open a file of an untrusted layout; only a regular file is accepted."""
    try:
        return open(path, "rb", opener=lambda name, _: open_regular(name))
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EINVAL):
            raise
        what = "a symbolic link" if error.errno == errno.ELOOP else "not a regular file"
        raise ImagesError(f"{path} is not part of an OCI layout: it is {what}") from None


def _dicts(value: object) -> list[dict[str, Any]]:
    """The objects of a list; other items are ignored."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


@contextlib.contextmanager
def _blob(layout: Path, entry: dict[str, Any]) -> Iterator[BufferedReader]:
    """Open a blob, after its digest has been checked."""
    algorithm, _, digest = str(entry.get("digest")).partition(":")
    if algorithm != "sha256" or len(digest) != 64 or not digest.isalnum():
        raise ImagesError(f"{layout}: a SHA-256 digest is needed, not {entry.get('digest')!r}")
    path = layout / "blobs" / "sha256" / digest
    try:
        opened = _opened(path)
    except FileNotFoundError:
        raise ImagesError(f"{path} is missing") from None
    with opened as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise ImagesError(f"{path} is damaged: its content has another digest")
        file.seek(0)
        yield file
