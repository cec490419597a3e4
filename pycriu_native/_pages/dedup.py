"""``criu dedup``: free the pages of parent images that a later image set replaces."""

from __future__ import annotations

import contextlib
import os
import time

from .._checks.linked_pages import linked
from .._checks.option_rules import parents
from .._system.descriptors import where
from .._transport.worker import Worker
from ..enums import Verb
from ..errors import DeadlineError, ImagesError
from ..options.criu_opts import CriuOpts
from ..results import DedupResult

UNTIL_STOPPED = 5.0
"""Seconds to wait for the end of a killed process."""


def dedup(
    opts: CriuOpts, *, via: Worker | None = None, deadline: float | None = None
) -> DedupResult:
    """Free the pages in the parent images that the images replace, as holes in their files.

    ``auto_dedup`` does the same during a dump. The parents can no longer be restored afterwards.
    ``opts`` takes ``images_directory``, ``work_directory`` and the options of the log.
    ``deadline`` is in seconds. Raises ``ImagesError`` for images without a parent,
    ``DeadlineError``, and what any verb raises. It runs the program ``criu`` without a worker.
    Needs CRIU 3.17.
    """
    from .subcommand import Subcommand  # not loaded by a star import

    with contextlib.ExitStack() as owned:
        command = Subcommand(Verb.DEDUP, opts, via, deadline, owned)
        began = time.monotonic()
        assert command.images is not None
        place = where(command.images)
        if not os.path.isdir(f"{place}/parent"):
            raise ImagesError(f"{place} has no parent images that could give pages back", errno=2)
        for path in linked(parents(opts)):
            raise ImagesError(
                f"{path} is a hard link: another set or snapshot has the same file, and would lose "
                "the pages"
            )
        process = command.start()
        ended = False
        try:
            ended = process.has_ended(deadline)
        finally:
            if not ended:
                process.kill()
            process.wait(UNTIL_STOPPED)
        if not ended:
            raise DeadlineError(f"dedup did not end within {deadline} seconds", verb="dedup")
        if process.status != 0:
            raise command.failure(process, f"with status {process.status}")
    return DedupResult(images=place, duration=time.monotonic() - began, log=command.log)
