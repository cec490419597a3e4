"""The input of every check of ``preflight``, and constructors for their findings."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from ..._calls import requirements
from ..._failures.log_excerpt import known
from ..._rollback.option import Rollback
from ..._system.mount_table import MountTable
from ..._system.process_snapshot import Tree
from ..._transport.base import Via
from ...errors import CriuError
from ...findings import Finding, Severity
from ...options.criu_opts import CriuOpts
from ...results import Version


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """The process tree, the options and the connection to CRIU."""

    tree: Tree
    opts: CriuOpts
    via: Via
    mounts: MountTable
    rollback: Rollback | None = None
    """Which files the dump is to save."""
    include_caller: bool = False
    """Whether the dump is to take a tree that contains the caller."""

    def external(self, key: str) -> bool:
        """Whether ``external`` has an entry for a key, such as ``unix[4711]``."""
        return any(external_key(item) == key for item in self.opts.external or ())

    def is_older_than(self, release: str) -> bool:
        """Whether the ``criu`` program is older; False if its release is unknown."""
        with contextlib.suppress(CriuError):
            if self.via.identity() is not None:
                return requirements.program_version(self.via) < Version.parse(release)
        return False


def external_key(item: str) -> str:
    """The key of an entry of ``external``: ``mnt[/data]`` of ``mnt[/data]:data``."""
    return item[: item.find("]") + 1]


def stops(id: str, message: str, *, failure: str | None = None, **more: Any) -> Finding:
    """A finding that makes the dump fail. Default of ``cure``: that of the failure."""
    if failure is not None and "cure" not in more:
        more["cure"] = known(failure).cure
    return Finding(id=id, severity=Severity.STOPS, message=message, failure=failure, **more)


def needs(
    context: Context, id: str, message: str, cure: str, *, sets: dict[str, Any], **more: Any
) -> Finding:
    """A finding that an option cures; a note if the option is set already."""
    if all(_is_met(context, name, value) for name, value in sets.items()):
        message = f"{message} ({', '.join(sets)} is set for that)"
        return Finding(id=id, severity=Severity.NOTE, message=message, **more)
    return Finding(
        id=id,
        severity=Severity.NEEDS_OPTION,
        message=message,
        cure=cure,
        options=tuple(sets),
        sets=tuple(sets.items()),
        **more,
    )


def no_restore(id: str, message: str, *, failure: str | None = None, **more: Any) -> Finding:
    """A finding that makes a restore here fail. Default of ``cure``: that of the failure."""
    if failure is not None:
        more.setdefault("cure", known(failure).cure)
    return Finding(id=id, severity=Severity.NO_RESTORE, message=message, failure=failure, **more)


def lost(id: str, message: str, **more: Any) -> Finding:
    """A finding on something that the images do not contain."""
    return Finding(id=id, severity=Severity.LOST, message=message, **more)


def note(id: str, message: str, **more: Any) -> Finding:
    """A finding for information."""
    return Finding(id=id, severity=Severity.NOTE, message=message, **more)


def _is_met(context: Context, name: str, value: Any) -> bool:
    given = getattr(context.opts, name)
    if name == "ghost_limit":
        return given is not None and given >= value
    if isinstance(value, tuple):
        return all(context.external(external_key(item)) for item in value)
    return bool(given == value)
