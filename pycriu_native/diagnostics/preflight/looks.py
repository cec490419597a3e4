"""Applies all rules of ``preflight`` to a process tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..._checks.option_rules import ONE_PROCESS
from ..._rollback.option import Files, rollback_of
from ..._support.unpatched import sleep
from ..._system.mount_table import MountTable
from ..._system.process_identity import Target, foreign_proc, is_pid, located, number_of
from ..._system.process_snapshot import Tree
from ..._transport.base import Via
from ..._transport.worker import Worker
from ...errors import OptionError, Problem
from ...findings import Finding, Severity, ordered
from ...options.criu_opts import CriuOpts
from ..config_effects import configuration_files
from . import (
    attributes,
    epolls,
    files,
    huge_pages,
    means,
    memory,
    mounts,
    network_namespaces,
    objects,
    restorable,
    size,
    socket_options,
    sockets,
    tasks,
    terminals,
    unix_names,
    written,
)
from .context import Context, Findings
from .restore_needs import needs_of, options_of
from .values import ImageSize, Preflight

LOOKS = (
    mounts,
    files,
    objects,
    epolls,
    sockets,
    network_namespaces,
    socket_options,
    unix_names,
    terminals,
    memory,
    huge_pages,
    attributes,
    restorable,
    written,
)
OBSTACLES = (Severity.STOPS, Severity.NEEDS_OPTION, Severity.NO_RESTORE)
"""Severities of findings that decide the verdict."""


def look_at(
    pid: Target, opts: CriuOpts, *, include_caller: bool, via: Via | None, files: Files
) -> Preflight:
    """The result of :func:`~pycriu_native.preflight`, whose arguments these are."""
    if why := foreign_proc():
        raise OptionError([Problem("pid", number_of(pid), why)], verb="preflight")
    pid, _ = located(pid, "preflight")
    if not is_pid(pid):
        raise OptionError([Problem("pid", pid, ONE_PROCESS)])
    means.check_options(opts, pid)
    via = via or Worker()
    rollback = rollback_of(files, "preflight")
    configuration = tuple(configuration_files(opts, via))

    def context_of_now() -> Context:
        tree = Tree(pid)
        return Context(
            tree=tree,
            opts=opts,
            via=via,
            mounts=MountTable(tree),
            include_caller=include_caller,
            rollback=rollback,
            configuration=configuration,
        )

    context, result = _confirmed(context_of_now)
    tree = context.tree
    expected = ImageSize()
    if tree.alive:
        expected = size.expected(context)
        also = means.directories(opts, size.largest_image(context), expected.total)
        result = ordered((*result, *also))
    for_dump = _with(opts, result)
    return Preflight(
        pid=pid,
        pids=tuple(process.pid for process in tree.processes),
        findings=result,
        given=opts,
        opts=for_dump,
        restore_opts=options_of(for_dump),
        restore_needs=tuple(dict.fromkeys(needs_of(context, for_dump, result))),
        size=expected,
    )


READINGS = 6
"""How often a tree that keeps changing is read for one result."""
PASSING = frozenset(("uninterruptible", "vfork", "shared-by-processes"))
"""Obstacles that mostly end by themselves, after a time slice or several on a busy machine."""
PAUSE = 0.2
"""Seconds until the next reading if one of them is found again."""


def _confirmed(context_of_now: Callable[[], Context]) -> tuple[Context, tuple[Finding, ...]]:
    """Findings of the last reading, without obstacles that were in one of the readings only.

    A process runs while it is read, so what was read first can contradict what was read last. An
    obstacle is confirmed by an equal one of the next reading, or by one of its kind in each of
    ``READINGS``: a process that ends soon can be followed by another with the same obstacle. One
    that is ``PASSING`` has to be in all readings.
    """
    earlier: tuple[Finding, ...] | None = None
    for _ in range(READINGS):
        context = context_of_now()
        result = ordered(_findings(context))
        obstacles = tuple(finding for finding in result if finding.severity in OBSTACLES)
        if earlier is not None:
            kinds = {finding.id for finding in earlier}
            alike = tuple(finding for finding in obstacles if finding.id in kinds)
            equal = tuple(finding for finding in alike if finding in earlier)
            is_stable = {finding.id for finding in equal} == {finding.id for finding in alike}
            obstacles = equal if is_stable else alike
            is_passing = any(finding.id in PASSING for finding in obstacles)
            if is_stable and not is_passing:
                break
            if is_passing:
                sleep(PAUSE)
        if not obstacles:
            break
        earlier = obstacles
    kept = tuple(f for f in result if f.severity not in OBSTACLES or f in obstacles)
    return context, kept


def _findings(context: Context) -> Findings:
    yield from tasks.look(context)
    if context.tree.alive:
        for part in LOOKS:
            yield from part.look(context)
    yield from means.look(context)


def _with(opts: CriuOpts, findings: tuple[Finding, ...]) -> CriuOpts:
    """The options, with those that the findings set."""
    changes: dict[str, Any] = {}
    for finding in findings:
        if finding.severity is not Severity.NEEDS_OPTION:
            continue
        for name, value in finding.sets:
            before = changes.get(name, getattr(opts, name))
            if isinstance(value, tuple):
                changes[name] = (*(before or ()), *(v for v in value if v not in (before or ())))
            elif name == "ghost_limit":
                changes[name] = max(before or 0, value)
            else:
                changes[name] = value
    return replace(opts, **changes) if changes else opts
