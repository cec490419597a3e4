"""Whether a snapshot can start on this machine: processor, kernel, mapped files, CRIU."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import replace

from .._system.host import read
from .._system.process_snapshot import Tree
from .._system.processor import cpu_flags
from ..errors import Problem
from ..results import Version
from . import processor_level
from .java_counters import CURE, is_counters
from .record import Host, MappedFile, Record


def this_host() -> Host:
    """The description of this machine."""
    return Host(
        machine_id=read("/etc/machine-id").strip(),
        architecture=platform.machine(),
        kernel=os.uname().release,
        cpu_flags=tuple(sorted(cpu_flags())),
    )


def needed_host(processor: str) -> Host:
    """This machine with only the processor features of a level; "" for all features."""
    here = this_host()
    if not processor:
        return here
    return replace(here, cpu_flags=processor_level.features(processor, here.cpu_flags))


def mapped_files(tree: Tree) -> tuple[MappedFile, ...]:
    """The mapped files of a tree, except deleted ones: CRIU saves these, or the dump fails."""
    result = {}
    for process in tree.alive:
        for mapping in process.mappings:
            name = mapping.name
            if name.startswith("/") and name not in result and mapping.inode:
                try:
                    found = os.stat(name)
                except OSError:
                    continue
                if found.st_ino == mapping.inode:
                    result[name] = MappedFile(
                        path=name, size=found.st_size, mtime_ns=found.st_mtime_ns
                    )
    return tuple(result.values())


def problems(record: Record, criu: Version) -> Iterator[Problem]:
    """The reasons why a snapshot cannot start here with this release of CRIU."""
    here = this_host()
    there = record.host
    if here.architecture != there.architecture:
        rule = f"a snapshot of an {there.architecture} machine starts on {there.architecture} only"
        yield Problem("host", here.architecture, rule)
    elif lacking := set(there.cpu_flags) - set(here.cpu_flags):
        rule = (
            "the program may use these features, which this processor lacks; a snapshot that was "
            "taken with the argument processor needs fewer"
        )
        yield Problem("processor", " ".join(sorted(lacking)), rule)
    if _numbers(here.kernel) < _numbers(there.kernel):
        yield Problem("kernel", here.kernel, f"{there.kernel} or later is accepted")
    if criu < Version.parse(record.criu):
        yield Problem("criu", str(criu), f"{record.criu} or later is accepted")
    same_files = bool(here.machine_id) and here.machine_id == there.machine_id
    for file in record.files:
        yield from _file_problems(file, times=same_files)


def _file_problems(file: MappedFile, *, times: bool) -> Iterator[Problem]:
    """``times``: also compare the time of the last change, which differs between machines."""
    cure = CURE if is_counters(file.path) else "take the snapshot again, or restore the file"
    try:
        found = os.stat(file.path)
    except OSError as error:
        rule = f"the program has mapped this file: {error.strerror}; {cure}"
        yield Problem("files", file.path, rule)
        return
    if found.st_size != file.size:
        sizes = f"it had {file.size} bytes, now {found.st_size}"
        yield Problem("files", file.path, f"the program has mapped this file; {sizes}; {cure}")
    elif times and found.st_mtime_ns != file.mtime_ns:
        rule = f"the program has mapped this file, and it was changed since; {cure}"
        yield Problem("files", file.path, rule)


def _numbers(release: str) -> tuple[int, ...]:
    """The first two numbers of a kernel's release."""
    return tuple(int(number) for number in re.findall(r"\d+", release)[:2])
