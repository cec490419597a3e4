"""Finds the cgroups that a restore will make, and removes them if it fails.

CRIU makes the missing directories of those in ``cgroup.img`` (``criu/cgroup.c`` of 4.2,
``prepare_cgroup_dirs``), and leaves them when it fails.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from itertools import accumulate

from .._support.unpatched import sleep
from .._system.mountinfo import cgroup_hierarchies
from .._wire.fields import byte_fields
from ..enums import CgroupMode
from ..options.criu_opts import CriuOpts
from ..options.values import CgroupRoot
from .file_entries import messages

EMPTYING = 2.0
"""Seconds to wait until killed processes have left a cgroup."""


def missing_cgroups(images: int, opts: CriuOpts) -> tuple[str, ...]:
    """The directories that CRIU would make, outer ones first."""
    mode = opts.manage_cgroups_mode
    if mode == CgroupMode.IGNORE or (mode is None and opts.manage_cgroups is False):
        return ()
    result = [each for each in _controllers(images) if each[1]]
    if not result:
        return ()
    mounts = list(cgroup_hierarchies())
    missing: list[str] = []
    for names, trees in result:
        kind, controllers = ("cgroup", set(names)) if any(names) else ("cgroup2", set())
        for mount in mounts:
            if mount.kind == kind and mount.options >= controllers:
                for path in _paths(trees, _new_root(names, opts)):
                    levels = accumulate(path.split("/"), os.path.join)
                    missing += [f"{mount.place}/{level}" for level in levels]
                break
    return tuple(path for path in dict.fromkeys(missing) if not os.path.lexists(path))


def remove_cgroups(paths: Iterable[str]) -> Iterator[str]:
    """Remove the cgroups that exist; yields a message for each that cannot be removed."""
    until = time.monotonic() + EMPTYING
    for path in reversed(list(paths)):
        while True:
            try:
                os.rmdir(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                if time.monotonic() < until:
                    sleep(0.01)
                    continue
                yield f"the cgroup {path} ({error.strerror})"
            break


def _controllers(images: int) -> Iterator[tuple[list[str], list[bytes]]]:
    """Names of the controllers of each hierarchy (empty: v2), and its trees that have a name."""
    with contextlib.suppress(ValueError):
        for entry in messages(images, "cgroup.img"):
            for hierarchy in byte_fields(entry, 2):
                names = [os.fsdecode(name) for name in byte_fields(hierarchy, 1)]
                yield names, [tree for tree in byte_fields(hierarchy, 2) if _name(tree)]


def _name(tree: bytes) -> str:
    names = byte_fields(tree, 1)
    return os.fsdecode(names[0]).strip("/") if names else ""


def _new_root(names: list[str], opts: CriuOpts) -> str | None:
    """The path that replaces the name of a tree; None keeps it."""
    roots = [root for root in opts.cg_roots or () if isinstance(root, CgroupRoot)]
    return next((root.path for root in roots if root.controller in (None, *names)), None)


def _paths(trees: Iterable[bytes], root: str | None, above: str = "") -> Iterator[str]:
    for tree in trees:
        path = f"{above}/{_name(tree) if root is None else root}".strip("/")
        yield path
        yield from _paths(byte_fields(tree, 2), None, path)
