"""The option table agrees with ``CriuOpts``, ``rpc.proto`` and libcriu's setters.

A new option without field, docstring, wire field, setter or strategy fails here.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from types import NoneType

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample

from pycriu_native import CriuOpts, enums
from pycriu_native.enums import Verb
from pycriu_native.options import fields
from pycriu_native.options import value_types as kinds
from pycriu_native.options.fields import Fields
from pycriu_native.options.table import (
    BY_FIELD,
    BY_WIRE,
    MEMBER_SINCE,
    TABLE,
    VERB_MASK,
    Row,
    release,
)

from .support import elf, strategies
from .support.libraries import found, newest
from .support.proto import WireFormat, wire_format_of

RUNC = [
    "images_directory",
    "work_directory",
    "parent_image",
    "leave_running",
    "tcp_established",
    "external_unix_connections",
    "shell_job",
    "file_locks",
    "pre_dump",
    "page_server",
    "veth_pairs",
    "manage_cgroups_mode",
    "empty_ns",
    "auto_dedup",
    "lazy_pages",
    "status_fd",
]
"""The fields of runc's struct, in its order."""

RENAMED = {
    "images_directory": "images_dir_fd",
    "work_directory": "work_dir_fd",
    "parent_image": "parent_img",
    "external_unix_connections": "ext_unix_sk",
    "page_server": "ps",
    "veth_pairs": "veths",
    "pre_dump": None,
    "irmap_paths": "irmap_scan_paths",
    "unix_sks": "unix_sk_ino",
    "inherit_fds": "inherit_fd",
    "ext_mounts": "ext_mnt",
    "skip_mnts": "skip_mnt",
    "cg_roots": "cg_root",
    "cg_props": "cgroup_props",
    "cg_props_file": "cgroup_props_file",
    "cg_dump_controllers": "cgroup_dump_controller",
    "cg_yard": "cgroup_yard",
}
"""Fields that are not called as on the wire: all others are."""

NOT_OPTIONS = {
    "set_service_address": "how CRIU is reached",
    "set_service_fd": "how CRIU is reached: the session hands libcriu its own socket",
    "set_service_binary": "how CRIU is reached",
    "set_notify_cb": "the session hears notifications itself",
}
"""Setters that no row has, and why."""

rows = pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
rows_with_field = pytest.mark.parametrize("row", BY_FIELD.values(), ids=list(BY_FIELD))


def test_the_table_and_criu_opts_have_the_same_fields() -> None:
    """Each field is a row, each row a field; runc's come first, in runc's order."""
    names = [field.name for field in dataclasses.fields(CriuOpts)]
    assert names == [row.field for row in TABLE if row.field is not None]
    assert names[:16] == RUNC
    assert all(row.runc for row in TABLE[:16])
    assert all(field.default is None and field.kw_only for field in dataclasses.fields(CriuOpts))


