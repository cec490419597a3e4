"""Messages to ``logging``: one line for each call, and the lines of CRIU's log on request.

The logger ``pycriu_native`` gets a line at INFO for each call. ``pycriu_native.advice`` gets one
line, once, about what would make calls faster on this machine. ``pycriu_native.criu`` gets the
lines of CRIU's log, with their levels, and its standard output and error (for example of
``display_stats``), if a level has been set on it::

    logging.getLogger("pycriu_native.criu").setLevel(logging.DEBUG)

(CRIU logs most with ``log_level=4``.) Nothing is printed by default. ``logging`` is not imported if
the program has not imported it, since there are no handlers then.
"""

from __future__ import annotations

import sys

from .._support.light_typing import TYPE_CHECKING
from .._support.no_fork import no_fork
from .._support.unpatched import get_ident, thread_names
from ..enums import Verb

if TYPE_CHECKING:
    from logging import Logger, LogRecord

    from .._system.regular_file import LogMark

NAME = "pycriu_native"


_loggers: dict[str, Logger] = {}


def _logger(name: str) -> Logger | None:
    """The logger of this name; None if ``logging`` was not imported."""
    if name in _loggers:
        return _loggers[name]  # getLogger would take a lock
    if "logging" not in sys.modules:
        return None
    import logging  # loaded, or another thread is importing it

    ours = logging.getLogger(NAME)
    if not ours.handlers:
        ours.addHandler(logging.NullHandler())  # else warnings would be printed
    result = logging.getLogger(name)
    result.addFilter(_name_thread)
    return _loggers.setdefault(name, result)


def _name_thread(record: LogRecord) -> bool:
    """Give the record the name of a call's thread, which ``threading`` knows as a dummy."""
    record.threadName = thread_names.get(get_ident(), record.threadName)
    return True


def warn(message: str, *arguments: object, error: BaseException | None = None) -> None:
    """Log a failure that does not end the operation: at WARNING, or an exception at ERROR."""
    logger = _logger(NAME)
    if logger is not None:
        logger.log(30 if error is None else 40, message, *arguments, exc_info=error)


def log_call(
    verb: Verb, pid: int | None, images: str, duration: float, failure: str | None
) -> None:
    """Log one line for a call that has ended."""
    logger = _logger(NAME)
    if logger is None or not logger.isEnabledFor(20):  # INFO
        return
    target = f" of pid {pid}" if pid is not None else ""
    where = f", images in {images}" if images else ""
    how = f"failed: {failure}" if failure else "done"
    logger.info("%s%s %s after %.3f s%s", verb, target, how, duration, where)


_advised = False


def advise() -> None:
    """Log once how to make calls faster, if ``pycriu_native.advice`` is enabled for INFO."""
    global _advised
    logger = None if _advised else _logger(NAME + ".advice")
    if logger is None or not logger.isEnabledFor(20):  # INFO
        return
    _advised = True
    with no_fork:
        from .._transport.feature_cache import feature_cache  # needed once

    result = feature_cache()
    if result.cure is not None:
        logger.info("CRIU's feature cache %s", result)


def pass_on(mark: LogMark | None, output: str) -> None:
    """Log CRIU's log and its output, line by line, if ``pycriu_native.criu`` has a level."""
    criu = _logger(NAME + ".criu")
    if criu is None or criu.level == 0:
        return
    import logging  # loaded for the logger

    for line in ((mark.text() if mark else "") + output).splitlines():
        if line.strip():
            level = logging.WARNING if "Warn  (" in line else logging.DEBUG
            criu.log(logging.ERROR if "Error (" in line else level, "%s", line)
