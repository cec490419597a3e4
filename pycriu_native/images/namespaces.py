"""Namespaces, mounts, network devices, cgroups and file locks of an image set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from . import kernel_names as names
from .image_directory import ImageDirectory
from .json_messages import to_dict
from .model import Cgroup, FileLock, Mount, Namespace, NetworkDevice, Process
from .schema import enum_name


def namespaces(
    images: ImageDirectory, processes: tuple[Process, ...], host: Any
) -> list[Namespace]:
    """The namespaces of these processes; ``host`` has those in which CRIU ran."""
    result: dict[tuple[str, int], Namespace] = {}
    for process in processes:
        for kind, number in process.namespaces.items():
            if (kind, number) not in result:
                outside = host is not None and getattr(host, f"{kind}_ns_id", 0) == number
                result[kind, number] = _namespace(images, kind, number, outside)
    return list(result.values())


def _namespace(images: ImageDirectory, kind: str, number: int, host: bool) -> Namespace:
    if host:
        return Namespace(kind=kind, id=number, host=True)
    image = {
        "uts": f"utsns-{number}.img",
        "pid": f"pidns-{number}.img",
        "net": f"netns-{number}.img",
        "user": f"userns-{number}.img",
        "time": "timens-0.img",
        "ipc": f"ipcns-var-{number}.img",
    }.get(kind, "")
    read = images.entries(image) if image else []
    details = to_dict(read[0]) if read else {}
    external = details.pop("ext_key", None)
    return Namespace(kind=kind, id=number, host=False, external=external, details=details)


def mounts(images: ImageDirectory, namespaces: list[Namespace]) -> Iterator[Mount]:
    """The mounts of the saved mount namespaces."""
    for space in namespaces:
        if space.kind != "mnt" or space.host:
            continue
        for each in images.entries(f"mountpoints-{space.id}.img"):
            text = {key: os.fsdecode(getattr(each, key)) for key in ("source", "root", "options")}
            outside = each.HasField("ext_key") or each.ext_mount
            type_ = enum_name("fstype", each.fstype).lower().replace("overlayfs", "overlay")
            yield Mount(
                id=each.mnt_id,
                parent=each.parent_mnt_id,
                namespace=space.id,
                point="/" + os.fsdecode(each.mountpoint).removeprefix(".").lstrip("/"),
                type=os.fsdecode(each.fsname) or type_,
                external=os.fsdecode(each.ext_key) if outside else None,
                **text,
            )


def devices(images: ImageDirectory, namespaces: list[Namespace]) -> list[NetworkDevice]:
    """The devices of the saved network namespaces."""
    return [
        NetworkDevice(
            namespace=space.id,
            index=each.ifindex,
            name=os.fsdecode(each.name),
            type=enum_name("nd_type", each.type),
            mtu=each.mtu,
            address=each.address.hex(":"),
            peer=each.peer_ifindex if each.HasField("peer_ifindex") else None,
        )
        for space in namespaces
        if space.kind == "net" and not space.host
        for each in images.entries(f"netdev-{space.id}.img")
    ]


def cgroup_sets(images: ImageDirectory) -> dict[int, dict[str, str]]:
    """The cgroups of each set, by controllers."""
    sets = {}
    for entry in images.entries("cgroup.img"):
        for each in entry.sets:
            sets[each.id] = {
                os.fsdecode(member.name): os.fsdecode(member.path) for member in each.ctls
            }
    return sets


def cgroups(images: ImageDirectory) -> Iterator[Cgroup]:
    """The directories of all hierarchies, from the top down."""
    for entry in images.entries("cgroup.img"):
        for controller in entry.controllers:
            controllers = tuple(map(os.fsdecode, controller.cnames))
            waiting = [("", each) for each in reversed(controller.dirs)]
            while waiting:
                above, each = waiting.pop()
                path = f"{above}/{os.fsdecode(each.dir_name).strip('/')}".replace("//", "/")
                properties = len(each.properties)
                yield Cgroup(controllers=controllers, path=path, properties=properties)
                waiting += [(path, child) for child in reversed(each.children)]


def locks(images: ImageDirectory) -> list[FileLock]:
    """The locks of all processes."""
    return [
        FileLock(
            pid=each.pid,
            fd=each.fd,
            kind=names.LOCKS.get(each.flag, str(each.flag)),
            type=each.type,
            start=each.start,
            length=each.len,
        )
        for each in images.entries("filelocks.img")
    ]
