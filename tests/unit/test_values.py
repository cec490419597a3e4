"""Values of options: every form is normalized to one, and others are refused by name."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from pycriu_native import (
    CgroupMode,
    CgroupRoot,
    CriuOpts,
    ExtMount,
    ImageIOMode,
    InheritFd,
    JoinNamespace,
    NetworkLock,
    OptionError,
    PageServer,
    PreDumpMode,
    VethPair,
)
from pycriu_native.options.table import BY_FIELD
from pycriu_native.options.value_types import FilePath, Flag, ListOf, Mode

from .support.strategies import any_opts

CLONE_NEWNET = 0x40000000
PAGES = PageServer("fd00::2", 27)
PAIR = VethPair("eth0", "veth0")

FORMS: list[tuple[str, object, list[Any]]] = [
    ("manage_cgroups_mode", CgroupMode.SOFT, [CgroupMode.SOFT, "soft", "SOFT", "Soft", 3]),
    ("network_lock", NetworkLock.NFTABLES, ["nftables", "NFTables", 2]),
    ("pre_dump_mode", PreDumpMode.READ, ["read", 2]),
    ("image_io_mode", ImageIOMode.DIRECT, ["direct", 1]),
    ("empty_ns", CLONE_NEWNET, ["net", "NET", CLONE_NEWNET]),
    ("empty_ns", 0, [0]),
    (
        "veth_pairs",
        (PAIR,),
        [
            PAIR,
            "eth0=veth0",
            b"eth0=veth0",
            [PAIR],
            ["eth0=veth0"],
            [("eth0", "veth0")],
            [["eth0", "veth0"]],
            [(b"eth0", b"veth0")],
            {"inside": "eth0", "outside": "veth0"},
            iter([PAIR]),
        ],
    ),
    (
        "page_server",
        PageServer("10.0.0.2", 27),
        ["10.0.0.2:27", ("10.0.0.2", 27), [b"10.0.0.2", 27], {"address": "10.0.0.2", "port": 27}],
    ),
    ("page_server", PAGES, ["[fd00::2]:27", b"[fd00::2]:27", ("fd00::2", 27), PAGES]),
    ("page_server", PageServer("host", 0), ["host:0"]),
    ("page_server", PageServer(fd=7), [{"fd": 7}, (None, None, 7)]),
    (
        "ext_mounts",
        (ExtMount("/data", "data"),),
        ["/data:data", [("/data", "data")], [(Path("/data"), "data")]],
    ),
    (
        "cg_roots",
        (CgroupRoot("/x"), CgroupRoot("/y", "memory")),
        [["/x", "memory:/y"], [("/x",), ("/y", "memory")], [(Path("/x"),), (b"/y", b"memory")]],
    ),
    (
        "join_ns",
        (JoinNamespace("net", "/run/netns/blue"),),
        ["net:/run/netns/blue", [("net", Path("/run/netns/blue"))]],
    ),
    ("join_ns", (JoinNamespace("user", "7", "1,2"),), ["user:7,1,2", [("user", "7", "1,2")]]),
    ("inherit_fds", (InheritFd(7, "pipe:[9]"),), ["fd[7]:pipe:[9]", [(7, "pipe:[9]")]]),
    ("unix_sks", (7,), [7, [7], {7}, range(7, 8)]),
    ("external", ("dev[8/1]:disk",), ["dev[8/1]:disk", b"dev[8/1]:disk", ["dev[8/1]:disk"]]),
    ("skip_mnts", ("/a",), ["/a", Path("/a"), b"/a", [Path("/a")]]),
    ("exec_cmd", ("/bin/x", "", "y"), [["/bin/x", "", "y"], (Path("/bin/x"), b"", "y")]),
    ("parent_image", "\udcff", [b"\xff", "\udcff"]),
    ("images_directory", "x", ["x", b"x", Path("x")]),
    ("images_directory", 7, [7]),
    ("log_file", "a.log", ["a.log", b"a.log"]),
    ("tcp_close", False, [False]),
]


@pytest.mark.parametrize(
    ("field", "one", "form"),
    [(field, one, form) for field, one, forms in FORMS for form in forms],
    ids=lambda value: repr(value)[:60],
)
def test_all_forms_have_one_value(field: str, one: object, form: Any) -> None:
    """All forms have the same value and type."""
    value = getattr(CriuOpts(**{field: form}), field)
    assert value == one
    assert type(value) is type(one)


@pytest.fixture
def owners() -> Iterator[list[Any]]:
    """Objects that own a descriptor."""
    with open(os.devnull, "w") as file, socket.socket() as sock:
        yield [file, sock]


def test_a_descriptor_is_a_number_or_what_owns_it(owners: list[Any]) -> None:
    """The object is kept, so that it stays open; its number is used."""
    for owner in owners:
        opts = CriuOpts(status_fd=owner, inherit_fds=[(owner, "x")], images_directory=owner)
        assert opts.to_dict()["status_fd"] == owner.fileno()
        assert opts.to_dict()["inherit_fds"] == [{"fd": owner.fileno(), "key": "x"}]
        assert opts.to_dict()["images_directory"] == owner.fileno()
        assert PageServer(fd=owner) == PageServer(fd=owner.fileno())
        assert opts.status_fd is owner


REFUSED: list[tuple[str, list[Any]]] = [
    ("leave_running", [1, 0, "true", "yes", []]),
    ("log_level", [-1, 5, "4", 2.0, True]),
    ("ghost_limit", [-1, 2**32, "1M", 1.5, False]),
    ("timeout", [-1, 2**32, "10s"]),
    ("cpu_cap", [-1, 2**32]),
    ("manage_cgroups_mode", ["strickt", 7, -1, "3", True, 3.0, NetworkLock.SKIP, ["soft"]]),
    ("network_lock", [0, 4, CgroupMode.NONE, "none"]),
    ("pre_dump_mode", [0, 3]),
    ("compress", [2, "lz4"]),
    ("compress_acceleration", [0, 65538]),
    ("compress_block_size", [0, 4095, 4097, 4 * 2**20 + 4096]),
    ("decompress_threads", [-1, 1025]),
    ("empty_ns", ["pid", "user", CLONE_NEWNET + 1, 1, -1, True, ["net"]]),
    ("page_server", ["10.0.0.2", ":27", "10.0.0.2:", "10.0.0.2:x", "10.0.0.2:65536",
                     "fd00::2:27", "[fd00::2]", "[10.0.0.2:27", ("10.0.0.2", "27"),
                     ("10.0.0.2", -1), ("10.0.0.2", True), ("[fd00::2]", 27), 27, (1, 2), (),
                     {"host": "x"}, ("a", 1, 2, 3), ("a\0b", 1), "h:" + "9" * 5000]),
    ("veth_pairs", ["eth0", "=veth0", "eth0=", ("eth0", "veth0"), [("eth0",)], [("a", "b", "c")],
                    [(1, 2)], 7, [None]]),
    ("inherit_fds", ["7:key", "fd[x]:key", "fd[7]", "fd[-1]:k", [(-1, "k")], [("7", "k")],
                     [(7, "")], [(True, "k")], [(2**31, "k")]]),
    ("join_ns", ["net", "net:", [("net",)], [("", "/x")]]),
    ("ext_mounts", ["/data", [("/data", "")]]),
    ("cg_roots", ["", "memory:", [()], [("", "memory")]]),
    ("status_fd", [-1, 2**31, "7", True, 1.0]),
    ("images_directory", ["", "a\0b", -1, True, 1.5, []]),
    ("parent_image", ["", b"a\0b", 7, ["x"]]),
    ("log_file", ["", 7]),
    ("external", [7, [7], ["a\0b"], [""], [None]]),
    ("skip_mnts", [[""], 7]),
    ("unix_sks", [[-1], [2**32], ["7"], [True], "7"]),
    ("exec_cmd", ["ls -l", b"ls", [], [""], [1], ["a\0b"], 7]),
    ("cg_props", ["", 7, "a\0"]),
    ("external", ["\ud800"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in REFUSED for value in values],
    ids=lambda value: repr(value)[:60],
)
def test_everything_else_is_refused_by_name(field: str, value: Any) -> None:
    """The error names the field, shows the value and the accepted forms."""
    with pytest.raises(OptionError, match=f"^{field}=.*accepted") as caught:
        CriuOpts(**{field: value})
    assert [problem.field for problem in caught.value.problems] == [field]
    assert isinstance(caught.value, ValueError)


def test_one_error_lists_all_problems() -> None:
    """All problems are listed, each field with its reason and the index of a list's item."""
    with pytest.raises(OptionError) as caught:
        CriuOpts(log_level=9, network_lock="x", external=["dev[1/2]:a", "", "b"], tcp_close=True)
    assert caught.value.options == ("network_lock", "external", "log_level")
    assert "item 1 ('')" in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(opts=any_opts(), other=any_opts())
