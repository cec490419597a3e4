"""The types of the arguments of ``Job``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from .._integrity.dump_marker import DEEPEST
from ..errors import Problem
from ..options.criu_opts import CriuOpts
from ..options.values import is_text

MOST = 1e9
"""Largest number of seconds, which the kernel's timers can represent."""

LISTS = ("command", "also", "encrypt_to", "decrypt_with")
"""Arguments with several values. A single one is accepted too, except for ``command``."""


SET_BY_JOB = (
    "images_directory",
    "images_dir",
    "parent_image",
    "pre_dump",
    "track_mem",
    "auto_dedup",
    "lazy_pages",
    "page_server",
    "leave_running",
    "leave_stopped",
    "stream",
)
"""Options of dumps that a job sets itself, or with which its checkpoints would lack memory, change
those before them (``auto_dedup``), or not let the command continue."""


def listed(name: str, value: Any) -> Any:
    """The value of an argument in ``LISTS`` as a tuple; unchanged if it cannot be one."""
    if isinstance(value, str | bytes | os.PathLike):
        return value if name == "command" or isinstance(value, bytes) else (value,)
    return tuple(value) if isinstance(value, Iterable) else value


def problems_of(values: dict[str, Any]) -> list[Problem]:
    """The arguments of other types, in the order of ``RULES``. Keys are not shown."""
    problems = [
        Problem(name, "…" if name in ("encrypt_to", "decrypt_with") else values[name], rule)
        for name, (is_valid, rule) in RULES.items()
        if not is_valid(values[name])
    ]
    for name in SET_BY_JOB:
        value = getattr(values["options"], name, None)
        # What CRIU does without the option, and what from_argv sets without it.
        unset = value is None or value is False or (name, value) == ("images_directory", ".")
        if not unset:
            problems.append(Problem("options", {name: value}, "a job sets this option itself"))
    return problems


def _is_text(value: object) -> bool:
    return isinstance(value, str) and is_text(value)


def _is_word(value: object) -> bool:
    """Whether a value is text, or a path of text."""
    return _is_text(os.fspath(value) if isinstance(value, os.PathLike) else value)


def _is_path(value: object) -> bool:
    """Whether a value is a path, and not empty: an unset variable of a shell is."""
    return _is_word(value) and value != ""


def _all(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, tuple) and all(map(check, value))


def _optional(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


def _number(least: float, most: float, *, whole: bool = False) -> tuple[Callable[[Any], bool], str]:
    """The rule of a number of seconds, or of a whole number."""
    kinds = int if whole else (int, float)

    def is_valid(value: Any) -> bool:
        return isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most

    what = "a whole number" if whole else "a number of seconds"
    return is_valid, f"{what} of {least:g} to {most:g} is accepted"


_INCREMENTS, _INCREMENTS_RULE = _number(0, DEEPEST - 1, whole=True)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "directory": (_is_path, "a path is accepted"),
    "command": (
        lambda value: _all(_is_word)(value) and value != () and _is_path(value[0]),
        "a sequence of the program and its arguments is accepted, without null characters",
    ),
    "every": _number(0.1, MOST),
    "first": _number(0, MOST),
    "keep": _number(1, MOST, whole=True),
    "incremental": (_optional(_INCREMENTS), _INCREMENTS_RULE),
    "also": (_all(_is_path), "absolute paths and patterns are accepted"),
    "grace": _number(0, MOST),
    "notice": (
        _optional(lambda value: isinstance(value, str) and _is_path(value)),
        "a command or a URL is accepted, as text",
    ),
    "options": (
        _optional(lambda value: isinstance(value, CriuOpts)),
        "a CriuOpts is accepted, such as CriuOpts(link_remap=True)",
    ),
    "cwd": (_optional(_is_path), "a path is accepted"),
    "interrupted_code": _number(1, 255, whole=True),
    "or_start_over": (_is_flag, "True or False is accepted"),
    "unprivileged": (_optional(_is_flag), "True, False or None is accepted"),
    "storage": (_optional(_is_path), "a URL of fsspec or a path is accepted"),
    "lease": _number(1, MOST),
    "compress": (
        lambda value: value in ("none", "gzip", "zstd"),
        'one of "none", "gzip", "zstd" is accepted',
    ),
    "encrypt_to": (_all(_is_text), "recipients are accepted, as text"),
    "decrypt_with": (_all(_is_text), "identities are accepted, as text"),
}
"""For each argument whether a value is valid, and what is."""