def _documented() -> dict[str, str]:
    """The docstring of each field of the class."""
    (cls,) = ast.parse(inspect.getsource(Fields)).body
    assert isinstance(cls, ast.ClassDef)
    documented = {}
    for statement, after in zip(cls.body, cls.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            documented[statement.target.id] = str(after.value.value)
    return documented


DOCUMENTED = _documented()


@rows_with_field
def test_every_field_is_documented(row: Row) -> None:
    """The docstring of each field has a sentence; fields newer than 3.17 name the release."""
    text = DOCUMENTED[row.name]
    assert text.rstrip().endswith(".")
    if release(row.since) > (3, 17):
        assert f"CRIU {row.since}" in text
    if row.default is not None:
        assert "default" in text


def _accepts(kind: kinds.Kind) -> set[object]:
    """Types that the annotation of a field of this kind must have."""
    match kind:
        case kinds.Command() | kinds.ListOf():
            return set()
        case kinds.Flag():
            return {bool}
        case kinds.Number() | kinds.FileDescriptor():
            return {int}
        case kinds.Mode():
            return {kind.members, str, int}
        case kinds.Namespaces():
            return {int, str}
        case kinds.Text() | kinds.Argument():
            return {str}
        case kinds.FilePath():
            return {str, bytes}
        case kinds.Directory():
            return {str, bytes, int}
        case kinds.Item():
            return {kind.cls, str}
    raise AssertionError(f"{kind} is unknown here")


@rows_with_field
def test_annotations_are_the_accepted_types(row: Row) -> None:
    """The annotation has the types of the row's kind, and None."""
    hint = typing.get_type_hints(CriuOpts, vars(fields))[row.name]
    parts = set(typing.get_args(hint))
    assert NoneType in parts
    assert _accepts(row.kind) <= parts, (row.name, parts)
    if isinstance(row.kind, kinds.ListOf):
        (items,) = [part for part in parts if typing.get_origin(part) is not None]
        inner = typing.get_args(items)[0]
        assert _accepts(row.kind.item) <= ({inner} | set(typing.get_args(inner)))


def test_fields_have_the_names_of_the_wire() -> None:
    """Names agree, except for runc's, plurals of lists, and the setters' stems."""
    sent = [row for row in TABLE if row.field and not row.in_config]
    assert {row.field: row.wire for row in sent if row.field != row.wire} == RENAMED
    assert len(BY_WIRE) == sum(row.wire is not None for row in TABLE)


def test_every_wire_field_has_a_row(newest_wire_format: WireFormat) -> None:
    """The newest ``rpc.proto`` and the table have the same fields."""
    assert set(BY_WIRE) == set(newest_wire_format.fields())


def _wire_type(kind: kinds.Kind) -> set[int]:
    match kind:
        case kinds.Command():
            return {FieldDescriptor.TYPE_BYTES}
        case kinds.ListOf():
            return {FieldDescriptor.TYPE_MESSAGE} if kind.inner else _wire_type(kind.item)
        case kinds.Flag():
            return {FieldDescriptor.TYPE_BOOL}
        case kinds.Number():
            return {
                FieldDescriptor.TYPE_INT32 if kind.high < 2**31 else FieldDescriptor.TYPE_UINT32
            }
        case kinds.FileDescriptor() | kinds.Directory():
            return {FieldDescriptor.TYPE_INT32}
        case kinds.Namespaces():
            return {FieldDescriptor.TYPE_UINT32}
        case kinds.Mode():
            return {FieldDescriptor.TYPE_ENUM, FieldDescriptor.TYPE_UINT32}
        case kinds.Text() | kinds.FilePath():
            return {FieldDescriptor.TYPE_BYTES}  # protobuf's name for text
        case kinds.Item():
            return {FieldDescriptor.TYPE_MESSAGE}
    raise AssertionError(f"{kind} is unknown here")


@rows
def test_kinds_fit_the_wire(row: Row, newest_wire_format: WireFormat) -> None:
    """A list is repeated, a flag a bool, text a string; a number is as wide as its bounds."""
    if row.wire is None:
        return
    field = newest_wire_format.fields()[row.wire]
    assert field.is_repeated == isinstance(row.kind, kinds.ListOf)
    narrow = isinstance(row.kind, kinds.Number) and row.kind.low >= 0 and row.kind.high < 2**31
    allowed = _wire_type(row.kind) | ({FieldDescriptor.TYPE_UINT32} if narrow else set())
    assert field.type in allowed


@rows
def test_since_is_the_release_of_the_wire_field(row: Row) -> None:
    """``since`` of each row agrees with the ``rpc.proto`` of each installed release."""
    if row.wire is None:
        return
    for one in found().values():
        known = row.wire in wire_format_of(one).fields()
        assert known == (release(row.since) <= release(one.version)), one.version


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [
        (enums.CgroupMode, "criu_cg_mode", "CG_"),
        (enums.NetworkLock, "criu_network_lock_method", ""),
        (enums.PreDumpMode, "criu_pre_dump_mode", "VM_"),
        (enums.ImageIOMode, "criu_image_io_mode", "IMAGE_IO_"),
    ],
)
def test_enumerations_are_those_of_the_wire(
    ours: type[enums.CgroupMode], theirs: str, prefix: str, newest_wire_format: WireFormat
) -> None:
    """Names and numbers are CRIU's, except for prefixes of C."""
    wire = newest_wire_format.enum(theirs)
    assert {member.name: member.value for member in ours} == {
        name.removeprefix(prefix): number for name, number in wire.items()
    }


def test_members_have_their_release() -> None:
    """A value that the oldest release does not know is listed with the release that does."""
    for one in found().values():
        wire_format = wire_format_of(one)
        known = set(wire_format.enum("criu_network_lock_method").values())
        for member in enums.NetworkLock:
            since = MEMBER_SINCE.get(("network_lock", member), "3.16")
            assert (member in known) == (release(since) <= release(one.version))


def test_every_setter_is_used() -> None:
    """Each setter of the newest libcriu has a row, or is no option."""
    exported = elf.interface(newest().path)
    verbs = {"dump", "pre_dump", "restore", "restore_child", "check", "dump_iters", "get_version",
             "check_version", "feature_check", "init_opts", "free_opts"}  # fmt: skip
    stems = {name.removeprefix("criu_").removeprefix("local_") for name in exported}
    setters = stems - verbs - {"free_service", "notify_pid", "get_orphan_pts_master_fd"}
    assert setters == {row.setter for row in TABLE if row.setter} | set(NOT_OPTIONS)


@rows
def test_setters_have_their_release(row: Row) -> None:
    """``local`` and ``shared`` are right for each installed library."""
    if row.setter is None:
        assert not row.avoid
        return
    for one in found().values():
        exported = elf.interface(one.path)
        for name, since in (("criu_local_", row.local), ("criu_", row.shared)):
            present = name + row.setter in exported
            assert present == (release(since) <= release(one.version)), (one.version, name)


@rows_with_field
def test_every_row_has_a_strategy(row: Row, objects: strategies.OptionObjects) -> None:
    """One strategy for each field, with values that each verb of the row accepts."""
    quick = settings(
        database=None,
        max_examples=50,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    find(strategies.values_of(row), lambda value: True, settings=quick)
    for verb, mask in VERB_MASK.items():
        if row.on & mask:
            opts = strategies.criu_opts(objects, verb, must=row.name)
            try:
                find(opts, lambda o: getattr(o, row.name) not in (None, ()), settings=quick)
            except NoSuchExample:
                pytest.fail(f"no {verb} with {row.name} is ever generated")


def test_every_verb_has_rows() -> None:
    """Every verb with options is in the table."""
    assert all(strategies.rows_for(verb) for verb in (Verb.DUMP, Verb.PRE_DUMP, Verb.RESTORE))
