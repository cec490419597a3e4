"""Refuses ``auto_dedup`` if it would free pages of a file that another set or snapshot has, too.

The pages files of a snapshot's parents are hard links, and a set can be copied by links: CRIU would
punch holes in the file that they share. CRIU also reads the option from configuration files
(``criu/config.c``): the request overrides those of the worker, and its own file overrides the
request.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from .._support.light_typing import TYPE_CHECKING
from ..enums import Verb
from ..errors import Problem
from ..options.criu_opts import CriuOpts, StrPath
from .criu_files import configuration, text_of
from .option_rules import images_path, parents

if TYPE_CHECKING:
    from .._transport.base import Via

SHORTEST = b"auto-d"
"""The shortest abbreviation of the option that CRIU accepts."""

_VERBS = (Verb.DUMP, Verb.PRE_DUMP, Verb.RESTORE, Verb.PAGE_SERVER, Verb.PAGE_SERVER_CHILD)


def problems(opts: CriuOpts, verb: Verb, via: Via) -> Iterator[Problem]:
    """The problem of a call that would free pages of another set."""
    if verb not in _VERBS or not (source := _source(opts, via)):
        return
    directories = [*parents(opts)]
    own = images_path(opts)
    if verb is Verb.RESTORE and own is not None:
        directories.append(own)
    for path in linked(directories):
        field, value = source
        rule = (
            f"auto_dedup would free the pages of {path}, a hard link: another set or snapshot "
            "has the same file"
        )
        yield Problem(field, value, rule)
        return


def _source(opts: CriuOpts, via: Via) -> tuple[str, object] | None:
    """The argument that sets ``auto_dedup``, and its value; None if it is not set."""
    if opts.config_file is not None and in_file(opts.config_file):
        return "config_file", opts.config_file
    if opts.auto_dedup is not None:
        return ("auto_dedup", True) if opts.auto_dedup else None
    for path, _ in configuration(via):
        if in_file(path):
            return "auto_dedup", f"of {path}"
    return None


def in_file(path: StrPath) -> bool:
    """Whether a configuration file sets ``auto_dedup``."""
    data = text_of(path)
    if data is None or SHORTEST not in data:
        return False
    from ..options.config_file import read_config  # few files have it

    return read_config(os.fsdecode(data)).fields.get("auto_dedup") is True


def linked(directories: Iterable[str]) -> Iterator[str]:
    """The pages files with other names in these directories."""
    for directory in directories:
        with contextlib.suppress(OSError):
            for name in os.listdir(directory):
                path = os.path.join(directory, name)
                if name.startswith("pages-") and os.stat(path).st_nlink > 1:
                    yield path
