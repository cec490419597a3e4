"""The guests: each is a Debian suite with its own kernel, CRIU and Python."""

from __future__ import annotations

from dataclasses import dataclass

KERNEL = "linux-image-cloud-amd64"
"""The package that depends on the suite's kernel; the small one made for virtual machines."""

TOOLS = (
    "python3",
    "criu",
    "busybox-static",
    "crun",
    "e2fsprogs",
    "gcc",
    "iproute2",
    "iptables",
    "kmod",
    "libc6-dev",
    "nftables",
    "openssl",
    "procps",
    "runc",
)
"""What the tests run, and what the guest needs to start."""

OMITTED = ("doc", "info", "locale", "man")
"""Directories of ``/usr/share`` that no guest needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guest:
    """One guest."""

    suite: str
    """Debian's codename, which is the guest's name too."""
    packages: tuple[str, ...]
    """What is installed beside the bare system; without recommended packages."""


GUESTS = {
    guest.suite: guest
    for guest in (
        Guest(suite="bookworm", packages=TOOLS),
        Guest(suite="trixie", packages=(*TOOLS, "libcriu2")),
    )
}
"""By name. Debian 12: kernel 6.1, CRIU 3.17.1. Debian 13: kernel 6.12, CRIU 4.1.1."""
