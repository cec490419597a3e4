"""A container's checkpoint as an archive: restored without its engine, and made for Podman.

Podman (``container checkpoint --export``), CRI-O and the kubelet write such archives: images,
``config.dump``, ``spec.dump``, and what the container changed in its root file system::

    checkpoint = from_archive("web.tar.gz", "web", rootfs="alpine-root")
    with checkpoint.restoring(stdio=(None, log, log)) as opts:
        pid = restore(opts).pid

``to_archive`` dumps a container into an archive that ``podman container restore --import`` takes.

Facts: checkpointctl's ``lib/metadata.go``, Podman's ``pkg/checkpoint`` and ``libpod``.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .._calls.notification import Notification
from .._calls.verbs import dump
from .._system.mountinfo import mounts_of
from .._system.mounts import overlay_of
from ..archive.codecs import Compression, bad_argument
from ..archive.container_checkpoint import described, json_file
from ..archive.pack import Place, opened_archive, pack, unpack
from ..enums import Notify
from ..errors import ImagesError
from ..options.criu_opts import CriuOpts
from ..options.values import Descriptor
from ..results import DumpResult
from . import root_file_system
from .bundle import Bundle, Container, StrPath, is_bind
from .image_layout import layers_of

__all__ = ["ContainerCheckpoint", "from_archive", "to_archive"]

CHECKPOINT = "checkpoint"
CONFIG, SPEC = "config.dump", "spec.dump"
CHANGES, DELETED = "rootfs-diff.tar", "deleted.files"
SHARED_MEMORY = "devshm-checkpoint.tar"
"""The content of ``/dev/shm``."""

_EMPTY_FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv")
_DIRECTORIES = ("/dev/shm", "/run/secrets")
"""Mounts that each engine makes for its containers from files of its own."""

_IMAGE_ID = re.compile("(sha256:)?[0-9a-f]{64}")
_SHM_SIZE = 65536000
"""Bytes of ``/dev/shm``, Podman's default."""

_OWN = {"network": "an empty one: 'ip netns add NAME' makes /run/netns/NAME"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerCheckpoint:
    """A container out of an archive: a bundle, and the images of its processes.

    Synchronization: immutable, so safe to share between threads.
    """

    bundle: Bundle
    """Its bundle: ``config.json`` and ``rootfs``."""
    images: str
    """The directory of the images."""
    name: str | None
    """Its name in the engine, as are all below; None where the archive does not state it."""
    id: str | None
    image: str | None
    engine: str | None
    """``Podman``, ``CRI-O`` or ``containerd``."""

    @classmethod
    def load(cls, directory: StrPath) -> ContainerCheckpoint:
        """A directory that ``from_archive`` has made. Raises ``OSError``, ``ImagesError``."""
        bundle = Bundle.load(directory)
        fields = described(*(json_file(Path(bundle.path, name)) for name in (CONFIG, SPEC)))
        known = {key: fields[key] for key in ("name", "id", "image", "engine")}
        return cls(bundle=bundle, images=os.path.join(bundle.path, CHECKPOINT), **known)

    def restoring(
        self, *, stdio: Sequence[Descriptor | None] = (0, 1, 2), **more: Any
    ) -> AbstractContextManager[CriuOpts]:
        """The options of a restore, as those of :meth:`Bundle.restoring`."""
        return self.bundle.restoring(self.images, stdio=stdio, **more)

    def running(self, pid: int, runtime: str = "runc") -> Container:
        """The container that a restore has brought back with this pid, for a dump of it.

        ``runtime`` is the one whose names the images will use.
        """
        streams = tuple(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3))
        return Container(
            id=self.id or self.name or "restored",
            runtime=runtime,
            state_root=f"/run/{runtime}",
            pid=pid,
            bundle=self.bundle,
            descriptors=streams,
        )