def test_options_are_values(opts: CriuOpts, other: CriuOpts) -> None:
    """Options are equal if all fields are, hashable, picklable, and the same through a mapping."""
    again = CriuOpts(**{field.name: getattr(opts, field.name) for field in fields(opts)})
    assert again == opts
    assert hash(again) == hash(opts)
    assert pickle.loads(pickle.dumps(opts)) == opts
    assert CriuOpts.from_dict(opts.to_dict()) == opts
    assert CriuOpts.from_dict(json.loads(json.dumps(opts.to_dict()))) == opts
    is_same = opts.to_dict() == other.to_dict()
    # clear_text of a page server is a permission, which is not compared.
    assert (opts == other) == is_same or (opts == other and opts.page_server is not None)
    for row, value in other.items():
        varied = replace(opts, **{row.name: value})
        assert getattr(varied, row.name) == value
        assert replace(varied, **{row.name: getattr(opts, row.name)}) == opts


@settings(max_examples=100, deadline=None)
@given(opts=any_opts())
def test_repr_shows_what_is_set_and_no_more(opts: CriuOpts) -> None:
    """``repr`` has the fields that are set only."""
    shown = ", ".join(f"{row.name}={value!r}" for row, value in opts.items())
    assert repr(opts) == f"CriuOpts({shown})"


