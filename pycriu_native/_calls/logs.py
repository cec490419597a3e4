"""What goes to ``logging``: one line a verb, and CRIU's own lines if they are asked for.

The logger ``pycriu_native`` gets a line at INFO for each call, ``pycriu_native.advice`` one for
what would make calls faster on this machine, once. ``pycriu_native.criu`` gets the lines of
CRIU's log, with their levels, and what it writes to its standard output and error (as
``display_stats`` has it do), once a level has been set on it::

    logging.getLogger("pycriu_native.criu").setLevel(logging.DEBUG)

(``log_level=4`` has CRIU write all that it can.) Nothing is ever printed by default. A program
that has not imported ``logging`` has nobody who listens, and so it is not imported for it.
"""

from __future__ import annotations

import sys

from .._support.light_typing import TYPE_CHECKING
from ..enums import Verb

if TYPE_CHECKING:
    from logging import Logger

NAME = "pycriu_native"


_loggers: dict[str, Logger] = {}


def _logger(name: str) -> Logger | None:
    """The logger of this name; None where nobody can listen."""
    if name in _loggers:
        return _loggers[name]  # logging keeps it for ever, and finds it under a lock
    if "logging" not in sys.modules:
        return None
    import logging  # waits, where another thread is just importing it

    ours = logging.getLogger(NAME)
    if not ours.handlers:
        ours.addHandler(logging.NullHandler())  # or warnings would be printed
    return _loggers.setdefault(name, logging.getLogger(name))


def warn(message: str, *arguments: object, error: BaseException | None = None) -> None:
    """A line at WARNING, or at ERROR with an error's trace, about what goes on all the same."""
    logger = _logger(NAME)
    if logger is not None:
        logger.log(30 if error is None else 40, message, *arguments, exc_info=error)


def tell(verb: Verb, pid: int | None, images: str, duration: float, failure: str | None) -> None:
    """One line for a call that is over."""
    logger = _logger(NAME)
    if logger is None or not logger.isEnabledFor(20):  # INFO
        return
    whom = f" of pid {pid}" if pid is not None else ""
    where = f", images in {images}" if images else ""
    how = f"failed: {failure}" if failure else "done"
    logger.info("%s%s %s after %.3f s%s", verb, whom, how, duration, where)


_advised = False


def advise() -> None:
    """Say once what would make calls faster, if somebody listens to ``pycriu_native.advice``."""
    global _advised
    logger = None if _advised else _logger(NAME + ".advice")
    if logger is None or not logger.isEnabledFor(20):  # INFO
        return
    _advised = True
    from .._transport.feature_cache import feature_cache

    result = feature_cache()
    if result.cure is not None:
        logger.info("CRIU's feature cache %s", result)


def wanted() -> bool:
    """Whether somebody wants CRIU's own lines."""
    criu = _logger(NAME + ".criu")
    return criu is not None and criu.level != 0


def pass_on(said: str) -> None:
    """What CRIU said, line by line."""
    import logging

    def level(line: str) -> int:
        if "Error (" in line:
            return logging.ERROR
        return logging.WARNING if "Warn  (" in line else logging.DEBUG

    criu = logging.getLogger(NAME + ".criu")
    for line in said.splitlines():
        if line.strip():
            criu.log(level(line), "%s", line)
