"""The effect of a call, as values."""

from __future__ import annotations

from .._support.frozen_dataclass import dataclass
from .._support.light_typing import Any
from ..enums import Verb
from ..errors import Problem
from ..options.values import WireValue


@dataclass(frozen=True, slots=True)
class Setting:
    """One option of a configuration file."""

    option: str
    """The field of ``CriuOpts``, or the name of the option if there is no field."""
    value: object
    """The value in the file."""
    effect: str
    """The effect on this call."""
    applies: bool
    """Whether the file changes the behaviour of the call."""
    fails: bool = False
    """Whether CRIU does not read the file further, so that the call fails."""

    def __str__(self) -> str:
        return f"{self.option}={self.value!r}: {self.effect}"


@dataclass(frozen=True, slots=True)
class ConfigurationFile:
    """A configuration file that CRIU reads for this call."""

    path: str
    """Its path."""
    why: str
    """Why CRIU reads it."""
    settings: tuple[Setting, ...]
    """Its settings, including options without a field in ``CriuOpts``."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One field of the request."""

    wire: str
    """Its name in ``rpc.proto``."""
    value: WireValue
    """The value. For a directory given by path: that path; the call sends its descriptor."""
    by: str
    """The function of libcriu that sets it, or ``wire field``."""
    field: str | None
    """Its field of ``CriuOpts``. None: the call adds it."""

    def __str__(self) -> str:
        source = self.field or "added by the call"
        return f"{self.wire} = {self.value!r}  ({source}; {self.by})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """The effect of a call. ``str()`` returns a text of several lines."""

    verb: Verb
    """The verb; a dump with ``pre_dump`` set is a pre-dump."""
    pid: int | None
    """The process."""
    libcriu: str
    """The release of the loaded libcriu."""
    program: str
    """The CRIU of the call."""
    wire: tuple[Sent, ...]
    """The fields of the request that this libcriu supports."""
    command: tuple[str, ...]
    """The equivalent command line, without the options in ``not_expressed``."""
    not_expressed: tuple[Problem, ...]
    """Options that the command line of ``criu`` does not have."""
    problems: tuple[Problem, ...]
    """Rules that the call breaks: it would be refused."""
    lacking: tuple[Problem, ...]
    """Options that this libcriu or this CRIU does not support. The kernel is not checked."""
    configuration: tuple[ConfigurationFile, ...]
    """The configuration files that CRIU reads for it, in CRIU's order."""

    def __str__(self) -> str:
        import shlex

        what = str(self.verb) if self.pid is None else f"{self.verb} of pid {self.pid}"
        return "\n".join(
            [
                f"{what}, with libcriu {self.libcriu} and {self.program}",
                *_section("on the wire", self.wire),
                *_section("as a command line", [shlex.join(self.command)] if self.command else []),
                *_section("not expressed there", self.not_expressed),
                *_section("refused, because", self.problems),
                *_section("lacking", self.lacking),
                *(
                    line
                    for file in self.configuration
                    for line in _section(f"{file.path} ({file.why})", file.settings, "sets nothing")
                ),
            ]
        )


def _section(title: str, lines: Any, empty: str = "") -> list[str]:
    shown = [f"  {line}" for line in lines] or ([f"  {empty}"] if empty else [])
    return [f"{title}:", *shown] if shown else []
