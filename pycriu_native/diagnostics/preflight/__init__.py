"""preflight: obstacles of a dump, and the options that it needs, before a process is frozen.

It reads /proc and sock_diag(7), and the state of some sockets, pipes and terminals by copies of
their descriptors (``pidfd_getfd``). Each part of a process has a module with the rules of CRIU;
``restorable`` finds what this caller lacks for a restore, ``means`` checks CRIU and the options,
``size`` estimates the size. The facts are from CRIU 4.2's source, confirmed with 4.2.1;
``tests/integration/test_preflight.py`` measures how often CRIU's result matches the verdict.
"""

from __future__ import annotations

from ..._checks.arguments import check_types
from ..._rollback.option import Files
from ..._system.process_identity import Target
from ..._transport.base import Via
from ...options.criu_opts import CriuOpts
from .restore_needs import RestoreNeed
from .values import ImageSize, Preflight, PreflightError, PreflightWarning, Verdict

__all__ = [
    "ImageSize",
    "Preflight",
    "PreflightError",
    "PreflightWarning",
    "RestoreNeed",
    "Verdict",
    "preflight",
]


def preflight(
    pid: Target,
    opts: CriuOpts | None = None,
    *,
    include_caller: bool = False,
    via: Via | None = None,
    files: Files = None,
) -> Preflight:
    """Check a dump of this process and its descendants. The processes keep running.

    ``opts`` are the options of the dump: problems that they solve are no obstacles, and problems
    that they cause are. The images directory may be unset.
    ``include_caller``, ``via`` and ``files`` as for :func:`~pycriu_native.dump`; capabilities and
    namespaces are those of the caller, as in a worker.

    The result is valid for the moment of the check: a process that changes later can still fail.
    ``docs/preflight.md`` lists what is not visible from outside. Raises ``OptionError`` for
    options that no dump accepts; everything else is a finding. Runs CRIU for its release and its
    check, once for each program. Needs root or CAP_SYS_PTRACE to see processes of others.
    """
    from .looks import look_at  # loaded at the first call

    opts = CriuOpts() if opts is None else opts
    check_types(opts, via, "preflight")
    return look_at(pid, opts, include_caller=include_caller, via=via, files=files)
