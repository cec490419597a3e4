"""The input of every check of ``preflight``, and constructors for their findings."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..._calls import requirements
from ..._failures.log_excerpt import known
from ..._rollback.option import Rollback
from ..._system.mount_table import MountTable
from ..._system.process_snapshot import Descriptor, Process, Tree
from ..._system.process_tree import is_above
from ..._transport.base import Via
from ..._transport.helper_programs import HelperPrograms
from ..._transport.helper_programs import cure as helper_cure
from ...errors import CriuError
from ...findings import Finding, Severity
from ...options.criu_opts import CriuOpts
from ...results import Version
from ..explanation import ConfigurationFile

Findings = Iterator[Finding]
"""What a check yields."""


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
    configuration: tuple[ConfigurationFile, ...] = ()
    """The configuration files that CRIU reads for the dump."""

    def external(self, key: str) -> bool:
        """Whether ``external`` has an entry for a key, such as ``unix[4711]``."""
        return any(external_key(item) == key for item in self.opts.external or ())

    def in_order_of_dump(self) -> list[Process]:
        """The processes, depth first. CRIU saves shared resources with the first of them."""
        below: dict[int, list[Process]] = {}
        for process in self.tree.alive:
            below.setdefault(process.stat.parent, []).append(process)
        rest, result = [self.tree.root], []
        while rest:
            result.append(rest.pop())
            rest += reversed(below.get(result[-1].pid, []))
        return result

    @property
    def finds_external_mounts(self) -> frozenset[str]:
        """The options in force that find external mounts: ``external="mnt[]:m"`` sets two."""
        names = ("auto_ext_mnt", "ext_masters", "ext_sharing")
        result = {name for name in names if getattr(self.opts, name)}
        for item in self.opts.external or ():
            if item.startswith("mnt[]"):
                more = {":m": "ext_masters", ":s": "ext_sharing"}.get(item[5:7])
                result |= {"auto_ext_mnt", more} if more else {"auto_ext_mnt"}
        return frozenset(result)

    def in_force(self, name: str) -> Any:
        """The value of an option, or that of a configuration file that CRIU reads."""
        result = getattr(self.opts, name)
        for file in self.configuration:
            for setting in file.settings:
                if setting.option == name and setting.applies:
                    result = setting.value
        return result

    def is_outside(self, pid: int) -> bool:
        """Whether a process exists outside of the tree: the tree can have started more since."""
        return (
            pid not in self.tree.pids
            and not is_above(self.tree.root.pid, pid)
            and os.path.exists(f"/proc/{pid}")  # last: it can end meanwhile
        )

    def is_older_than(self, release: str) -> bool:
        """Whether the ``criu`` program is older; False if its release is unknown."""
        with contextlib.suppress(CriuError):
            if self.via.identity() is not None:
                return requirements.program_version(self.via) < Version.parse(release)
        return False

    def needs(self, id: str, message: str, *, sets: dict[str, Any], **more: Any) -> Finding:
        """A finding that options cure; a note if these options are set already."""
        if all(self._is_met(name, value) for name, value in sets.items()):
            message = f"{message} ({', '.join(sets)} is set for that)"
            more["cure"] = ""
            return note(id, message, **more)
        more |= {"options": tuple(sets), "sets": tuple(sets.items())}
        return _finding(Severity.NEEDS_OPTION, id, message, **more)

    def _is_met(self, name: str, value: Any) -> bool:
        given = getattr(self.opts, name)
        if name == "ghost_limit":
            return given is not None and given >= value
        if name == "irmap_paths":
            return set(value) <= set(given or ())
        if isinstance(value, tuple):
            return all(self.external(external_key(item)) for item in value)
        return bool(given == value)

    def needs_programs(self, what: str, *programs: str) -> Findings:
        """A finding that makes the dump fail if the worker lacks programs that CRIU runs."""
        helpers = HelperPrograms(self.via)
        if lacking := helpers.missing(*programs):
            message = f"CRIU saves {what} {helpers.described(lacking)}"
            yield stops("program", message, failure="program-missing", cure=helper_cure(lacking))


def external_key(item: str) -> str:
    """The key of an entry of ``external``: ``mnt[/data]`` of ``mnt[/data]:data``."""
    return item[: item.find("]") + 1]


def _finding(severity: Severity, id: str, message: str, **more: Any) -> Finding:
    """A finding with other fields of ``Finding``. Default of ``cure``: that of ``failure``."""
    if failure := more.get("failure"):
        more.setdefault("cure", known(failure).cure)
    return Finding(id=id, severity=severity, message=message, **more)


stops = partial(_finding, Severity.STOPS)
"""A finding that makes the dump fail."""
no_restore = partial(_finding, Severity.NO_RESTORE)
"""A finding that makes a restore here fail."""
lost = partial(_finding, Severity.LOST)
"""A finding on something that the images do not contain."""
note = partial(_finding, Severity.NOTE)
"""A finding for information."""


def on(fd: Descriptor) -> dict[str, Any]:
    """The arguments of a finding on a descriptor."""
    return {"pid": fd.pid, "fd": fd.number, "path": fd.link}
