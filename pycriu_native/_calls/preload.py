"""Imports all modules of the library that are otherwise imported on first use."""

from __future__ import annotations

from .._support.light_typing import Any

NOT_LOADED = ("__main__", "_native", "cli", "dask", "images", "plots", "snapshots")
"""Modules that are not imported: those that need extras, the program, and the extension (loaded
already)."""


def preload() -> None:
    """Import all modules of the library, and load its explanations of CRIU's failures.

    Other calls import only the modules that they need. A program that changes its root (to one with
    a /proc) or its user, or that cannot open files later, calls this before: otherwise a failure
    whose explanation cannot be loaded is reported with CRIU's own messages only. Modules that need
    an extra (``images``, ``snapshots``, ``cli``, ``plots``, ``jobs.dask``) are not imported.
    """
    import importlib

    from .._failures import log_excerpt

    _load(importlib.import_module(__name__.partition(".")[0]))
    for name in ("glob", "inspect", "ipaddress", "json", "logging", "shutil", "socket", "tempfile"):
        importlib.import_module(name)
    log_excerpt.failures()


def _load(package: Any) -> None:
    import importlib
    import pkgutil

    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in NOT_LOADED:
            loaded = importlib.import_module(f"{package.__name__}.{module.name}")
            if module.ispkg:
                _load(loaded)
