"""preflight: what would stop a dump, and which options it needs, before anything is frozen.

It reads /proc and sock_diag(7), and opens nothing of the process's own. Each part of a process
has a module with the rules of CRIU: ``tasks``, ``files``, ``objects``,
``sockets``, ``terminals``, ``memory``, ``mounts``; ``restorable`` looks at what this caller lacks
for a restore, ``means`` at CRIU and the options,
``size`` at how much it will be. The facts are from CRIU 4.2's source and seen with 4.2.1;
``tests/integration/test_preflight.py`` measures how often the verdict is what CRIU then does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..._checks.option_rules import ONE_PROCESS
from ..._rollback.option import Files, rollback_of
from ..._system.mount_table import MountTable
from ..._system.process_identity import Target, is_pid, located
from ..._system.process_snapshot import Tree
from ..._transport.base import Via
from ..._transport.worker import Worker
from ...errors import OptionError, Problem
from ...findings import Finding, Severity, ordered
from ...options.criu_opts import CriuOpts
from . import (
    attributes,
    files,
    means,
    memory,
    mounts,
    objects,
    restorable,
    size,
    sockets,
    tasks,
    terminals,
    written,
)
from .context import Context
from .values import ImageSize, Preflight, PreflightError, PreflightWarning, Verdict

__all__ = [
    "ImageSize",
    "Preflight",
    "PreflightError",
    "PreflightWarning",
    "Verdict",
    "preflight",
]

LOOKS = (mounts, files, objects, sockets, terminals, memory, attributes, restorable, written)


def preflight(
    pid: Target,
    opts: CriuOpts | None = None,
    *,
    include_caller: bool = False,
    via: Via | None = None,
    files: Files = None,
) -> Preflight:
    """Check a dump of this process and its descendants. The processes keep running.

    ``opts`` are the options of the dump: what they cure is not an obstacle, and what they break is
    one. The images directory may be unset.
    ``include_caller``, ``via`` and ``files`` as for :func:`~pycriu_native.dump`; capabilities and
    namespaces are those of the caller, as in a worker.

    The result is valid for the moment of the check: a process that changes later can still fail.
    ``docs/preflight.md`` lists what is not visible from outside. Raises ``OptionError`` for
    options that no dump accepts; everything else is a finding. Runs CRIU for its release and its
    check, once for each program. Needs root or CAP_SYS_PTRACE to see processes of others.
    """
    pid, _ = located(pid, "preflight")
    if not is_pid(pid):
        raise OptionError([Problem("pid", pid, ONE_PROCESS)])
    opts = opts or CriuOpts()
    means.check_options(opts, pid)
    tree = Tree(pid)
    context = Context(
        tree=tree,
        opts=opts,
        via=via or Worker(),
        mounts=MountTable(tree),
        include_caller=include_caller,
        rollback=rollback_of(files, "preflight"),
    )
    result = ordered(_findings(context))
    there = bool(tree.alive)
    expected = size.expected(context) if there else ImageSize()
    if there:
        largest = size.largest_image(context)
        also = (*means.file_size(opts, largest), *means.directories(opts, expected.total))
        result = ordered(iter((*result, *also)))
    return Preflight(
        pid=pid,
        pids=tuple(process.pid for process in tree.processes),
        findings=result,
        given=opts,
        opts=_with(opts, result),
        size=expected,
    )


def _findings(context: Context) -> Iterator[Finding]:
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
