"""The files that have a say in what CRIU does, besides the request: who could write them.

CRIU reads configuration files, loads every plugin of a directory into itself, and believes a
cache of what the kernel can do. A file that another user can write, or could make, gives that
user CRIU's privileges; so the call is refused, unless its worker is ``allow_untrusted``. Facts:
CRIU's ``criu/config.c``, ``criu/plugin.c``, ``criu/kerndat.c`` (4.2).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from .._support.light_typing import TYPE_CHECKING
from .._system import trusted_path
from .._transport.spawn import FIXED_ENVIRONMENT
from .._transport.worker import worker_of
from ..errors import Problem
from ..options.criu_opts import CriuOpts

if TYPE_CHECKING:
    from .._transport.base import Via

GLOBAL_FILE = "/etc/criu/default.conf"
USER_FILE = ".criu/default.conf"
ENVIRONMENT = "CRIU_CONFIG_FILE"

PLUGINS = ("/usr/lib/criu", "/usr/local/lib/criu", "/var/lib/criu")
"""Where programs look for plugins, as they are built; ``CRIU_LIBS_DIR`` in the environment wins."""

PLUGIN = ".so"

KERNEL_CACHE = "/run/criu.kdat"
"""What CRIU knows of the kernel; unprivileged, it is in ``XDG_RUNTIME_DIR``."""

ALLOW_UNTRUSTED = "Worker(allow_untrusted=True) takes it as it is"


def configuration(via: Via) -> Iterator[tuple[str, str]]:
    """The configuration files that CRIU looks for before the request, and why it does."""
    yield GLOBAL_FILE, "every CRIU on this system"
    worker = worker_of(via)
    if worker is None:
        return  # its environment is not ours to see
    environment = {**FIXED_ENVIRONMENT, **worker.env}
    yield os.path.join(environment["HOME"], USER_FILE), "HOME of the worker"
    if ENVIRONMENT in environment:
        yield environment[ENVIRONMENT], f"{ENVIRONMENT} of the worker"


def _plugin_directories(env: Mapping[str, str]) -> tuple[str, ...]:
    return (env["CRIU_LIBS_DIR"],) if "CRIU_LIBS_DIR" in env else PLUGINS


def _plugins(directories: tuple[str, ...]) -> Iterator[str]:
    """The plugins that CRIU would load, each after its directory."""
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
    """Each file that another user could write, or could make where there is none yet."""
    if via.allow_untrusted:
        return
    if opts.config_file is not None:
        path = os.fsdecode(opts.config_file)
        why = _why_not(path)
        if why is not None:
            yield Problem("config_file", path, f"{why}, and what it says wins; {ALLOW_UNTRUSTED}")
    if opts.action_scripts or opts.libdir is not None:
        yield from _named_programs(opts)
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
    uses |= {path: f"believes what is in {path}" for path in caches}
    for path, use in uses.items():
        why = _why_not(path)
        if why is not None:
            yield Problem("via", via, f"CRIU {use}, but {why}; {ALLOW_UNTRUSTED}")


def _named_programs(opts: CriuOpts) -> Iterator[Problem]:
    """Programs and plugins that the options name."""
    from .work_directory import from_work_directory  # few calls need it

    named = [("action_scripts", from_work_directory(opts, p)) for p in opts.action_scripts or ()]
    if opts.libdir is not None:
        named += [("libdir", p) for p in _plugins((from_work_directory(opts, opts.libdir),))]
    for field, path in named:
        why = _why_not(path)
        if why is not None:
            yield Problem(field, path, f"{why}, and CRIU runs it; {ALLOW_UNTRUSTED}")


def _why_not(path: str) -> str | None:
    """Who else could write it; None where nobody could, or where CRIU could not read it either."""
    try:
        trusted_path.check(path)
    except trusted_path.UntrustedError as reason:
        return reason.strerror
    except OSError:
        return None
    return None
