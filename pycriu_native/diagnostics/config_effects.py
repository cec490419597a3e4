"""Which configuration files have a say in a call, and what they mean for it.

CRIU reads configuration files beside the request. What wins, from CRIU's ``criu/config.c`` and
``criu/cr-service.c`` (4.2; the effects on ``leave_running``, ``log_level`` and ``log_file`` seen
in 3.17.1, 4.1.1, 4.2.1 and 4.3): ``/etc/criu/default.conf``, ``$HOME/.criu/default.conf`` and the
file that the environment names in ``CRIU_CONFIG_FILE`` are read first, and the request is put
over them; the request's own ``config_file`` is read after that, and is put over the request.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .._calls.requirements import program_version
from .._checks import criu_files
from .._transport.base import Via
from ..errors import CriuError, Problem
from ..options.config_file import read_config
from ..options.criu_opts import CriuOpts
from ..options.table import BY_FIELD, Row
from ..options.value_types import ListOf
from ..results import Version

LARGEST_FILE = 2**20
"""Bytes read of a configuration file."""

DEAF_TO_FALSE = frozenset(
    ("leave_running", "leave_stopped", "tls", "tls_no_cn_verify", "mntns_compat_mode")
)
"""Fields of which CRIU hears only True: a False does not take back what a file has set."""

ALWAYS_ASKED = {
    "log_level": "the request always sets it (from 4.2 on, also against its own file)",
    "log_file": "the request always sets it",
    "images_directory": "the request always names the directory",
}
"""Options that no file read before the request decides, and why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One option of a configuration file."""

    option: str
    """The field of ``CriuOpts``, or the option's own name where there is none."""
    value: object
    """What the file sets it to."""
    effect: str
    """What that means for this call."""
    applies: bool
    """Whether the call behaves otherwise than without the file."""

    def __str__(self) -> str:
        return f"{self.option}={self.value!r}: {self.effect}"


@dataclass(frozen=True, slots=True)
class ConfigurationFile:
    """A configuration file that CRIU reads for this call."""

    path: str
    """Where it is."""
    why: str
    """Why CRIU reads it."""
    settings: tuple[Setting, ...]
    """What it sets, options that are no field of ours included."""


def configuration_files(opts: CriuOpts, via: Via) -> Iterator[ConfigurationFile]:
    """The files that exist of those that CRIU looks for, in its order."""
    for path, why in criu_files.configuration(via):
        text = _text(path)
        if text is not None:
            yield ConfigurationFile(path, why, tuple(_settings(text, opts)))
    if opts.config_file is not None:
        path = os.fsdecode(opts.config_file)
        text = _text(path)
        if text is not None:
            why = "config_file, read after the request"
            settings = _settings(text, opts, after=True, hears_level=_hears_level(via))
            yield ConfigurationFile(path, why, tuple(settings))


def _hears_level(via: Via) -> bool:
    """Whether the program takes the log's level from the request's own file: one before 4.2."""
    try:
        return via.identity() is not None and program_version(via) < Version(major=4, minor=2)
    except CriuError:
        return False  # it cannot be asked


def _text(path: str) -> str | None:
    """A file's text; None where CRIU would find none, and go on without a word."""
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read(LARGEST_FILE))
    except OSError:
        return None


def _settings(
    text: str, opts: CriuOpts, *, after: bool = False, hears_level: bool = False
) -> Iterator[Setting]:
    """``after``: the file is read after the request; ``hears_level``: by a CRIU before 4.2."""
    reader = read_config(text, lazy=bool(opts.lazy_pages))
    for field, value in reader.fields.items():
        row = BY_FIELD[field]
        shown, asked = _parsed(row, value), getattr(opts, field)
        if not after or (row.name == "log_level" and not hears_level):
            applies, effect = _before(row, shown, asked)
        else:
            applies, effect = _after(row, shown, asked)
        yield Setting(field, shown, effect, applies)
    for problem in reader.problems:
        yield Setting(problem.field, problem.value, problem.rule, True)


def _parsed(row: Row, value: object) -> object:
    try:
        return row.kind.parse(value)
    except ValueError:
        return value


def _before(row: Row, value: object, asked: Any) -> tuple[bool, str]:
    """What an option of a file means that is read before the request."""
    if row.name in ALWAYS_ASKED:
        return False, f"has no effect: {ALWAYS_ASKED[row.name]}"
    if asked is None or asked == ():
        return True, "applies: the request does not set it"
    if isinstance(row.kind, ListOf):
        return True, "is added to what the request has"
    if asked is False and row.name in DEAF_TO_FALSE and value is True:
        return True, "applies: CRIU does not hear the False of the request"
    return False, "has no effect: the request wins" if asked != value else "is asked for as well"


def _after(row: Row, value: object, asked: Any) -> tuple[bool, str]:
    """What an option of the request's own file means."""
    if asked is None or asked == ():
        return True, "applies: the request does not set it"
    if isinstance(row.kind, ListOf):
        return True, "is added to what the request has"
    if asked == value:
        return False, "is asked for as well"
    if row.name == "parent_image" or (row.name == "mntns_compat_mode" and asked):
        return False, "has no effect: the request wins"
    return True, f"wins over the {asked!r} of the request"


def crash(opts: CriuOpts, files: tuple[ConfigurationFile, ...]) -> Iterator[Problem]:
    """The problem of a request whose own file crashes CRIU."""
    if opts.config_file is None or not files:
        return
    last = files[-1]
    if last.path == os.fsdecode(opts.config_file) and any(
        setting.option == "network_lock" for setting in last.settings
    ):
        rule = "network-lock in the file of a request crashes CRIU before 4.2.1; set the field"
        yield Problem("config_file", opts.config_file, rule)