def test_options_cannot_be_changed() -> None:
    """A verb on another thread gets the same options."""
    opts = CriuOpts(leave_running=True)
    with pytest.raises(FrozenInstanceError):
        opts.leave_running = False  # type: ignore[misc]


def test_a_mapping_with_unknown_names_is_refused() -> None:
    """An unknown field is an error, not a default."""
    with pytest.raises(OptionError, match="leave_runing=True: is no option"):
        CriuOpts.from_dict({"leave_runing": True, "shell_job": True})


def test_only_for_drops_what_the_verb_would_ignore() -> None:
    """One set of options can be used for dump and restore."""
    both = CriuOpts(images_directory="x", leave_running=True, weak_sysctls=True, tcp_close=True)
    assert both.only_for("dump") == CriuOpts(
        images_directory="x", leave_running=True, tcp_close=True
    )
    assert both.only_for("restore") == CriuOpts(
        images_directory="x", weak_sysctls=True, tcp_close=True
    )


def test_none_is_unset_and_false_is_false() -> None:
    """None and False differ: False is sent."""
    assert CriuOpts(tcp_close=None) == CriuOpts()
    assert CriuOpts(tcp_close=False) != CriuOpts()
    assert CriuOpts(tcp_close=False).to_dict() == {"tcp_close": False}


def test_every_kind_is_tried_here() -> None:
    """Each kind has refused values and other forms in these tests."""
    message = {field for field, _, _ in FORMS} | {field for field, _ in REFUSED}
    kinds = {type(BY_FIELD[name].kind) for name in message}
    items = {type(row.kind.item) for row in BY_FIELD.values() if isinstance(row.kind, ListOf)}
    assert {type(row.kind) for row in BY_FIELD.values()} <= kinds
    assert {Flag, Mode, FilePath} <= kinds
    assert items <= {
        type(row.kind.item)
        for row in BY_FIELD.values()
        if row.name in message and isinstance(row.kind, ListOf)
    }


def test_an_import_loads_the_standard_library_and_the_extension() -> None:
    """Neither protobuf nor cffi is loaded before the first call."""
    code = "import sys, pycriu_native; print([m for m in sys.modules if 'google' in m])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
