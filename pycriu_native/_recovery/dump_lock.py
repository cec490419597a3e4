"""The network lock of a dump, which stays until a restore of its images."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from .._integrity.image_files import DamagedError, ImageFiles
from .._system import nftables
from .._system.tcp_connections import Ends
from . import network_lock
from .created_names import run_of_dump


def lock_of_dump(images: int) -> Iterator[str]:
    """A message about the dump's network lock, if it exists: the next restore needs it."""
    until = "which the dump made and a restore that succeeds removes"
    with contextlib.suppress(OSError, DamagedError):
        run = run_of_dump(images)
        if run is not None:
            for name in (f"CRIU-{run}", f"CRIU-{run}"[: network_lock.LONGEST_TABLE]):
                if nftables.has_table(name):
                    yield f"the table inet {name} of nftables, {until}"
                    return
        ends = _connections(ImageFiles(images))
        if count := network_lock.count_rules(ends):
            yield f"{count} rules of iptables for {', '.join(sorted(map(str, ends)))}, {until}"


def _connections(files: ImageFiles) -> set[Ends]:
    """The TCP connections in the images."""
    remote = files.bindings("remote")
    return {
        Ends(local.address, local.port, remote[id].address, remote[id].port)
        for id, local in files.bindings().items()
        if local.protocol == socket.IPPROTO_TCP and id in remote and remote[id].port
    }
