"""CriuOpts: the options of a call, as one value.

The fields are in ``fields.py``. The methods here convert them to and from a command line, a
configuration file, and runc's JSON; the modules that do so are imported on first use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .._support.frozen_dataclass import dataclass
from .._support.light_typing import Any, Self
from ..enums import Verb
from .fields import Fields, StrPath

__all__ = ["CriuOpts", "StrPath"]


@dataclass(frozen=True, kw_only=True, repr=False)
class CriuOpts(Fields):
    """The options of a dump, pre-dump or restore.

    A value: frozen, hashable, comparable, picklable. A field that is ``None`` is not sent, and
    CRIU's default applies. ``dataclasses.replace`` makes a variant. Values are checked and
    normalized when the object is made; :class:`~pycriu_native.OptionError` lists all problems.
    Whether the options fit a verb is checked by the verb, before anything is touched.

    Synchronization: immutable, so safe to share between threads.
    """

    # ---- other forms: conversion is lossless; what a form cannot express is refused ----

    def to_argv(self, verb: Verb | str, pid: int | None = None) -> list[str]:
        """The equivalent command line of the ``criu`` program, as a list of arguments.

        Descriptors in it are numbers of the process that runs it. Without ``log_file`` it has no
        log file, and ``criu`` logs to standard error; the verbs choose a name then. Options of the
        command line override those of ``--config``, while a ``config_file`` overrides those of a
        request. ``OptionError`` names all that a command line cannot express: a False without a
        ``--no-`` form, a descriptor for a directory, fields without a flag.
        """
        from . import command_line

        return command_line.to_argv(self, verb, pid)

    @classmethod
    def from_argv(cls, words: Sequence[str]) -> tuple[Verb, int | None, Self]:
        """Verb, pid and options of a ``criu`` command line, with or without the program's name.

        Options can be long, abbreviated or short. The verb is ``restore-child`` with
        ``--restore-sibling``, ``page-server`` for a page server with ``--daemon`` and
        ``page-server-child`` for one without, ``version`` with ``--version``. For a pre-dump,
        ``pre_dump`` is set. A restore is always detached; its pid, and other options that ``criu``
        ignores with the command, are ignored. Without ``-D`` the images are in ``"."``; ``-o -``
        becomes ``log_to_stderr``. A page server without an address listens on ``0.0.0.0``.
        ``OptionError`` lists what is unknown, or has no field: ``--help``, ``--ms``, and the
        commands ``service`` and ``swrk``.
        """
        from . import command_line

        return command_line.from_argv(cls, words)

    def to_config(self) -> str:
        """The text of a CRIU configuration file with these options.

        Write it as bytes, by ``os.fsencode``. ``OptionError`` names what a command line cannot
        express, and also: ``network_lock``, which in the file of a request crashes CRIU before
        4.2.1; ``exec_cmd``; and values that CRIU's parser would truncate or split.
        """
        from . import config_file

        return config_file.to_config(self)

    @classmethod
    def from_config(cls, text: str) -> Self:
        """Options from the text of a CRIU configuration file, parsed as CRIU does.

        ``OptionError`` lists the lines that CRIU refuses or ignores, and those without a field.
        """
        from . import config_file

        return config_file.read_config(text).make(cls)

    def to_runc(self) -> dict[str, Any]:
        """runc's ``CriuOpts`` (1.3 and later) with these values, by its JSON field names.

        All of runc's fields are present; those of unset options have the value that means unset.
        ``OptionError`` names what runc lacks, and values that mean unset to it, such as False.
        """
        from . import runc_json

        return runc_json.to_runc(self)

    @classmethod
    def from_runc(cls, struct: Mapping[str, Any]) -> Self:
        """Options from runc's ``CriuOpts`` as JSON, of any of its releases.

        Zero values, and -1 or 0 for the descriptor, mean unset. Fields may be missing. A page
        server does not get ``clear_text``, which runc does not have: a verb refuses an address
        other than loopback without ``tls``, until the caller sets it.
        """
        from . import runc_json

        return runc_json.from_runc(cls, struct)
