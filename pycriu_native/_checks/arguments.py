"""Checks the types of the arguments that the calls have in common."""

from __future__ import annotations

from .._support.light_typing import Any, cast
from ..errors import OptionError, Problem
from ..options.criu_opts import CriuOpts

_OPTS = 'a CriuOpts is accepted, such as CriuOpts(images_directory="ckpt")'
_VIA = "a Worker, a WorkerPool, a Service or a Socket is accepted"
_CALLABLE = "a function is accepted"
_SECONDS = "a number of seconds is accepted"


def check_types(
    opts: object, via: Any = None, verb: str | None = None, **functions: object
) -> None:
    """Raise ``OptionError`` for arguments of other types. ``via`` and functions can be None."""
    if problems := type_problems(opts, via, **functions):
        raise OptionError(problems, verb=verb)


def type_problems(
    opts: object, via: Any = None, deadline: object = None, **functions: object
) -> list[Problem]:
    """Problems of the arguments by their types. All but ``opts`` can be None."""
    problems = []
    if not isinstance(opts, CriuOpts):
        problems.append(Problem("opts", opts, _OPTS))
    if via is not None and (isinstance(via, type) or not hasattr(via, "refuses")):
        problems.append(Problem("via", via, _VIA))
    if deadline is not None and not is_seconds(deadline):
        problems.append(Problem("deadline", deadline, _SECONDS))
    problems += [
        Problem(name, value, _CALLABLE)
        for name, value in functions.items()
        if value is not None and not callable(value)
    ]
    return problems


def is_seconds(value: object) -> bool:
    """Whether a value is a number that can be added to a time, and not NaN."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return False
    try:
        seconds = 0.0 + cast(float, value)
        return bool(seconds == seconds)  # false for NaN
    except (TypeError, ValueError, OverflowError):
        return False
