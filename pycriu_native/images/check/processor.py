"""Architecture and processor (``criu/image.c``, ``criu/cpu.c``)."""

from __future__ import annotations

import os
import platform

from ..._integrity.page_size import HOST_PAGE
from ..._support.scratch import scratch_directory
from ..._system.processor import authenticates_pointers, cpu_flags
from ...errors import CriuError
from ...options.criu_opts import CriuOpts
from .context import Context, Findings, stops, warning

_MACHINES = {
    "X86_64": ("x86_64", "amd64"),
    "AARCH64": ("aarch64", "arm64"),
    "ARM": ("armv7l", "armv6l", "armv8l"),
    "PPC64": ("ppc64le", "ppc64"),
    "S390": ("s390x",),
    "MIPS": ("mips64", "mips"),
    "LOONGARCH64": ("loongarch64",),
    "RISCV64": ("riscv64",),
}
_CPU_STATES = (
    (1 << 2, "avx", "AVX"),
    (0b111 << 5, "avx512f", "AVX-512"),
    (0b11 << 17, "amx_tile", "AMX"),
)
"""Bits of the extended state, the flag of ``/proc/cpuinfo`` that they need, and their name."""
_PROTECTION_KEYS = 1 << 9
"""The bit of protection keys, which is also set in programs that do not use them."""


def processor(context: Context) -> Findings:
    machine = platform.machine()
    expected = context.images.architecture
    if expected and machine not in _MACHINES.get(expected, (machine,)):
        yield stops(
            "processor",
            f"the images are for {expected}, this host is {machine}",
            f"a host with {expected} processors",
        )
        return
    for page in sorted({each.page_size for each in context.images.processes} - {0, HOST_PAGE}):
        yield stops(
            "processor",
            f"the images have pages of {page} bytes, this host has pages of {HOST_PAGE}",
            f"a host whose kernel has pages of {page} bytes (getconf PAGESIZE)",
        )
    if os.path.exists(os.path.join(context.images.directory, "cpuinfo.img")):
        yield from _cpuinfo(context)
    used = 0
    for process in context.images.processes:
        for thread in process.threads:
            used |= thread.cpu_state
    flags = cpu_flags()
    for bits, flag, name in _CPU_STATES:
        if used & bits and flags and flag not in flags:
            yield stops("processor", f"it lacks {name}, which the processes use", "another host")
    if used & _PROTECTION_KEYS and flags and "pku" not in flags:
        yield warning(
            "processor",
            "it lacks protection keys: CRIU leaves out their state, and memory that they "
            "protect is not protected",
            "another host, if the program uses them (pkeys(7))",
        )
    have_keys = any(each.pointer_authentication for each in context.images.processes)
    if flags and have_keys and not authenticates_pointers():
        yield stops(
            "processor",
            "it lacks pointer authentication (PAC), whose keys the images have",
            "another host",
        )


def _cpuinfo(context: Context) -> Findings:
    from ..._calls.verbs import cpuinfo_check  # few image sets have a cpuinfo.img

    # The log, the only file that is written, must not be in the images directory.
    with scratch_directory("pycriu-native-") as work:
        opts = CriuOpts(
            images_directory=context.images.directory,
            work_directory=work,
            cpu_cap=context.opts.cpu_cap,
        )
        try:
            cpuinfo_check(opts, via=context.via)
        except CriuError as error:
            yield stops(
                "processor",
                f"it does not fit cpuinfo.img: {error.cause or error}",
                "another host, or a cpu_cap that compares less",
                "cpu_cap",
            )
