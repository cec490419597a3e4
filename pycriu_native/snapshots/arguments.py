"""Checks of the types of the arguments of ``Snapshot`` and ``Zygote``."""

from __future__ import annotations

import codecs
import functools
import io
import locale
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from .._checks.arguments import type_problems
from .._support.frozen_dataclass import replace
from .._system.capabilities import is_root_of_host
from ..errors import OptionError, Problem
from ..options.criu_opts import CriuOpts
from ..options.values import is_text
from .streams import TextMode, refuse

Text = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""An argument, variable or path of a program, as for ``subprocess.Popen``."""

LARGEST_BUFFER = 2**30
"""Limit of ``bufsize``, in bytes: the buffer is allocated after the start."""

Environment = Mapping[str, Text] | Mapping[bytes, Text]
"""Environment variables."""


def for_caller(opts: CriuOpts | None) -> CriuOpts:
    """The options, with ``unprivileged`` if the caller is not root of the host."""
    result = CriuOpts() if opts is None else opts
    if result.unprivileged is None and not is_root_of_host():
        return replace(result, unprivileged=True)
    return result


def check_call(
    verb: str,
    *,
    opts: CriuOpts | None,
    via: object,
    deadline: object,
    on_progress: object = None,
    **flags: object,
) -> None:
    """Raise ``OptionError`` for arguments of other types. ``flags`` are True or False."""
    accepted = CriuOpts() if opts is None else opts
    problems = type_problems(accepted, via, deadline, on_progress=on_progress)
    for name, value in flags.items():
        if not isinstance(value, bool):
            problems.append(Problem(name, value, "True or False is accepted"))
    refuse(problems, verb)


def text_mode(
    text: bool | None, encoding: str | None, errors: str | None, bufsize: int
) -> TextMode:
    """The mode of the pipes, as ``subprocess.Popen`` would choose it. Raises ``OptionError``."""
    problems = []
    if text is not None and not isinstance(text, bool):
        problems.append(Problem("text", text, "True, False or None is accepted"))
    open_as = functools.partial(io.TextIOWrapper, io.BytesIO())
    if encoding is not None and not _is_known(open_as, encoding):
        problems.append(Problem("encoding", encoding, "the name of a text encoding is accepted"))
    if errors is not None and not _is_known(codecs.lookup_error, errors):
        rule = "the name of an error handler of codecs is accepted"
        problems.append(Problem("errors", errors, rule))
    if isinstance(bufsize, bool) or not isinstance(bufsize, int) or bufsize > LARGEST_BUFFER:
        rule = f"a number of bytes up to {LARGEST_BUFFER}, or -1, is accepted"
        problems.append(Problem("bufsize", bufsize, rule))
    refuse(problems, "start")
    as_text = bool(text or encoding or errors)
    if as_text and encoding is None:
        encoding = "utf-8" if sys.flags.utf8_mode else locale.getencoding()
    return TextMode(text=as_text, encoding=encoding, errors=errors, bufsize=bufsize)


def _is_known(look_up: Callable[[str], object], name: str) -> bool:
    try:
        look_up(name)
    except (LookupError, TypeError, ValueError):
        return False
    return True


def descriptor_numbers(pass_fds: object) -> tuple[int, ...]:
    """The argument ``pass_fds`` as a tuple. Raises ``OptionError`` if it is not iterable."""
    if not isinstance(pass_fds, Iterable) or isinstance(pass_fds, str | bytes):
        rule = "a sequence of descriptors is accepted"
        raise OptionError([Problem("pass_fds", pass_fds, rule)], verb="start")
    return tuple(pass_fds)


def is_path(value: object) -> bool:
    """Whether a value is a str or a path of str, without NUL characters."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        return False
    return is_text(value)


def are_texts(values: object) -> bool:
    """Whether this is a sequence of values that :func:`is_text` accepts, and not text itself."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes | bytearray):
        return False
    return all(is_text(value) for value in values)


def environment_problems(name: str, variables: object) -> Iterator[Problem]:
    """Problems of an argument with environment variables."""
    rule = (
        "a mapping of names to str, bytes or paths, without NUL characters and without = in a "
        "name, is accepted"
    )
    if not isinstance(variables, Mapping):
        yield Problem(name, variables, rule)
        return
    for key, value in variables.items():
        if not are_texts([key, value]) or os.fsencode(key) == b"" or b"=" in os.fsencode(key):
            yield Problem(name, {key: value}, rule)


def decoded(variables: Environment | None) -> dict[str, str] | None:
    """Environment variables as str; None for None."""
    if variables is None:
        return None
    return {os.fsdecode(name): os.fsdecode(value) for name, value in variables.items()}


def absolute(directory: Text) -> str:
    """The absolute path of a directory, by the working directory of this process."""
    path = os.fsdecode(directory)
    return path if os.path.isabs(path) else os.path.realpath(path)


def directory_problems(cwd: object) -> Iterator[Problem]:
    try:
        if is_text(cwd) and cwd and os.path.isdir(absolute(cwd)):  # type: ignore[arg-type]
            return
    except OSError:  # the working directory of this process was removed
        pass
    yield Problem("cwd", cwd, "the path of a directory is accepted")
