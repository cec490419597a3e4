"""CriuOpts: what CRIU is asked to do, as one value.

The fields are in ``fields.py``; here are their other forms: a command line, a configuration
file, runc's JSON. The modules of those are imported when they are used, which saves start-up time.
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

    A value: frozen, hashable, comparable, picklable. ``None`` leaves a field to CRIU: nothing
    is sent. ``dataclasses.replace`` makes a variant. What is written is checked and brought
    into one form when the object is made; :class:`~pycriu_native.OptionError` lists all that
    is wrong. Whether the options fit a verb is checked by the verb, before anything is touched.

    Synchronization: immutable, so safe to share between threads.
    """

    # ---- other forms: exact on all that they can express, the rest is refused by name ----

    def to_argv(self, verb: Verb | str, pid: int | None = None) -> list[str]:
        """The command line of the ``criu`` program that does the same, as a list of words.

        Descriptors in it are numbers of the process that runs it. Not said: the name of the log,
        which the verbs choose where ``log_file`` does not (``criu`` then logs to standard error).
        A ``config_file`` is said as ``--config``, which loses to the options beside it, where the
        one of a request wins. ``OptionError`` names all that no command line can say: a False
        that has no ``--no-`` form, a descriptor for a directory, fields without a word.
        """
        from . import command_line

        return command_line.to_argv(self, verb, pid)

    @classmethod
    def from_argv(cls, words: Sequence[str]) -> tuple[Verb, int | None, Self]:
        """Verb, pid and options of a ``criu`` command line, with or without the program in front.

        Long, abbreviated and short options. The verb is ``restore-child`` with
        ``--restore-sibling``, ``page-server`` for a page server with ``--daemon`` and
        ``page-server-child`` for one without, ``version`` with ``--version``. Options of pre-dump
        come with ``pre_dump`` set. A restore is always detached, and the pid that it may name is
        dropped, as are the other options that ``criu`` ignores with the command. Without ``-D`` the
        images are in ``"."``; ``-o -`` becomes ``log_to_stderr``. A page server without an address
        listens on ``0.0.0.0``.
        ``OptionError`` lists what is unknown, or has no field here: ``--help``, ``--ms``, and the
        commands ``service`` and ``swrk``.
        """
        from . import command_line

        return command_line.from_argv(cls, words)

    def to_config(self) -> str:
        """The text of a CRIU configuration file that asks for the same.

        To be written as bytes by ``os.fsencode``. Refused with ``OptionError``, besides what a
        command line cannot say: ``network_lock``, which in the file of a request crashes CRIU
        before 4.2.1; ``exec_cmd``; and values that CRIU's reader would cut or split.
        """
        from . import config_file

        return config_file.to_config(self)

    @classmethod
    def from_config(cls, text: str) -> Self:
        """Options from the text of a CRIU configuration file, read with all of CRIU's edges.

        ``OptionError`` lists the lines that CRIU refuses or ignores, and those without a field.
        """
        from . import config_file

        return config_file.from_config(cls, text)

    def to_runc(self) -> dict[str, Any]:
        """runc's ``CriuOpts`` (1.3 and later) with these values, by its JSON field names.

        Whole: what is unset here is there with the value that means so. ``OptionError`` names
        what runc lacks, and values that it takes for unset, such as False.
        """
        from . import runc_json

        return runc_json.to_runc(self)

    @classmethod
    def from_runc(cls, struct: Mapping[str, Any]) -> Self:
        """Options from runc's ``CriuOpts`` as JSON, of any of its releases.

        Zero values, and -1 or 0 for the descriptor, mean unset. Fields may be missing. A page
        server gets no ``clear_text`` from it: runc never asks whether memory may cross the network
        so, and nobody has said yes. Off loopback and without ``tls`` a verb then asks for that.
        """
        from . import runc_json

        return runc_json.from_runc(cls, struct)
