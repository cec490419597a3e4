"""Modules and names of a package that are imported on first use.

``socket`` creates enumerations of its constants and imports ``selectors``: a seventh of the time of
``import pycriu_native``. Programs that only create options do not need it. ``signal`` creates
enumerations too.
"""

from __future__ import annotations

from collections.abc import Mapping

from .light_typing import TYPE_CHECKING, Any
from .no_fork import no_fork
from .unpatched import original

if TYPE_CHECKING:
    import signal as signal
    import socket as socket
    from concurrent import futures as futures
else:

    class _Later:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            with no_fork:
                value = original(self._name, attribute)
            setattr(self, attribute, value)
            return value

    signal, socket, futures = map(_Later, ("signal", "socket", "concurrent.futures"))


def fetch(names: dict[str, Any], modules: Mapping[str, str], name: str) -> Any:
    """For a package's ``__getattr__``: import a name from its module, and store it in ``names``,
    the globals of the package.
    """
    package = names["__name__"]
    if name not in modules:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    with no_fork:
        value = getattr(__import__(f"{package}.{modules[name]}", fromlist=[name]), name)
    names[name] = value
    return value
