"""Read a directory into an :class:`ImageSet`."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from typing import Any

from .._integrity import statistics
from .._system.descriptors import opened_directory
from .._system.regular_file import read_regular
from ..enums import NetworkLock
from ..errors import ImagesError
from ..options.value_types import path_argument
from . import namespaces
from .files import Files
from .image_directory import ImageDirectory
from .model import ImageSet
from .processes import Processes, pre_dumped
from .reader import expect
from .schema import enum_name

_INVENTORY_SINCE = (
    ("4.3", ("compress", "compress_block_size")),
    ("4.2", ("allow_uprobes",)),
    ("4.1", ("dump_criu_run_id", "plugins_entry")),
)
"""Fields of the inventory, by the release that added them."""
_VERSION = re.compile(r"\bVersion: ([0-9]{1,4}(?:\.[0-9]{1,4}){1,2})")
_KERNEL = re.compile(r"\bRunning on \S+ Linux (\S+)")


def inspect(directory: str | os.PathLike[str]) -> ImageSet:
    """Read the images in a directory.

    Nothing is changed, and CRIU is not needed. Images of CRIU 3.17 to 4.3 are supported, of all
    architectures. Missing and truncated files are listed in ``ImageSet.problems``, so that an
    incomplete set can be inspected.

    Raises ``ImagesError``, naming file and offset, for a directory without an ``inventory.img``,
    for invalid images, for symbolic links instead of images, and for a cycle of parents.
    """
    images = ImageDirectory(os.path.abspath(path_argument("directory", directory)))
    inventory = _inventory(images)
    tree = images.entries("pstree.img")
    files = Files(images, {each.pid for each in tree if each.sid == each.pid})
    host = inventory.root_ids if inventory.HasField("root_ids") else None
    reader = Processes(images, files, tree, namespaces.cgroup_sets(images))
    processes = tuple(pre_dumped(images) if images.pre_dump else map(reader.process, tree))
    spaces = namespaces.namespaces(images, processes, host)
    criu, kernel = _from_log(images)
    with opened_directory(images.directory) as fd:
        dump, restored = statistics.read_dump(fd), statistics.read_restore(fd)
    return ImageSet(
        directory=images.directory,
        kind="pre-dump" if images.pre_dump else "dump",
        version=inventory.img_version,
        criu=criu,
        criu_at_least=next(
            (
                release
                for release, fields in _INVENTORY_SINCE
                if any(inventory.HasField(each) for each in fields)
            ),
            None,
        ),
        kernel=kernel,
        run_id=os.fsdecode(inventory.dump_criu_run_id) or None,
        architecture=next((each.architecture for each in processes), ""),
        lsm=enum_name("lsmtype", inventory.lsmtype),
        compressed=bool(inventory.compress),
        network_lock=_lock(inventory),
        tcp_close=inventory.tcp_close,
        allow_uprobes=inventory.allow_uprobes,
        plugins=tuple(map(os.fsdecode, inventory.plugins_entry.plugins)),
        processes=processes,
        files=tuple(files.by_id[number] for number in sorted(files.by_id)),
        mounts=tuple(namespaces.mounts(images, spaces)),
        namespaces=tuple(spaces),
        devices=tuple(namespaces.devices(images, spaces)),
        cgroups=tuple(namespaces.cgroups(images)),
        locks=tuple(namespaces.locks(images)),
        statistics=dump,
        restored=restored,
        parents=tuple(images.parents),
        images=tuple(images.listed),
        problems=tuple(images.problems),
    )


def _inventory(images: ImageDirectory) -> Any:
    try:
        with expect(images.path("inventory.img"), "INVENTORY") as file:
            return file.only()
    except ImagesError as error:
        if error.errno != errno.ENOENT:
            raise
        why = "it has no images, or their dump failed"
        if os.path.exists(images.path("checkpoint/inventory.img")):
            why = "its directory checkpoint has one: this is the checkpoint of a container"
        raise ImagesError(
            f"{images.directory} has no inventory.img: {why}", errno=errno.ENOENT
        ) from None


def _from_log(images: ImageDirectory) -> tuple[str | None, str | None]:
    """The releases of CRIU and the kernel, from the first lines of the dump's log."""
    for name in ("dump.log", "pre-dump.log"):
        with contextlib.suppress(OSError):
            head = read_regular(images.path(name), 8192).decode(errors="replace")
            version, kernel = _VERSION.search(head), _KERNEL.search(head)
            return version and version[1], kernel and kernel[1]
    return None, None


def _lock(inventory: Any) -> NetworkLock | None:
    """The lock of the network: CRIU writes the numbers of its own enumeration, from 0."""
    number = inventory.network_lock_method + 1
    known = inventory.HasField("network_lock_method") and number in list(NetworkLock)
    return NetworkLock(number) if known else None
