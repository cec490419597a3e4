"""All functions of libcriu, for ports of C programs and for functions without a Python call.

Every function of libcriu 3.17 to 4.3 is an attribute of this module, called with cffi's
conversions::

    from pycriu_native import ffi, lib

    handle = ffi.new("criu_opts **")
    lib.criu_local_init_opts(handle)
    lib.criu_local_set_leave_running(handle[0], True)

Nothing is checked here: libcriu crashes on NULL, forks the caller, and has other hazards that its
header does not document. The verbs of :mod:`pycriu_native` prevent these.

One build runs with any ``libcriu.so.2``. A function that the loaded one lacks raises
:class:`~pycriu_native.errors.UnsupportedError`, which names the release that introduced it;
:func:`has` checks for a function.
"""

from __future__ import annotations

from ._native.ffi import LIBCRIU_VERSION, ffi, functions, native
from ._support.light_typing import Any
from .errors import Problem, UnsupportedError
from .options.table import TABLE

__all__ = ["ffi", "has", "missing"]


def has(name: str) -> bool:
    """Whether the loaded libcriu has this function. ``AttributeError`` for an unknown name."""
    try:
        return functions()[name]
    except KeyError:
        raise AttributeError(f"libcriu has no function {name} in 3.17 to 4.3") from None


def missing() -> list[str]:
    """The functions of libcriu 3.17 to 4.3 that the loaded library lacks."""
    return [name for name, present in functions().items() if not present]


def since(name: str) -> str:
    """The libcriu release that introduced a function; ``"3.17"`` also stands for earlier ones."""
    for row in TABLE:
        if row.setter and name == "criu_local_" + row.setter:
            # By the exported symbols: the headers of some releases do not declare them.
            return row.local
        if row.setter and name == "criu_" + row.setter:
            return row.shared
    return "3.17"


def __getattr__(name: str) -> Any:
    if name in functions():
        if not functions()[name]:
            rule = f"needs libcriu {since(name)}; {LIBCRIU_VERSION} is loaded"
            raise UnsupportedError([Problem("lib", name, rule)])
        return getattr(native, name)
    if not name.startswith("_") and hasattr(native, name) and not name.startswith("pn_"):
        return getattr(native, name)  # the constants
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "since", *functions()]
