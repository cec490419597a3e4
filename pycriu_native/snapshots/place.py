"""The host name, network namespace and cgroup of a copy."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass

from .._support.unpatched import closing
from ..errors import Problem
from ..options.values import is_text
from . import start_worker
from .arguments import is_path
from .namespaces import CLONE_NEWNET, Namespaces

HOSTNAME_LENGTH = 64

NS_GET_NSTYPE = 0xB703
"""Number of an ioctl (ioctl_ns(2))."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The arguments of a start for host name, network namespace and cgroup."""

    hostname: str | None
    network: bool | str | os.PathLike[str] | None
    cgroup: str | os.PathLike[str] | None

    def problems(self) -> Iterator[Problem]:
        if self.hostname is not None and not (
            isinstance(self.hostname, str)
            and is_text(self.hostname)
            and 0 < len(os.fsencode(self.hostname)) <= HOSTNAME_LENGTH
        ):
            rule = f"text of 1 to {HOSTNAME_LENGTH} bytes is accepted"
            yield Problem("hostname", self.hostname, rule)
        if not isinstance(self.network, bool | None) and not (
            is_path(self.network) and _is_network(self.network)
        ):
            rule = "True, False, None or the path of a network namespace is accepted"
            yield Problem("network", self.network, rule)
        if self.cgroup is not None and (wrong := start_worker.problem(self.cgroup)):
            yield wrong

    def new_namespaces(self) -> Namespaces:
        """The new namespaces of a copy, which are created from now on."""
        return Namespaces(network=self.network is True, hostname=self.hostname)

    def joined(self, namespaces: Namespaces) -> Iterator[tuple[str, str]]:
        """The namespaces that a copy joins (``join_ns``), except its pid namespace."""
        yield "mnt", namespaces.file("mnt")
        if self.hostname is not None:
            yield "uts", namespaces.file("uts")
        if self.network is True:
            yield "net", namespaces.file("net")
        elif isinstance(self.network, str | os.PathLike):
            yield "net", os.path.abspath(self.network)  # CRIU has another working directory


def _is_network(path: str | os.PathLike[str]) -> bool:
    """Whether this is the file of a network namespace (namespaces(7))."""
    try:
        if os.stat(path).st_dev != os.stat("/proc/self/ns/net").st_dev:
            return False
        with closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
            return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False
