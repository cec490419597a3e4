"""Checks the types of the arguments that the calls have in common."""

from __future__ import annotations

from .._support.light_typing import Any
from ..errors import OptionError, Problem
from ..options.criu_opts import CriuOpts

_OPTS = 'a CriuOpts is accepted, such as CriuOpts(images_directory="ckpt")'
_VIA = "a Worker, a WorkerPool, a Service or a Socket is accepted"
_CALLABLE = "a function is accepted"


def check_types(
    opts: object, via: Any = None, verb: str | None = None, **functions: object
) -> None:
    """Raise ``OptionError`` for arguments of other types. ``via`` and functions can be None."""
    problems = []
    if not isinstance(opts, CriuOpts):
        problems.append(Problem("opts", opts, _OPTS))
    if via is not None and not hasattr(via, "connect"):
        problems.append(Problem("via", via, _VIA))
    problems += [
        Problem(name, value, _CALLABLE)
        for name, value in functions.items()
        if value is not None and not callable(value)
    ]
    if problems:
        raise OptionError(problems, verb=verb)
