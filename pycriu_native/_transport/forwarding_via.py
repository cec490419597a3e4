"""A ``Via`` that forwards to another one."""

from __future__ import annotations

from collections.abc import Iterator

from .._support.closing import Closing
from .._support.light_typing import ClassVar
from ..errors import Problem
from .base import Via
from .worker import Worker, worker_of


class ForwardingVia(Closing):
    """A base of classes that connect to the CRIU of ``via``, and have its properties."""

    ours: ClassVar[bool] = True

    def __init__(self, via: Via) -> None:
        self.via = via

    @property
    def worker(self) -> Worker | None:
        """The worker of ``via``, for the checks of a call."""
        return worker_of(self.via)

    @property
    def allow_untrusted(self) -> bool:
        """Whether files that other users could change are accepted: see :class:`Worker`."""
        return self.via.allow_untrusted

    def identity(self) -> tuple[object, ...] | None:
        """What tells the program of ``via`` from others; None if that is not known."""
        return self.via.identity()

    def name(self) -> str:
        """The name of ``via`` in messages, such as the program's path."""
        return self.via.name()

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """The kinds of requests that ``via`` does not support."""
        return self.via.refuses(inherits=inherits, sibling=sibling)
