"""Archives of containers' checkpoints: restore them without their engine, write them for Podman.

Podman (``container checkpoint --export``), CRI-O and the kubelet write such archives: images,
``config.dump``, ``spec.dump``, and the changes of the container's root file system::

    checkpoint = from_archive("web.tar.gz", "web", rootfs="alpine-root")
    with checkpoint.restoring(stdio=(None, log, log)) as opts:
        pid = restore(opts).pid

``to_archive`` dumps a container into an archive that ``podman container restore --import`` takes.

Facts: checkpointctl's ``lib/metadata.go``, Podman's ``pkg/checkpoint`` and ``libpod``.
"""

from __future__ import annotations

import contextlib
import io
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
from .._system.writing import writing
from ..archive.codecs import Compression, bad_argument, compressed
from ..archive.container_checkpoint import described, json_file
from ..archive.pack import Place, new_directory, opened_archive, pack, unpack, written_beside
from ..enums import Notify
from ..errors import CriuError, ImagesError
from ..options.criu_opts import CriuOpts
from ..options.values import Descriptor
from ..results import DumpResult
from . import root_file_system
from .bundle import Bundle, Container, StrPath
from .image_layout import layers_of
from .runtime_config import is_bind, problems_of

CHECKPOINT = "checkpoint"
CONFIG, SPEC = "config.dump", "spec.dump"
CHANGES, DELETED = "rootfs-diff.tar", "deleted.files"
SHARED_MEMORY = "devshm-checkpoint.tar"
"""The archive of the files in ``/dev/shm``."""

_EMPTY_FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv")
_DIRECTORIES = ("/dev/shm", "/run/secrets")
"""Mounts that every engine creates for its containers, from its own files."""

_IMAGE_ID = re.compile("(sha256:)?[0-9a-f]{64}")
_SHM_SIZE = 65536000
"""Podman's default for the size of ``/dev/shm``, in bytes."""

