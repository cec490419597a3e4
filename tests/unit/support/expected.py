"""The expected request of options, computed without the code of the table's kinds.

``test_table.py`` compares the table's wire names with ``rpc.proto``. The encoding of values is
implemented here a second time, to find mistakes in ``options/value_types.py`` and
``options/values.py``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from pycriu_native import (
    CgroupRoot,
    CriuOpts,
    ExtMount,
    InheritFd,
    JoinNamespace,
    PageServer,
    VethPair,
)
from pycriu_native.enums import Verb
from pycriu_native.options.values import HasFileno, WireValue

REQUEST_TYPE = {
    Verb.DUMP: "DUMP",
    Verb.PRE_DUMP: "SINGLE_PRE_DUMP",
    Verb.RESTORE: "RESTORE",
    Verb.PAGE_SERVER: "PAGE_SERVER",
    Verb.PAGE_SERVER_CHILD: "PAGE_SERVER_CHLD",
    Verb.CPUINFO_DUMP: "CPUINFO_DUMP",
    Verb.CPUINFO_CHECK: "CPUINFO_CHECK",
    Verb.CHECK: "CHECK",
    Verb.VERSION: "VERSION",
    Verb.FEATURE_CHECK: "FEATURE_CHECK",
}
"""Each verb's name in ``rpc.proto``."""

LOG = {
    Verb.DUMP: "dump.log",
    Verb.PRE_DUMP: "pre-dump.log",
    Verb.RESTORE: "restore.log",
    Verb.PAGE_SERVER: "page-server.log",
    Verb.PAGE_SERVER_CHILD: "page-server-child.log",
    Verb.CPUINFO_DUMP: "cpuinfo-dump.log",
    Verb.CPUINFO_CHECK: "cpuinfo-check.log",
    Verb.CHECK: "check.log",
}
"""The default log file of each verb."""

NOTIFIED = (Verb.DUMP, Verb.PRE_DUMP, Verb.RESTORE)
"""The verbs that request notifications."""


def message(
    opts: CriuOpts, verb: Verb, pid: int | None = None, *, sibling: bool = False
) -> dict[str, WireValue]:
    """The ``criu_opts`` message; a directory given by path stays a path."""
    result: dict[str, WireValue] = {"images_dir_fd": -1}
    for row, value in opts.items():
        if row.wire is None or value == () or row.name in in_config(opts):
            continue
        result[row.wire] = _value(row.name, value)
    if opts.log_file is None and not opts.log_to_stderr:
        result["log_file"] = LOG[verb]
    if verb in NOTIFIED and not (verb in (Verb.DUMP, Verb.PRE_DUMP) and pid is None):
        result["notify_scripts"] = True  # the caller is frozen and cannot run a hook
    if pid is not None:
        result["pid"] = pid
    if sibling:
        result["rst_sibling"] = True
    if adds_config(opts, verb):
        result["config_file"] = "a file with the options that have no field"
    return result


def in_config(opts: CriuOpts) -> dict[str, Any]:
    """The options that go into a configuration file."""
    result = {row.name: value for row, value in opts.items() if row.in_config and value != ()}
    if opts.log_file is not None and "/" in opts.log_file:  # a request takes no path
        result["log_file"] = opts.log_file
    return result


def adds_config(opts: CriuOpts, verb: Verb) -> bool:
    """Whether the call adds a configuration file."""
    return serves_lazily(opts, verb) or bool(in_config(opts))


def serves_lazily(opts: CriuOpts, verb: Verb) -> bool:
    """Whether the address of the page server goes into a configuration file too."""
    servers = (Verb.DUMP, Verb.PAGE_SERVER, Verb.PAGE_SERVER_CHILD)
    return verb in servers and bool(opts.lazy_pages) and opts.page_server is not None


def _value(field: str, value: Any) -> WireValue:
    if field == "unix_sks":
        return [{"inode": inode} for inode in value]
    if isinstance(value, tuple):
        return [_item(item) for item in value]
    if isinstance(value, IntEnum):
        return int(value)
    if isinstance(value, HasFileno):
        return value.fileno()
    return _item(value)


def _item(item: Any) -> WireValue:
    result: dict[str, WireValue | None]
    match item:
        case VethPair(inside, outside):
            result = {"if_in": inside, "if_out": outside}
        case PageServer(address, port, fd):
            result = {"address": address, "port": port, "fd": fd}
        case ExtMount(key, value):
            result = {"key": key, "val": value}
        case CgroupRoot(path, controller):
            result = {"path": path, "ctrl": controller}
        case JoinNamespace(kind, file, extra):
            result = {"ns": kind, "ns_file": file, "extra_opt": extra}
        case InheritFd(fd, key):
            result = {"fd": fd if isinstance(fd, int) else fd.fileno(), "key": key}
        case _:
            plain: WireValue = item
            return plain
    return {name: value for name, value in result.items() if value is not None}
