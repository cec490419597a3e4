"""Everything that is otherwise loaded when it is needed, for those who cannot load it then."""

from __future__ import annotations

from . import _explain, _failure, _log, batch, cache, iters, lazy, lib, pages, pool

LATER = (_explain, _failure, batch, cache, iters, lazy, lib, pages, pool)


def preload() -> None:
    """Load all of the library now, and what it knows of CRIU's failures.

    ``import pycriu_native`` loads what a call needs that succeeds. A program that changes its root
    (to one with a /proc), becomes another user or may not open files later calls this before:
    without it, a failure whose explanation cannot be loaded is told in CRIU's own words alone.
    """
    _log.failures()
    import ipaddress
    import logging
    import tempfile

    del ipaddress, logging, tempfile
