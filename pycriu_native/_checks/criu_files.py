"""Refuses files that CRIU reads or loads, besides the request, if another user can write to them.

CRIU reads configuration files, loads every plugin of a directory, and trusts its cache of kernel
features. A user who can write or create such a file gets CRIU's privileges: the call is refused,
unless its worker has ``allow_untrusted``. Sources: CRIU's ``criu/config.c``, ``criu/plugin.c``,
``criu/kerndat.c`` (4.2).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from .._support.light_typing import TYPE_CHECKING
from .._system import trusted_path
from .._transport.spawn import configuration_paths
from .._transport.worker import worker_of
from ..errors import Problem
from ..options.criu_opts import CriuOpts, StrPath
from .option_rules import LARGEST_CONFIGURATION
from .work_directory import from_work_directory

if TYPE_CHECKING:
    from .._transport.base import Via

READERS = ("every CRIU on this system", "HOME of the worker", "CRIU_CONFIG_FILE of the worker")
"""The reasons why CRIU reads each of ``configuration_paths``."""

PLUGINS = ("/usr/lib/criu", "/usr/local/lib/criu", "/var/lib/criu")
"""Plugin directories of usual builds; ``CRIU_LIBS_DIR`` in the environment overrides them."""

PLUGIN = ".so"

KERNEL_CACHE = "/run/criu.kdat"
"""CRIU's cache of kernel features; an unprivileged CRIU has it in ``XDG_RUNTIME_DIR``."""

ALLOW_UNTRUSTED = "Worker(allow_untrusted=True) accepts it"


def configuration(via: Via) -> Iterator[tuple[str, str]]:
    """The configuration files that CRIU reads before the request, each with the reason."""
    worker = worker_of(via)
    # The environment of a service is not known.
    paths = configuration_paths({})[:1] if worker is None else configuration_paths(worker.env)
    return zip(paths, READERS, strict=False)


def text_of(path: StrPath) -> bytes | None:
    """The text of a configuration file; None if CRIU would ignore it without a message."""
    try:
        with open(
            path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
        ) as file:
            return file.read(LARGEST_CONFIGURATION)
    except OSError:
        return None


def _plugin_directories(env: Mapping[str, str]) -> tuple[str, ...]:
    return (env["CRIU_LIBS_DIR"],) if "CRIU_LIBS_DIR" in env else PLUGINS


def missing_plugins(names: Iterable[str], opts: CriuOpts, via: Via | None) -> list[str]:
    """The plugins of these names that a restore would miss.

    Empty if there is no directory of plugins: CRIU then restores without them (``criu/plugin.c``).
    """
    worker = None if via is None else worker_of(via)
    if via is not None and worker is None:
        return []
    directories = _plugin_directories({} if worker is None else worker.env)
    if opts.libdir is not None:
        directories = (from_work_directory(opts, opts.libdir),)
    for directory in directories:
        if os.path.isdir(directory):
            files = os.listdir(directory)
            return [name for name in names if f"{name}{PLUGIN}" not in files]
    return []


def _plugins(directories: tuple[str, ...]) -> Iterator[str]:
    """Each directory, followed by the plugins in it, which CRIU would load."""
    for directory in directories:
        yield directory
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        yield from (os.path.join(directory, name) for name in names if name.endswith(PLUGIN))


def _cache(opts: CriuOpts, env: Mapping[str, str]) -> Iterator[str]:
    if not opts.unprivileged:
        yield KERNEL_CACHE
    elif "XDG_RUNTIME_DIR" in env:
        yield os.path.join(env["XDG_RUNTIME_DIR"], os.path.basename(KERNEL_CACHE))


def problems(opts: CriuOpts, via: Via) -> Iterator[Problem]:
    """Each file that another user can write, or could create."""
    if via.allow_untrusted:
        return
    for field, path, use in _named_files(opts):
        if (why := why_untrusted(path)) is not None:
            yield Problem(field, path, f"{why}, and {use}; {ALLOW_UNTRUSTED}")
    worker = worker_of(via)
    if worker is None:
        return
    readers = [*configuration(via)]
    directories = _plugin_directories(worker.env)
    caches = [*_cache(opts, worker.env)]
    if trusted_path.are_trusted(directories, PLUGIN, (*(path for path, _ in readers), *caches)):
        return
    uses = {path: f"reads {path} ({reader})" for path, reader in readers}
    uses |= {path: f"loads plugins from {path}" for path in _plugins(directories)}
    uses |= {path: f"trusts the cache {path}" for path in caches}
    for path, use in uses.items():
        if (why := why_untrusted(path)) is not None:
            yield Problem("via", via, f"CRIU {use}, but {why}; {ALLOW_UNTRUSTED}")


def _named_files(opts: CriuOpts) -> Iterator[tuple[str, str, str]]:
    """Files that the options name: the field, the path, and the effect of the file."""
    if opts.config_file is not None:
        yield "config_file", os.fsdecode(opts.config_file), "it overrides other options"
    for script in opts.action_scripts or ():
        yield "action_scripts", from_work_directory(opts, script), "CRIU runs it"
    if opts.libdir is not None:
        for path in _plugins((from_work_directory(opts, opts.libdir),)):
            yield "libdir", path, "CRIU runs it"


def why_untrusted(path: str) -> str | None:
    """Why a path is not trusted; None if it is, or if it cannot be read."""
    try:
        trusted_path.check(path)
    except trusted_path.UntrustedError as reason:
        return reason.strerror
    except OSError:
        return None
    return None
