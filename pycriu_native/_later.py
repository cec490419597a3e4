"""A module of the standard library that only calls need, loaded when the first one uses it.

``socket`` makes enumerations of its constants and brings ``selectors`` along: a seventh of what
``import pycriu_native`` took. A program that only makes options does without.
"""

from __future__ import annotations

import sys

from ._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket as socket
else:

    class _Later:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            __import__(self._name)
            value = getattr(sys.modules[self._name], attribute)
            setattr(self, attribute, value)
            return value

    socket = _Later("socket")