def from_archive(
    source: Place,
    directory: StrPath,
    *,
    rootfs: StrPath,
    binds: Mapping[str, StrPath] | None = None,
    namespaces: Mapping[str, str | None] | None = None,
    decrypt_with: Sequence[str] = (),
    limit: int | None = None,
) -> ContainerCheckpoint:
    """Unpack a container's checkpoint into ``directory``, which it makes (0700), as a bundle.

    The root file system is a copy of ``rootfs`` with the changes of the archive. The mounts that
    the engine makes from its own files (``/etc/hosts``, ``/etc/resolv.conf``, ``/dev/shm`` …) and
    its named volumes become files below ``binds`` in the directory. Hooks are left out. Nothing
    of this host is given to the container unless an argument names it. After a failure nothing
    is left.

    Args:
        source: a path, or a binary stream; compression and encryption are recognised.
        rootfs: the root file system of the image: a directory (of ``podman image mount``), a tar
            archive (of ``podman export`` or ``docker export`` of a fresh container), or an OCI
            layout (``skopeo copy docker://… oci:DIR``).
        binds: what of this host comes to a destination of a bind mount.
        namespaces: by type (``network``, ``ipc`` …), the path of the namespace to join, or None
            for a new one. The namespaces of a pod, which are not in the archive, have to be
            named here.
        decrypt_with, limit: as for :func:`~pycriu_native.archive.unpack`; the limit holds for the
            archive, and for the root file system and each volume that it contains.

    Raises:
        OptionError: an argument that will not do.
        ImagesError: no archive of a container, a damaged one, or one that needs a bind mount or
            a namespace that no argument gives.
        OSError: a file cannot be written; owners and devices need root.
    """
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise bad_argument("directory", str(target), "a new or empty directory is accepted")
    if not os.path.exists(rootfs):
        raise bad_argument("rootfs", os.fspath(rootfs), "a directory or archive is accepted")
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.absolute().parent))
    try:
        unpack(source, partial, decrypt_with=decrypt_with, limit=limit)
        most = shutil.disk_usage(partial).free if limit is None else limit
        unpacked = _Unpacked(partial, most)
        unpacked.write_config(binds or {}, namespaces or {})
        unpacked.write_root(rootfs)
        partial.replace(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return ContainerCheckpoint.load(target)


def host_mounts(directory: StrPath) -> list[str]:
    """The places of bind mounts from the host, which ``from_archive`` needs ``binds`` for.

    ``directory`` is an unpacked archive. Raises ``ImagesError``.
    """
    return _Unpacked(Path(directory), 0).host_mounts()


class _Unpacked:
    """A directory with the files of an archive, which becomes a bundle."""

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        for name in (SPEC, f"{CHECKPOINT}/inventory.img"):
            if not (directory / name).is_file():
                raise ImagesError(f"the archive is no container's checkpoint: it has no {name}")
        self._config = json_file(directory / CONFIG) if (directory / CONFIG).exists() else {}
        self._spec = json_file(directory / SPEC)

    def write_config(
        self, binds: Mapping[str, StrPath], namespaces: Mapping[str, str | None]
    ) -> None:
        """Write ``config.json``, with mounts and namespaces of this host."""
        try:
            spec = dict(self._spec)
            spec["root"] = {**spec["root"], "path": "rootfs"}
            spec["mounts"] = list(self._mounts(spec.get("mounts") or (), binds))
            spec["linux"] = dict(spec["linux"])
            spec["linux"]["namespaces"] = list(
                self._namespaces(spec["linux"].get("namespaces") or (), namespaces)
            )
            spec.pop("hooks", None)
        except (KeyError, TypeError, AttributeError) as error:
            raise ImagesError(f"{SPEC} is no specification of a container: {error!r}") from None
        (self._directory / "config.json").write_text(json.dumps(spec, indent=1))

    def _mounts(
        self, mounts: Sequence[Mapping[str, Any]], binds: Mapping[str, StrPath]
    ) -> Iterator[Mapping[str, Any]]:
        remaining = dict(binds)
        missing: dict[str, str] = {}
        for mount in mounts:
            place = _absolute(mount["destination"])
            if not is_bind(mount):
                yield mount
                continue
            source = remaining.pop(place, None) or self._own_source(place)
            if source is None:
                missing[place] = str(mount.get("source"))
            elif not os.path.exists(self._directory / source):
                raise bad_argument("binds", os.fspath(source), "an existing path is accepted")
            yield {**mount, "source": os.fspath(source or "")}
        if remaining:
            accepted = sorted(mount["destination"] for mount in mounts if is_bind(mount))
            raise bad_argument("binds", sorted(remaining), f"accepted are {accepted}")
        if missing:
            cure = ", ".join(f"{place!r}: {source!r}" for place, source in missing.items())
            raise ImagesError(
                f"the container has bind mounts from its host at {', '.join(missing)}; name what "
                f"of this host comes there, as it was: binds={{{cure}}}"
            )

    def host_mounts(self) -> list[str]:
        """The places of bind mounts that no engine makes from files of its own."""
        own = {*_EMPTY_FILES, *_DIRECTORIES, *self._volumes()}
        mounts = filter(is_bind, self._spec.get("mounts") or ())
        return [place for each in mounts if (place := _absolute(each["destination"])) not in own]

    def _own_source(self, place: str) -> str | None:
        """A file or directory below ``binds`` for a mount of the engine's own, or None."""
        # One name for each, so that neither ".." nor a link in another volume leads elsewhere.
        own = f"binds/{quote(place, safe='')}"
        path = self._directory / own
        volume = self._volumes().get(place)
        if volume is not None or place in _DIRECTORIES:
            path.mkdir(parents=True)
            archive = self._directory / (SHARED_MEMORY if volume is None else volume)
            if place == "/dev/shm":
                path.chmod(0o1777)
            if volume is not None or (place == "/dev/shm" and archive.exists()):
                self._extract(archive, path)
        elif place in _EMPTY_FILES:
            path.parent.mkdir(exist_ok=True)
            path.write_text(self._text_of(place))
        else:
            return None
        return own

    def _text_of(self, place: str) -> str:
        name = str(self._spec.get("hostname") or "localhost")
        if place == "/etc/hosts":
            return f"127.0.0.1\tlocalhost {name}\n::1\tlocalhost {name}\n"
        if place == "/etc/resolv.conf":
            with contextlib.suppress(OSError):
                return Path(place).read_text()
        return f"{name}\n" if place == "/etc/hostname" else ""

    def _volumes(self) -> dict[str, str]:
        """The archives of Podman's named volumes, by destination."""
        result = {}
        for each in self._config.get("namedVolumes") or ():
            archive = f"volumes/{os.path.basename(each['volumeName'])}.tar"
            if (self._directory / archive).is_file():
                result[_absolute(each["dest"])] = archive
        return result

    def _namespaces(
        self, spec: Sequence[Mapping[str, Any]], given: Mapping[str, str | None]
    ) -> Iterator[Mapping[str, Any]]:
        kinds = [str(each["type"]) for each in spec]
        unknown = sorted(given.keys() - set(kinds))
        if unknown:
            raise bad_argument("namespaces", unknown, f"accepted are {kinds}")
        for each in spec:
            kind = str(each["type"])
            path = given.get(kind)
            if path is not None and not os.path.exists(path):
                raise bad_argument("namespaces", path, "the path of a namespace is accepted")
            if path is None and each.get("path") and (kind not in given or kind in _OWN):
                what = _OWN.get(kind, "None: a new one")
                raise ImagesError(
                    f"the {kind} namespace of the container was {each['path']}, that of a pod or "
                    f"of its engine, and is not in the archive; name one to join with "
                    f"namespaces={{{kind!r}: PATH}} ({what})"
                )
            yield {"type": kind} if path is None else {"type": kind, "path": path}

    def write_root(self, image: StrPath) -> None:
        """Write the root file system: that of the image, with the changes of the container."""
        root = self._directory / "rootfs"
        root.mkdir(0o755)
        if not os.path.isdir(image):
            self._extract(Path(image), root)
        elif os.path.isfile(os.path.join(image, "oci-layout")):
            for layer in layers_of(image):
                with layer as file, opened_archive(file) as stream:
                    self._limited(stream, root, is_layer=True)
        else:
            root_file_system.copy(os.fspath(image), os.fspath(root))
        if (self._directory / CHANGES).exists():
            self._extract(self._directory / CHANGES, root)
            (self._directory / CHANGES).unlink()
        if (self._directory / DELETED).exists():
            deleted = json_file(self._directory / DELETED, list)
            root_file_system.remove(os.fspath(root), map(str, deleted))

    def _extract(self, archive: Path, to: Path) -> None:
        with opened_archive(archive) as stream:
            self._limited(stream, to)

    def _limited(self, stream: Any, to: Path, *, is_layer: bool = False) -> None:
        root_file_system.extract(stream, os.fspath(to), limit=self._limit, is_layer=is_layer)


def _absolute(destination: str) -> str:
    """The destination of a mount, normalized: below the root of the container."""
    return posixpath.normpath("/" + destination.lstrip("/"))


# ---- the other way ----


def to_archive(
    container: Container,
    to: StrPath,
    *,
    image: str | None = None,
    image_id: str | None = None,
    name: str | None = None,
    base: StrPath | None = None,
    compress: Compression = "gzip",
    **more: Any,
) -> DumpResult:
    """Dump a container into an archive that ``podman container restore --import`` takes.

    The container ends, unless ``leave_running=True``; its runtime then takes it for stopped, and
    Podman needs it removed (``podman rm``) before it restores one of the same name and id.

    Args:
        container: of runc or crun, Podman's included, or of :meth:`ContainerCheckpoint.running`.
        to: the archive's path. It appears when it is complete.
        image: the name of the container's image, such as ``docker.io/library/alpine:3``, which
            Podman pulls if it does not have it. Default: that of the archive that the container
            was restored from, or that in the storage of Podman and CRI-O.
        image_id: the image's id, 64 hexadecimal digits (``podman image inspect --format={{.Id}}``).
            Podman 5 needs it where ``image`` is given; Podman 4 finds the image by its name.
        name: the container's name. Default: the one there, or the first 12 digits of its id.
        base: the root file system of the image, a directory. What differs from it goes into the
            archive. Default: the lower directories of the container's overlay; where its root is
            no overlay, ``base`` is required.
        compress: ``"gzip"``, ``"zstd"`` or ``"none"``.
        more: further fields of ``CriuOpts``, as of :meth:`Container.dump_opts`.

    Raises:
        OptionError: an argument that will not do; the container runs on.
        What ``dump`` raises. If the archive cannot be written after the dump, a note of the
        exception names the directory that keeps the images and the other files.
    """
    target = Path(to).absolute()
    config, spec = _described(container, image, image_id, name)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    dumped = False
    try:
        images = work / CHECKPOINT
        container.write_descriptors(images)
        opts = container.dump_opts(images, **more)
        (work / CONFIG).write_text(json.dumps(config))
        (work / SPEC).write_text(json.dumps(spec))
        with _base_of(container, base) as lower:

            def hook(notification: Notification) -> None:
                if notification.action is Notify.POST_DUMP:  # the container stands still
                    _write_changes(container, lower, work)

            result = dump(container.pid, opts, on_notify=hook)
        dumped = True
        beside = {path.name: path for path in work.iterdir() if path != images}
        pack(images, target, inside=CHECKPOINT, more=beside, compress=compress)
    except BaseException as error:
        if dumped:
            error.add_note(f"the container has been dumped; its files are kept in {work}")
            raise
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work)
    return replace(result, images=os.fspath(target), log=None)


