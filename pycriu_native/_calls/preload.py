"""Load at once every module that the library otherwise loads when it is needed."""

from __future__ import annotations

from .._support.light_typing import Any

NOT_LOADED = ("__main__", "_native", "cli", "images", "plots")
"""Modules of the package: the extras, the program, and the extension, which is loaded already."""


def preload() -> None:
    """Load all modules of the library, and what it knows of CRIU's failures.

    ``import pycriu_native`` loads only what a successful call needs. A program that changes its
    root (to one with a /proc) or its user, or that may not open files later, calls this before:
    without it, a failure whose explanation cannot be loaded is reported in CRIU's own words alone.
    The extras (``images``, ``cli``, ``plots``) are not loaded.
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
