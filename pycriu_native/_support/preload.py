"""Everything that is otherwise loaded when it is needed, for those who cannot load it then."""

from __future__ import annotations

import importlib


def preload() -> None:
    """Load all of the library now, and what it knows of CRIU's failures.

    ``import pycriu_native`` loads what a call needs that succeeds. A program that changes its root
    (to one with a /proc), becomes another user or may not open files later calls this before:
    without it, a failure whose explanation cannot be loaded is told in CRIU's own words alone.
    Not loaded are the extras (``images``, ``cli``, ``pictures``).
    """
    import pkgutil

    from .. import __path__
    from .._failures import log_excerpt

    for module in pkgutil.iter_modules(__path__):
        if not module.ispkg and module.name != "__main__":
            importlib.import_module(f"{__package__}.{module.name}")
    for name in ("glob", "inspect", "ipaddress", "json", "logging", "shutil", "socket", "tempfile"):
        importlib.import_module(name)
    log_excerpt.failures()
