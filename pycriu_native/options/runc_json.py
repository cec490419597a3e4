"""Converts options to and from runc's ``CriuOpts`` as JSON.

The struct (``libcontainer/criu_opts_linux.go``) has no tags, so JSON has its field names. Zero
values mean unset, and -1 for the descriptor. It has no field for ``clear_text`` of a page server:
it is not written, and unset when read. ``ManageCgroupsMode`` is a name since runc 1.3 and was
CRIU's number before; both are read, the name is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..enums import CgroupMode
from ..errors import OptionError, Problem
from . import value_types as kinds
from .fields import Fields
from .flags import Opts
from .table import BY_FIELD, TABLE, Row
from .values import PageServer

ROWS = {row.runc: row for row in TABLE if row.runc}
_MODES = (CgroupMode.SOFT, CgroupMode.FULL, CgroupMode.STRICT, CgroupMode.IGNORE)
CGROUP_MODES = {mode.name.lower(): mode for mode in _MODES}
"""The modes that runc accepts."""


# ---- from options to JSON ----


def to_runc(opts: Fields) -> dict[str, Any]:
    """See ``CriuOpts.to_runc``."""
    result = {name: _WRITERS[type(row.kind)][0]() for name, row in ROWS.items()}
    problems = []
    for row, value in opts.items():
        if value == ():
            continue
        try:
            if row.runc is None:
                raise ValueError("runc has no such option")
            unset, write = _WRITERS[type(row.kind)]
            written = write(value)
            if written == unset() or (row.name == "status_fd" and written == 0):
                raise ValueError("runc takes this for unset; leave it unset")
            result[row.runc] = written
        except ValueError as problem:
            problems.append(Problem(row.name, value, str(problem)))
    if problems:
        raise OptionError(problems)
    return result


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("runc takes a path, not a descriptor")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("runc takes UTF-8 only") from None
    return value


def _mode(value: CgroupMode) -> str:
    name = value.name.lower()
    if name not in CGROUP_MODES:
        raise ValueError(f"runc takes {', '.join(CGROUP_MODES)}")
    return name


def _server(value: PageServer) -> dict[str, Any]:
    if value.fd is not None:
        raise ValueError("runc has no descriptor of a page server")
    if value.address is None and value.port is None:
        raise ValueError("runc takes this for unset; leave it unset")
    if value.port == 0:
        raise ValueError("runc takes port 0 for none; leave it out")
    return {"Address": _text(value.address or ""), "Port": value.port or 0}


def _veths(value: tuple[Any, ...]) -> list[dict[str, str]]:
    return [
        {
            "ContainerInterfaceName": _text(pair.inside),
            "HostInterfaceName": _text(pair.outside),
        }
        for pair in value
    ]


_WRITERS: dict[type, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    kinds.Flag: (bool, bool),
    kinds.Directory: (str, _text),
    kinds.FilePath: (str, _text),
    kinds.Text: (str, _text),
    kinds.Mode: (str, _mode),
    kinds.FileDescriptor: (lambda: -1, kinds.FileDescriptor().wire),
    kinds.Namespaces: (int, int),
    kinds.Item: (lambda: {"Address": "", "Port": 0}, _server),
    kinds.ListOf: (list, _veths),
}
"""For each kind of value: the value that means unset, and the conversion of others."""


# ---- from JSON to options ----


def from_runc(cls: type[Opts], struct: Mapping[str, Any]) -> Opts:
    """See ``CriuOpts.from_runc``."""
    if not isinstance(struct, Mapping):
        raise OptionError([Problem("struct", struct, "a mapping of runc's fields is accepted")])
    fields: dict[str, Any] = {}
    problems = []
    for name, value in struct.items():
        row = ROWS.get(name)
        try:
            if row is None:
                raise ValueError("is no field of runc's CriuOpts")
            if value is None or _unset(row, value):
                continue
            if isinstance(row.kind, kinds.Directory) and not isinstance(value, str):
                raise ValueError("text is accepted")  # a descriptor is no value of runc's
            read = _READERS.get(row.name)
            fields[row.name] = read(value) if read else value
        except ValueError as problem:
            problems.append(Problem(name, value, str(problem)))
    try:
        opts = cls(**fields)
    except OptionError as refused:
        for p in refused.problems:
            problems.append(Problem(str(BY_FIELD[p.field].runc), p.value, p.rule))
        raise OptionError(problems) from None
    if problems:
        raise OptionError(problems)
    return opts


def _unset(row: Row, value: object) -> bool:
    """Whether a value is its type's zero, in any release of runc."""
    if value == "" or value == [] or value is False:
        return True
    if row.name == "status_fd":
        return value in (0, -1)
    return type(value) is int and value == 0


def _read_mode(value: Any) -> CgroupMode:
    if isinstance(value, str) and value in CGROUP_MODES:
        return CGROUP_MODES[value]
    if type(value) is int and value in {int(mode) for mode in CgroupMode}:
        return CgroupMode(value)
    raise ValueError(f"{', '.join(CGROUP_MODES)} or CRIU's number is accepted")


def _read_server(value: Any) -> PageServer | None:
    address, port = _members(value, "Address", "Port")
    if not address and not port:
        return None
    return PageServer(address or None, port or None)


def _read_veths(value: Any) -> list[tuple[Any, Any]]:
    if not isinstance(value, list | tuple):
        raise ValueError("a list is accepted")
    return [_members(item, "ContainerInterfaceName", "HostInterfaceName") for item in value]


def _members(value: Any, first: str, second: str) -> tuple[Any, Any]:
    if not isinstance(value, Mapping) or not set(value) <= {first, second}:
        raise ValueError(f"an object with {first} and {second} is accepted")
    return value.get(first), value.get(second)


_READERS: dict[str, Callable[[Any], Any]] = {
    "manage_cgroups_mode": _read_mode,
    "page_server": _read_server,
    "veth_pairs": _read_veths,
}
