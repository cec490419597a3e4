"""preflight: what would stop a dump, and which options it needs, before anything is frozen.

It reads /proc, asks the kernel for sockets, and opens nothing of the process's own. Each part
of a process has a module that knows what CRIU does with it: ``tasks``, ``files``, ``objects``,
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
from ..._system.mount_table import MountTable
from ..._system.process_identity import Target, located
from ..._system.process_snapshot import Tree
from ..._transport.base import Via
from ..._transport.worker import Worker
from ...errors import OptionError, Problem
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
)
from .context import Context
from .values import (
    Finding,
    ImageSize,
    Preflight,
    PreflightError,
    PreflightWarning,
    Severity,
    Verdict,
    ordered,
)

__all__ = [
    "Finding",
    "ImageSize",
    "Preflight",
    "PreflightError",
    "PreflightWarning",
    "Severity",
    "Verdict",
    "preflight",
]

LOOKS = (mounts, files, objects, sockets, terminals, memory, attributes, restorable)


def preflight(
    pid: Target,
    opts: CriuOpts | None = None,
    *,
    include_caller: bool = False,
    via: Via | None = None,
) -> Preflight:
    """What a dump of this process and all below it would meet; the processes run on.

    ``opts`` are the options that the dump is to have, if some are chosen already: what they
    cure is no obstacle, and what they break is one. The images directory need not be among them.
    ``include_caller`` and ``via`` as for :func:`~pycriu_native.dump`; capabilities and namespaces
    are taken to be the caller's, as a worker's are.

    The answer is as of now: a process that changes afterwards can fail all the same. What
    cannot be seen from outside is told in ``docs/preflight.md``. Raises ``OptionError`` for
    options that no dump takes; everything else is a finding. Asks CRIU for its release and its
    check, once for each program. Needs root or CAP_SYS_PTRACE to see processes of others.
    """
    pid, _ = located(pid, "preflight")
    if isinstance(pid, bool) or not isinstance(pid, int) or pid <= 0:
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
    """The options, and what the findings set besides."""
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