def _described(
    container: Container, image: str | None, image_id: str | None, name: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.dump`` and ``spec.dump``: those of the archive it is from, or the least of them."""
    config: dict[str, Any] = {}
    bundle = container.bundle
    mounts = [  # relative sources are of the bundle
        {**mount, "source": os.path.join(bundle.path, mount["source"])} if is_bind(mount) else mount
        for mount in bundle.config.get("mounts", ())
    ]
    spec: dict[str, Any] = {**bundle.config, "mounts": mounts}
    before = Path(bundle.path, CONFIG)
    if before.exists():
        config, spec = json_file(before), json_file(before.with_name(SPEC))
    else:
        config = _storage_record(container)
    if image is not None and image != config.get("rootfsImageName"):
        # Podman 4 finds an image by its name in place of its id too.
        config |= {"rootfsImageName": image, "rootfsImageID": image}
    if image_id is not None:
        if not _IMAGE_ID.fullmatch(image_id):
            raise bad_argument("image_id", image_id, "64 hexadecimal digits are accepted")
        config["rootfsImageID"] = image_id.removeprefix("sha256:")
    if not config.get("rootfsImageName"):
        raise bad_argument("image", image, "the name of the container's image is needed")
    config.setdefault("id", container.id)
    if os.path.basename(str(config.get("runtime"))) != container.runtime:
        config["runtime"] = container.runtime  # Podman restores with no other
    config.setdefault("shmSize", _SHM_SIZE)
    config["name"] = name or config.get("name") or container.id[:12]
    annotations = dict(spec.get("annotations") or {})
    annotations.setdefault("io.container.manager", "libpod")
    return config, {**spec, "annotations": annotations}


def _storage_record(container: Container) -> dict[str, Any]:
    """What the storage of Podman and CRI-O records of a container; empty for another's.

    The bundle is ``DRIVER-containers/ID/userdata`` there, beside ``containers.json``
    (https://github.com/containers/storage, ``containers.go``).
    """
    file = Path(container.bundle.path).parents[1] / "containers.json"
    if not file.is_file():
        return {}
    for each in json_file(file, list):
        if each["id"] == container.id:
            known = json.loads(each.get("metadata") or "{}")
            return {
                "name": known.get("name"),
                "rootfsImageName": known.get("image-name"),
                "rootfsImageID": each.get("image"),
            }
    return {}


@contextlib.contextmanager
def _base_of(container: Container, base: StrPath | None) -> Iterator[str]:
    """The root file system of the image, to compare with."""
    if base is not None:
        if not os.path.isdir(base):
            raise bad_argument("base", os.fspath(base), "a directory is accepted")
        yield os.path.realpath(base)
        return
    root = container.bundle.root
    lower = _lower_directories(root)
    if not lower:
        raise bad_argument(
            "base",
            None,
            f"the root file system of the image is needed: {root} is no overlay of known "
            "directories",
        )
    with overlay_of(lower) as place:
        yield place


def _lower_directories(root: str) -> list[str]:
    """Those of the overlay that is mounted at ``root``; none where it is no such mount.

    An engine can give them as relative paths, which only it can resolve.
    """
    mounts = [each for each in mounts_of("self") if each.place == root and each.kind == "overlay"]
    for option in mounts[-1].options if mounts else ():
        key, _, value = option.partition("=")
        lower = value.split(":")
        if key == "lowerdir" and all(each.startswith("/") for each in lower):
            return lower
    return []


def _write_changes(container: Container, base: str, work: Path) -> None:
    """Write what the container changed in its root, and the content of ``/dev/shm``."""
    root = container.bundle.root
    changed, deleted = root_file_system.changes(root, base)
    # Podman 5.8.6 follows a link that it deletes, and deletes its target. It writes the changes
    # first: a file that replaces the link there is deleted in its place.
    links = [path for path in deleted if os.path.islink(base + path)]
    with open(work / CHANGES, "xb") as file:
        root_file_system.write_changes(root, changed, file, replaced=links)
    (work / DELETED).write_text(json.dumps(deleted))
    memory = container.bundle.binds.get("/dev/shm")
    if memory is not None:
        paths, _ = root_file_system.changes(memory, None)
        with open(work / SHARED_MEMORY, "xb") as file:
            root_file_system.write_changes(memory, ["", *paths], file)
