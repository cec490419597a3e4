"""What goes to ``logging``: one line a verb, and CRIU's own lines if they are asked for.

The logger ``pycriu_native`` gets a line at INFO for each call. ``pycriu_native.criu`` gets the
lines of CRIU's log, with their levels, and what it writes to its standard output and error (as
``display_stats`` has it do), once a level has been set on it::

    logging.getLogger("pycriu_native.criu").setLevel(logging.DEBUG)

(``log_level=4`` has CRIU write all that it can.) Nothing is ever printed by default.
"""

from __future__ import annotations

import logging

from .enums import Verb

logger = logging.getLogger("pycriu_native")
logger.addHandler(logging.NullHandler())
criu = logging.getLogger("pycriu_native.criu")


def tell(verb: Verb, pid: int | None, images: str, duration: float, failure: str | None) -> None:
    """One line for a call that is over."""
    if logger.isEnabledFor(logging.INFO):
        whom = f" of pid {pid}" if pid is not None else ""
        where = f", images in {images}" if images else ""
        how = f"failed: {failure}" if failure else "done"
        logger.info("%s%s %s after %.3f s%s", verb, whom, how, duration, where)


def wanted() -> bool:
    """Whether somebody wants CRIU's own lines."""
    return criu.level != logging.NOTSET


def pass_on(said: str) -> None:
    """What CRIU said, line by line."""
    for line in said.splitlines():
        if line.strip():
            criu.log(_level(line), "%s", line)


def _level(line: str) -> int:
    if "Error (" in line:
        return logging.ERROR
    if "Warn  (" in line:
        return logging.WARNING
    return logging.DEBUG
