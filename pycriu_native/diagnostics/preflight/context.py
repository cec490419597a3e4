"""What every look at a tree is given, and how it says what it has found."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from ..._calls import requirements
from ..._failures.log_excerpt import known
from ..._system.mount_table import MountTable
from ..._system.process_snapshot import Tree
from ..._transport.base import Via
from ...errors import CriuError
from ...options.criu_opts import CriuOpts
from ...results import Version
from .values import Finding, Severity


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """The tree, the options and the way to CRIU."""

    tree: Tree
    opts: CriuOpts
    via: Via
    mounts: MountTable
    include_caller: bool = False
    """Whether the dump is to take a tree that contains the caller."""

    def external(self, key: str) -> bool:
        """Whether ``external`` names something, such as ``unix[4711]``."""
        return any(external_key(item) == key for item in self.opts.external or ())

    def is_older_than(self, release: str) -> bool:
        """Whether the ``criu`` program is; no, where it cannot be asked."""
        with contextlib.suppress(CriuError):
            if self.via.identity() is not None:
                return requirements.program_version(self.via) < Version.parse(release)
        return False


def external_key(item: str) -> str:
    """What an entry of ``external`` is about: ``mnt[/data]`` of ``mnt[/data]:data``."""
    return item[: item.find("]") + 1]


def stops(id: str, words: str, *, failure: str | None = None, **more: Any) -> Finding:
    """Something that makes the dump fail; the cure is the failure's unless another is given."""
    if failure is not None and "cure" not in more:
        more["cure"] = known(failure).cure
    return Finding(id=id, severity=Severity.STOPS, words=words, failure=failure, **more)


def needs(
    context: Context, id: str, words: str, cure: str, *, sets: dict[str, Any], **more: Any
) -> Finding:
    """Something that an option cures; a note where the option is set already."""
    if all(_is_met(context, name, value) for name, value in sets.items()):
        words = f"{words} ({', '.join(sets)} is set for that)"
        return Finding(id=id, severity=Severity.NOTE, words=words, **more)
    return Finding(
        id=id,
        severity=Severity.NEEDS_OPTION,
        words=words,
        cure=cure,
        sets=tuple(sets.items()),
        **more,
    )


def no_restore(id: str, words: str, *, failure: str, **more: Any) -> Finding:
    """Something that makes a restore here fail; the cure is the failure's."""
    more.setdefault("cure", known(failure).cure)
    return Finding(id=id, severity=Severity.NO_RESTORE, words=words, failure=failure, **more)


def lost(id: str, words: str, **more: Any) -> Finding:
    """Something that the images do not hold."""
    return Finding(id=id, severity=Severity.LOST, words=words, **more)


def note(id: str, words: str, **more: Any) -> Finding:
    """Something to mind."""
    return Finding(id=id, severity=Severity.NOTE, words=words, **more)


def _is_met(context: Context, name: str, value: Any) -> bool:
    given = getattr(context.opts, name)
    if name == "ghost_limit":
        return given is not None and given >= value
    if isinstance(value, tuple):
        return all(context.external(external_key(item)) for item in value)
    return bool(given == value)
