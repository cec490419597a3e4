"""``criu dedup``: free the pages of parent images that a later image set replaces."""

from __future__ import annotations

import contextlib
import os
import time

from .._calls import requirements
from .._calls.prepare import Directories
from .._calls.request import Request, log_name
from .._checks.linked_pages import linked
from .._checks.option_rules import parents
from .._system.descriptors import where
from .._system.regular_file import LogMark
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
    request = Request(verb=Verb.DEDUP, opts=opts, via=via or Worker())
    requirements.check(request)
    began = time.monotonic()
    from .subcommand import failure, start  # not loaded by a star import

    with contextlib.ExitStack() as owned:
        directories = Directories(
            opts, Verb.DEDUP, owned, allow_untrusted=request.via.allow_untrusted
        )
        images, work = directories.images, directories.log
        assert images is not None
        assert work is not None
        place = where(images)
        if not os.path.isdir(f"{place}/parent"):
            raise ImagesError(f"{place} has no parent images that could give pages back", errno=2)
        for path in linked(parents(opts)):
            raise ImagesError(
                f"{path} is a hard link: another set or snapshot has the same file, and would lose "
                "the pages"
            )
        mark = LogMark(work, log_name(request))
        process = start(request, directories)
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
            raise failure(request, process, mark, f"with status {process.status}")
        log = os.path.join(where(work), log_name(request))
    return DedupResult(images=place, duration=time.monotonic() - began, log=log)
