"""Errors of the library as text and as JSON.

Messages of the library name fields of ``CriuOpts``; here these names become command line options.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import click

from .. import errors
from ..options.flags import ROWS
from ..options.table import BY_FIELD, Row
from . import json_form
from .text import safe

CONFIG = "--criu-config"
"""The option for CRIU's ``--config``; that name is the option of this program's own file."""

MOST_LINES = 6
"""Number of CRIU's error lines that are shown; the log has all of them."""

_PARAMETERS = {
    "decrypt_with": "--identity",
    "encrypt_to": "--encrypt-to",
    "listen": "--listen",
    "to": "--to",
}
"""Options of this program for arguments that are no fields of CriuOpts."""


def flag_of(field: str) -> str:
    """The long option of a field; the name of the field if it has none."""
    if field in _PARAMETERS:
        return _PARAMETERS[field]
    row = BY_FIELD.get(field)
    flag = row.flag if row is not None and row.flag else field
    return CONFIG if flag == "--config" else flag


def field_of(name: str) -> str:
    """The field of a long option; any other name is returned unchanged."""
    if name == "--config":
        return name
    name = "--config" if name == CONFIG else name
    return next((row.name for row in ROWS.get(name, ())), name)


_ARGUMENTS = {
    "decrypt_with=[]": "--identity",
    "PageServer(..., clear_text=True)": "--clear-text",
    "Worker(allow_untrusted=True)": "--allow-untrusted",
    "allow_untrusted=True": "--allow-untrusted",
    "insecure=True": "--insecure",
    "inside= names": "--inside names",
    "seal()": "pycriu-native seal",
    "keep_feature_cache()": "pycriu-native keep-cache",
    'files="rollback"': "--files rollback",
    'the option files ("rollback")': "--files rollback",
    "Worker(program)": "--criu PROGRAM",
    "leave via out for a worker of your own": "leave --service out",
    "via=Worker(stdin=terminal)": "--wait",
    ', or name its directory with Worker(env={"CRIU_LIBS_DIR": directory})': "",
    "a running criu service inherits none: use a Worker": "a criu service (--service) "
    "inherits none",
    "criu lazy-pages": "pycriu-native lazy-pages",
    "cpuinfo_dump": "pycriu-native cpuinfo-dump",
    "feature_check().mem_track": "pycriu-native check",
    "feature_check().lazy_pages": "pycriu-native check",
    "include_caller=True": "--include-caller",
    "without_guest=True": "--without-guest",
    "without_guest": "--without-guest",
    "start_new_session of subprocess makes one": "setsid makes one",
    "setsid, start_new_session of subprocess": "setsid",
    "the on_notify hook, or a script in CRIU's configuration,": "an --action-script",
    "see the exception of the hook, or the script's messages in the log": "see its messages",
    "pre_dump": "pre-dump",
}
"""Expressions of the library's messages other than fields, and what replaces them."""

_PATH = r"(?<![\w.~-])[\w.~-]*/[^\s'\",;:()\[\]]*"
"""It starts at a word, since a long word without a slash would be read from each letter on."""
_ITEM = r"(?:\([^()]*\)|\"[^\"]*\")"
_LISTED = rf"\b(?P<list>[a-z_]+)=\[(?P<items>{_ITEM}(?:, {_ITEM})*)\]"
_ASSIGNED = r"\b(?P<field>[a-z_]+)=(?P<value>True|False|\w+|'[^']*'|\"[^\"]*\")"
_NAMED = r"\b[a-z]+(?:_[a-z]+)+\b"
_PARTS = r"\"[^\"]*\"|[^(), ]+"
_SPELLED = {"inherit_fds": "fd[{0}]:{1}", "join_ns": "{0}:{1}", "veth_pairs": "{0}={1}"}
"""The format of a value with two parts."""


def in_flags(text: str) -> str:
    """Replace fields in a text by long options: ``tcp_close=True`` by ``--tcp-close``.

    Parts of paths remain: a directory can have the name of a field.
    """
    expressions = "|".join(map(re.escape, _ARGUMENTS))
    return re.sub(
        f"(?P<other>{expressions})|{_LISTED}|{_ASSIGNED}|(?P<path>{_PATH})|{_NAMED}", _flags, text
    )


