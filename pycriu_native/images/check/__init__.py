"""Checks whether this host can restore an image set, without a restore.

Each check is a function that yields findings. They make the comparisons of CRIU's source files,
which each module names.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ..._checks.arguments import check_types
from ..._transport.base import Via
from ...findings import Finding, ordered
from ...options.criu_opts import CriuOpts
from ..build import inspect
from ..model import ImageSet
from . import cgroups, files, image_set, memory, namespaces, processes, processor, program, sockets
from .context import Context

_CHECKS = (
    image_set.complete,
    image_set.outputs,
    program.release,
    processor.processor,
    processes.pids,
    processes.rights,
    processes.security_module,
    processes.policies,
    program.plugins,
    processes.descriptors,
    memory.huge_pages,
    memory.sealed,
    processes.sessions,
    files.regular_files,
    files.made_names,
    files.external_files,
    sockets.inet_sockets,
    sockets.unix_sockets,
    files.terminals,
    files.locks,
    memory.lazy,
    namespaces.mounts,
    namespaces.network,
    program.programs,
    namespaces.namespaces,
    cgroups.cgroups,
)
"""All checks. The name of each is the id of its findings."""


def check_images(
    images: ImageSet | str | os.PathLike[str],
    opts: CriuOpts | None = None,
    *,
    via: Via | None = None,
) -> tuple[Finding, ...]:
    """Find what would prevent a restore of these images on this host, the worst first.

    ``opts`` are the options of the restore. ``via`` is the ``criu`` of the restore; requests get
    its release and, if the images need it, features of the kernel and the comparison of the
    processors. Nothing is restored, created or changed.

    Checked: the images themselves and their parents; the release of CRIU; architecture and
    processor (``cpuinfo.img``, if a ``cpuinfo_dump`` wrote it); pids; files (existence, type
    and permissions, size, build id); sockets, terminals, mounts, network devices, cgroups,
    namespaces; free huge pages; the security module; plugins of CRIU; scheduling policies; and
    options that the images need. If the processes have their own mount namespace,
    files are searched below ``root``, if it is set.

    The host can change before the restore. Raises ``ImagesError`` as
    ``inspect`` does. Tested with CRIU 4.1 to 4.3.
    """
    opts = CriuOpts() if opts is None else opts
    check_types(opts, via, "check_images")
    result = images if isinstance(images, ImageSet) else inspect(images)
    context = Context(result, opts, via)
    return ordered(
        replace(finding, id=check.__name__) for check in _CHECKS for finding in check(context)
    )
