"""The guests: each is a Debian suite with its own kernel, CRIU and Python."""

from __future__ import annotations

import os
from dataclasses import dataclass

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
"""The packages that the tests and the start of a guest need."""

CROSS_BUILD = ("libcriu-dev", "libprotobuf-c-dev")
"""The packages with which the extension is compiled for a guest of another architecture."""

OMITTED = ("doc", "info", "locale", "man")
"""Directories of ``/usr/share`` that are not installed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """An architecture, and the way in which QEMU emulates it."""

    architecture: str
    """Debian's name of the architecture."""
    uname: str
    """The kernel's name of the architecture."""
    qemu: tuple[str, ...]
    """The program and the options that select the machine."""
    console: str
    """The guest's device for messages of the kernel."""
    output: str
    """The guest's device for the output of the command."""
    devices: tuple[str, ...]
    """The options that connect the device of the output to QEMU's standard output."""


AMD64 = Machine(
    architecture="amd64",
    uname="x86_64",
    # An old processor: emulating the saving of a newer one's registers takes a third of the time.
    qemu=("qemu-system-x86_64", "-cpu", "Nehalem"),
    console="ttyS0",
    output="ttyS1",
    devices=("-serial", "stdio"),
)
ARM64 = Machine(
    architecture="arm64",
    uname="aarch64",
    qemu=("qemu-system-aarch64", "-M", "virt", "-cpu", "neoverse-n1"),
    console="ttyAMA0",
    output="hvc0",
    devices=(
        *("-device", "virtio-serial-pci", "-chardev", "stdio,id=output"),
        *("-device", "virtconsole,chardev=output"),
    ),
)
ARM64_PAC = Machine(
    architecture="arm64",
    uname="aarch64",
    # With pointer authentication. Without pauth-impdef, the emulation of the architecture's own
    # algorithm takes most of the time.
    qemu=("qemu-system-aarch64", "-M", "virt", "-cpu", "max,pauth-impdef=on"),
    console=ARM64.console,
    output=ARM64.output,
    devices=ARM64.devices,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Guest:
    """One guest."""

    name: str
    suite: str
    """Debian's codename."""
    packages: tuple[str, ...]
    """The packages beyond the minimal system; recommended packages are not installed."""
    kernel: str = "linux-image-cloud-amd64"
    """The package that depends on the suite's kernel; ``cloud`` is a kernel for virtual
    machines."""
    machine: Machine = AMD64

    @property
    def is_foreign(self) -> bool:
        """Whether its architecture is not that of this machine."""
        return self.machine.uname != os.uname().machine


def _arm64(name: str, suite: str, kernel: str = "cloud-arm64", machine: Machine = ARM64) -> Guest:
    return Guest(
        name=name,
        suite=suite,
        packages=(*TOOLS, "libcriu2", *CROSS_BUILD),
        kernel=f"linux-image-{kernel}",
        machine=machine,
    )


GUESTS = {
    guest.name: guest
    for guest in (
        Guest(name="bookworm", suite="bookworm", packages=TOOLS),
        Guest(name="trixie", suite="trixie", packages=(*TOOLS, "libcriu2")),
        _arm64("trixie-arm64", "trixie"),
        _arm64("trixie-arm64-16k", "trixie", "arm64-16k"),
        _arm64("forky-arm64-pac", "forky", machine=ARM64_PAC),
    )
}
"""The guests by name. bookworm (Debian 12) has kernel 6.1 and CRIU 3.17.1, trixie (Debian 13)
kernel 6.12 and CRIU 4.1.1, forky CRIU 4.2.1."""

NATIVE = tuple(name for name, guest in GUESTS.items() if guest.machine is AMD64)
FOREIGN = tuple(name for name in GUESTS if name not in NATIVE)
