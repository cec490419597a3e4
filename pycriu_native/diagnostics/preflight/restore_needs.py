"""Resources that the caller of the restore has to provide, since the images do not have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..._support.frozen_dataclass import dataclass, replace
from ..._support.light_typing import TYPE_CHECKING, Any
from ...enums import Verb
from ...errors import OptionError, Problem
from ...findings import Finding
from ...options.criu_opts import CriuOpts

if TYPE_CHECKING:
    from .context import Context

ROOT = "root"
GIVEN_BY_DESCRIPTOR = ("unix", "tty", "file", "net", "pid")
"""Kinds of ``external`` that a restore replaces by a descriptor."""


_ROOT = (
    'the root of its mount namespace, a mount point; "/" if it is that of the host '
    "(pycriu_native.oci has the options for containers of runc and crun)"
)
_ROOT_OF_USER = (
    "the root of its mount namespace: a mount point without mounts below it, since the tree has a "
    "user namespace of its own; for that of the host: mount --bind / PATH"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreNeed:
    """A descriptor, file or directory that the caller of the restore gives."""

    option: str
    """The field of ``CriuOpts`` that takes it: ``inherit_fds``, ``external`` or ``root``."""
    key: str
    """What it replaces, in CRIU's notation: ``socket:[4711]``, ``mnt[/data]``; or ``root``."""
    message: str
    """Its role in the processes."""
    required: bool = True
    """Whether the restore fails without it."""

    def value(self, given: Any) -> Any:
        """The value of the option with what the caller gives."""
        if self.option == "inherit_fds":
            return ((given, self.key),)
        return (f"{self.key}:{given}",) if self.option == "external" else given

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        import dataclasses

        return dataclasses.asdict(self)

    def __str__(self) -> str:
        form = {
            "inherit_fds": f'inherit_fds=[(fd, "{self.key}")]',
            "external": f'external=["{self.key}:PATH"]',
            "root": 'root="PATH"',
        }[self.option]
        return f"{form}{'' if self.required else ' (may be left out)'}: {self.message}"


def options_of(opts: CriuOpts) -> CriuOpts:
    """The options of a dump that its restore takes, without what only the dump can use."""
    result = opts.only_for(Verb.RESTORE)
    kept = tuple(item for item in result.external or () if _need(item) is None)
    return replace(result, external=kept or None, ext_mounts=None)


def needs_of(
    context: Context, opts: CriuOpts, findings: tuple[Finding, ...]
) -> Iterator[RestoreNeed]:
    """The needs of a restore of a dump with these options; some can be equal."""
    if context.tree.has_own("mnt") and opts.root is None:
        yield RestoreNeed(
            option="root",
            key=ROOT,
            message=_ROOT_OF_USER if context.tree.has_own("user") else _ROOT,
        )
    about = {
        str(item): finding.summary
        for finding in findings
        for name, value in finding.sets
        if name == "external"
        for item in value
    }
    for item in opts.external or ():
        need = _need(item)
        if need is not None:
            yield replace(need, message=about.get(item, need.message))
    for mount in opts.ext_mounts or ():
        key, name = mount.key, mount.value  # type: ignore[union-attr]
        yield RestoreNeed(
            option="external", key=f"mnt[{name}]", message=f"what was mounted at {key}"
        )
    for finding in findings:
        if finding.id == "pipe-outside" and finding.path:
            yield RestoreNeed(
                option="inherit_fds", key=finding.path, message=finding.summary, required=False
            )


def _need(item: str) -> RestoreNeed | None:
    """What the restore needs for an entry of ``external``; None if it takes the entry itself."""
    kind, _, rest = item.partition("[")
    name, _, value = rest.partition("]")
    value = value.removeprefix(":")
    if kind in GIVEN_BY_DESCRIPTOR:
        key = value or {"unix": f"socket:[{name}]"}.get(kind, item)
        return RestoreNeed(option="inherit_fds", key=key, message=f"in place of {kind}[{name}]")
    if kind in ("mnt", "dev") and name:
        what = f"what was mounted at {name}" if kind == "mnt" else f"the device {name}"
        return RestoreNeed(option="external", key=f"{kind}[{value}]", message=what)
    return None


def filled(opts: CriuOpts, needs: tuple[RestoreNeed, ...], given: Mapping[str, Any]) -> CriuOpts:
    """The options of the restore with what its caller gives, by the keys of the needs.

    Raises ``OptionError`` for a required key that is missing, and for a key that is no need.
    """
    if not isinstance(given, Mapping):
        raise OptionError([Problem("given", given, "a mapping of the keys of needs is accepted")])
    keys = {need.key for need in needs}
    problems = [
        Problem(need.option, None, f"the restore needs {need}")
        for need in needs
        if need.required and need.key not in given
    ]
    problems += [
        Problem("given", key, f"the keys of the needs are accepted: {', '.join(sorted(keys))}")
        for key in given
        if key not in keys
    ]
    if problems:
        raise OptionError(problems)
    changes: dict[str, Any] = {}
    for need in needs:
        if need.key in given:
            value = need.value(given[need.key])
            if isinstance(value, tuple):
                value = (*(changes.get(need.option) or getattr(opts, need.option) or ()), *value)
            changes[need.option] = value
    return replace(opts, **changes)
