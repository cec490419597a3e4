"""Configuration files that CRIU reads for a call, and the effect of their settings.

CRIU reads configuration files in addition to the request. The precedence in CRIU's
``criu/config.c`` and ``criu/cr-service.c`` (4.2; the effects on ``leave_running``, ``log_level``
and ``log_file`` seen in 3.17.1, 4.1.1, 4.2.1 and 4.3): ``/etc/criu/default.conf``,
``$HOME/.criu/default.conf`` and the file that the environment names in ``CRIU_CONFIG_FILE`` are
read first, and the request overrides them; the request's own ``config_file`` is read after that,
and overrides the request.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
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
from .explanation import ConfigurationFile, Setting

DEAF_TO_FALSE = frozenset(
    ("leave_running", "leave_stopped", "tls", "tls_no_cn_verify", "mntns_compat_mode")
)
"""Fields that the request sends only if True: False does not override a file."""

ALWAYS_ASKED = {
    "log_level": "the request always sets it (from 4.2 on, also against its own file)",
    "log_file": "the request always sets it",
    "images_directory": "the request always names the directory",
}
"""Options without effect in a file that is read before the request, and the reason."""


def configuration_files(opts: CriuOpts, via: Via) -> Iterator[ConfigurationFile]:
    """The existing files among those that CRIU reads, in its order."""
    for path, why in criu_files.configuration(via):
        text = criu_files.text_of(path)
        if text is not None:
            yield ConfigurationFile(path, why, tuple(_settings(text, opts)))
    if opts.config_file is not None:
        path = os.fsdecode(opts.config_file)
        text = criu_files.text_of(path)
        if text is not None:
            why = "config_file, read after the request"
            settings = _settings(text, opts, after=True, sets_level=_sets_level(via))
            yield ConfigurationFile(path, why, tuple(settings))


def _sets_level(via: Via) -> bool:
    """Whether the request's own file sets the log level: in releases before 4.2."""
    try:
        return via.identity() is not None and program_version(via) < Version(major=4, minor=2)
    except CriuError:
        return False  # its release is unknown


def _settings(
    text: bytes, opts: CriuOpts, *, after: bool = False, sets_level: bool = False
) -> Iterator[Setting]:
    """``after``: the file is read after the request; ``sets_level``: by a CRIU before 4.2."""
    reader = read_config(os.fsdecode(text), lazy=bool(opts.lazy_pages))
    for field, value in reader.fields.items():
        row = BY_FIELD[field]
        shown, given = _parsed(row, value), getattr(opts, field)
        is_last = after and (row.name != "log_level" or sets_level)
        applies, effect = _effect(row, shown, given, after=is_last)
        yield Setting(field, shown, effect, applies)
    for problem in reader.problems:
        fails = problem.field in reader.refused
        yield Setting(problem.field, problem.value, problem.rule, True, fails)


def _parsed(row: Row, value: object) -> object:
    try:
        return row.kind.parse(value)
    except ValueError:
        return value


def _effect(row: Row, value: object, given: Any, *, after: bool) -> tuple[bool, str]:
    """Whether an option of a file applies, and how; ``after``: it is read after the request."""
    if not after and row.name in ALWAYS_ASKED:
        return False, f"has no effect: {ALWAYS_ASKED[row.name]}"
    if given is None or given == ():
        return True, "applies: the request does not set it"
    if isinstance(row.kind, ListOf):
        return True, "is added to what the request has"
    if after and row.in_config:
        return False, "has no effect: the call adds its own behind it"
    if given == value:
        return False, "is in the request as well"
    if not after and given is False and row.name in DEAF_TO_FALSE:
        return True, "applies: the request cannot set it to False in CRIU"
    stays = row.name == "parent_image" or (row.name == "mntns_compat_mode" and given)
    if after and not stays:
        return True, f"overrides the {given!r} of the request"
    return False, "has no effect: the request overrides it"


def crash(opts: CriuOpts, files: tuple[ConfigurationFile, ...]) -> Iterator[Problem]:
    """The problem of a request whose own configuration file crashes CRIU."""
    if opts.config_file is None or not files:
        return
    last = files[-1]
    if last.path == os.fsdecode(opts.config_file) and any(
        setting.option == "network_lock" for setting in last.settings
    ):
        rule = "network-lock in the file of a request crashes CRIU before 4.2.1; set the field"
        yield Problem("config_file", opts.config_file, rule)