_OWN = {"network": "an empty one: 'ip netns add NAME' makes /run/netns/NAME"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerCheckpoint:
    """A container from an archive: a bundle, and the images of its processes.

    Synchronization: immutable, so safe to share between threads.
    """

    bundle: Bundle
    """Its bundle: ``config.json`` and ``rootfs``."""
    images: str
    """The directory of the images."""
    name: str | None
    """Its name in the engine. This and the following are None if the archive does not have them."""
    id: str | None
    image: str | None
    engine: str | None
    """``Podman``, ``CRI-O`` or ``containerd``."""

    @classmethod
    def load(cls, directory: StrPath) -> ContainerCheckpoint:
        """Load a directory that ``from_archive`` made. Raises ``OSError``, ``ImagesError``."""
        bundle = Bundle.load(directory)
        fields = described(_config(Path(bundle.path)), json_file(Path(bundle.path, SPEC)))
        known = {key: fields[key] for key in ("name", "id", "image", "engine")}
        return cls(bundle=bundle, images=os.path.join(bundle.path, CHECKPOINT), **known)

    def restoring(
        self, *, stdio: Sequence[Descriptor | None] = (0, 1, 2), **more: Any
    ) -> AbstractContextManager[CriuOpts]:
        """The options of a restore, as those of :meth:`Bundle.restoring`."""
        return self.bundle.restoring(self.images, stdio=stdio, **more)

    def running(self, pid: int, runtime: str = "runc") -> Container:
        """The restored container whose first process has this pid, as argument of a dump.

        ``runtime`` selects the keys of external mounts in the images.
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
    """Extract a container's checkpoint into a new ``directory`` (mode 0700), as a bundle.

    The root file system is a copy of ``rootfs`` with the changes of the archive. The mounts that
    the engine creates from its own files (``/etc/hosts``, ``/etc/resolv.conf``, ``/dev/shm`` …) and
    its named volumes become files below ``binds`` in the directory. Hooks are left out. Of
    this host the container gets what the arguments name, and a copy of ``/etc/resolv.conf``. A
    failure removes all that was written.

    Args:
        source: a path, or a binary stream; compression and encryption are recognised.
        rootfs: the root file system of the image: a directory (of ``podman image mount``), a tar
            archive (of ``podman export`` or ``docker export`` of a fresh container), or an OCI
            layout (``skopeo copy docker://… oci:DIR``).
        binds: the path on this host for the destination of each bind mount from the host.
        namespaces: by type (``network``, ``ipc`` …), the path of the namespace to join, or None
            for a new one. The archive does not contain the namespaces of a pod; they have to be
            named here.
        decrypt_with, limit: as for :func:`~pycriu_native.archive.unpack`; the limit applies to the
            archive, and to the root file system and each volume in it.

    Raises:
        OptionError: an argument is not accepted.
        ImagesError: not an archive of a container, a damaged one, or one that needs a bind mount
            or a namespace that no argument names.
        OSError: a file cannot be written; owners and devices need root.
    """
    if not os.path.exists(rootfs):
        raise bad_argument("rootfs", os.fspath(rootfs), "a directory or archive is accepted")
    with new_directory(Path(directory)) as partial:
        unpack(source, partial, decrypt_with=decrypt_with, limit=limit)
        most = shutil.disk_usage(partial).free if limit is None else limit
        unpacked = _Unpacked(partial, most)
        unpacked.write_config(binds or {}, namespaces or {})
        unpacked.write_root(rootfs)
    return ContainerCheckpoint.load(directory)


def host_mounts(directory: StrPath) -> list[str]:
    """The destinations of bind mounts from the host, which the argument ``binds`` has to name.

    ``directory`` is an extracted archive. Raises ``ImagesError``.
    """
    return _Unpacked(Path(directory), 0).host_mounts()


class _Unpacked:
    """The directory of an extracted archive, which is made into a bundle."""

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        for name in (SPEC, f"{CHECKPOINT}/inventory.img"):
            if not (directory / name).is_file():
                raise ImagesError(f"the archive is not a container's checkpoint: it has no {name}")
        self._config = _config(directory)
        self._spec = json_file(directory / SPEC)

    def write_config(
        self, binds: Mapping[str, StrPath], namespaces: Mapping[str, str | None]
    ) -> None:
        """Write ``config.json`` with mounts and namespaces for this host."""
        with _form_of(SPEC, "specification"):
            spec = dict(self._spec)
            spec["root"] = {**spec["root"], "path": "rootfs"}
            spec["mounts"] = list(self._mounts(spec.get("mounts") or (), binds))
            spec["linux"] = dict(spec["linux"])
            spec["linux"]["namespaces"] = list(
                self._namespaces(spec["linux"].get("namespaces") or (), namespaces)
            )
            spec.pop("hooks", None)
        if problems := problems_of(spec):
            what = "; ".join(map(str, problems))
            raise ImagesError(f"{SPEC} is not the specification of a container: {what}")
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
                f"the container has bind mounts from its host at {', '.join(missing)}; name a path "
                f"on this host for each, such as the original ones: binds={{{cure}}}"
            )

    def host_mounts(self) -> list[str]:
        """The destinations of bind mounts that need a path on this host."""
        with _form_of(SPEC, "specification"):
            own = {*_EMPTY_FILES, *_DIRECTORIES, *self._volumes()}
            binds = filter(is_bind, self._spec.get("mounts") or ())
            return [place for each in binds if (place := _absolute(each["destination"])) not in own]

    def _own_source(self, place: str) -> str | None:
        """Create the file or directory for a mount of the engine. None for another mount."""
        # A quoted name: ".." or a symbolic link in another volume cannot lead out of the directory.
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
        """The archives of Podman's named volumes by destination."""
        result = {}
        with _form_of(CONFIG, "description"):
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
                    f"the {kind} namespace of the container was {each['path']}, which belongs to a "
                    f"pod or the engine and is not in the archive; name one to join with "
                    f"namespaces={{{kind!r}: PATH}} ({what})"
                )
            yield {"type": kind} if path is None else {"type": kind, "path": path}

    def write_root(self, image: StrPath) -> None:
        """Write the root file system of the image with the changes of the container."""
        root = self._directory / "rootfs"
        root.mkdir(0o755)
        if not os.path.isdir(image):
            self._extract(Path(image), root)
        elif os.path.isfile(os.path.join(image, "oci-layout")):
            for layer in layers_of(image):
                with layer as file:
                    self._extract(file, root, is_layer=True)
        else:
            root_file_system.copy(os.fspath(image), os.fspath(root))
        if (self._directory / CHANGES).exists():
            self._extract(self._directory / CHANGES, root)
            (self._directory / CHANGES).unlink()
        if (self._directory / DELETED).exists():
            deleted = json_file(self._directory / DELETED, list)
            try:
                root_file_system.remove(os.fspath(root), map(str, deleted))
            except ValueError as error:  # a character that no path has
                raise ImagesError(f"{DELETED} of the archive: {error}") from None

    def _extract(self, archive: Place, to: Path, *, is_layer: bool = False) -> None:
        with opened_archive(archive) as stream:
            root_file_system.extract(stream, os.fspath(to), limit=self._limit, is_layer=is_layer)


def _config(directory: Path) -> dict[str, Any]:
    """The contents of ``config.dump``; empty if there is none."""
    result: dict[str, Any] = json_file(directory / CONFIG) if (directory / CONFIG).exists() else {}
    return result


@contextlib.contextmanager
def _form_of(name: str, what: str) -> Iterator[None]:
    """Raise ``ImagesError`` if the file ``name`` has another form than expected."""
    try:
        yield
    except CriuError:  # one of an argument is a ValueError
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ImagesError(f"{name} is not the {what} of a container: {error!r}") from None


def _absolute(destination: str) -> str:
    """The destination of a mount, normalized: below the root of the container."""
    return posixpath.normpath("/" + destination.lstrip("/"))


# ---- writing archives ----


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
    """Dump a container into an archive for ``podman container restore --import``.

    The dump ends the container, unless ``leave_running=True``. Its runtime then reports it as
    stopped; remove it (``podman rm``) before Podman restores one with the same name or id.

    Args:
        container: a container of runc, crun or Podman, or of :meth:`ContainerCheckpoint.running`.
        to: the path of the archive. The file appears when it is complete.
        image: the name of the container's image, such as ``docker.io/library/alpine:3``, which
            Podman pulls if it does not have it. Default: that of the archive that the container
            was restored from, or that in the storage of Podman and CRI-O.
        image_id: the image's id, 64 hexadecimal digits (``podman image inspect --format={{.Id}}``).
            Podman 5 needs it if ``image`` is given; Podman 4 finds the image by its name.
        name: the container's name. Default: the present name, or the first 12 digits of the id.
        base: the root file system of the image, a directory. The archive contains the differences
            from it. Default: the lower directories of the container's overlay; if its root is not
            an overlay, ``base`` is required.
        compress: ``"gzip"``, ``"zstd"`` or ``"none"``.
        more: further fields of ``CriuOpts``, as for :meth:`Container.dump_opts`.

    Raises:
        OptionError: an argument is not accepted; the container continues to run.
        CriuError: the exceptions of ``dump``. If the archive cannot be written after the dump, the
            exception has a note with the directory that contains the images and other files.
    """
    target = Path(to).absolute()
    with _form_of(SPEC, "specification"):
        config, spec = _described(container, image, image_id, name)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    dumped = False
    try:
        with writing(target):
            images = work / CHECKPOINT
            container.write_descriptors(images)
            opts = container.dump_opts(images, **more)
            (work / CONFIG).write_text(json.dumps(config))
            (work / SPEC).write_text(json.dumps(spec))
            with compressed(io.BytesIO(), compress):
                pass  # another value, or one without its package, is refused before the dump
            with written_beside(target) as file:
                with _base_of(container, base) as lower:

                    def hook(notification: Notification) -> None:
                        if notification.action is Notify.POST_DUMP:  # the container is frozen
                            _write_changes(container, lower, work)

                    result = dump(container.pid, opts, on_notify=hook)
                dumped = True
                beside = {path.name: path for path in work.iterdir() if path != images}
                pack(images, file, inside=CHECKPOINT, more=beside, compress=compress)
    except BaseException as error:
        if dumped:
            error.add_note(f"the container has been dumped; its files are kept in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work)
    return replace(result, images=os.fspath(target), log=None)


def _described(
    container: Container, image: str | None, image_id: str | None, name: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.dump`` and ``spec.dump``: those of the container's archive, or minimal ones."""
    bundle = container.bundle
    mounts = [  # relative sources are relative to the bundle
        {**mount, "source": os.path.join(bundle.path, mount["source"])} if is_bind(mount) else mount
        for mount in bundle.config.get("mounts") or ()
    ]
    before = Path(bundle.path, CONFIG)
    if before.exists():
        config, spec = json_file(before), json_file(before.with_name(SPEC))
    else:
        config, spec = _storage_record(container), {**bundle.config, "mounts": mounts}
    if image is not None and image != config.get("rootfsImageName"):
        # Podman 4 accepts the name of an image in place of its id.
        config |= {"rootfsImageName": image, "rootfsImageID": image}
    if image_id is not None:
        if not _IMAGE_ID.fullmatch(image_id):
            raise bad_argument("image_id", image_id, "64 hexadecimal digits are accepted")
        config["rootfsImageID"] = image_id.removeprefix("sha256:")
    if not config.get("rootfsImageName"):
        raise bad_argument("image", image, "the name of the container's image is needed")
    config.setdefault("id", container.id)
    if os.path.basename(str(config.get("runtime"))) != container.runtime:
        config["runtime"] = container.runtime  # Podman refuses to restore with another runtime
    config.setdefault("shmSize", _SHM_SIZE)
    config["name"] = name or config.get("name") or container.id[:12]
    annotations = dict(spec.get("annotations") or {})
    annotations.setdefault("io.container.manager", "libpod")
    return config, {**spec, "annotations": annotations}


def _storage_record(container: Container) -> dict[str, Any]:
    """The record of a container in the storage of Podman and CRI-O; empty for other containers.

    The bundle is ``DRIVER-containers/ID/userdata`` in that storage, the records are in
    ``DRIVER-containers/containers.json`` (github.com/containers/storage, ``containers.go``).
    """
    file = Path(container.bundle.path).parent.parent / "containers.json"
    if not file.is_file():
        return {}
    with _form_of(os.fspath(file), "list"):
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
    """Yield the directory of the image's root file system, to compare with."""
    if base is not None:
        if not os.path.isdir(base):
            raise bad_argument("base", os.fspath(base), "a directory is accepted")
        yield os.path.realpath(base)
        return
    root = container.bundle.root
    lower = _lower_directories(root)
    if not lower:
        why = f"{root} is not an overlay of known directories"
        raise bad_argument("base", None, f"the root file system of the image is needed: {why}")
    with overlay_of(lower) as place:
        yield place


def _lower_directories(root: str) -> list[str]:
    """The lower directories of the overlay that is mounted at ``root``; empty if there is none.

    The result is also empty if the engine mounted them by relative paths.
    """
    mounts = [each for each in mounts_of("self") if each.place == root and each.kind == "overlay"]
    for option in mounts[-1].options if mounts else ():
        key, _, value = option.partition("=")
        lower = value.split(":")
        if key == "lowerdir" and all(each.startswith("/") for each in lower):
            return lower
    return []


def _write_changes(container: Container, base: str, work: Path) -> None:
    """Write the changes of the container's root, and the files of ``/dev/shm``."""
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
