"""What is loaded when it is first used: a module that only calls need, names of a package.

``socket`` makes enumerations of its constants and brings ``selectors`` along: a seventh of what
``import pycriu_native`` took. A program that only makes options does without. ``signal`` makes
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
            value = original(self._name, attribute)
            setattr(self, attribute, value)
            return value

    signal, socket, futures = map(_Later, ("signal", "socket", "concurrent.futures"))


def fetch(names: dict[str, Any], modules: Mapping[str, str], name: str) -> Any:
    """For a package's ``__getattr__``: a name out of the module that has it, kept in ``names``,
    the package's own.
    """
    package = names["__name__"]
    if name not in modules:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    with no_fork:
        value = getattr(__import__(f"{package}.{modules[name]}", fromlist=[name]), name)
    names[name] = value
    return value