def _flags(found: re.Match[str]) -> str:
    """What replaces an expression, a field or a path of a text."""
    if found["path"] or found["other"]:
        return _ARGUMENTS.get(found[0], found[0])
    name = found["list"] or found["field"] or found[0]
    row = BY_FIELD.get(name)
    if row is None or not row.flag:
        return flag_of(name) + found[0].removeprefix(name)
    if found["list"]:
        return _as_values(row, found["items"])
    value = found["value"]
    if value == "False":
        return "--no-" + flag_of(name)[2:] if row.negates else f"no {flag_of(name)}"
    if value in (None, "True"):
        return flag_of(name)
    return flag_of(name) + "=" + value.strip("'\"")


def _as_values(row: Row, items: str) -> str:
    values = []
    for item in re.findall(_ITEM, items):
        parts = [part.strip('"') for part in re.findall(_PARTS, item)]
        joined = _SPELLED.get(row.name, ":".join(["{}"] * len(parts))).format(*parts)
        values.append(f"{flag_of(row.name)} {joined}")
    return " ".join(values)


def to_dict(error: BaseException) -> dict[str, Any]:
    """The ``error`` of ``--json``."""
    result: dict[str, Any] = {"type": type(error).__name__, "message": message(error)}
    if isinstance(error, errors.CriuError):
        for name in ("verb", "pid", "code", "errno", "log", "lines", "cause", "cure"):
            result[name] = json_form.plain(getattr(error, name))
        result["options"] = [
            {"field": field_of(name), "flag": flag_of(name)} for name in error.options
        ]
        result["problems"] = [
            {
                "field": field_of(problem.field),
                "flag": flag_of(problem.field),
                "value": json_form.plain(problem.value),
                "rule": problem.rule,
            }
            for problem in getattr(error, "problems", ())
        ]
        for name in ("phase", "by_peer", "findings"):
            if hasattr(error, name):
                result[name] = json_form.plain(getattr(error, name))
    notes = getattr(error, "__notes__", [])
    if notes:
        result["notes"] = list(notes)
    return result


def message(error: BaseException) -> str:
    """The error in one line."""
    if isinstance(error, click.ClickException):
        return error.format_message()
    return str(error) or type(error).__name__


def lines(error: BaseException, command: str) -> Iterator[tuple[str, str]]:
    """The lines of an error as pairs of label and text; the first has no label."""
    if isinstance(error, click.UsageError):
        yield "", message(error)
        ctx = error.ctx
        if ctx is not None:
            yield "usage", ctx.command.get_usage(ctx).removeprefix("Usage: ")
            yield "help", f"{ctx.command_path} --help"
        return
    if isinstance(error, errors.OptionError):
        lacks = isinstance(error, errors.UnsupportedError)
        yield "", f"{command}: {'not possible here' if lacks else 'refused'}; nothing was touched"
        for problem in error.problems:
            yield "-", _problem(problem)
    elif isinstance(error, errors.CriuError):
        yield from _failure(error, command)
    else:
        yield "", f"{command}: {safe(message(error))}"
    for note in getattr(error, "__notes__", []):
        for line in note.splitlines():
            yield "note", safe(in_flags(line))


def _problem(problem: errors.Problem) -> str:
    name = problem.field if problem.field.startswith("-") else flag_of(problem.field)
    reported = problem.value
    value = "" if reported is None or reported is True else f"={safe(_shown(reported))}"
    return f"{name}{value}: {in_flags(problem.rule)}"


def _shown(value: object) -> str:
    """A value in a form that an error message can show."""
    shown = json_form.plain(value)
    if isinstance(shown, dict):
        return ":".join(str(part) for part in shown.values() if part is not None)
    return str(shown)


def _failure(error: errors.CriuError, command: str) -> Iterator[tuple[str, str]]:
    if error.cause is None or error.cause not in str(error):
        # The message does not repeat the cause.
        yield "", f"{command}: {safe(in_flags(str(error)))}"
    else:
        what = f"{error.verb or command} of pid {error.pid}" if error.pid else command
        yield "", f"{what} failed"
        yield "cause", safe(in_flags(error.cause))
    if error.cure:
        yield "cure", safe(in_flags(error.cure))
    flags = [flag_of(name) for name in error.options]
    if flags and not all(flag in in_flags(error.cure or "") for flag in flags):
        yield "options", " ".join(flags)
    for line in error.lines[:MOST_LINES]:
        yield "CRIU", safe(line)
    if len(error.lines) > MOST_LINES:
        yield "CRIU", f"… and {len(error.lines) - MOST_LINES} more lines in the log"
    if error.log and os.path.exists(error.log):
        yield "log", safe(error.log)
