"""A command line of ``criu`` that this library executes: ``… tools.zdtm.program dump -t 42``.

Before a dump it calls ``preflight``, and before a restore ``check_images``. It appends what these
report and the result of the call, as a line of JSON, to the file ``$ZDTM_VERDICTS``. Commands that
are not in ``CALLS`` are executed by the program ``$ZDTM_CRIU``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import cast

from pycriu_native import (
    CriuError,
    CriuOpts,
    Finding,
    LazyPages,
    Severity,
    Verb,
    Worker,
    dedup,
    dump,
    page_server_child,
    pre_dump,
    preflight,
    restore,
)
from pycriu_native.images import check_images

PROGRAM = os.environ["ZDTM_CRIU"]
VIA = Worker(program=PROGRAM, allow_untrusted=True)
CALLS: dict[Verb, Callable[[int | None, CriuOpts], object]] = {
    Verb.DUMP: lambda pid, opts: dump(pid, opts, via=VIA),
    Verb.PRE_DUMP: lambda pid, opts: pre_dump(cast(int, pid), opts, via=VIA),
    Verb.RESTORE: lambda _, opts: restore(opts, via=VIA),
    Verb.PAGE_SERVER_CHILD: lambda _, opts: page_server_child(opts, via=VIA).wait(),
    Verb.LAZY_PAGES: lambda _, opts: LazyPages(opts, via=VIA).wait(),
    Verb.DEDUP: lambda _, opts: dedup(opts, via=VIA),
}


def main(words: list[str]) -> int:
    if "check" in words or "--version" in words:
        os.execv(PROGRAM, [PROGRAM, *words])
    verb, pid, opts = CriuOpts.from_argv(["criu", *words])
    if verb not in CALLS:
        os.execv(PROGRAM, [PROGRAM, *words])
    images = os.path.abspath(cast(str, opts.images_directory))
    found, error = _verdict(verb, pid, opts, images), None
    try:
        CALLS[verb](pid, opts)
    except CriuError as failed:
        error = f"{type(failed).__name__}: {failed}"
        print(error, file=sys.stderr)
    if found is not None:
        line = {
            "verb": str(verb),
            "images": images,
            "found": found,
            "error": error,
        }
        with open(os.environ["ZDTM_VERDICTS"], "a") as verdicts:
            verdicts.write(json.dumps(line) + "\n")
    return int(error is not None)


def _verdict(verb: Verb, pid: int | None, opts: CriuOpts, images: str) -> list[list[str]] | None:
    """Severity and text of each finding against the call; None for calls without a check."""
    found: Iterable[Finding]
    try:
        if verb is Verb.DUMP and pid is not None:
            found = preflight(pid, opts, via=VIA).findings
        elif verb is Verb.RESTORE:
            found = check_images(images, opts, via=VIA)
        else:
            return None
    except Exception as error:  # a check that raises has no verdict: the summary lists it
        return [["error", f"{type(error).__name__}: {error}"]]
    against = (Severity.STOPS, Severity.NEEDS_OPTION, Severity.NO_RESTORE)
    return [[str(each.severity), str(each)] for each in found if each.severity in against]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
